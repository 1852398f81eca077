command -v isql-fb >/dev/null || exit 127
export FIREBIRD_LOCK=$PWD/l FIREBIRD_TMP=$PWD; mkdir -p l
cat > a.sql <<T
create database 'x.fdb' user 'sysdba';
create table t (i integer not null primary key, v integer, s varchar(50));
set term ^;
execute block as declare k int=1; begin while (k<=150000) do begin insert into t values (:k, mod(:k*7919,1000003), 'x'||:k); k=k+1; end end^
set term ;^
commit;
select count(*), sum(v) from t;
update t set v=v+1 where mod(i,7)=0; commit;
select sum(v) from t; select count(*) from t a join t b on a.v=b.i;
T
I=$(command -v isql-fb); $I -q -i a.sql 2>&1 | grep -E '[0-9]'
