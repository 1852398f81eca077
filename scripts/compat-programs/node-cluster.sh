command -v node >/dev/null || exit 127
cat > c.js <<'J'
const cluster = require('cluster'), http = require('http'), net = require('net');
if (cluster.isPrimary) { let n = 0, m = 0; const w = []; for (let k = 0; k < 3; k++) w.push(cluster.fork());
 cluster.on('message', (_, x) => { m += x.s; }); cluster.on('listening', () => { if (++n == 3) go(); });
 async function go() { const a = new http.Agent({keepAlive: true, maxSockets: 6}); let t = 0;
  const get = (i) => new Promise((r) => http.get({port: 18700, host: '127.0.0.1', path: '/' + i, agent: a}, (x) => { let b = ''; x.on('data', (d) => b += d); x.on('end', () => r(b)); }));
  for (let i = 0; i < 150; i++) { const b = await Promise.all([0, 1, 2, 3].map((k) => get(i * 4 + k))); for (const x of b) t = (t * 31 + Number(x)) % 1000003; await new Promise((r) => setTimeout(r, 10)); }
  console.log(t); a.destroy(); setTimeout(() => { console.log(m); for (const x of w) x.kill(); let e = 0; cluster.on('exit', () => { if (++e == 3) process.exit(0); }); }, 300); } }
else http.createServer((q, r) => { let s = 0; for (let i = 0; i < 200000; i++) s = (s * 31 + i * Number(q.url.slice(1))) % 1000003; process.send({s: 1}); r.end(String(s)); }).listen(18700, '127.0.0.1');
J
node c.js; echo $?
