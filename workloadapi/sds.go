package workloadapi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"io"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Envoy's Secret Discovery Service (envoy.service.secret.v3). Its generated
// types weigh more than all the rest of this package, so the few fields that
// matter are read and written by number: a message of unknown fields only is
// what an empty one is made of.

const (
	secretType = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

	// Names by which Envoy asks, as SPIRE has them; the SPIFFE IDs of the
	// workload and of the trust domain do as well.
	ownSecret, rootsSecret = "default", "ROOTCA"

	maxNames = 16
)

// secretService describes the service to gRPC.
func secretService() *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: "envoy.service.secret.v3.SecretDiscoveryService",
		HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{{
			StreamName: "StreamSecrets", ClientStreams: true, ServerStreams: true,
			Handler: func(s any, stream grpc.ServerStream) error { return s.(*Server).streamSecrets(stream) },
		}},
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

// discovery is what is read of a DiscoveryRequest
// (envoy.service.discovery.v3).
type discovery struct {
	names  []string
	nonce  string // of the response that is answered
	failed bool   // Envoy did not take it
}

// parseDiscovery reads a DiscoveryRequest.
func parseDiscovery(b []byte) (discovery, error) {
	var d discovery
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return d, protowire.ParseError(n)
		}
		b = b[n:]
		if kind != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
				return d, protowire.ParseError(n)
			}
			b = b[n:]
			continue
		}
		v, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return d, protowire.ParseError(n)
		}
		b = b[n:]
		switch number {
		case 3: // resource_names
			if len(d.names) == maxNames {
				return d, status.Errorf(codes.InvalidArgument, "more than %d names", maxNames)
			}
			d.names = append(d.names, string(v))
		case 4: // type_url
			if string(v) != secretType {
				return d, status.Errorf(codes.InvalidArgument, "only %s is served here", secretType)
			}
		case 5: // response_nonce
			d.nonce = string(v)
		case 6: // error_detail
			d.failed = true
		}
	}
	return d, nil
}

// message appends a field that is a message, a string or bytes.
func field[T string | []byte](b []byte, number protowire.Number, v T) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, number, protowire.BytesType), []byte(v))
}

// inline is a DataSource with inline bytes (envoy.config.core.v3).
func inline(v []byte) []byte { return field(nil, 2, v) }

// secrets is a DiscoveryResponse with the secrets of these names; without names
// all of them.
func (s *Server) secrets(id string, m *material, names []string) []byte {
	version := hex.EncodeToString(hashOf(m.key))
	wants := func(all ...string) (as []string) {
		for _, name := range all {
			if slices.Contains(names, name) {
				as = append(as, name)
			}
		}
		if len(names) == 0 {
			return all[:1]
		}
		return as
	}
	var out []byte
	out = field(out, 1, version)
	add := func(name string, number protowire.Number, v []byte) {
		secret := field(field(nil, 1, name), number, v)
		out = field(out, 2, field(field(nil, 1, secretType), 2, secret))
	}
	for _, name := range wants(ownSecret, id) {
		var chain []byte
		for _, der := range m.svid.Certificate {
			chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
		}
		key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: m.private})
		add(name, 2, field(field(nil, 1, inline(chain)), 2, inline(key))) // tls_certificate
	}
	for _, name := range wants(rootsSecret, s.domain()) {
		add(name, 4, field(nil, 1, inline(m.trust.PEM))) // validation_context: trusted_ca
	}
	out = field(out, 4, secretType)
	return field(out, 5, version) // nonce
}

func hashOf(text string) []byte {
	h := sha256.Sum256([]byte(text))
	return h[:16]
}

// streamSecrets answers a stream of requests and tells of every change. The
// client's requests are read by a goroutine of its own, which ends with the
// stream.
func (s *Server) streamSecrets(stream grpc.ServerStream) error {
	ctx := stream.Context()
	if !overUnix(ctx) {
		return denied()
	}
	asked := make(chan discovery)
	failed := make(chan error, 1)
	go func() {
		for {
			in := new(emptypb.Empty)
			err := stream.RecvMsg(in)
			var d discovery
			if err == nil {
				d, err = parseDiscovery(in.ProtoReflect().GetUnknown())
			}
			if err != nil {
				failed <- err
				return
			}
			select {
			case asked <- d:
			case <-ctx.Done():
				return
			}
		}
	}()
	held := holder{server: s}
	defer held.release()
	var names []string
	subscribed, last := false, ""
	for {
		c := changes{who: s.cfg.Changed(), trust: s.cfg.Authority.Trust().Stale()}
		id, err := s.identify(ctx)
		if err != nil {
			return err
		}
		if subscribed {
			m, err := held.current(id, &c)
			if err != nil {
				return err
			}
			if m != nil {
				if key := m.key + "\n" + strings.Join(names, "\n"); key != last {
					if err := sendRaw(stream, s.secrets(id, m, names)); err != nil {
						return err
					}
					last = key
				}
			}
		}
		select {
		case d := <-asked:
			if d.failed {
				s.cfg.Log.Warn("Envoy did not take a secret", "id", id)
			}
			names, subscribed = d.names, true
		case err := <-failed:
			if err == io.EOF {
				return nil
			}
			return err
		case <-c.who:
		case <-c.trust:
		case <-c.svid:
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
	d, err := parseDiscovery(in.ProtoReflect().GetUnknown())
	if err != nil {
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
	out := new(emptypb.Empty)
	out.ProtoReflect().SetUnknown(s.secrets(id, m, d.names))
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
