// Fetches everything that the Workload API has, with plain gRPC and the
// published definitions: client.js MODULES PROTO ADDRESS ID.
const path = require('path')
const { X509Certificate } = require('crypto')
const [modules, proto, address, want] = process.argv.slice(2)
const grpc = require(path.join(modules, '@grpc/grpc-js'))
const loader = require(path.join(modules, '@grpc/proto-loader'))

const { SpiffeWorkloadAPI } = grpc.loadPackageDefinition(loader.loadSync(proto, { keepCase: true }))
const client = new SpiffeWorkloadAPI(address, grpc.credentials.createInsecure())
const header = new grpc.Metadata()
header.set('workload.spiffe.io', 'true')

const first = stream => new Promise((resolve, reject) => {
  stream.once('data', m => { resolve(m); stream.cancel() })
  stream.on('error', reject)
})
const call = (name, request) => new Promise((resolve, reject) =>
  client[name](request, header, (err, m) => err ? reject(err) : resolve(m)))
const equal = (got, want) => { if (got !== want) throw new Error(`got ${got}, want ${want}`) }

async function main() {
  const { svids } = await first(client.FetchX509SVID({}, header))
  equal(svids[0].spiffe_id, want)
  equal(new X509Certificate(svids[0].x509_svid).subjectAltName, 'URI:' + want)
  const { bundles } = await first(client.FetchX509Bundles({}, header))
  equal(new X509Certificate(bundles['spiffe://shop.example']).ca, true)
  const jwt = await call('FetchJWTSVID', { audience: ['db'] })
  equal(jwt.svids[0].spiffe_id, want)
  const keys = await first(client.FetchJWTBundles({}, header))
  equal(JSON.parse(keys.bundles['spiffe://shop.example']).keys[0].use, 'jwt-svid')
  equal((await call('ValidateJWTSVID', { audience: 'db', svid: jwt.svids[0].svid })).spiffe_id, want)
  const without = await first(client.FetchX509SVID({}, new grpc.Metadata())).catch(err => err)
  equal(without.code, grpc.status.INVALID_ARGUMENT)
  client.close()
  console.log('OK')
}
main().catch(err => { console.error(err); process.exit(1) })
