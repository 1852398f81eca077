command -v nbd-server >/dev/null && command -v qemu-io >/dev/null || exit 127
truncate -s 30M d; printf "[generic]\n listenaddr = 127.0.0.1\n port = 18809\n allowlist = true\n[x]\n exportname = $PWD/d\n fua = true\n flush = true\n" > n.conf
nbd-server -C $PWD/n.conf -d >l 2>&1 & N=$!; sleep .5
for i in $(seq 30); do printf "write -P $i $((i*1000000)) 700000\nread -P $i $((i*1000000)) 700000\n"; sleep .08; done | qemu-io -f raw nbd:127.0.0.1:18809:exportname=x 2>&1 | grep -cE '(wrote|read) 700000/700000'; md5sum d; wait $N; echo $?
