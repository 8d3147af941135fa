// Package otlp sends spans to an OpenTelemetry collector, as OTLP over HTTP in
// protobuf (https://opentelemetry.io/docs/specs/otlp/).
//
// Whoever adds a span never waits, and nothing that the collector does can make
// it: spans are encoded into one buffer of bounded size, which one goroutine
// sends from time to time. What has no room in it is counted and dropped.
package otlp

import (
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// Kind of a span.
type Kind uint8

// Kinds, as the protocol numbers them.
const (
	Server Kind = 2
	Client Kind = 3
)

// Span is one call as one of its sides saw it.
type Span struct {
	Trace      [16]byte
	ID, Parent [8]byte // Parent is zero at the beginning of a trace
	Flags      byte    // of its trace context
	Kind       Kind
	Name       string
	Start, End int64 // unix nanoseconds
	Failed     bool
	// Linked is a span of another trace that has to do with this one; zero for
	// none.
	Linked struct {
		Trace [16]byte
		ID    [8]byte
	}
	// Attributes are used as far as they have a key, and as far as they have a
	// value.
	Attributes [20]Attribute
}

// Attribute is a property of a span: a text, or else a number.
type Attribute struct {
	Key    string
	Text   string
	Number int64
}

// Numbers of the fields of the messages of opentelemetry/proto/trace/v1 and what
// it uses.
const (
	requestResourceSpans = 1

	resourceSpansResource   = 1
	resourceSpansScopeSpans = 2
	resourceAttributes      = 1
	scopeSpansScope         = 1
	scopeSpansSpans         = 2
	scopeName               = 1

	spanTraceID    = 1
	spanID         = 2
	spanParent     = 4
	spanName       = 5
	spanKind       = 6
	spanStart      = 7
	spanEnd        = 8
	spanAttributes = 9
	spanLinks      = 13
	spanStatus     = 15
	spanFlags      = 16

	linkTraceID = 1
	linkSpanID  = 2
	statusCode  = 3
	statusError = 2

	keyValueKey   = 1
	keyValueValue = 2
	anyString     = 1
	anyInt        = 3

	responsePartial = 1
	partialRejected = 1
)

// maxText bounds one text of a span, in bytes: what is longer is cut.
const maxText = 1 << 10

// appendSpan appends s as the message Span.
func appendSpan(b []byte, s *Span) []byte {
	b = appendBytes(b, spanTraceID, s.Trace[:])
	b = appendBytes(b, spanID, s.ID[:])
	if s.Parent != [8]byte{} {
		b = appendBytes(b, spanParent, s.Parent[:])
	}
	b = appendString(b, spanName, clean(s.Name))
	b = appendVarint(b, spanKind, uint64(s.Kind))
	b = appendFixed64(b, spanStart, uint64(s.Start))
	b = appendFixed64(b, spanEnd, uint64(s.End))
	for i := range s.Attributes {
		b = appendAttribute(b, spanAttributes, &s.Attributes[i])
	}
	if l := &s.Linked; l.ID != [8]byte{} {
		b = protowire.AppendTag(b, spanLinks, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(field(linkTraceID, len(l.Trace))+field(linkSpanID, len(l.ID))))
		b = appendBytes(b, linkTraceID, l.Trace[:])
		b = appendBytes(b, linkSpanID, l.ID[:])
	}
	if s.Failed {
		b = protowire.AppendTag(b, spanStatus, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(protowire.SizeTag(statusCode)+protowire.SizeVarint(statusError)))
		b = appendVarint(b, statusCode, statusError)
	}
	b = protowire.AppendTag(b, spanFlags, protowire.Fixed32Type)
	return protowire.AppendFixed32(b, uint32(s.Flags))
}

// appendAttribute appends a as a KeyValue, if it says something.
func appendAttribute(b []byte, number protowire.Number, a *Attribute) []byte {
	if a.Key == "" || a.Text == "" && a.Number == 0 {
		return b
	}
	text := clean(a.Text)
	value := field(anyString, len(text))
	if text == "" {
		value = protowire.SizeTag(anyInt) + protowire.SizeVarint(uint64(a.Number))
	}
	b = protowire.AppendTag(b, number, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(field(keyValueKey, len(a.Key))+field(keyValueValue, value)))
	b = appendString(b, keyValueKey, a.Key)
	b = protowire.AppendTag(b, keyValueValue, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(value))
	if text == "" {
		return appendVarint(b, anyInt, uint64(a.Number))
	}
	return appendString(b, anyString, text)
}

// request is the message ExportTraceServiceRequest with spans, which are
// encoded as fields of ScopeSpans already.
func request(resource []Attribute, scope string, spans []byte) []byte {
	var about []byte
	for i := range resource {
		about = appendAttribute(about, resourceAttributes, &resource[i])
	}
	name := appendString(nil, scopeName, scope)
	inner := field(scopeSpansScope, len(name)) + len(spans)
	outer := field(resourceSpansResource, len(about)) + field(resourceSpansScopeSpans, inner)

	b := make([]byte, 0, outer+2*maxHeader)
	b = protowire.AppendTag(b, requestResourceSpans, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(outer))
	b = appendBytes(b, resourceSpansResource, about)
	b = protowire.AppendTag(b, resourceSpansScopeSpans, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(inner))
	b = appendBytes(b, scopeSpansScope, name)
	return append(b, spans...)
}

const maxHeader = 16 // of a field, in bytes

// rejected is how many spans a collector did not take, by its answer
// ExportTraceServiceResponse. What cannot be read rejects nothing.
func rejected(answer []byte) uint64 {
	partial := find(answer, responsePartial, protowire.BytesType)
	number := find(partial, partialRejected, protowire.VarintType)
	n, size := protowire.ConsumeVarint(number)
	if size < 0 {
		return 0
	}
	return n
}

// find is the content of a message's field, or nil.
func find(message []byte, number protowire.Number, kind protowire.Type) []byte {
	for len(message) > 0 {
		n, t, size := protowire.ConsumeTag(message)
		if size < 0 {
			return nil
		}
		message = message[size:]
		if size = protowire.ConsumeFieldValue(n, t, message); size < 0 {
			return nil
		}
		if n == number && t == kind {
			if kind == protowire.BytesType {
				content, _ := protowire.ConsumeBytes(message)
				return content
			}
			return message[:size]
		}
		message = message[size:]
	}
	return nil
}

// field is the size of a field of n bytes.
func field(number protowire.Number, n int) int {
	return protowire.SizeTag(number) + protowire.SizeBytes(n)
}

func appendBytes(b []byte, number protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, number, protowire.BytesType), v)
}

func appendString(b []byte, number protowire.Number, v string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, number, protowire.BytesType), v)
}

func appendVarint(b []byte, number protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, number, protowire.VarintType), v)
}

func appendFixed64(b []byte, number protowire.Number, v uint64) []byte {
	return protowire.AppendFixed64(protowire.AppendTag(b, number, protowire.Fixed64Type), v)
}

// clean is s as a text of protobuf may be, and not too long.
func clean(s string) string {
	if len(s) > maxText {
		cut := maxText
		for cut > maxText-utf8.UTFMax && !utf8.RuneStart(s[cut]) {
			cut--
		}
		s = s[:cut]
	}
	if utf8.ValidString(s) {
		return s
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
