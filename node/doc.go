// Package node gives workloads on other hosts than the control plane's their
// identities. The intent says which nodes there are and which services each has.
//
// A Server beside the authority admits nodes: one proves which it is (a join
// token, the key of a certificate, the token of a Kubernetes service account) and
// gets an SVID of its own. With it, over mutual TLS, it is told how the services
// on it are recognised, and gets SVIDs of those services and of no other. Whatever
// it asks for is held to the intent in force at that moment.
//
// An Agent on the node proves itself, attests the host's workloads, and is the
// authority that its Workload API serves. While the server is away it goes on with
// what it has.
//
// A node can take the identity of every service on it, and of nothing else: that
// is what is lost with a node that is taken over.
package node
