#!/bin/sh
# Before the snapshot of a machine with MySQL or MariaDB: FLUSH TABLES WITH READ LOCK, held by a session in the background until post.sh
# ends it. InnoDB alone would recover without it; with it tables of every engine, and the position of the binary log, are of one instant.
#
# The lock cannot outlive a backup that is lost: the session sleeps for HOLD seconds and ends by itself.
# "local" keeps "flush engine logs" out of the binary log: on a replica it would be a transaction that the source has not.
# While FLUSH waits for a long query, every other query waits behind it: so it waits for WAIT seconds only, and then the script fails.
#
# Parameters: WAIT (default 10) and HOLD (default 300), in seconds.
# The login is the system's root by its socket, or what /etc/vaultferry/mysql.cnf says ([client] user, password; root's, chmod 600). It needs the
# right RELOAD and no other.
set -eu
umask 077
wait=${1:-10}
hold=${2:-300}
state=/run/vaultferry/mysql-lock
login=/etc/vaultferry/mysql.cnf

mkdir -p "$state"
if [ -e "$state/pid" ]; then
    # A backup before this one was lost.
    "${VAULTFERRY_SCRIPT_DIR:-$(dirname "$0")}/post.sh" || true
fi
rm -f "$state/out" "$state/err"
set --
if [ -f "$login" ]; then set -- "--defaults-extra-file=$login"; fi

# A session and outputs of its own: it has to outlive this script, and the script's end must not wait for it.
setsid mysql "$@" --batch --skip-column-names --unbuffered >"$state/out" 2>"$state/err" <<SQL &
set session lock_wait_timeout = $wait;
flush tables with read lock;
flush local engine logs;
select concat('locked ', connection_id());
select sleep($hold);
unlock tables;
SQL
echo $! >"$state/pid"

tries=$(( (wait + 5) * 10 ))
while [ "$tries" -gt 0 ]; do
    if grep -q '^locked ' "$state/out"; then
        echo "tables are locked"
        exit 0
    fi
    if ! kill -0 "$(cat "$state/pid")" 2>/dev/null; then break; fi
    sleep 0.1
    tries=$((tries - 1))
done
echo "the tables could not be locked:" >&2
cat "$state/err" >&2
exit 1
