command -v rsync >/dev/null || exit 127
python3 -c "
import os,random
random.seed(1); os.makedirs('a/x')
for i in range(3000): open(f'a/x/{i}','wb').write(random.randbytes(random.randrange(9000)))
open('a/big','wb').write(random.randbytes(60000000))"
printf "use chroot=no\nport=18640\n[m]\npath=$PWD/a\n" > r.conf; rsync --daemon --no-detach --config=r.conf --port=18640 --address=127.0.0.1 >l 2>&1 & R=$!; sleep .4
rsync -a --bwlimit=30000 rsync://127.0.0.1:18640/m/ b/; echo $?; diff -r a b && echo same; rsync -az a/ c/; diff -r a c && echo same; kill $R; wait $R; echo $?
