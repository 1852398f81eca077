command -v /usr/sbin/smbd >/dev/null && command -v smbclient >/dev/null || exit 127
export R=$PWD; mkdir s p c l sh; chmod 777 sh; chmod 755 . ..; head -c 30000000 /dev/zero | tr '\0' q > big; cat > smb.conf <<T
[global]
 workgroup=W
 server role=standalone
 private dir=$R/p
 lock directory=$R/l
 state directory=$R/s
 cache directory=$R/c
 pid directory=$R
 ncalrpc dir=$R/n
 log file=$R/log
 map to guest=bad user
 guest account=$(id -un)
 smb ports=18445
 bind interfaces only=yes
 interfaces=lo
 disable spoolss=yes
 load printers=no
 usershare max shares=0
[sh]
 path=$R/sh
 guest ok=yes
 read only=no
T
set -m; /usr/sbin/smbd -F --no-process-group -s $R/smb.conf -d 0 >lo 2>&1 & S=$!
for i in $(seq 100); do smbclient -s smb.conf -N -p 18445 //127.0.0.1/sh -c ls >/dev/null 2>&1 && break; sleep .1; done
for k in 1 2 3 4 5 6 7 8; do smbclient -s smb.conf -N -p 18445 //127.0.0.1/sh -c "put big f$k; get f$k g$k" >/dev/null 2>&1; echo $?; cmp big g$k && rm g$k; sleep .2; done; kill $S; wait $S; echo end
