// A WebSocket client made with npm's ws: client.js PORT HOST [CA-FILE].
const fs = require('fs');
const WebSocket = require('ws');
const [port, host, ca] = process.argv.slice(2);
const socket = new WebSocket(`${ca ? 'wss' : 'ws'}://127.0.0.1:${port}/rooms/1`, ['chat'], {
  headers: { Host: host }, perMessageDeflate: true,
  ...(ca && { ca: fs.readFileSync(ca), servername: host }),
});
const large = Buffer.alloc(300000, 'merlon');
const steps = [];
socket.on('open', () => { steps.push(socket.protocol); socket.send('hello'); });
socket.on('message', (data, binary) => {
  if (!binary) { steps.push(data.toString()); socket.send(large); return; }
  steps.push(data.equals(large));
  socket.ping('are you there');
});
socket.on('pong', (data) => { steps.push(data.toString()); socket.close(1000, 'done'); });
socket.on('close', (code) => { steps.push(code); console.log(steps.join(' ')); });
socket.on('error', (e) => { console.log(String(e)); process.exit(1); });
