B=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | tail -1); [ -n "$B" ] || exit 127
if [ $(id -u) = 0 ]; then chmod 711 .. ; chown -R daemon .; exec setpriv --reuid daemon --regid daemon --clear-groups bash $0; fi
export PGHOST=$PWD PGPORT=15432
$B/initdb -D d -U a -A trust >/dev/null 2>&1; echo $?
$B/postgres -D d -k $PWD -h 127.0.0.1 -c shared_buffers=64MB -c autovacuum_naptime=1s > l 2>&1 & P=$!
for i in $(seq 300); do $B/psql -U a postgres -c 'select 1' >/dev/null 2>&1 && break; sleep .1; done
$B/pgbench -U a -i -s 1 -q postgres >/dev/null 2>&1; echo $?
$B/pgbench -h 127.0.0.1 -U a -c 6 -j 2 -t 200 postgres 2>/dev/null | grep -E "processed|failed"
$B/psql -U a postgres -Atc 'select count(*) from pgbench_history; select (select sum(abalance) from pgbench_accounts)=(select sum(delta) from pgbench_history)'
kill -INT $P; wait $P; echo $?
