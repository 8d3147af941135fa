package httpfield

// untrailing lists the beginnings, folded, of names that mean nothing good in a
// trailer section although an answer's head may have them (RFC 9110 6.5.1):
// they control the request or the answer, authenticate, or say what the content
// is. An end of name is written as ":".
var untrailing = [...]string{
	"accept", "access-control-", "age:", "allow:", "alt-svc:", "authentication-", "cache-control:", "clear-site-data:", "clear-cookie:", "content-",
	"cross-origin-", "date:", "expires:", "if-", "link:", "location:", "max-forwards:", "permissions-policy:", "pragma:", "range:",
	"referrer-policy:", "refresh:", "retry-after:", "sec-", "server:", "set-cookie", "sourcemap:", "status:", "strict-transport-", "surrogate-",
	"user-agent:", "vary:", "warning:", "www-authenticate:", "x-content-type-", "x-frame-", "x-xss-",
}

// MayTrail reports whether a field may travel in a trailer section: one that a
// gate does not act upon, and nobody after it should (RFC 9110 6.5.1).
func MayTrail(name string) bool {
	if class, k := Classify(name); class != 0 || k != Other {
		return false
	}
	for _, begin := range untrailing {
		n := len(begin)
		if begin[n-1] == ':' {
			if n--; len(name) != n {
				continue
			}
		}
		if len(name) >= n && hasPrefixFold(name, begin[:n]) {
			return false
		}
	}
	return true
}
