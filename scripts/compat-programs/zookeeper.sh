[ -e /usr/share/java/zookeeper.jar ] && command -v java >/dev/null || exit 127
printf 'tickTime=2000\ndataDir=%s/d\nclientPort=18881\nclientPortAddress=127.0.0.1\nadmin.enableServer=false\n' $PWD > z.cfg; J=/usr/share/java; CP=$J/zookeeper.jar:$(ls /usr/share/java/*.jar | grep -E 'zookeeper|slf4j|log4j|netty|jline|commons-cli|jute|reload4j|metrics|snappy|logback' | tr '\n' ':')
java -cp $CP -Xmx200m org.apache.zookeeper.server.quorum.QuorumPeerMain z.cfg >l 2>&1 & Z=$!
for i in $(seq 80); do (exec 3<>/dev/tcp/127.0.0.1/18881) 2>/dev/null && break; sleep .2; done
(for i in $(seq 120); do echo "create /k$i v$i"; sleep .03; done; for i in $(seq 120); do echo "get /k$i"; done; echo "ls /"; echo quit) | java -cp $CP org.apache.zookeeper.ZooKeeperMain -server 127.0.0.1:18881 2>/dev/null | grep -E '^v[0-9]|^\[k' | md5sum; kill $Z; wait $Z; echo $?
