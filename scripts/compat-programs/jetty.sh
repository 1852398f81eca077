[ -e /usr/share/jetty9/start.jar ] && command -v java >/dev/null || exit 127
mkdir -p b/webapps/x b/tmp; for i in $(seq 40); do seq $i $((i*2000)) > b/webapps/x/f$i; done
cd b; java -jar /usr/share/jetty9/start.jar jetty.home=/usr/share/jetty9 jetty.base=$PWD --add-to-start=http,deploy,resources >../l0 2>&1; java -Xmx160m -Djava.io.tmpdir=$PWD/tmp -jar /usr/share/jetty9/start.jar jetty.home=/usr/share/jetty9 jetty.base=$PWD jetty.http.host=127.0.0.1 jetty.http.port=18081 >../l 2>&1 & J=$!; cd ..
for i in $(seq 150); do curl -sf 127.0.0.1:18081/x/f1 >/dev/null && break; sleep .2; done
c() { for i in $(seq 40); do sleep .03; curl -s --limit-rate 4M 127.0.0.1:18081/x/f$i; done | md5sum; }
c > o1 & A=$!; c > o2 & B=$!; wait $A $B; cat o1 o2; kill $J; wait $J; echo $?
