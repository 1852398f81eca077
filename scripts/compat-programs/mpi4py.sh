/usr/bin/python3 -c 'import mpi4py, numpy' 2>/dev/null || exit 127
cat > h.py <<'T'
from mpi4py import MPI
import numpy as np
c = MPI.COMM_WORLD; r, n = c.rank, c.size; u = np.sin(np.arange(20000) + r)
for k in range(3000):
    a, b = np.empty(1), np.empty(1)
    c.Sendrecv(u[-1:], (r + 1) % n, recvbuf=a, source=(r - 1) % n); c.Sendrecv(u[:1], (r - 1) % n, recvbuf=b, source=(r + 1) % n)
    v = np.concatenate([a, u, b]); u = v[1:-1] + .2 * (v[:-2] - 2 * v[1:-1] + v[2:])
    if k % 300 == 0:
        s = c.allreduce(float(u.sum())); x = c.gather(float(u[0]), 0)
        if r == 0: print(k, repr(s), x, flush=True)
T
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
mpirun --oversubscribe -n 3 --mca btl self,vader /usr/bin/python3 h.py 2>e; echo $?
