// Package route picks the one operation that a request is for: a Router picks
// exactly one route for a method and a canonical path, and says of routes which
// of them get in each other's way.
//
// Templates are brought to the canonical form of paths (RFC 3986 6.2.2): the
// Router compares bytes. The package reads no contract, so that a gate, which
// only routes, links no reader of YAML or protobuf.
package route
