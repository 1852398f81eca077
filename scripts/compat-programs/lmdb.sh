/usr/bin/python3 -c 'import lmdb' 2>/dev/null || exit 127
cat > c.py <<'T'
import lmdb, multiprocessing as m
at = lambda: lmdb.open('d', map_size=1 << 30, max_readers=20)
def write(k):
    e = at()
    for j in range(60):
        with e.begin(write=True) as t:
            for i in range(100): t.put(b'%d-%d-%d' % (k, j, i), b'x' * (i * 7 % 300))
def read(k):
    e, parts = at(), 0
    for j in range(60):
        with e.begin() as t: parts |= sum(1 for _ in t.cursor()) % 100
    return parts
if __name__ == '__main__':
    at().close()
    with m.get_context('spawn').Pool(5) as p: w = p.map_async(write, range(3)); print(p.map(read, range(2))); w.get()
    e = at(); print(e.stat()['entries'], sum(len(v) for _, v in e.begin().cursor()))
T
/usr/bin/python3 c.py
