// Calls of gRPC-Web by two clients, each of which prints what it saw: the gRPC
// project's own, as a browser runs it, and Connect's. Arguments: the directory
// of the packages, the gateway's URL, and a file with a FileDescriptorSet.
const [packages, url, contract] = process.argv.slice(2);
const load = (name) => require(require.resolve(name, {paths: [packages]}));
global.XMLHttpRequest = load("xhr2");
const web = load("grpc-web");
const say = (...words) => console.log(words.join(" "));
const text = new TextDecoder(), bytes = new TextEncoder();

function method(name, type) {
  class Message {}
  return new web.MethodDescriptor("/pay.Pay/" + name, type, Message, Message, (m) => bytes.encode(m.text), (b) => text.decode(b));
}

async function project() {
  for (const format of ["text", "binary"]) {
    const client = new web.GrpcWebClientBase({format});
    for (const [name, ask] of [["Charge", "10"], ["Charge", "y".repeat(30000)], ["Charge", "declined"], ["Refund", "10"]]) {
      await new Promise((done) => client.rpcCall(url + "/pay.Pay/" + name, {text: ask}, {}, method(name, "unary"), (err, answer) => {
        say("grpc-web", format, name, ask.slice(0, 8), err ? "failed " + err.code + " " + err.message.split(" ")[0] : answer.startsWith(ask + " application/grpc") ? "answered" : answer);
        done();
      }));
    }
    if (format === "binary") continue; // which that client cannot stream
    await new Promise((done) => { // the XMLHttpRequest of Node.js gives a text when it is whole
      const stream = client.serverStreaming(url + "/pay.Pay/Talk", {text: "hello"}, {}, method("Talk", "server_streaming"));
      stream.on("data", (m) => say("grpc-web", format, "Talk", m));
      stream.on("error", (err) => { say("grpc-web", format, "Talk failed", err.code, err.message); done(); });
      stream.on("end", done);
    });
  }
}

async function connect() {
  const {createClient} = load("@connectrpc/connect"), {createGrpcWebTransport} = load("@connectrpc/connect-node");
  const {createFileRegistry, fromBinary} = load("@bufbuild/protobuf"), {FileDescriptorSetSchema} = load("@bufbuild/protobuf/wkt");
  const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, require("fs").readFileSync(contract)));
  for (const httpVersion of ["1.1", "2"]) {
    const client = createClient(registry.getService("pay.Pay"), createGrpcWebTransport({baseUrl: url, httpVersion}));
    const attempt = async (name, call) => {
      try { say("connect", httpVersion, name, await call()); }
      catch (err) { say("connect", httpVersion, name, "failed", err.code, (err.rawMessage || err.message).split(" ")[0]); }
    };
    await attempt("charge", async () => (await client.charge({}, {timeoutMs: 10000})).$typeName);
    await attempt("refund", () => client.refund({}));
    const stop = new AbortController();
    await attempt("watch", async () => {
      for await (const m of client.watch({}, {signal: stop.signal})) { stop.abort(); return m.$typeName; }
    });
  }
}

project().then(connect).then(() => process.exit(0), (err) => { console.error(err); process.exit(1); });
