[ -x /usr/sbin/slapd ] && command -v ldapadd >/dev/null || exit 127
mkdir d; cat > s.conf <<E
include /etc/ldap/schema/core.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile $PWD/pid
database mdb
suffix "dc=x"
rootdn "cn=a,dc=x"
rootpw p
directory $PWD/d
maxsize 50000000
index uid eq
E
sed -i "/^include/a include /etc/ldap/schema/cosine.schema\ninclude /etc/ldap/schema/inetorgperson.schema" s.conf
/usr/sbin/slapd -f s.conf -h ldap://127.0.0.1:18389 -d 0 >l 2>&1 & S=$!
A="-x -H ldap://127.0.0.1:18389"; W="-D cn=a,dc=x -w p"
for i in $(seq 100); do ldapsearch $A -b '' -s base >/dev/null 2>&1 && break; sleep .1; done
printf 'dn: dc=x\nobjectClass: dcObject\nobjectClass: organization\ndc: x\no: x\n' | ldapadd $A $W | grep -c adding
add() { for i in $(seq 250); do printf 'dn: uid=u%s%d,dc=x\nobjectClass: inetOrgPerson\nuid: u%s%d\ncn: c%d\nsn: s\n\n' $1 $i $1 $i $i; sleep .008; done | ldapadd $A $W | grep -c adding; }
add a > oa & PA=$!; add b > ob & PB=$!; for i in $(seq 20); do ldapsearch $A -b dc=x "(uid=ua$i)" dn >/dev/null; sleep .03; done; wait $PA $PB; cat oa ob
ldapsearch $A -LLL -b dc=x '(uid=*)' uid cn 2>&1 | grep ^uid | sort | md5sum
kill $S; wait $S; echo $?
