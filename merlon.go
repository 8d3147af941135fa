// Package merlon holds the nouns of the system, and nothing else.
//
// One intent says what the services are, what their contracts offer and who
// may call whom. It is compiled to a policy, and the policy is enforced in
// places: the gateway at the edge and a gate beside every service. Six
// functions are the system; see ARCHITECTURE.md for the card.
//
// The nouns are plain values. They hold no locks, read no clock and import
// only the standard library, so that every floor above can speak them.
package merlon

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// Pos is a place in a file a person wrote. It is the thread through the
// system: every verdict, diagnostic and record cites the sentence it rests on.
// The zero Pos means "nobody wrote this down".
type Pos struct {
	File   string // slash-separated, relative to the intent's directory
	Line   int    // from 1; 0 when only the file is known
	Column int    // in characters, from 1; 0 when unknown
}

// IsZero reports whether p names no place at all.
func (p Pos) IsZero() bool { return p == Pos{} }

// String formats p as file:line:column, leaving out what is unknown.
func (p Pos) String() string {
	switch {
	case p.Line == 0:
		return p.File
	case p.Column == 0:
		return p.File + ":" + strconv.Itoa(p.Line)
	}
	return p.File + ":" + strconv.Itoa(p.Line) + ":" + strconv.Itoa(p.Column)
}

// Compare orders positions by file, line and column.
func (p Pos) Compare(q Pos) int {
	return cmp.Or(strings.Compare(p.File, q.File), cmp.Compare(p.Line, q.Line), cmp.Compare(p.Column, q.Column))
}

// MarshalText writes p as String does.
func (p Pos) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (p *Pos) UnmarshalText(text []byte) error {
	*p = Pos{}
	s := string(text)
	numbers := make([]int, 0, 2)
	for len(numbers) < 2 {
		i := strings.LastIndexByte(s, ':')
		if i < 0 {
			break
		}
		n, err := strconv.Atoi(s[i+1:])
		if err != nil || n < 0 {
			break
		}
		numbers, s = append(numbers, n), s[:i]
	}
	p.File = s
	switch len(numbers) {
	case 1:
		p.Line = numbers[0]
	case 2:
		p.Line, p.Column = numbers[1], numbers[0]
	}
	return nil
}

// Diagnostic is one thing wrong with what a person wrote. Message is lower
// case, quotes the user's word and has no full stop; Hint says what to do.
type Diagnostic struct {
	Pos     Pos    `json:"pos"`
	Width   int    `json:"width,omitzero"`   // characters to underline from Pos
	Code    string `json:"code"`             // stable, such as "E0103"; never reused
	Warning bool   `json:"warning,omitzero"` // a warning does not stop anything
	Message string `json:"message"`
	Hint    string `json:"hint,omitzero"`
	Also    []Pos  `json:"also,omitzero"` // the other places of a disagreement
}

// Error lets a Diagnostic travel as an error.
func (d Diagnostic) Error() string { return fmt.Sprintf("%v: %s [%s]", d.Pos, d.Message, d.Code) }

// Diagnostics is all that is wrong with an input, in the order of Pos.
type Diagnostics []Diagnostic

// Failed reports whether any diagnostic is more than a warning.
func (ds Diagnostics) Failed() bool {
	for _, d := range ds {
		if !d.Warning {
			return true
		}
	}
	return false
}

// Error lets Diagnostics travel as an error: the first one, and how many follow.
func (ds Diagnostics) Error() string {
	switch len(ds) {
	case 0:
		return "no diagnostics"
	case 1:
		return ds[0].Error()
	}
	return fmt.Sprintf("%v (and %d more)", ds[0].Error(), len(ds)-1)
}

// Call is one attempt by a Caller to invoke an Operation at an instant. It is
// canonical: host and path are normalised once, where the Call is built, and
// policy, filters and upstream all see these same bytes.
//
// Strings of a Call may be views into a read buffer: they die with the call,
// and who keeps one clones it.
type Call struct {
	Caller    Caller
	Service   string // the service called
	Operation string // the operation that method and path select; "" when none does
	Method    string
	Host      string
	Path      string  // canonical, decoded nowhere
	Query     string  // raw, without the question mark
	Params    []Param // path parameters, in the order of the template
	Time      int64   // unix nanoseconds, the instant of the decision
}

// Param is the value a call gives to one parameter of a path template.
type Param struct{ Name, Value string }

// Caller is who is calling and how that was proved. The zero Caller is nobody
// and no rule matches it.
type Caller struct {
	Kind    CallerKind
	Name    string         // of the service or the login in the intent; "" for Anyone
	Subject string         // the proved name: a SPIFFE ID or a token's sub
	Claims  map[string]any // of the token, immutable and shared; nil without one
	Client  string         // address of the client as the edge saw it; "" when inside
}

// CallerKind says how a Caller was proved.
type CallerKind uint8

const (
	Nobody   CallerKind = iota // nothing is known; denied
	Anyone                     // came through the gateway without a token
	Login                      // came through the gateway with a valid token
	Workload                   // a service, by its SPIFFE ID over mutual TLS
)

var callerKinds = [...]string{"nobody", "anyone", "login", "workload"}

// String is the kind's name in records and messages.
func (k CallerKind) String() string { return enumName(callerKinds[:], int(k)) }

// MarshalText writes the kind's name.
func (k CallerKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads a kind's name.
func (k *CallerKind) UnmarshalText(text []byte) error {
	return enumParse(callerKinds[:], text, "caller kind", (*uint8)(k))
}

// Effect is what becomes of a call. The zero value denies, so that a forgotten
// answer is a refusal.
type Effect uint8

const (
	Deny  Effect = iota // refused
	Pass                // this step has no objection; another must allow
	Allow               // a rule allows it
)

var effects = [...]string{"deny", "pass", "allow"}

// String is the effect's name in records and messages.
func (e Effect) String() string { return enumName(effects[:], int(e)) }

// MarshalText writes the effect's name.
func (e Effect) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// UnmarshalText reads an effect's name.
func (e *Effect) UnmarshalText(text []byte) error {
	return enumParse(effects[:], text, "effect", (*uint8)(e))
}

// Verdict answers a Call. The zero Verdict denies.
type Verdict struct {
	Effect Effect `json:"effect"`
	Reason Reason `json:"reason"`        // why, for machines: stable
	Pos    Pos    `json:"pos,omitzero"`  // the sentence that decided
	Rule   string `json:"rule,omitzero"` // its name, such as "orders: web"
	// Shadow says that the policy denies but the sentence is in shadow mode:
	// Effect is Allow, Reason is why the call would have been denied.
	Shadow bool `json:"shadow,omitzero"`
	// Limit is the limit that the deciding rule puts on its caller, or nil.
	Limit *Limit `json:"-"`
}

// Reason is a stable code for why a call was allowed or denied. The caller of
// a denied call sees it; the cause behind it goes to the record only.
type Reason string

// Reasons of policy. Package gate adds those of protocol and transport.
const (
	ReasonAllowed      Reason = "allowed"       // a rule allows the call
	ReasonNoRule       Reason = "no_rule"       // no rule lets this caller call this operation
	ReasonNoOperation  Reason = "no_operation"  // no operation has this method and path
	ReasonNoService    Reason = "no_service"    // no service has this name or host
	ReasonCondition    Reason = "condition"     // the rule's condition is not met, or failed
	ReasonGuardrail    Reason = "guardrail"     // a guardrail denies
	ReasonUnidentified Reason = "unidentified"  // the caller could not be identified
	ReasonInvalidToken Reason = "invalid_token" // a token was given and is not valid
	ReasonRateLimited  Reason = "rate_limited"  // a limit is used up
)

// Place is somewhere a policy is enforced: the gateway at the edge, or the
// gate beside one service.
type Place struct {
	Service string // "" is the edge
}

// Edge is the place of the gateway.
var Edge = Place{}

// GatewayName is the name under which the edge gate calls services. No
// service may have it.
const GatewayName = "gateway"

// String is "gateway" or "gate of SERVICE".
func (p Place) String() string {
	if p == Edge {
		return GatewayName
	}
	return "gate of " + p.Service
}

// Workload is the name in the place's own SPIFFE ID.
func (p Place) Workload() string {
	if p == Edge {
		return GatewayName
	}
	return p.Service
}

// OrdersVersion is the version of the Orders a control plane writes and a gate
// reads. A gate refuses any other. History: 1, the first; 2, HTTP/2 and gRPC to
// services, WebSockets, bytes over TCP, traces, callers of other trust domains.
const OrdersVersion = 2

// Orders is all that one place needs to enforce the policy, and nothing else.
// They carry no secret: keys and certificates come from the authority.
type Orders struct {
	Version int   `json:"version"`
	Place   Place `json:"place"`
	// Hash names these orders: a gate acknowledges by it. It stands for all
	// the other fields.
	Hash string `json:"hash"`
	// Of is the hash of the whole intent that these orders come from.
	Of string `json:"of"`
	// Content is the hash of Intent and Endpoints: orders of equal Content
	// enforce the same.
	Content string `json:"content"`
	// Intent is the part of the intent that concerns Place; see policy.Scope.
	Intent Intent `json:"intent"`
	// Endpoints says where each service is reached from this place.
	Endpoints map[string][]Endpoint `json:"endpoints"`
}

// Endpoint is one address where a service is reached.
type Endpoint struct {
	Address string `json:"address"`          // host:port, or dns:host:port resolved by the gate
	ID      string `json:"id,omitzero"`      // SPIFFE ID that the gate there must prove; "" for no mutual TLS
	TLSName string `json:"tlsName,omitzero"` // for an external service: the name its public certificate must have
}

// enumName is the name of value i, or a visible mistake.
func enumName(names []string, i int) string {
	if i < len(names) {
		return names[i]
	}
	return "invalid(" + strconv.Itoa(i) + ")"
}

func enumParse(names []string, text []byte, what string, out *uint8) error {
	for i, name := range names {
		if name == string(text) {
			*out = uint8(i)
			return nil
		}
	}
	return fmt.Errorf("%q is no %s; expect one of %s", text, what, strings.Join(names, ", "))
}
