// A WebSocket over HTTP/2 as a browser opens it (RFC 8441), made by hand with
// Node's http2: client2.js PORT HOST CA-FILE.
const fs = require('fs');
const http2 = require('http2');
const [port, host, ca] = process.argv.slice(2);
const session = http2.connect(`https://127.0.0.1:${port}`, { ca: fs.readFileSync(ca), servername: host });
session.on('error', (e) => { console.log(String(e)); process.exit(1); });
// frame is a masked frame of up to 125 bytes (RFC 6455 5.2).
function frame(opcode, text) {
  const mask = Buffer.from([1, 2, 3, 4]);
  const data = Buffer.from(text).map((b, i) => b ^ mask[i % 4]);
  return Buffer.concat([Buffer.from([0x80 | opcode, 0x80 | data.length]), mask, data]);
}
session.once('remoteSettings', (settings) => {
  const steps = [settings.enableConnectProtocol];
  const stream = session.request({
    ':method': 'CONNECT', ':protocol': 'websocket', ':scheme': 'https', ':authority': host, ':path': '/rooms/1',
    'sec-websocket-version': '13', 'sec-websocket-protocol': 'chat', origin: `https://${host}`,
  });
  stream.on('error', (e) => steps.push(e.code));
  stream.on('response', (h) => { steps.push(h[':status'], h['sec-websocket-protocol']); stream.write(frame(1, 'hello')); });
  let got = Buffer.alloc(0);
  stream.on('data', (data) => {
    got = Buffer.concat([got, data]);
    while (got.length >= 2 && got.length >= 2 + (got[1] & 0x7f)) {
      const payload = got.subarray(2, 2 + got[1]);
      if ((got[0] & 0xf) === 8) { steps.push(payload.readUInt16BE()); stream.end(); } else { steps.push(payload.toString()); stream.write(frame(8, Buffer.from([3, 232]))); }
      got = got.subarray(2 + payload.length);
    }
  });
  stream.on('close', () => { console.log(steps.join(' ')); session.close(); });
});
