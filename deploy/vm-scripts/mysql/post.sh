#!/bin/sh
# After the snapshot: ends the session that holds the lock. It also runs when pre.sh has failed, or was killed. When the lock was not held until now,
# it fails: the snapshot may have been taken without it.
# No retries (postScriptNoOfRetries 0): a second run finds nothing to let go, ends well, and hides that the first one failed.
set -eu
state=/run/vaultferry/mysql-lock
login=/etc/vaultferry/mysql.cnf

if [ ! -e "$state/pid" ]; then
    echo "no lock was asked for"
    exit 0
fi
pid=$(cat "$state/pid")
id=$(sed -n 's/^locked //p' "$state/out" 2>/dev/null | head -n 1)
set --
if [ -f "$login" ]; then set -- "--defaults-extra-file=$login"; fi

# The client goes with its session, so without the client there is none: the number may be another session's by now (the server numbers them anew
# after its start), and must not be killed then.
alive=no
if [ -r "/proc/$pid/comm" ] && grep -q -e mysql -e mariadb "/proc/$pid/comm"; then alive=yes; fi
held=no
echo "its session had ended" >"$state/kill-err"
if [ "$alive" = yes ] && [ -n "$id" ] && mysql "$@" --batch -e "kill $id" 2>"$state/kill-err"; then
    held=yes
fi
# One that still waits for the lock is ended here.
if [ "$alive" = yes ]; then
    kill "$pid" 2>/dev/null || true
fi
rm -f "$state/pid"
if [ -z "$id" ]; then
    echo "the lock was never had, and is not waited for any more"
    exit 0
fi
if [ "$held" = no ]; then
    echo "the lock was lost before the snapshot was over:" >&2
    cat "$state/kill-err" >&2
    exit 1
fi
echo "tables are unlocked"
