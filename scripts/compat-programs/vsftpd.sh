[ -x /usr/sbin/vsftpd ] && [ $(id -u) = 0 ] || exit 127
mkdir -p r/pub r/empty; chmod 755 . .. r r/pub r/empty; head -c 8000000 /dev/zero | tr '\0' v > r/pub/f
cat > v.conf <<T
listen=YES
listen_port=18921
listen_address=127.0.0.1
background=NO
anonymous_enable=YES
anon_root=$PWD/r
local_enable=NO
secure_chroot_dir=$PWD/r/empty
ftp_username=nobody
nopriv_user=nobody
pasv_min_port=18930
pasv_max_port=18990
anon_max_rate=4000000
vsftpd_log_file=$PWD/log
xferlog_enable=NO
pam_service_name=x
T
vsftpd $PWD/v.conf >l 2>&1 & F=$!; sleep .5; for k in 1 2 3; do curl -s ftp://127.0.0.1:18921/pub/f | md5sum & curl -s --limit-rate 3M ftp://127.0.0.1:18921/pub/f | md5sum; wait %2 2>/dev/null; wait $!; done; kill $F; wait $F; echo $?
