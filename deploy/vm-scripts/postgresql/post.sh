#!/bin/sh
# After the snapshot: nothing was held, so there is nothing to let go. That the server answers again is worth knowing.
set -eu
user=${1:-postgres}
port=${2:-}
runuser -u "$user" -- psql -XAtq -v ON_ERROR_STOP=1 ${port:+-p "$port"} -d postgres -c 'select 1' >/dev/null
