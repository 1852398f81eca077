[ -x /usr/sbin/postfix ] && [ $(id -u) = 0 ] || exit 127
chmod 755 . ..; mkdir -p q d conf; cp /etc/postfix/postfix-files /usr/share/postfix/master.cf.dist conf/ 2>/dev/null; cp /usr/share/postfix/master.cf.dist conf/master.cf; sed -i 's/^smtp  *inet/18025 inet/' conf/master.cf; chown postfix d
cat > conf/main.cf <<T
compatibility_level=3.6
queue_directory=$PWD/q
data_directory=$PWD/d
maillog_file=/var/log/x.log
maillog_file_prefixes=/var
inet_interfaces=127.0.0.1
inet_protocols=ipv4
mydestination=localhost
myhostname=localhost
home_mailbox=mbox
alias_maps=
local_recipient_maps=
mailbox_command=cat >> $PWD/got
allow_mail_to_commands=alias,forward,include
T
touch got; chmod 666 got; postfix -c $PWD/conf start-fg >l 2>&1 & P=$!
cat > c.py <<T
import smtplib,time
for i in range(150):
    try: s=smtplib.SMTP('127.0.0.1',18025); break
    except OSError: time.sleep(.1)
for k in range(40): s.sendmail('a@localhost','nobody@localhost',f'Subject: {k}\n\nbody {k}\n'*3); time.sleep(.06)
s.quit()
T
/usr/bin/python3 c.py; for i in $(seq 80); do [ $(grep -c '^body' got) -ge 120 ] && break; sleep .1; done; grep '^body' got | sort | md5sum; postfix -c $PWD/conf stop >/dev/null 2>&1; wait $P; echo end
