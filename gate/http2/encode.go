package http2

import (
	"strconv"

	"merlon/internal/httpfield"
)

// Header blocks are written without a dynamic table: it would cost a search and
// a copy for every field, keep strings of one client's answers for the next,
// and compress a secret together with what an attacker chose. So a block
// depends on nothing but its fields.

// staticNames are the indices of names in the static table, by length.
var staticNames = namesByLength()

type staticName struct {
	name   string
	index  uint8
	secret bool
}

func namesByLength() (t [28][]staticName) {
	for i := range static {
		name := static[i].Name
		if name[0] != ':' && (i == 0 || static[i-1].Name != name) {
			t[len(name)] = append(t[len(name)], staticName{name, uint8(i + 1), isSecret(name)})
		}
	}
	return t
}

func isSecret(name string) bool {
	return name == "authorization" || name == "cookie" || name == "proxy-authorization" || name == "set-cookie"
}

// statusIndex is the first of the statuses in the static table.
const statusIndex = 8

// appendStatus appends :status.
func appendStatus(dst []byte, status int) []byte {
	for i, s := range [...]int{200, 204, 206, 304, 400, 404, 500} {
		if s == status {
			return append(dst, 0x80|byte(statusIndex+i))
		}
	}
	dst = append(dst, statusIndex, 3)
	return strconv.AppendInt(dst, int64(status), 10)
}

// appendFields appends the fields that have none of the classes in drop.
func appendFields(dst []byte, fields []Field, drop Class) []byte {
	for i := range fields {
		if f := &fields[i]; f.Class&drop == 0 {
			dst = appendField(dst, f.Name, f.Value)
		}
	}
	return dst
}

// appendField appends one field, its name in lower case (RFC 9113 8.2).
func appendField(dst []byte, name, value string) []byte {
	form := byte(0) // literal without indexing
	index := uint64(0)
	if len(name) < len(staticNames) {
		for _, s := range staticNames[len(name)] {
			if httpfield.EqualFold(s.name, name) {
				index = uint64(s.index)
				if s.secret {
					form = 0x10 // never indexed, by nobody on the way (RFC 7541 7.1.3)
				}
				break
			}
		}
	}
	dst = appendInteger(dst, form, 4, index)
	if index == 0 {
		dst = appendInteger(dst, 0, 7, uint64(len(name)))
		for i := 0; i < len(name); i++ {
			dst = append(dst, httpfield.Lower(name[i]))
		}
	}
	dst = appendInteger(dst, 0, 7, uint64(len(value)))
	return append(dst, value...)
}
