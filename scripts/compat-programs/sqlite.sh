command -v sqlite3 >/dev/null || exit 127
sqlite3 d 'pragma journal_mode=wal; create table t(k,i,v)'
for k in 1 2 3; do (for j in $(seq 60); do sqlite3 -cmd '.timeout 20000' d "begin immediate; insert into t select $k, value, value*$k from (with recursive c(value) as (select 1 union all select value+1 from c where value<200) select * from c); commit"; done) & done
(for j in $(seq 30); do sqlite3 -cmd '.timeout 20000' d 'select count(*)%200 from t' ; sleep .05; done | sort -u) & wait
sqlite3 d 'select count(*),sum(v) from t; pragma integrity_check'
