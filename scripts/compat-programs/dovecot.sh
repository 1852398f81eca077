[ -x /usr/sbin/dovecot ] && [ $(id -u) = 0 ] || exit 127
mkdir -p run mail; chmod 755 .. . ; chown nobody mail; cat > d.conf <<T
base_dir=$PWD/run
state_dir=$PWD/run
log_path=$PWD/log
protocols=imap
listen=127.0.0.1
ssl=no
disable_plaintext_auth=no
mail_location=maildir:$PWD/mail
default_internal_user=dovecot
default_login_user=dovenull
service imap-login {
 inet_listener imap {
  port=18143
 }
 inet_listener imaps {
  port=0
 }
}
passdb {
 driver=static
 args=nopassword=y
}
userdb {
 driver=static
 args=uid=nobody gid=nogroup home=$PWD/mail
}
T
dovecot -F -c d.conf >l 2>&1 & D=$!
cat > c.py <<T
import imaplib,time,hashlib
for i in range(100):
    try: m=imaplib.IMAP4('127.0.0.1',18143); break
    except OSError: time.sleep(.1)
m.login('u','x'); m.select()
for k in range(60): m.append('INBOX',None,None,(b'Subject: %d\r\n\r\n'%k)+b'x%d\r\n'%k*2000); time.sleep(.05)
m.select(); h=hashlib.md5(); t,d=m.search(None,'ALL'); n=d[0].split()
for i in n: h.update(m.fetch(i,'(BODY[])')[1][0][1])
print(len(n),h.hexdigest()); m.logout()
T
/usr/bin/python3 c.py; kill $D; wait $D; echo $?
