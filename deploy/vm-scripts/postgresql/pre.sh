#!/bin/sh
# Before the snapshot of a machine with PostgreSQL 15 or later: a checkpoint, so that the restored server is ready soon.
#
# No pg_backup_start: it belongs to a copy that is made over time, file by file. It needs one session that stays open until pg_backup_stop, whose
# answer (the backup_label) has to be put beside the copied files, and a snapshot cannot be added to. A snapshot of one instant, of all disks
# that hold data, WAL and tablespaces, is what the server finds after a power cut, and it recovers from that to the last commit. The freeze
# and the snapshot give that instant; a checkpoint right before leaves little to recover.
#
# Parameters: the system user that owns the server (default postgres), and its port (default: psql's).
set -eu
user=${1:-postgres}
port=${2:-}

ask() {
    runuser -u "$user" -- psql -XAtq -v ON_ERROR_STOP=1 ${port:+-p "$port"} -d postgres -c "$1"
}

version=$(ask 'show server_version_num')
if [ "$version" -lt 150000 ]; then
    echo "this server is older than 15 ($version): try the script before you trust it" >&2
    exit 1
fi
# A standby makes a restart point instead, which is as good.
ask 'checkpoint'
echo "checkpoint done, server $version"
