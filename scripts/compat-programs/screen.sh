command -v screen >/dev/null || exit 127
command -v vim >/dev/null || exit 127
mkdir -m 700 s; export SCREENDIR=$PWD/s TERM=xterm SHELL=/bin/sh
/usr/bin/python3 - <<'T'
import pty, os, time, select
p, f = pty.fork()
if p == 0: os.execvp('screen', ['screen', '-c', '/dev/null', '-S', 'j', 'sh', '-c', 'for i in $(seq 1 30); do echo $i | tee -a out; sleep 0.1; done; vim -u NONE -N out -c "normal Gofirst" -c "sleep 2" -c "wq"'])
while True:
    try:
        if not os.read(f, 4096): break
    except OSError: break
print(os.waitpid(p, 0)[1])
T
cat out
