package workloadapi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/emptypb"

	"merlon/identity/spiffe"
)

// Envoy's Secret Discovery Service (envoy.service.secret.v3). Its generated
// types weigh more than all the rest of this package, so the few fields that
// matter are read and written by number: a message of unknown fields only is
// what an empty one is made of.

const (
	tlsTypes      = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."
	secretType    = tlsTypes + "Secret"
	validatorType = tlsTypes + "SPIFFECertValidatorConfig"
	validatorName = "envoy.tls.cert_validator.spiffe"

	// Names by which Envoy asks, as SPIRE has them; the SPIFFE IDs of the
	// workload and of a trust domain do as well.
	ownSecret, rootsSecret, allSecret = "default", "ROOTCA", "ALL"

	maxNames = 16
)

// secretService describes the service to gRPC.
func secretService() *grpc.ServiceDesc {
	stream := func(name string, begin func() conversation) grpc.StreamDesc {
		return grpc.StreamDesc{StreamName: name, ClientStreams: true, ServerStreams: true,
			Handler: func(s any, stream grpc.ServerStream) error { return s.(*Server).streamSecrets(stream, begin()) }}
	}
	return &grpc.ServiceDesc{
		ServiceName: "envoy.service.secret.v3.SecretDiscoveryService",
		HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{
			stream("StreamSecrets", func() conversation { return new(whole) }),
			stream("DeltaSecrets", func() conversation { return new(delta) }),
		},
		Methods: []grpc.MethodDesc{{
			MethodName: "FetchSecrets",
			Handler: func(s any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				in := new(emptypb.Empty)
				if err := decode(in); err != nil {
					return nil, err
				}
				return s.(*Server).fetchSecrets(ctx, in)
			},
		}},
	}
}

// conversation is one of the two ways to talk about secrets: each answer holds
// all that is asked for (whole), or what changed (delta). The zero value has
// heard nothing.
type conversation interface {
	// hear takes a request, and reports whether it says that an answer was not
	// taken.
	hear(request []byte) (refused bool, err error)
	// say is the next answer, or nil when there is nothing to say.
	say(*offer) []byte
}

// offer is all that a workload may have now.
type offer struct {
	id, domain string
	*material
	others []*spiffe.Bundle
}

// usual are the names of what is sent to who names nothing.
var usual = [...]string{ownSecret, rootsSecret}

// secret is the Secret of this name, or nil.
//
// The roots of another trust domain verify its workloads and no others: by
// themselves they would verify whatever name they sign, so they come for Envoy's
// SPIFFE validator, which looks at the name first.
func (o *offer) secret(name string) []byte {
	s := field(nil, 1, name)
	switch name {
	case ownSecret, o.id:
		var chain []byte
		for _, der := range o.svid.Certificate {
			chain = appendPEM(chain, "CERTIFICATE", der)
		}
		key := appendPEM(nil, "PRIVATE KEY", o.private)
		return field(s, 2, field(field(nil, 1, inline(chain)), 2, inline(key))) // tls_certificate
	case rootsSecret, o.domain:
		return field(s, 4, field(nil, 1, inline(o.trust.PEM))) // validation_context: trusted_ca
	case allSecret:
		all := trustDomain(nil, o.domain, o.trust.DER)
		for _, b := range o.others {
			all = trustDomain(all, scheme+b.TrustDomain, b.DER)
		}
		return validator(s, all)
	}
	for _, b := range o.others {
		if name == scheme+b.TrustDomain && len(b.DER) > 0 {
			return validator(s, trustDomain(nil, name, b.DER))
		}
	}
	return nil
}

// trustDomain appends a trust domain of a SPIFFECertValidatorConfig. One
// without roots verifies nobody, and Envoy would refuse it.
func trustDomain(b []byte, id string, roots [][]byte) []byte {
	if len(roots) == 0 {
		return b
	}
	var text []byte
	for _, der := range roots {
		text = appendPEM(text, "CERTIFICATE", der)
	}
	return field(b, 1, field(field(nil, 1, id[len(scheme):]), 2, inline(text)))
}

// validator appends a validation_context with a custom_validator_config.
func validator(secret, config []byte) []byte {
	return field(secret, 4, field(nil, 12, field(field(nil, 1, validatorName), 2, anyOf(validatorType, config))))
}

// field appends a field that is a message, a string or bytes.
func field[T string | []byte](b []byte, number protowire.Number, v T) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, number, protowire.BytesType), []byte(v))
}

// inline is a DataSource with inline bytes (envoy.config.core.v3).
func inline(v []byte) []byte { return field(nil, 2, v) }

// anyOf is a google.protobuf.Any.
func anyOf(kind string, v []byte) []byte { return field(field(nil, 1, kind), 2, v) }

func appendPEM(b []byte, kind string, der []byte) []byte {
	return append(b, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})...)
}

// versionOf is a text that is another for each other content.
func versionOf(content []byte) string {
	h := sha256.Sum256(content)
	return hex.EncodeToString(h[:16])
}

// each calls f with every field of a message that is bytes, a string or a
// message.
func each(b []byte, f func(number protowire.Number, v []byte) error) error {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
			return protowire.ParseError(n)
		}
		if kind == protowire.BytesType {
			v, _ := protowire.ConsumeBytes(b)
			if err := f(number, v); err != nil {
				return err
			}
		}
		b = b[n:]
	}
	return nil
}

// addName adds a name that is asked for.
func addName(to *[]string, name []byte) error {
	if len(*to) == maxNames {
		return status.Errorf(codes.InvalidArgument, "more than %d names", maxNames)
	}
	*to = append(*to, string(name))
	return nil
}

func checkType(kind []byte) error {
	if string(kind) != secretType {
		return status.Errorf(codes.InvalidArgument, "only %s is served here", secretType)
	}
	return nil
}

// whole is a conversation in which each request names all that is wanted, and
// each answer holds all of that.
type whole struct {
	begun bool
	names []string
	last  string // version of what was said
}

// hear reads a DiscoveryRequest (envoy.service.discovery.v3).
func (w *whole) hear(request []byte) (refused bool, err error) {
	var names []string
	err = each(request, func(number protowire.Number, v []byte) error {
		switch number {
		case 3: // resource_names
			return addName(&names, v)
		case 4: // type_url
			return checkType(v)
		case 6: // error_detail
			refused = true
		}
		return nil
	})
	w.begun, w.names = true, names
	return refused, err
}

// say is a DiscoveryResponse.
func (w *whole) say(o *offer) []byte {
	if !w.begun {
		return nil
	}
	names := w.names
	if len(names) == 0 {
		names = usual[:]
	}
	var resources []byte
	for _, name := range names {
		if secret := o.secret(name); secret != nil {
			resources = field(resources, 2, anyOf(secretType, secret))
		}
	}
	version := versionOf(resources)
	if version == w.last {
		return nil
	}
	w.last = version
	return field(field(append(field(nil, 1, version), resources...), 4, secretType), 5, version) // nonce
}

// streamSecrets answers a stream of requests and tells of every change. The
// client's requests are read by a goroutine of its own, which ends with the
// stream.
func (s *Server) streamSecrets(stream grpc.ServerStream, talk conversation) error {
	ctx := stream.Context()
	if !overUnix(ctx) {
		return denied()
	}
	asked := make(chan []byte)
	failed := make(chan error, 1)
	go func() {
		for {
			in := new(emptypb.Empty)
			if err := stream.RecvMsg(in); err != nil {
				failed <- err
				return
			}
			select {
			case asked <- in.ProtoReflect().GetUnknown():
			case <-ctx.Done():
				return
			}
		}
	}()
	held := holder{server: s}
	defer held.release()
	for begun := false; ; {
		c := changes{who: s.cfg.Changed(), trust: s.cfg.Authority.Trust().Stale()}
		c.federated, c.others = s.cfg.Federated()
		id, err := s.identify(ctx)
		if err != nil {
			return err
		}
		if begun {
			m, err := held.current(id, &c)
			if err != nil {
				return err
			}
			if m != nil {
				if b := talk.say(&offer{id, s.domain(), m, c.federated}); b != nil {
					if err := sendRaw(stream, b); err != nil {
						return err
					}
				}
			}
		}
		select {
		case b := <-asked:
			refused, err := talk.hear(b)
			if err != nil {
				return err
			}
			if refused {
				s.cfg.Log.Warn("Envoy did not take a secret", "id", id)
			}
			begun = true
		case err := <-failed:
			if err == io.EOF {
				return nil
			}
			return err
		case <-c.who:
		case <-c.trust:
		case <-c.svid:
		case <-c.others:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.ctx.Done():
			return status.Error(codes.Unavailable, "the server stops")
		}
	}
}

func sendRaw(stream grpc.ServerStream, b []byte) error {
	out := new(emptypb.Empty)
	out.ProtoReflect().SetUnknown(b)
	return stream.SendMsg(out)
}

// fetchSecrets answers one request.
func (s *Server) fetchSecrets(ctx context.Context, in *emptypb.Empty) (*emptypb.Empty, error) {
	if !overUnix(ctx) {
		return nil, denied()
	}
	var talk whole
	if _, err := talk.hear(in.ProtoReflect().GetUnknown()); err != nil {
		return nil, err
	}
	id, err := s.identify(ctx)
	if err != nil {
		return nil, err
	}
	held := holder{server: s}
	defer held.release()
	m, err := held.current(id, &changes{})
	if err != nil {
		return nil, err
	}
	if m == nil {
		return nil, status.Error(codes.Unavailable, "the SVID has expired and could not be renewed")
	}
	others, _ := s.cfg.Federated()
	out := new(emptypb.Empty)
	out.ProtoReflect().SetUnknown(talk.say(&offer{id, s.domain(), m, others}))
	return out, nil
}

// overUnix reports whether a call came over a Unix socket. Envoy sends no
// header that keeps tricked servers (SSRF) apart, so it gets nothing over TCP.
func overUnix(ctx context.Context) bool {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return false
	}
	c, ok := p.AuthInfo.(*caller)
	return ok && c.unix
}
