#!/bin/sh
# Transactions into a database with a write-ahead log. Usage: wal.sh ROUNDS DATABASE OUTPUT
set -eu
rounds=$1
{
    echo 'PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;'
    echo 'CREATE TABLE t (k INTEGER PRIMARY KEY, v TEXT); CREATE INDEX t_v ON t (v);'
    round=0
    while [ "$round" -lt "$rounds" ]; do
        round=$((round + 1))
        cat <<SQL
BEGIN;
WITH RECURSIVE n(i, s) AS (
  SELECT 1, $round
  UNION ALL
  SELECT i + 1, (s * 1103515245 + 12345) % 2147483648 FROM n WHERE i < 2500)
INSERT INTO t (v) SELECT printf('%08x-%d', s, i) FROM n;
DELETE FROM t WHERE k % 7 = $round % 7 AND k > $round * 1800;
COMMIT;
SELECT $round, count(*), max(v), sum(length(v)) FROM t WHERE k > 0;
SQL
    done
    echo 'PRAGMA integrity_check;'
} >wal.sql
exec sqlite3 -batch "$2" <wal.sql >"$3"
