package http1

import "merlon/internal/httpfield"

// Class says what the name of a field means to a gate. A gate forwards the
// fields of a request whose class is zero and sets all others anew; of a
// response it holds back HopByHop and Framing.
type Class = httpfield.Class

// Classes; see package httpfield.
const (
	HopByHop   = httpfield.HopByHop
	Framing    = httpfield.Framing
	Forwarding = httpfield.Forwarding
	Identity   = httpfield.Identity
	Tracing    = httpfield.Tracing
)

// Field is one line of a head, its value without the white space around it.
type Field = httpfield.Field

// Get finds a field by name, ignoring case. It returns the first value and how
// many fields have the name.
func Get(fields []Field, name string) (value string, count int) {
	return httpfield.Get(fields, name)
}

// ValidName reports whether s can be the name of a field.
func ValidName(s string) bool { return httpfield.ValidName(s) }

// ValidValue reports whether s can be the value of a field: printable ASCII and
// tabs, no white space around it. A line end in a value would be another field.
func ValidValue(s string) bool { return httpfield.ValidValue(s) }

type kind = httpfield.Kind

const (
	other            = httpfield.Other
	connection       = httpfield.Connection
	contentLength    = httpfield.ContentLength
	transferEncoding = httpfield.TransferEncoding
	host             = httpfield.Host
	expect           = httpfield.Expect
	upgrade          = httpfield.Upgrade
	te               = httpfield.TE
	authorization    = httpfield.Authorization
	contentType      = httpfield.ContentType
	protected        = httpfield.Protected
	traceParent      = httpfield.TraceParent
)

const (
	token  = httpfield.Token
	odd    = httpfield.Odd
	target = httpfield.Target
	text   = httpfield.Text
)

// is reports whether c may be part of one of set.
func is(c byte, set httpfield.Set) bool { return httpfield.Is(c, set) }

func classify(name string) (Class, kind) { return httpfield.Classify(name) }

func equalName(a, b string) bool { return httpfield.EqualName(a, b) }

func equalFold(a, b string) bool { return httpfield.EqualFold(a, b) }
