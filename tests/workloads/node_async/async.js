// Timers, promises, the thread pool (scrypt, zlib) and hashes. Usage: node async.js ROUNDS OUTPUT
'use strict';
const crypto = require('node:crypto');
const fs = require('node:fs/promises');
const util = require('node:util');
const zlib = require('node:zlib');

const scrypt = util.promisify(crypto.scrypt);
const deflate = util.promisify(zlib.deflate);
const inflate = util.promisify(zlib.inflate);
const tick = () => new Promise((resolve) => setTimeout(resolve, 1));

async function main() {
  const rounds = Number(process.argv[2]);
  const out = await fs.open(process.argv[3], 'w');
  const table = new Map();
  let seed = 1;
  for (let round = 1; round <= rounds; round++) {
    for (let i = 0; i < 60000; i++) {
      seed = (Math.imul(seed, 1103515245) + 12345) & 0x7fffffff;
      table.set(seed % 4001, (table.get(seed % 4001) || 0) + (seed % 17));
    }
    const text = JSON.stringify([...table].sort((a, b) => a[0] - b[0]));
    const [key, packed] = await Promise.all([
      scrypt(String(seed), 'salt', 16, { N: 1024 }),
      deflate(text),
      tick(),
    ]);
    const back = await inflate(packed);
    const digest = crypto.createHash('sha256').update(back).update(key).digest('hex');
    await out.write(`${round} ${seed} ${digest}\n`);
  }
  await out.close();
}

main();
