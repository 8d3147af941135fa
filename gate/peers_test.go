package gate_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"merlon/internal/peertest"
)

// reading is one request as a backend has read it.
type reading struct {
	ID, Method, Target, Host string
	Fields                   map[string]string // by lower-case names; values joined as RFC 9110 5.3 has it
	Body                     string
	Whole                    bool // the body ended as its framing says
}

// ledger is all that a backend has read, as it says itself.
type ledger struct {
	mu    sync.Mutex
	read  []reading
	lines []string // of its access log, if it has one: the id, and what else
}

func (l *ledger) add(r reading) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.read = append(l.read, r)
}

// heard takes a line of output: of an access log, or a reading in JSON.
func (l *ledger) heard(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if log, ok := strings.CutPrefix(line, "request "); ok {
		l.lines = append(l.lines, log)
	}
	if !strings.HasPrefix(line, "{") {
		return
	}
	var told struct {
		Method, Target, Body string
		Fields               []string
		Whole                bool
	}
	if err := json.Unmarshal([]byte(line), &told); err != nil {
		l.lines = append(l.lines, "- unreadable: "+line)
		return
	}
	body, _ := base64.StdEncoding.DecodeString(told.Body)
	r := reading{Method: told.Method, Target: told.Target, Body: string(body), Whole: told.Whole, Fields: map[string]string{}}
	for i := 0; i+1 < len(told.Fields); i += 2 {
		r.join(told.Fields[i], told.Fields[i+1])
	}
	r.Host, r.ID = r.Fields["host"], r.Fields["merlon-request-id"]
	l.read = append(l.read, r)
}

func (r *reading) join(name, value string) {
	name = strings.ToLower(name)
	if before, ok := r.Fields[name]; ok {
		value = before + ", " + value
	}
	r.Fields[name] = value
}

// backend is a server that stands behind a gate and tells what it reads.
type backend struct {
	name  string
	start func(t testing.TB, l *ledger) (address string)
	logs  bool // each request is a line of an access log, also one that is refused
	// adds are fields of its own in what it passes on.
	adds []string
}

// backends are the servers that read what a gate sends. A proxy tells what it
// has read by what it passes on: to net/http, which writes it down.
var backends = []backend{
	{name: "go", start: goServer},
	{name: "node", start: nodeServer},
	{name: "nginx", start: nginxServer, logs: true},
	{name: "haproxy", start: haproxyServer, logs: true},
	{name: "apache", start: apacheServer, logs: true, adds: []string{"cache-control"}},
}

const nothingCompared = "nothing is compared with it"

func goServer(t testing.TB, l *ledger) string {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		read := reading{Method: r.Method, Target: r.RequestURI, Host: r.Host, Body: string(body), Whole: err == nil, Fields: map[string]string{}}
		for name, values := range r.Header {
			read.Fields[strings.ToLower(name)] = strings.Join(values, ", ")
		}
		read.ID = read.Fields["merlon-request-id"]
		l.add(read)
		w.Header().Set("X-Read", "yes")
		io.WriteString(w, "read")
	}))
	server.Listener.Close()
	var err error
	if server.Listener, err = net.Listen("tcp", peertest.Address(t)); err != nil {
		t.Fatal(err)
	}
	server.Config.ErrorLog = nil
	server.Start()
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

const nodeScript = `
const server = require('http').createServer((q, a) => {
	const parts = []
	let told = false
	const tell = whole => {
		if (!told) console.log(JSON.stringify({method: q.method, target: q.url, fields: q.rawHeaders.map(s => Buffer.from(s, 'latin1').toString()), body: Buffer.concat(parts).toString('base64'), whole}))
		told = true
	}
	q.on('data', d => parts.push(d))
	q.on('end', () => { tell(true); a.setHeader('X-Read', 'yes'); a.end('read') })
	q.on('close', () => tell(false))
})
server.on('clientError', (e, c) => {
	if (e.code != 'HPE_INVALID_EOF_STATE' && e.code != 'ECONNRESET') console.log('request - ' + e.code)
	c.end('HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n')
})
server.keepAliveTimeout = server.requestTimeout = server.headersTimeout = 0
server.listen(process.argv[3], process.argv[2])
`

func nodeServer(t testing.TB, l *ledger) string {
	node := peertest.Find(t, "node", "Debian: nodejs", nothingCompared)
	address := peertest.Address(t)
	host, port, _ := net.SplitHostPort(address)
	peertest.Start(t, address, l.heard, node, write(t, "server.js", nodeScript), host, port)
	return address
}

const nginxConf = `daemon off;
master_process off;
pid %[1]s/pid;
error_log stderr error;
events { worker_connections 256; }
http {
	log_format lines 'request $http_merlon_request_id $status $request';
	access_log /dev/stdout lines;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	keepalive_requests 1000000;
	underscores_in_headers on;
	ignore_invalid_headers off;
	server {
		listen %[2]s;
		location / {
			proxy_pass http://%[3]s;
			proxy_http_version 1.1;
			proxy_set_header Host $http_host;
			proxy_set_header Connection "";
		}
	}
}
`

func nginxServer(t testing.TB, l *ledger) string {
	nginx := peertest.Find(t, "nginx", "Debian: nginx-light", nothingCompared)
	address := peertest.Address(t)
	conf := write(t, "nginx.conf", fmt.Sprintf(nginxConf, t.TempDir(), address, goServer(t, l)))
	peertest.Start(t, address, l.heard, nginx, "-p", filepath.Dir(conf), "-c", conf, "-e", "stderr")
	return address
}

const haproxyConf = `global
	log stdout format raw local0
	maxconn 200
	nbthread 1
defaults
	mode http
	log global
	option dontlognull
	option http-keep-alive
	timeout connect 10s
	timeout client 60s
	timeout server 60s
	timeout http-keep-alive 100s
frontend front
	bind %s
	http-request capture req.hdr(merlon-request-id) len 32
	log-format "request %%[capture.req.hdr(0)] %%ST %%HM"
	default_backend back
backend back
	http-reuse always
	server origin %s
`

func haproxyServer(t testing.TB, l *ledger) string {
	haproxy := peertest.Find(t, "haproxy", "Debian: haproxy", nothingCompared)
	address := peertest.Address(t)
	peertest.Start(t, address, l.heard, haproxy, "-db", "-f", write(t, "haproxy.cfg", fmt.Sprintf(haproxyConf, address, goServer(t, l))))
	return address
}

const apacheConf = `ServerRoot %[1]s
PidFile %[1]s/pid
DefaultRuntimeDir %[1]s
Mutex file:%[1]s
User nobody
Group nogroup
ServerName peer
Listen %[2]s
LoadModule mpm_event_module %[4]s/mod_mpm_event.so
LoadModule authz_core_module %[4]s/mod_authz_core.so
LoadModule proxy_module %[4]s/mod_proxy.so
LoadModule proxy_http_module %[4]s/mod_proxy_http.so
ErrorLog /dev/stderr
LogLevel error
LogFormat "request %%{Merlon-Request-Id}i %%>s %%r" lines
CustomLog /dev/stdout lines
KeepAliveTimeout 100
MaxKeepAliveRequests 0
AllowEncodedSlashes NoDecode
ProxyPreserveHost On
ProxyAddHeaders Off
ProxyPass / http://%[3]s/ nocanon
`

func apacheServer(t testing.TB, l *ledger) string {
	apache := peertest.Find(t, "apache2", "Debian: apache2-bin", nothingCompared)
	const modules = "/usr/lib/apache2/modules"
	address := peertest.Address(t)
	conf := write(t, "httpd.conf", fmt.Sprintf(apacheConf, t.TempDir(), address, goServer(t, l), modules))
	peertest.Start(t, address, l.heard, apache, "-X", "-f", conf)
	return address
}

// write makes a file for the time of a test.
func write(t testing.TB, name, text string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}
