command -v etcd >/dev/null || exit 127
etcd --data-dir d --listen-client-urls http://127.0.0.1:12379 --advertise-client-urls http://127.0.0.1:12379 --listen-peer-urls http://127.0.0.1:12380 --initial-advertise-peer-urls http://127.0.0.1:12380 --initial-cluster default=http://127.0.0.1:12380 > l 2>&1 & E=$!
for i in $(seq 100); do curl -sf http://127.0.0.1:12379/health >/dev/null && break; sleep .1; done
cat > c.py <<'T'
import http.client,json,base64
c=http.client.HTTPConnection('127.0.0.1',12379); b=lambda s:base64.b64encode(s.encode()).decode(); t=0
for i in range(5000):
    c.request('POST','/v3/kv/put',json.dumps({'key':b('k%d'%i),'value':b(str(i))})); assert c.getresponse().read()
    c.request('POST','/v3/kv/range',json.dumps({'key':b('k%d'%(i//2))})); t=(t*31+int(base64.b64decode(json.loads(c.getresponse().read())['kvs'][0]['value'])))%1000003
print(t)
T
/usr/bin/python3 c.py; kill $E; wait $E; echo end
