package http1

import "strconv"

// AppendRequestLine appends the first line of a request in origin-form.
func AppendRequestLine(dst []byte, method, path, query string) []byte {
	dst = append(dst, method...)
	dst = append(dst, ' ')
	dst = append(dst, path...)
	if query != "" {
		dst = append(dst, '?')
		dst = append(dst, query...)
	}
	return append(dst, " HTTP/1.1\r\n"...)
}

// AppendStatusLine appends the first line of a response. An empty reason
// becomes the registered one.
func AppendStatusLine(dst []byte, status int, reason string) []byte {
	dst = append(dst, "HTTP/1.1 "...)
	dst = strconv.AppendInt(dst, int64(status), 10)
	dst = append(dst, ' ')
	if reason == "" {
		reason = statusText(status)
	}
	dst = append(dst, reason...)
	return append(dst, "\r\n"...)
}

// AppendField appends one field line. Name and value must come from a parsed
// head or satisfy ValidName and ValidValue: it checks nothing.
func AppendField(dst []byte, name, value string) []byte {
	dst = append(dst, name...)
	dst = append(dst, ": "...)
	dst = append(dst, value...)
	return append(dst, "\r\n"...)
}

// AppendFields appends the fields that have none of the classes in drop.
func AppendFields(dst []byte, fields []Field, drop Class) []byte {
	for i := range fields {
		if f := &fields[i]; f.Class&drop == 0 {
			dst = AppendField(dst, f.Name, f.Value)
		}
	}
	return dst
}

// AppendFraming appends the one field that says where the body ends, or none
// for BodyNone and BodyClose.
func AppendFraming(dst []byte, body Body, length int64) []byte {
	switch body {
	case BodyLength:
		dst = append(dst, "Content-Length: "...)
		dst = strconv.AppendInt(dst, length, 10)
		return append(dst, "\r\n"...)
	case BodyChunked:
		return append(dst, "Transfer-Encoding: chunked\r\n"...)
	}
	return dst
}

// AppendEnd appends the blank line that ends a head.
func AppendEnd(dst []byte) []byte { return append(dst, "\r\n"...) }

// statusText is the registered reason phrase of a status, or "".
func statusText(status int) string {
	switch status {
	case 100:
		return "Continue"
	case 101:
		return "Switching Protocols"
	case 200:
		return "OK"
	case 204:
		return "No Content"
	case 304:
		return "Not Modified"
	case 400:
		return "Bad Request"
	case 401:
		return "Unauthorized"
	case 403:
		return "Forbidden"
	case 404:
		return "Not Found"
	case 405:
		return "Method Not Allowed"
	case 408:
		return "Request Timeout"
	case 413:
		return "Content Too Large"
	case 414:
		return "URI Too Long"
	case 417:
		return "Expectation Failed"
	case 421:
		return "Misdirected Request"
	case 426:
		return "Upgrade Required"
	case 429:
		return "Too Many Requests"
	case 431:
		return "Request Header Fields Too Large"
	case 500:
		return "Internal Server Error"
	case 501:
		return "Not Implemented"
	case 502:
		return "Bad Gateway"
	case 503:
		return "Service Unavailable"
	case 504:
		return "Gateway Timeout"
	case 505:
		return "HTTP Version Not Supported"
	}
	return ""
}
