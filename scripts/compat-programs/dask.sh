/usr/bin/python3 -c 'import distributed' 2>/dev/null || exit 127
cat > d.py <<'T'
from distributed import Client, LocalCluster
def f(x):
    s = 0
    for i in range(100000): s = (s * 31 + i * x) % 1000003
    return s
if __name__ == '__main__':
    with LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None, local_directory='w', silence_logs=50) as l, Client(l) as c:
        a = c.map(f, range(150)); b = c.map(lambda x, y: x ^ y, a, a[::-1]); print(sum(c.gather(a)), sum(c.gather(b)))
T
/usr/bin/python3 d.py 2>e; echo $?
