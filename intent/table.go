package intent

import (
	"strings"
)

// language is the table of the language: every key with its kind, default,
// meaning and an example. The parser's checks, the JSON Schema and the
// reference in docs/intent.md are all made from it, so they cannot disagree.
func language() *shape {
	limit := limitShape()
	operations := &shape{
		dict:  &shape{text: &text{what: "METHOD /path", check: shortText}},
		names: &text{what: "operation names", pattern: `^[A-Za-z_][A-Za-z0-9_.\-]*$`, code: codeName, check: operationName},
	}
	callers := callersShape(limit)
	return &shape{object: []key{
		{name: "trustDomain", required: true,
			doc:     "The name of the estate in every identity: service `orders` is `spiffe://TRUSTDOMAIN/orders`. Stands in `merlon.yaml` only.",
			shape:   &shape{text: &text{what: "a trust domain", check: trustDomain, code: codeTrustDomain, pattern: `^[a-z0-9._\-]{1,255}$`}},
			example: "trustDomain: shop.example\n"},
		{name: "mode", shape: modeShape(), def: "enforce",
			doc:     "`shadow` records what would be denied and lets it pass, in the whole estate. Guardrails are enforced nevertheless, and so is that a caller proves who it is. Stands in `merlon.yaml` only.",
			example: "trustDomain: shop.example\nmode: shadow\n"},
		{name: "gateway", shape: gatewayShape(limit),
			doc:     "The edge, where calls from outside come in. Without it nothing is reachable from outside. Stands in `merlon.yaml` only.",
			example: "trustDomain: shop.example\ngateway:\n  hosts: [shop.example]\n"},
		{name: "services", shape: &shape{dict: &shape{object: serviceKeys(operations, callers)}, names: nameText("service"), empty: true},
			doc:     "What calls and is called, by name. A service has one definition, in one file, so that its owner sees every rule about it.",
			example: "trustDomain: shop.example\nservices:\n  web: {address: 10.0.1.5:8080}\n  orders:\n    operations: {getOrder: \"GET /orders/{id}\"}\n    callers: {web: [getOrder]}\n"},
		{name: "external", shape: &shape{dict: &shape{object: externalKeys(operations, callers)}, names: nameText("external service"), empty: true},
			doc:     "Services that are not ours, reached over public TLS or, in another trust domain, by their SPIFFE ID. They cannot call.",
			example: inExternal("")},
		{name: "nodes", shape: &shape{dict: &shape{object: nodeKeys()}, names: nameText("node"), empty: true},
			doc: "Other hosts on which services run, by name, and how each proves which node it is: by exactly one of the keys below. Its agent, `merlon agent`, gives the services that name it (`services.NAME.nodes`) their identities, and no others. " +
				"Several hosts may be one node. Stands in `merlon.yaml` only.",
			example: inNode("joinToken: true")},
		{name: "guardrails", shape: &shape{list: &shape{object: guardrailKeys()}, empty: true},
			doc:     "Denials that the owner of a service cannot lift. They go before every rule, also in shadow mode.",
			example: inGuardrail("")},
		{name: "federation", shape: &shape{dict: &shape{object: federationKeys()}, empty: true,
			names: &text{what: "trust domains", check: trustDomain, code: codeTrustDomain, pattern: `^[a-z0-9._\-]{1,255}$`}},
			doc: "Other trust domains whose workloads may be callers, by name. Their bundles are fetched and refreshed; each verifies the workloads of its own trust domain and of no other. " +
				"A workload is named as a caller by trust domain and path: `partner.example/billing` is `spiffe://partner.example/billing`. Stands in `merlon.yaml` only.",
			example: inFederation("")},
		{name: "telemetry", shape: telemetryShape(),
			doc:     "What gates tell unasked about the calls that pass them; metrics are there to be asked for, whatever stands here. Stands in `merlon.yaml` only.",
			example: inTraces("")},
		{name: "tests", shape: &shape{list: &shape{object: testKeys()}, empty: true},
			doc:     "What must be true of the whole: `check`, `plan` and `apply` fail when a test does.",
			example: inTest("expect: allow")},
	}}
}

func nameText(of string) *text {
	return &text{what: of + " names", check: nameOf, code: codeName, pattern: `^[a-z]([a-z0-9\-]{0,61}[a-z0-9])?$`}
}

func modeShape() *shape {
	return &shape{text: &text{what: "enforce or shadow", enum: []string{"enforce", "shadow"}}}
}

func hostShape(what string, check func(string) *problem) *shape {
	t := &text{what: what, check: check, code: codeHost, pattern: `^(\[[0-9a-f:.]+\]|[a-z0-9\-.]+)$`}
	return &shape{list: &shape{text: t}}
}

func argv() *shape {
	return &shape{list: &shape{text: &text{what: "an argument", check: shortText, number: true}}}
}

func limitShape() *shape {
	rate := &text{what: "a rate such as 100/s", pattern: `^[0-9]+/[smh]$`, check: func(s string) *problem {
		_, _, p := parseRate(s)
		return p
	}}
	return &shape{text: rate, object: []key{
		{name: "rate", required: true, shape: &shape{text: rate},
			doc:     "How many in a second, a minute or an hour.",
			example: inGateway("limit: {rate: 6000/m}")},
		{name: "burst", def: "the count of `rate`",
			doc: "How many at once, before `rate` holds.",
			shape: &shape{text: &text{what: "a whole number", integer: true, pattern: `^[1-9][0-9]*$`, check: func(s string) *problem {
				_, p := parseCount(s)
				return p
			}}},
			example: inGateway("limit: {rate: 100/s, burst: 200}")},
		{name: "per", def: "`client` for the gateway and for `anyone`, `caller` for a service or a login",
			doc:     "What is counted: each client address, or each proved caller (a service, or a login and its subject).",
			shape:   &shape{text: &text{what: "client or caller", enum: []string{"client", "caller"}}},
			example: inGateway("limit: {rate: 100/s, per: client}")},
	}}
}

func gatewayShape(limit *shape) *shape {
	return &shape{object: []key{
		{name: "listen", def: ":8443",
			doc:     "Where the gateway listens: `:PORT`, or `ADDRESS:PORT` for one address only.",
			shape:   &shape{text: &text{what: "an address to listen on, such as :8443", check: listen, code: codeAddress}},
			example: inGateway("listen: 127.0.0.1:8443")},
		{name: "hosts", required: true, shape: hostShape("host names", host),
			doc:     "The host names that are answered. A call for any other host is refused. Written as clients send them: lower case, no port, no wildcard.",
			example: "trustDomain: shop.example\ngateway:\n  hosts: [shop.example, api.shop.example]\n"},
		{name: "certificate", def: "self-signed",
			doc: "How the gateway proves its hosts: `self-signed` (made at the first start, for a first look), PEM files on the gateway's machine, or `none` (plain HTTP: TLS ends in front of the gateway). The files are not part of the intent.",
			shape: &shape{text: &text{what: "self-signed, none or {cert, key}", enum: []string{"self-signed", "none"}}, object: []key{
				{name: "cert", required: true, doc: "File of the certificate chain, leaf first.",
					shape:   &shape{text: &text{what: "a file", check: shortText}},
					example: inGateway("certificate: {cert: /etc/merlon/shop.pem, key: /etc/merlon/shop.key}")},
				{name: "key", required: true, doc: "File of its private key.",
					shape:   &shape{text: &text{what: "a file", check: shortText}},
					example: inGateway("certificate:\n  cert: /etc/merlon/shop.pem\n  key: /etc/merlon/shop.key")},
			}},
			example: inGateway("certificate: none\nlisten: 127.0.0.1:8080")},
		{name: "minTLS", def: "1.3",
			doc:     "The oldest version of TLS that is spoken.",
			shape:   &shape{text: &text{what: "1.2 or 1.3", enum: []string{"1.3", "1.2"}, number: true}},
			example: inGateway("minTLS: 1.2")},
		{name: "trustedProxies",
			doc:     "Addresses of proxies in front of the gateway. Only from them is X-Forwarded-For believed; without this key it is removed.",
			shape:   &shape{list: &shape{text: &text{what: "ranges such as 10.0.0.0/8", check: cidr, code: codeAddress}}, empty: true},
			example: inGateway("trustedProxies: [10.0.0.0/8, \"fd00::/8\"]")},
		{name: "proxyProtocol",
			doc:     "Addresses of proxies whose connections begin with a header of the PROXY protocol, version 1 or 2, and must: it says who the client is. From all others it is never read.",
			shape:   &shape{list: &shape{text: &text{what: "ranges such as 10.0.0.0/8", check: cidr, code: codeAddress}}, empty: true},
			example: inGateway("proxyProtocol: [10.0.0.0/8]")},
		{name: "login",
			doc:     "Groups of people or programs outside, by name. A caller belongs to a login by a JWT bearer token of its issuer and audience.",
			shape:   &shape{dict: &shape{object: loginKeys()}, names: nameText("login")},
			example: inLogin("")},
		{name: "limit", shape: limit,
			doc:     "How often a client may call, whatever it calls. Short for a mapping with only `rate`.",
			example: inGateway("limit: 100/s")},
	}}
}

func telemetryShape() *shape {
	return &shape{object: []key{
		{name: "traces",
			doc: "Spans of calls, for an OpenTelemetry collector; see docs/telemetry.md.",
			shape: &shape{object: []key{
				{name: "collector", required: true,
					doc:     "Base URL of the collector, to which gates send OTLP over HTTP: spans go to `/v1/traces` below it. Every gate must reach it.",
					shape:   &shape{text: &text{what: "a URL such as http://127.0.0.1:4318", check: collectorURL, code: codeURL}},
					example: inTraces("")},
				{name: "sample", def: "1%",
					doc: "Of how many calls the trace is sampled. It is decided where the trace begins, mostly at the gateway, and holds for the whole of it.",
					shape: &shape{text: &text{what: "a percentage such as 1% or 0.05%", pattern: `^(100(\.0{1,4})?|[0-9]{1,2}(\.[0-9]{1,4})?)%$`, check: func(s string) *problem {
						_, p := parseSample(s)
						return p
					}}},
					example: inTraces("sample: 0.5%")},
				{name: "trust", def: "false",
					doc:     "Lets clients of the gateway choose the trace that their call belongs to, and whether it is sampled. Otherwise the gateway begins a trace of its own, with a link to theirs.",
					shape:   &shape{text: &text{what: "true or false", enum: []string{"true", "false"}, number: true}},
					example: inTraces("trust: true")},
			}},
			example: inTraces("")},
	}}
}

func loginKeys() []key {
	return []key{
		{name: "issuer", required: true, doc: "The `iss` of the tokens, exactly as it stands in them.",
			shape: &shape{text: &text{what: "an issuer", check: shortText}}, example: inLogin("")},
		{name: "audience", required: true, doc: "The `aud` that a token must have: a token made for somebody else is refused.",
			shape: &shape{text: &text{what: "an audience", check: shortText}}, example: inLogin("")},
		{name: "keys", required: true, doc: "The JSON Web Key Set that proves the tokens: a file beside this one, or an https URL that is fetched and refreshed by the gateway.",
			shape: &shape{text: &text{what: "a file or an https URL", check: shortText}}, example: inLogin("")},
		{name: "algorithms", def: "[RS256, ES256, EdDSA]",
			doc:     "The signature algorithms that are accepted. `none` and the HMAC family are refused: who can check such a token can also make one.",
			shape:   &shape{list: &shape{text: &text{what: "signature algorithms", check: algorithm, code: codeAlgorithm, pattern: `^((RS|PS|ES)(256|384|512)|EdDSA)$`}}},
			example: inLogin("algorithms: [ES256]")},
		{name: "allowLocal", def: "false",
			doc:     "Lets the URL of `keys` be at a private address. Otherwise the gateway refuses it, so that nobody can make it fetch from inside.",
			shape:   &shape{text: &text{what: "true or false", enum: []string{"true", "false"}, number: true}},
			example: strings.Replace(inLogin("allowLocal: true"), "keys: keys.json", "keys: https://id.internal/jwks.json", 1)},
	}
}

func federationKeys() []key {
	return []key{
		{name: "bundle", required: true,
			doc:     "The https URL of its bundle endpoint (SPIFFE Federation). Redirects are not followed.",
			shape:   &shape{text: &text{what: "an https URL", check: httpsURL, code: codeURL}},
			example: inFederation("")},
		{name: "profile", def: "https_web",
			doc:     "How the endpoint proves itself: `https_web` by a public certificate for its host, `https_spiffe` by an SVID.",
			shape:   &shape{text: &text{what: "https_web or https_spiffe", enum: []string{"https_web", "https_spiffe"}}},
			example: inFederation("profile: https_web")},
		{name: "endpointID",
			doc:     "The SPIFFE ID that the endpoint must prove, with `https_spiffe` only: of the partner, or of another partner.",
			shape:   &shape{text: &text{what: "a SPIFFE ID", check: spiffeID}},
			example: inFederation("profile: https_spiffe\nendpointID: spiffe://partner.example/bundle-endpoint\nfirst: partner.json")},
		{name: "first",
			doc:     "File with the bundle to begin with, a JSON Web Key Set, got from the partner in a way that you trust. An endpoint with an SVID of the partner needs it.",
			shape:   &shape{text: &text{what: "a file", check: shortText}},
			example: inFederation("first: partner.json")},
		{name: "allowLocal", def: "false",
			doc:     "Lets the URL of `bundle` be at a private address. Otherwise it is refused, so that nobody can make Merlon fetch from inside.",
			shape:   &shape{text: &text{what: "true or false", enum: []string{"true", "false"}, number: true}},
			example: inFederation("allowLocal: true")},
	}
}

func serviceKeys(operations, callers *shape) []key {
	addressText := &text{what: "host:port", check: address, code: codeAddress}
	return []key{
		{name: "address", shape: &shape{text: addressText, list: &shape{text: addressText}},
			doc:     "Where the service itself listens: `host:port`, `[ip]:port`, or `dns:host:port` to use and refresh every address of the name. A list when there are several.",
			example: inService("address: [10.0.1.5:8080, \"[fd00::5]:8080\", \"dns:orders.internal:7002\"]")},
		{name: "contract",
			doc:     "File that says what the service offers: OpenAPI 3.0 or 3.1 (`.yaml`, `.json`), protobuf (`.proto`) or a descriptor set (`.binpb`). Relative to the file in which it is named.",
			shape:   &shape{text: &text{what: "a file", check: shortText}},
			example: inService("contract: orders/openapi.yaml")},
		{name: "operations", shape: operations,
			doc:     "Operations named here, for a service without a contract or beside it: `METHOD /path`, with `{name}` for one segment, `{name...}` at the end for all that follow, and `?a&b` for the query parameters that conditions may use.",
			example: "trustDomain: shop.example\nservices:\n  catalog:\n    operations:\n      browse: GET /products/{id}\n      search: GET /products?q&page\n"},
		{name: "webSockets", shape: &shape{text: &text{what: "all", enum: []string{"all"}}, list: &shape{text: &text{what: "operations", check: shortText}}},
			doc:     "The operations with GET that may become a WebSocket, or `all` of them. Of all others a WebSocket is refused.",
			example: "trustDomain: shop.example\nservices:\n  web: {}\n  chat:\n    operations: {room: \"GET /rooms/{id}\"}\n    webSockets: [room]\n    callers: {web: all}\n"},
		{name: "protocol", def: "what the contract says, else `http`",
			doc:     "What the service speaks. `http` is HTTP read as HTTP/1.1, `http2` as HTTP/2: without TLS between a service and its gate, and known beforehand. `grpc` is what a protobuf contract says. `tcp` is bytes, as of databases and queues: rules for it are about identity alone and say `all`, and it is called through `localPorts` or by CONNECT.",
			shape:   &shape{text: &text{what: "http, http2, grpc or tcp", enum: []string{"http", "http2", "grpc", "tcp"}}},
			example: "trustDomain: shop.example\nservices:\n  payments: {}\n  ledger:\n    protocol: tcp\n    callers: {payments: all}\n"},
		{name: "callers", shape: callers,
			doc:     "Who may call this service: a service, a login, `anyone` (everyone who comes through the gateway, with or without a login), or a workload of another trust domain, such as `partner.example/billing` (see `federation`). What they may call: `all`, a list of operations, a mapping with conditions, or a list of such mappings. Who is not here is denied.",
			example: callersExample("callers:\n  anyone: [health]\n  web: all\n  staff:\n    operations: [getOrder]\n    when: claims.role == \"support\"")},
		{name: "localPorts", shape: &shape{dict: &shape{text: &text{what: "a port", integer: true, check: portNumber}}, names: nameText("service"), empty: true},
			doc:     "Services with `protocol: tcp` that this one calls, and the port of the loopback address (127.0.0.1) on which its gate offers each.",
			example: "trustDomain: shop.example\nservices:\n  payments:\n    localPorts: {ledger: 15432}\n  ledger:\n    protocol: tcp\n    callers: {payments: all}\n"},
		{name: "hosts", def: "every host of the gateway", shape: hostShape("hosts of the gateway", host),
			doc:     "The hosts of the gateway on which this service's operations appear.",
			example: "trustDomain: shop.example\ngateway:\n  hosts: [shop.example, api.shop.example]\nservices:\n  orders:\n    contract: orders/openapi.yaml\n    hosts: [api.shop.example]\n    callers: {anyone: all}\n"},
		{name: "zone", shape: &shape{text: &text{what: "a name", check: label, code: codeName, pattern: nameText("zone").pattern}},
			doc:     "The zone of the service, for guardrails.",
			example: inService("zone: pci")},
		{name: "mode", shape: modeShape(), def: "enforce",
			doc:     "`shadow` records what this service would deny, and lets it pass.",
			example: inService("mode: shadow")},
		{name: "timeout", def: "15s",
			doc: "How long an answer may take to begin, from 1ms to 1h.",
			shape: &shape{text: &text{what: "a duration such as 2s", pattern: `^([0-9]+(\.[0-9]+)?(us|ms|s|m|h))+$`, check: func(s string) *problem {
				_, p := parseTimeout(s)
				return p
			}}},
			example: inService("timeout: 2s")},
		{name: "retries", def: "{budget: 20%}",
			doc: "When a failed call is tried again: only one that is safe to repeat, and only within the budget.",
			shape: &shape{object: []key{{name: "budget", required: true,
				doc: "How many calls of a hundred may be retries. `0%` for none.",
				shape: &shape{text: &text{what: "a percentage such as 20%", pattern: `^(100|[0-9]{1,2})%$`, check: func(s string) *problem {
					_, p := parsePercent(s)
					return p
				}}},
				example: inService("retries: {budget: 0%}")}}},
			example: inService("retries: {budget: 20%}")},
		{name: "maxBody", def: "1MiB",
			doc: "The largest request body, from 1B to 16GiB.",
			shape: &shape{text: &text{what: "a size such as 1MiB", number: true, pattern: `^[0-9]+(B|KiB|MiB|GiB)?$`, check: func(s string) *problem {
				_, p := parseSize(s)
				return p
			}}},
			example: inService("maxBody: 10MiB")},
		{name: "slashes", def: "encoded slashes are refused",
			doc:     "`keep` lets an encoded slash (`%2F`) stay inside one segment of a path.",
			shape:   &shape{text: &text{what: "keep", enum: []string{"keep"}}},
			example: inService("slashes: keep")},
		{name: "workload",
			doc: "How a running process is recognised as this service: all that is said here must hold, and there is nothing else to register. " +
				"Such processes get the service's identity from the Workload API, and its gate takes calls from them only: " +
				"others are refused with `not_own_workload`. A service with `run:` is also recognised by its program: what `merlon up` starts and " +
				"what that starts in turn; with both, both must hold. With neither, every process on the gate's host can call as this service: " +
				"`merlon status` says which. It needs Linux: elsewhere `run:` recognises nobody, and an intent with `workload` is refused.",
			shape:   &shape{object: workloadKeys()},
			example: inService("workload: {unix: {user: orders}}")},
		{name: "nodes", def: "the host of `merlon up`", shape: &shape{list: &shape{text: &text{what: "nodes", check: shortText}}},
			doc:     "The nodes on which its workloads run. Only there is a process recognised by `workload`, which is needed.",
			example: inNode("joinToken: true")},
		{name: "run", shape: &shape{object: runKeys()},
			doc:     "How `merlon up` builds and starts the service on this machine.",
			example: inService("run: {command: [./orders]}")},
	}
}

func nodeKeys() []key {
	return []key{
		{name: "joinToken", doc: "By a token that `merlon node token NAME` prints: it is good once, for ten minutes.",
			shape:   &shape{text: &text{what: "true", enum: []string{"true"}, number: true}},
			example: inNode("joinToken: true")},
		{name: "x509", doc: "By the private key of a certificate that it has already.",
			shape: &shape{object: []key{
				{name: "ca", required: true, doc: "File with the certificates of the CAs that sign it, PEM. It needs the extended key usage of TLS clients.",
					shape:   &shape{text: &text{what: "a file", check: shortText}},
					example: inNode("x509: {ca: nodes.pem, dns: db1.shop.example}")},
				{name: "dns", required: true, doc: "The DNS name that it must have among its subject alternative names, exactly: a wildcard is another name.",
					shape:   &shape{text: &text{what: "a host name", check: host, code: codeHost, pattern: `^[a-z0-9\-.]+$`}},
					example: inNode("x509: {ca: nodes.pem, dns: db1.shop.example}")},
			}},
			example: inNode("x509: {ca: nodes.pem, dns: db1.shop.example}")},
		{name: "kubernetes", doc: "By the service account that the agent's pod runs as, `NAMESPACE/NAME`: the token that is projected into the pod proves it, by the cluster's keys. Its audience is `spiffe://TRUSTDOMAIN/merlon/node-endpoint`.",
			shape: &shape{text: &text{what: "NAMESPACE/SERVICEACCOUNT",
				pattern: `^[a-z0-9]([a-z0-9\-]{0,61}[a-z0-9])?/[a-z0-9]([a-z0-9.\-]{0,251}[a-z0-9])?$`}},
			example: inNode("kubernetes: shop/merlon-agent")},
	}
}

func workloadKeys() []key {
	return []key{
		{name: "unix", doc: "By what the kernel says about the process.",
			shape: &shape{object: []key{
				{name: "user", required: true, doc: "The user that it runs as, by name or number, who must exist on the gate's host. " +
					"It is the user who made the socket, as the kernel says.",
					shape:   &shape{text: &text{what: "a user name", pattern: `^[a-zA-Z0-9_][a-zA-Z0-9_.\-]{0,31}$`, number: true}},
					example: inService("workload: {unix: {user: orders}}")},
				{name: "group", doc: "A group that it has, by name or number.",
					shape:   &shape{text: &text{what: "a group name", pattern: `^[a-zA-Z0-9_][a-zA-Z0-9_.\-]{0,31}$`, number: true}},
					example: inService("workload: {unix: {user: orders, group: shop}}")},
				{name: "path", doc: "The file that it runs, by its absolute path on the gate's host. The file counts, not its name: a copy is another, and so is a file of that name in a container.",
					shape:   &shape{text: &text{what: "an absolute path", check: absolutePath, pattern: `^/`}},
					example: inService("workload: {unix: {user: orders, path: /usr/bin/orders}}")},
				{name: "sha256", doc: "The SHA-256 of that file, in hexadecimal digits, as `sha256sum` prints it.",
					shape:   &shape{text: &text{what: "64 hexadecimal digits in lower case", pattern: `^[0-9a-f]{64}$`, number: true}},
					example: inService("workload: {unix: {user: orders, sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855}}")},
			}},
			example: inService("workload: {unix: {user: orders}}")},
		{name: "systemd", doc: "By the unit of the system's manager that it belongs to.",
			shape: &shape{object: []key{{name: "unit", required: true, doc: "The unit's whole name.",
				shape:   &shape{text: &text{what: "the name of a unit such as web.service", pattern: `^[a-zA-Z0-9:_.\\@\-]{1,240}\.(service|scope|socket)$`}},
				example: inService("workload: {systemd: {unit: orders.service}}")}}},
			example: inService("workload: {systemd: {unit: orders.service}}")},
		{name: "docker", doc: "By the container that it is in, as the Docker Engine of the gate's host describes it.",
			shape: &shape{object: []key{
				{name: "image", doc: "The image's digest: that of its configuration (`docker images --no-trunc`), or the one under which it was pulled. With a name before it, `NAME@DIGEST`, it must have been pulled by that name.",
					shape:   &shape{text: imageDigest()},
					example: inService("workload: {docker: {image: \"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"}}")},
				{name: "label", doc: "Labels of the container, all of which it must have.",
					shape:   containerLabels(),
					example: inService("workload: {docker: {label: {app: orders}}}")},
			}},
			example: inService("workload: {docker: {label: {app: orders}}}")},
		{name: "containerd", doc: "By the container that it is in, as containerd of the gate's host describes it.",
			shape: &shape{object: []key{
				{name: "namespace", def: "default", doc: "The namespace of containerd that the container is in: Kubernetes has `k8s.io`, nerdctl and ctr have `default`.",
					shape:   &shape{text: &text{what: "the name of a namespace", pattern: `^[a-zA-Z0-9][a-zA-Z0-9._\-]{0,75}$`}},
					example: inService("workload: {containerd: {namespace: k8s.io, label: {app: orders}}}")},
				{name: "image", doc: "The image's digest: that of its index, its manifest or its configuration. The container must have begun with the layers that this digest names, " +
					"whatever its image is called today. With a name before it, `NAME@DIGEST`, it must have been made of an image of that name, too.",
					shape:   &shape{text: imageDigest()},
					example: inService("workload: {containerd: {image: \"registry.example/orders@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"}}")},
				{name: "label", doc: "Labels of the container, all of which it must have.",
					shape:   containerLabels(),
					example: inService("workload: {containerd: {label: {app: orders}}}")},
			}},
			example: inService("workload: {containerd: {label: {app: orders}}}")},
		{name: "kubernetes", doc: "By the service account that its pod runs as, `NAMESPACE/NAME`. The token that is projected into the pod proves it, by the cluster's keys.",
			shape: &shape{text: &text{what: "NAMESPACE/SERVICEACCOUNT",
				pattern: `^[a-z0-9]([a-z0-9\-]{0,61}[a-z0-9])?/[a-z0-9]([a-z0-9.\-]{0,251}[a-z0-9])?$`}},
			example: inService("workload: {kubernetes: shop/orders}")},
	}
}

// imageDigest is what a container's image is known by.
func imageDigest() *text {
	return &text{what: "a digest, sha256: and 64 hexadecimal digits, with or without NAME@ before it",
		pattern: `^([a-z0-9][a-zA-Z0-9._:/\-]{0,254}@)?sha256:[0-9a-f]{64}$`}
}

func containerLabels() *shape {
	return &shape{dict: &shape{text: &text{what: "a value", number: true}},
		names: &text{what: "label names", pattern: `^[a-zA-Z0-9][a-zA-Z0-9_./\-]{0,127}$`, code: codeName}}
}

func runKeys() []key {
	return []key{
		{name: "dir", def: "the directory of the file in which it is named",
			doc:   "Where the commands run, relative to the file in which it is named.",
			shape: &shape{text: &text{what: "a directory", check: shortText}}, example: inService("run: {dir: orders, command: [./orders]}")},
		{name: "build", shape: argv(),
			doc:     "Command that builds it, as a list of arguments that no shell sees. `{bin}` is the place of the built program.",
			example: inService("run:\n  build: [go, build, -o, \"{bin}\", ./orders]\n  command: [\"{bin}\"]")},
		{name: "command", required: true, shape: argv(),
			doc:     "Command that starts it, as a list of arguments that no shell sees.",
			example: inService("run: {command: [python3, -m, http.server, 7002]}")},
		{name: "env",
			doc:     "Environment variables for both commands. An intent holds no secret.",
			shape:   &shape{dict: &shape{text: &text{what: "text", check: shortText, number: true}}, names: envName(), empty: true},
			example: inService("run: {command: [./orders], env: {PORT: 7002}}")},
	}
}

func callersShape(limit *shape) *shape {
	ops := &text{what: "operations", check: shortText}
	all := &text{what: "all", enum: []string{"all"}, hint: func(s string) string {
		return "write all for every operation, or a list: [" + clip(s) + "]"
	}}
	sentence := []key{
		{name: "operations", required: true,
			doc:     "What the caller may call: `all`, or a list of operations.",
			shape:   &shape{text: all, list: &shape{text: ops}},
			example: callersExample("callers:\n  web: {operations: [getOrder, createOrder]}")},
		{name: "when",
			doc:     "A condition in CEL, checked against the contract before anything runs. It sees `claims`, `caller.name`, `caller.subject`, `caller.client`, `path.NAME`, `query.NAME`, `method`, `host` and `now`. A condition that fails to evaluate denies.",
			shape:   &shape{text: &text{what: "a condition", check: condition, code: codeCondition}},
			example: callersExample("callers:\n  staff: {operations: all, when: 'claims.role == \"support\"'}")},
		{name: "mode", shape: modeShape(), def: "enforce",
			doc:     "`shadow` records when this sentence would deny, and lets it pass.",
			example: callersExample("callers:\n  web: {operations: all, when: 'path.id != \"0\"', mode: shadow}")},
		{name: "limit", shape: limit,
			doc:     "How often, for this caller and these operations. The keys are those of the gateway's limit.",
			example: callersExample("callers:\n  web: {operations: all, limit: 50/s}")},
	}
	return &shape{
		names: &text{what: "callers", check: callerName, code: codeName, pattern: `^([a-z]([a-z0-9\-]{0,61}[a-z0-9])?|[a-z0-9._\-]{1,255}(/[a-zA-Z0-9._\-]+)+)$`},
		empty: true,
		dict: &shape{
			text:   all,
			object: sentence,
			list:   &shape{text: ops, object: sentence},
		},
	}
}

func externalKeys(operations, callers *shape) []key {
	own := []key{
		{name: "hosts", shape: &shape{list: &shape{text: &text{what: "public host names", check: externalHost, code: codeHost, pattern: `^(\[[0-9a-f:.]+\]|[a-z0-9\-.]+)(:[1-9][0-9]*)?$`}}},
			doc:     "The names under which it is called, and for which it has a public certificate. With `protocol: tcp` one host with its port, which is 443 if left out. Required, unless `spiffe` says who it is.",
			example: inExternal("")},
		{name: "spiffe", shape: &shape{text: &text{what: "a workload of another trust domain", check: foreignName, pattern: `^[a-z0-9._\-]+(/[A-Za-z0-9._\-]+)+$`}},
			doc: "The workload of another trust domain that it is, by trust domain and path: `partner.example/billing` is `spiffe://partner.example/billing`. The trust domain is one of the `federation`. " +
				"The gate proves its own service by its SVID, and the other side has to prove exactly this ID by the bundle of that trust domain: no public certificate counts. " +
				"It is called by its name here, and by its `hosts` if it has any; without them it needs an `address`.",
			example: inFederation("") + "services:\n  payments: {}\nexternal:\n  billing:\n    spiffe: partner.example/billing\n    address: dns:billing.partner.example:8443\n    operations: {invoice: 'GET /invoices/{id}'}\n    callers: {payments: [invoice]}\n"},
	}
	for _, k := range serviceKeys(operations, callers) {
		switch k.name {
		case "address":
			k.doc = "Where it is reached, when not at port 443 of its hosts."
			k.def = "`dns:HOST:443` for each of the hosts; without hosts it is required"
			k.example = inExternal("address: dns:proxy.internal:3128")
		case "operations":
			k.doc = "What may be called there, as for a service. Left out together with `contract`, there are two operations: `any`, every method and path, and `root`, every method at `/`."
			k.example = inExternal("operations: {charge: POST /v1/charges}")
		case "protocol":
			k.doc = "What it speaks. `tcp` is bytes, reached through `localPorts` of a caller or by CONNECT to exactly the host and the port: the gate adds no TLS."
			k.def = "`http`"
			k.shape = &shape{text: &text{what: "http or tcp", enum: []string{"http", "tcp"}}}
			k.example = "trustDomain: shop.example\nservices:\n  payments:\n    localPorts: {archive: 15432}\nexternal:\n  archive:\n    hosts: [db.example.com:5432]\n    protocol: tcp\n    callers: {payments: all}\n"
		case "contract", "webSockets", "callers", "zone", "mode", "timeout", "retries", "maxBody", "slashes":
			k.see = "services.NAME." + k.name
			k.example = ""
		default:
			continue
		}
		own = append(own, k)
	}
	return own
}

func guardrailKeys() []key {
	return []key{
		{name: "name", required: true, doc: "Its name in verdicts and records.",
			shape: &shape{text: &text{what: "a name", check: label, code: codeName, pattern: nameText("guardrail").pattern}}, example: inGuardrail("")},
		{name: "deny", required: true,
			doc:     "`CALLER -> CALLEE` or `CALLER -> CALLEE.OPERATION`. A caller is a service, a login, `anyone`, `zone:ZONE` or `*`; a callee is a service, `zone:ZONE` or `*`.",
			shape:   &shape{text: &text{what: "calls such as anyone -> zone:pci", check: shortText}},
			example: inGuardrail("")},
		{name: "because", doc: "Why, for whoever is denied by it.",
			shape: &shape{text: &text{what: "text", check: shortText}}, example: inGuardrail("because: card data stays inside")},
	}
}

func testKeys() []key {
	return []key{
		{name: "call", required: true,
			doc:     "`CALLER -> SERVICE.OPERATION`, `CALLER -> SERVICE METHOD /path?query`, or `CALLER -> METHOD https://HOST/path` through the gateway.",
			shape:   &shape{text: &text{what: "a call such as web -> orders.getOrder", check: shortText}},
			example: inTest("expect: allow")},
		{name: "expect", required: true, doc: "What must become of it.",
			shape: &shape{text: &text{what: "allow or deny", enum: []string{"allow", "deny"}}}, example: inTest("expect: allow")},
		{name: "claims", doc: "The claims of the caller's token, when the caller is a login.",
			shape:   &shape{dict: &shape{any: true}, names: &text{what: "claims", check: shortText}, empty: true},
			example: callersExample("callers:\n  staff: {operations: all, when: 'claims.role == \"support\"'}") + "tests:\n  - call: staff -> orders.getOrder\n    claims: {role: support}\n    expect: allow\n"},
	}
}

// The examples stand in the smallest whole intent in which they mean
// something. orders/openapi.yaml and keys.json are files beside it.

func indent(lines, by string) string {
	return by + strings.ReplaceAll(lines, "\n", "\n"+by) + "\n"
}

func inGateway(lines string) string {
	return "trustDomain: shop.example\ngateway:\n  hosts: [shop.example]\n" + indent(lines, "  ")
}

func inTraces(lines string) string {
	text := "collector: http://127.0.0.1:4318"
	if lines != "" {
		text += "\n" + lines
	}
	return "trustDomain: shop.example\ntelemetry:\n  traces:\n" + indent(text, "    ")
}

func inLogin(lines string) string {
	text := "staff:\n  issuer: https://id.shop.example\n  audience: shop\n  keys: keys.json"
	if lines != "" {
		text += "\n  " + lines
	}
	return inGateway("login:\n  "+strings.ReplaceAll(text, "\n", "\n  ")) +
		"services:\n  orders:\n    contract: orders/openapi.yaml\n    callers: {staff: all}\n"
}

func inFederation(lines string) string {
	text := "trustDomain: shop.example\nfederation:\n  partner.example:\n    bundle: https://spiffe.partner.example/bundle\n"
	if lines != "" {
		text += indent(lines, "    ")
	}
	return text
}

func inNode(lines string) string {
	return "trustDomain: shop.example\nnodes:\n  db1: {" + lines + "}\nservices:\n  ledger:\n    workload: {unix: {user: ledger}}\n    nodes: [db1]\n"
}

func inService(lines string) string {
	return "trustDomain: shop.example\nservices:\n  orders:\n" + indent(lines, "    ")
}

func callersExample(lines string) string {
	text := "trustDomain: shop.example\n"
	if strings.Contains(lines, "staff") {
		text = inLogin("")
		text = text[:strings.Index(text, "services:")]
	}
	return text + "services:\n  web: {}\n  orders:\n    contract: orders/openapi.yaml\n" + indent(lines, "    ")
}

func inExternal(lines string) string {
	text := "trustDomain: shop.example\nservices:\n  payments: {}\nexternal:\n  stripe:\n    hosts: [api.stripe.com]\n"
	if lines != "" {
		text += indent(lines, "    ")
	}
	return text + "    callers: {payments: all}\n"
}

func inGuardrail(lines string) string {
	text := "trustDomain: shop.example\nservices:\n  payments: {zone: pci}\nguardrails:\n  - name: cards\n    deny: anyone -> zone:pci\n"
	if lines != "" {
		text += indent(lines, "    ")
	}
	return text
}

func inTest(lines string) string {
	return callersExample("callers: {web: [getOrder]}") + "tests:\n  - call: web -> orders.getOrder\n" + indent(lines, "    ")
}

// canonicalKeys is the order of keys in a formatted file; it is the order of
// the table.
func canonicalKeys(keys []key) map[string]int {
	order := make(map[string]int, len(keys))
	for i, k := range keys {
		order[k.name] = i
	}
	return order
}

func operationName(s string) *problem {
	if s == "all" {
		return &problem{codeReserved, `"all" is a word of the language: it means every operation`, "choose another name"}
	}
	ok := s != "" && len(s) <= 128
	for i, c := range s {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_'
		ok = ok && (letter || i > 0 && (c >= '0' && c <= '9' || c == '-' || c == '.'))
	}
	if !ok {
		return &problem{codeName, "\"" + clip(s) + "\" is not the name of an operation", "it is letters, digits, _, - and dots, and starts with a letter"}
	}
	return nil
}
