command -v /usr/sbin/sshd >/dev/null || exit 127
ssh-keygen -q -t ed25519 -N '' -f hk; ssh-keygen -q -t ed25519 -N '' -f uk; cp uk.pub ak; chmod 600 ak
printf "Port 18022\nListenAddress 127.0.0.1\nHostKey $PWD/hk\nPidFile $PWD/p\nAuthorizedKeysFile $PWD/ak\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nSubsystem sftp internal-sftp\n" > c
[ $(id -u) = 0 ] && mkdir -p /run/sshd
/usr/sbin/sshd -D -e -f $PWD/c > l 2>&1 & S=$!; sleep 1
O="-q -p 18022 -i uk -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o BatchMode=yes"
ssh $O 127.0.0.1 'for i in $(seq 12); do echo $i; sleep .3; done' | cat; echo ${PIPESTATUS[0]}
kill $S; wait $S; echo $?
