package intent

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"

	"merlon"
)

// Bounds on values.
const (
	minTimeout   = time.Millisecond
	maxTimeout   = time.Hour
	maxMaxBody   = 16 << 30
	maxCount     = 1_000_000_000
	maxCondition = 4096 // bytes of CEL
	maxTextBytes = 4096 // of anything that is quoted, shown or started
)

// reserved are the words that no service, login or external service may have
// for a name, and what they mean.
func reserved(name string) string {
	switch name {
	case merlon.AnyCaller:
		return "everyone who comes through the gateway"
	case merlon.GatewayName:
		return "the gate at the edge"
	case "all":
		return "every operation"
	}
	return ""
}

const nameRule = "a name is lower-case letters, digits and hyphens; it starts with a letter, does not end with a hyphen and has at most 63 characters"

// label holds a name against the rule for names: an RFC 1123 label that starts
// with a letter, so that it can be a host name and never a number.
func label(s string) *problem {
	ok := len(s) >= 1 && len(s) <= 63 && s[0] >= 'a' && s[0] <= 'z' && s[len(s)-1] != '-'
	for i := 0; ok && i < len(s); i++ {
		c := s[i]
		ok = c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-'
	}
	if ok {
		return nil
	}
	hint := nameRule
	better := strings.Trim(strings.NewReplacer("_", "-", " ", "-", ".", "-").Replace(strings.ToLower(s)), "-")
	if better != s && label(better) == nil {
		hint = "write " + better + ": " + nameRule
	}
	return &problem{codeName, fmt.Sprintf("%q is not a name", clip(s)), hint}
}

// callerName checks the name of a caller, before anybody knows who that is.
func callerName(s string) *problem {
	if s == "*" {
		return &problem{codeName, `"*" is not a caller`, "write anyone for everyone who comes through the gateway, and every service that may call by its name"}
	}
	if strings.Contains(s, "/") {
		return foreign(s)
	}
	return label(s)
}

// foreign checks the name of a workload of another trust domain (SPIFFE-ID 2).
func foreign(s string) *problem {
	domain, rest, _ := strings.Cut(s, "/")
	if p := trustDomain(domain); p != nil {
		return p
	}
	ok := len(s) <= 2048-len("spiffe://")
	for segment := range strings.SplitSeq(rest, "/") {
		ok = ok && segment != "" && segment != "." && segment != ".."
		for i := range len(segment) {
			c := segment[i]
			ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_')
		}
	}
	if !ok {
		return &problem{codeName, fmt.Sprintf("%q is not the name of a workload", clip(s)),
			"write its trust domain and the path of its SPIFFE ID, such as partner.example/billing"}
	}
	return nil
}

// foreignName is foreign for what may not be a name of ours.
func foreignName(s string) *problem {
	if !strings.Contains(s, "/") || strings.Contains(s, "://") {
		return &problem{codeName, fmt.Sprintf("%q is not the name of a workload", clip(s)),
			"write its trust domain and the path of its SPIFFE ID, such as partner.example/billing"}
	}
	return foreign(s)
}

// spiffeID checks a SPIFFE ID of a workload (SPIFFE-ID 2).
func spiffeID(s string) *problem {
	rest, ok := strings.CutPrefix(s, "spiffe://")
	if !ok || !strings.Contains(rest, "/") || foreign(rest) != nil {
		return &problem{codeValue, fmt.Sprintf("%q is not the SPIFFE ID of a workload", clip(s)), "write spiffe://TRUSTDOMAIN/PATH"}
	}
	return nil
}

func nameOf(s string) *problem {
	if s == "*" {
		return &problem{codeReserved, `"*" is a word of the language: it stands for any name in a guardrail`, "choose another name"}
	}
	if p := label(s); p != nil {
		return p
	}
	if means := reserved(s); means != "" {
		return &problem{codeReserved, fmt.Sprintf("%q is a word of the language: it means %s", s, means), "choose another name"}
	}
	return nil
}

// trustDomain follows SPIFFE-ID 2.1.
func trustDomain(s string) *problem {
	hint := "a trust domain is lower-case letters, digits, dots, hyphens and underscores, at most 255 of them, such as shop.example"
	if rest, ok := strings.CutPrefix(s, "spiffe://"); ok {
		hint = fmt.Sprintf("write only the name: %s", rest)
	} else if lower := strings.ToLower(s); lower != s {
		hint = "write it in lower case"
	}
	bad := len(s) == 0 || len(s) > 255 || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789.-_") != "" ||
		strings.ContainsFunc(s, func(c rune) bool { return c > unicode.MaxASCII || c == '/' || c == ':' || c == ' ' })
	for _, c := range s {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || strings.ContainsRune(".-_", c) {
			continue
		}
		bad = true
	}
	if bad || s[0] == '.' || s[len(s)-1] == '.' || strings.Contains(s, "..") {
		return &problem{codeTrustDomain, fmt.Sprintf("%q is not a trust domain", clip(s)), hint}
	}
	return nil
}

// parseTimeout reads a duration such as 2s.
func parseTimeout(s string) (time.Duration, *problem) {
	d, err := time.ParseDuration(s)
	if err != nil || s[0] < '0' || s[0] > '9' {
		hint := "write a number and a unit, such as 500ms, 2s or 1m30s"
		if _, err := strconv.Atoi(s); err == nil {
			hint = fmt.Sprintf("write the unit: %ss", s)
		}
		return 0, &problem{codeValue, fmt.Sprintf("%q is not a duration", clip(s)), hint}
	}
	if d < minTimeout || d > maxTimeout {
		return 0, &problem{codeValue, fmt.Sprintf("%q is out of bounds", s), "a timeout is at least 1ms and at most 1h"}
	}
	return d, nil
}

// parseSize reads a number of bytes such as 1MiB.
func parseSize(s string) (int64, *problem) {
	digits := strings.TrimRight(s, "BKMGikmb")
	n, err := strconv.ParseInt(digits, 10, 64)
	shift, known := 0, true
	switch s[len(digits):] {
	case "", "B":
	case "KiB":
		shift = 10
	case "MiB":
		shift = 20
	case "GiB":
		shift = 30
	default:
		known = false
	}
	if err != nil || !known || digits == "" || digits[0] < '0' || digits[0] > '9' {
		return 0, &problem{codeValue, fmt.Sprintf("%q is not a size", clip(s)), "write a whole number and B, KiB, MiB or GiB, such as 512KiB"}
	}
	if n < 1 || n > maxMaxBody>>shift {
		return 0, &problem{codeValue, fmt.Sprintf("%q is out of bounds", s), "a size is at least 1B and at most 16GiB"}
	}
	return n << shift, nil
}

// parseRate reads how often something may happen, such as 100/s.
func parseRate(s string) (count int, window time.Duration, p *problem) {
	number, unit, found := strings.Cut(s, "/")
	n, err := strconv.Atoi(number)
	switch unit {
	case "s":
		window = time.Second
	case "m":
		window = time.Minute
	case "h":
		window = time.Hour
	default:
		found = false
	}
	if err != nil || !found || number[0] < '0' || number[0] > '9' {
		return 0, 0, &problem{codeValue, fmt.Sprintf("%q is not a rate", clip(s)), "write a count and a second, minute or hour: 100/s, 6000/m or 10/h"}
	}
	if n < 1 || n > maxCount {
		return 0, 0, &problem{codeValue, fmt.Sprintf("%q is out of bounds", s), "a count is at least 1 and at most 1000000000; who may call nothing is simply left out"}
	}
	return n, window, nil
}

// parseCount reads a whole number from 1.
func parseCount(s string) (int, *problem) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > maxCount || s[0] == '+' {
		return 0, &problem{codeValue, fmt.Sprintf("%q is not a count", clip(s)), "write a whole number from 1 to 1000000000"}
	}
	return n, nil
}

// parsePercent reads 0% to 100%.
func parsePercent(s string) (int, *problem) {
	digits, found := strings.CutSuffix(s, "%")
	n, err := strconv.Atoi(digits)
	if err != nil || !found || n < 0 || n > 100 || digits[0] == '+' || digits[0] == '-' {
		hint := "write a whole number from 0 to 100 and a percent sign, such as 20%"
		if _, err := strconv.Atoi(s); err == nil {
			hint = fmt.Sprintf("write the percent sign: %s%%", s)
		}
		return 0, &problem{codeValue, fmt.Sprintf("%q is not a percentage", clip(s)), hint}
	}
	return n, nil
}

// parseSample reads a share of calls, 0% to 100%, with up to four decimals. It
// returns how many of a million that are.
func parseSample(s string) (int, *problem) {
	fail := func(hint string) (int, *problem) {
		return 0, &problem{codeValue, fmt.Sprintf("%q is not a percentage", clip(s)), hint}
	}
	number, found := strings.CutSuffix(s, "%")
	if !found && !strings.ContainsFunc(s, func(c rune) bool { return c != '.' && (c < '0' || c > '9') }) {
		return fail(fmt.Sprintf("write the percent sign: %s%%", clip(s)))
	}
	whole, part, point := strings.Cut(number, ".")
	digits := whole + part + strings.Repeat("0", max(4-len(part), 0))
	n, err := strconv.ParseUint(digits, 10, 32)
	if err != nil || !found || whole == "" || point && part == "" || len(part) > 4 || len(whole) > 2 && whole != "100" || n > 1_000_000 {
		return fail("write a number from 0 to 100 with at most four decimals and a percent sign, such as 1% or 0.05%")
	}
	return int(n), nil
}

// host checks a host name in canonical form: what gate/canon makes of it must
// be the same bytes, or a host of the intent would never be matched.
func host(s string) *problem {
	fail := func(hint string) *problem {
		return &problem{codeHost, fmt.Sprintf("%q is not a host name", clip(s)), hint}
	}
	if ip, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		if want := canonicalIP(ip); want != s {
			return fail("write " + want)
		}
		return nil
	}
	switch {
	case s == "":
		return fail("write a name such as shop.example")
	case strings.Contains(s, "*"):
		return fail("write every host out: a wildcard would let in names that nobody decided on")
	case strings.Contains(s, "://"):
		return fail("write the host alone, without scheme and path")
	case strings.Contains(s, ":"):
		return fail("write the host alone, without a port; listen has the port")
	case strings.HasSuffix(s, "."):
		return fail("leave the last dot out")
	}
	if strings.ContainsFunc(s, func(c rune) bool { return c >= utf8.RuneSelf }) {
		if a, err := idna.Lookup.ToASCII(s); err == nil {
			return fail("write the form that clients send: " + a)
		}
		return fail("write the form that clients send, which starts with xn--")
	}
	if lower := strings.ToLower(s); lower != s {
		return fail("write it in lower case: " + clip(lower))
	}
	if len(s) > 253 {
		return fail("a host name has at most 253 characters")
	}
	labels := strings.Split(s, ".")
	for _, l := range labels {
		if !hostLabel(l) {
			return fail("each part between dots is 1 to 63 letters, digits and hyphens, with no hyphen at its ends")
		}
	}
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" {
		return fail("the last part of a host name is not a number, and this is no IP address") // WHATWG URL 3.5
	}
	return nil
}

func hostLabel(l string) bool {
	if len(l) == 0 || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' {
		return false
	}
	for i := 0; i < len(l); i++ {
		if c := l[i]; !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-') {
			return false
		}
	}
	return true
}

func canonicalIP(ip netip.Addr) string {
	if ip.Is6() {
		return "[" + ip.String() + "]"
	}
	return ip.String()
}

// publicHost checks the name of an external service.
func publicHost(s string) *problem {
	if p := host(s); p != nil {
		return p
	}
	if _, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil || !strings.Contains(s, ".") {
		return &problem{codeHost, fmt.Sprintf("%q is not a public host name", clip(s)),
			"an external service proves itself by a public certificate, for a name such as api.stripe.com"}
	}
	return nil
}

// externalHost checks the name of an external service, which may have a port if
// it speaks TCP, and be an address then.
func externalHost(s string) *problem {
	p := publicHost(s)
	if i := strings.LastIndexByte(s, ':'); p != nil && i > 0 && address(s) == nil && !strings.HasPrefix(s, "dns:") && (s[0] == '[' || strings.Contains(s[:i], ".")) {
		return nil
	}
	return p
}

// portNumber checks a port.
func portNumber(s string) *problem {
	if n, err := strconv.Atoi(s); err != nil || n < 1 || n > 65535 || s[0] == '0' || s[0] == '+' {
		return &problem{codeValue, fmt.Sprintf("%q is not a port", clip(s)), "a port is a number from 1 to 65535"}
	}
	return nil
}

// address checks host:port, ip:port, [ip]:port or dns:host:port.
func address(s string) *problem {
	fail := func(hint string) *problem {
		return &problem{codeAddress, fmt.Sprintf("%q is not an address", clip(s)), hint}
	}
	if strings.Contains(s, "://") {
		return fail("write host:port, without scheme and path")
	}
	rest, dns := strings.CutPrefix(s, "dns:")
	i := strings.LastIndexByte(rest, ':')
	if i < 0 || strings.HasSuffix(rest, "]") {
		return fail(fmt.Sprintf("write the port: %s:8080", clip(s)))
	}
	h, port := rest[:i], rest[i+1:]
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 || port[0] == '0' || port[0] == '+' {
		return fail("a port is a number from 1 to 65535")
	}
	if h == "" {
		return fail(fmt.Sprintf("write the host: 127.0.0.1:%s", port))
	}
	if ip, err := netip.ParseAddr(h); err == nil && ip.Is6() {
		return fail(fmt.Sprintf("write an IPv6 address in brackets: [%s]:%s", h, port))
	}
	if p := host(h); p != nil {
		return fail(p.hint)
	}
	if _, err := netip.ParseAddr(strings.Trim(h, "[]")); dns && err == nil {
		return fail("dns: is for names; write the IP address without it")
	}
	return nil
}

// listen checks where the gateway listens: an address, whose host may be
// missing.
func listen(s string) *problem {
	if rest, ok := strings.CutPrefix(s, ":"); ok {
		if n, err := strconv.Atoi(rest); err == nil && n >= 0 && n <= 65535 && rest[0] != '+' {
			return nil
		}
		return &problem{codeAddress, fmt.Sprintf("%q is not an address to listen on", clip(s)), "a port is a number from 0 to 65535"}
	}
	p := address(s)
	if p == nil && strings.HasPrefix(s, "dns:") {
		p = &problem{hint: "write the address without dns:"}
	}
	if p != nil {
		if _, err := strconv.Atoi(s); err == nil {
			p.hint = fmt.Sprintf("write the colon: %q", ":"+s)
		}
		return &problem{codeAddress, fmt.Sprintf("%q is not an address to listen on", clip(s)), p.hint}
	}
	return nil
}

// cidr checks a range of addresses in its one form: no bits beyond its length.
func cidr(s string) *problem {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		hint := "write an address and the length of its prefix, such as 10.0.0.0/8"
		if ip, err := netip.ParseAddr(s); err == nil {
			hint = fmt.Sprintf("write %s/%d for this one address", ip, ip.BitLen())
		}
		return &problem{codeAddress, fmt.Sprintf("%q is not a range of addresses", clip(s)), hint}
	}
	if p.Bits() == 0 {
		return &problem{codeAddress, fmt.Sprintf("%q trusts everyone", s), "name the addresses of your proxies only: who is trusted here can claim to be any client"}
	}
	if p.Masked() != p {
		return &problem{codeAddress, fmt.Sprintf("%q has bits beyond its length", s), fmt.Sprintf("write %s", p.Masked())}
	}
	return nil
}

// httpsURL checks the URL of a key set.
func httpsURL(s string) *problem {
	fail := func(hint string) *problem {
		return &problem{codeURL, fmt.Sprintf("%q is not an https URL", clip(s)), hint}
	}
	u, err := url.Parse(s)
	switch {
	case err != nil || len(s) > maxTextBytes:
		return fail("write a URL such as https://id.shop.example/jwks.json")
	case u.Scheme != "https":
		return fail("keys fetched without TLS can be replaced on the way")
	case u.User != nil:
		return fail("leave user and password out: an intent holds no secret")
	case u.Fragment != "" || strings.Contains(s, "#"):
		return fail("leave the fragment out")
	}
	if p := host(strings.ToLower(u.Hostname())); p != nil && !strings.HasPrefix(u.Host, "[") {
		return fail(p.hint)
	}
	return nil
}

// collectorURL checks the base URL of a collector.
func collectorURL(s string) *problem {
	fail := func(hint string) *problem {
		return &problem{codeURL, fmt.Sprintf("%q is not the URL of a collector", clip(s)), hint}
	}
	u, err := url.Parse(s)
	switch {
	case err != nil || len(s) > maxTextBytes || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return fail("write its base URL, such as http://127.0.0.1:4318: OTLP over HTTP is spoken, not over gRPC")
	case u.User != nil:
		return fail("leave user and password out: an intent holds no secret")
	case strings.ContainsAny(s, "?#"):
		return fail("leave query and fragment out")
	case strings.HasSuffix(strings.TrimRight(u.Path, "/"), "/v1/traces"):
		return fail("leave /v1/traces out: gates add it")
	}
	if p := host(strings.ToLower(u.Hostname())); p != nil && !strings.HasPrefix(u.Host, "[") {
		return fail(p.hint)
	}
	return nil
}

// algorithm checks a signature algorithm (RFC 7518 3.1, RFC 8037 3.1).
func algorithm(s string) *problem {
	known := []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
	switch {
	case slices.Contains(known, s):
		return nil
	case strings.EqualFold(s, "none"):
		return &problem{codeAlgorithm, fmt.Sprintf("%q is refused: such a token proves nothing", clip(s)), "remove it"}
	case strings.HasPrefix(strings.ToUpper(s), "HS"):
		return &problem{codeAlgorithm, fmt.Sprintf("%q is refused: who can check such a token can also make one", clip(s)),
			"use a key pair: RS256, ES256 or EdDSA"}
	}
	hint := "the algorithms are " + strings.Join(known, ", ")
	if near := nearest(s, known); near != "" {
		hint = fmt.Sprintf("did you mean %q?", near)
	}
	return &problem{codeAlgorithm, fmt.Sprintf("%q is not a signature algorithm", clip(s)), hint}
}

// absolutePath is a path that means one file: from the root, with nothing in it
// that leads back.
func absolutePath(s string) *problem {
	if p := shortText(s); p != nil {
		return p
	}
	if !path.IsAbs(s) || path.Clean(s) != s || s == "/" {
		return &problem{codeValue, fmt.Sprintf("%q is not an absolute path", clip(s)), "write the file's path from the root, without . or .. or a double slash"}
	}
	return nil
}

// relative resolves a path that stands in file, and refuses one that leaves
// the root.
func relative(file, p string) (string, *problem) {
	fail := func(hint string) (string, *problem) {
		return "", &problem{codePath, fmt.Sprintf("%q is not a path in the intent's directory", clip(p)), hint}
	}
	switch {
	case p == "":
		return fail("write a path relative to this file")
	case path.IsAbs(p) || len(p) > 1 && p[1] == ':':
		return fail("write it relative to this file")
	case strings.ContainsRune(p, '\\'):
		return fail("separate directories with /")
	case strings.ContainsFunc(p, func(c rune) bool { return unicode.IsControl(c) || c == utf8.RuneError }):
		return fail("a path has no control characters")
	}
	joined := path.Join(path.Dir(file), p)
	if joined == ".." || strings.HasPrefix(joined, "../") {
		return fail("it leaves the directory of merlon.yaml; what an intent means must be inside")
	}
	return joined, nil
}

// envName checks the name of an environment variable.
func envName() *text {
	return &text{what: "the name of a variable", pattern: `^[A-Za-z_][A-Za-z0-9_]*$`}
}

// shortText checks a text that is shown or passed on.
func shortText(s string) *problem {
	if len(s) > maxTextBytes || strings.ContainsRune(s, 0) {
		return &problem{codeValue, "the text is too long, or has a NUL in it", fmt.Sprintf("at most %d bytes", maxTextBytes)}
	}
	return nil
}

// condition checks the size of a condition; package policy checks the rest.
func condition(s string) *problem {
	if len(s) > maxCondition {
		return &problem{codeCondition, fmt.Sprintf("the condition has %d bytes", len(s)), fmt.Sprintf("at most %d", maxCondition)}
	}
	return nil
}

// publicKeys checks that a file is a JSON Web Key Set (RFC 7517 5) of public
// keys. A private or shared key in an intent is one that everybody has.
func publicKeys(b []byte) *problem {
	var set struct {
		Keys []map[string]json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(b, &set); err != nil {
		return &problem{codeKeys, "the file is not a JSON Web Key Set", `expects {"keys": [...]} (RFC 7517)`}
	}
	if len(set.Keys) == 0 {
		return &problem{codeKeys, "the key set holds no key", "nobody could log in"}
	}
	for i, k := range set.Keys {
		var kty string
		_ = json.Unmarshal(k["kty"], &kty) // a kty that is no string is no known kty
		switch kty {
		case "RSA", "EC", "OKP":
		case "oct":
			return &problem{codeKeys, fmt.Sprintf("key %d of the key set is a shared secret", i+1), "who can check a token with it can also make one; use a key pair"}
		default:
			return &problem{codeKeys, fmt.Sprintf("key %d of the key set has no known type", i+1), `"kty" is RSA, EC or OKP`}
		}
		for _, private := range []string{"d", "p", "q", "dp", "dq", "qi", "oth"} {
			if _, there := k[private]; there {
				return &problem{codeKeys, fmt.Sprintf("key %d of the key set is a private key", i+1), "keep only the public part here, and replace the key: it has been seen"}
			}
		}
	}
	return nil
}
