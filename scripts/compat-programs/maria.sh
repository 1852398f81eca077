command -v mariadbd >/dev/null || exit 127
U=; [ $(id -u) = 0 ] && U=--user=root
mariadb-install-db $U --no-defaults --datadir=$PWD/d --auth-root-authentication-method=normal >/dev/null 2>&1; echo $?
mariadbd --no-defaults $U --datadir=$PWD/d --socket=$PWD/s --port=13306 --bind-address=127.0.0.1 --pid-file=$PWD/p > l 2>&1 & M=$!
for i in $(seq 200); do mysql --no-defaults -uroot -S $PWD/s -e 'select 1' >/dev/null 2>&1 && break; sleep .1; done
q() { mysql --no-defaults -uroot -S $PWD/s -N test -e "$1"; }
mysql --no-defaults -uroot -S $PWD/s -e 'create database if not exists test'
q 'create table t(i int primary key auto_increment, v bigint) engine=innodb; create table m(i int, s varchar(20)) engine=aria'
for k in 1 2 3; do (for i in $(seq 30); do q "insert into t(v) select $i*$k; insert into m values($i,'$k')"; done) & done; wait %2 %3 %4
q 'select count(*),sum(v) from t; select count(*) from m'
q "insert into t(v) select a.v*b.v from t a join t b; select count(*),sum(v) from t; select sum(v) from (select a.v from t a join m b on a.v%60=b.i order by a.v) x"
kill $M; wait $M; echo $?
