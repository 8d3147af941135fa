package workloadapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"merlon/authority"
	"merlon/identity/spiffe"
)

// FetchX509SVID streams the caller's X.509-SVID, its key and the bundle.
func (s *Server) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	ctx := stream.Context()
	if err := checkHeader(ctx); err != nil {
		return err
	}
	held := holder{server: s}
	defer held.release()
	return s.follow(ctx, func(id string, c *changes) (string, func() error, error) {
		m, err := held.current(id, c)
		if err != nil || m == nil {
			return "", nil, err
		}
		others, key := s.roots(c)
		return m.key + key, func() error {
			return stream.Send(&workload.X509SVIDResponse{FederatedBundles: others, Svids: []*workload.X509SVID{{
				SpiffeId: id, X509Svid: bytes.Join(m.svid.Certificate, nil), X509SvidKey: m.private, Bundle: bytes.Join(m.trust.DER, nil),
			}}})
		}, nil
	})
}

// material is what a caller is given.
type material struct {
	key     string // another for each that differs
	svid    *tls.Certificate
	private []byte // PKCS #8
	trust   *authority.Trust
}

// holder holds the SVID of whatever workload a stream's caller is.
type holder struct {
	server *Server
	id     string
	source *authority.Source
	free   func()
}

func (h *holder) release() {
	if h.free != nil {
		h.free()
		h.free = nil
	}
}

// current is what there is now, or nil if the SVID has expired and is not
// renewed: it will change when it is.
func (h *holder) current(id string, c *changes) (*material, error) {
	if h.id != id || h.free == nil {
		h.release()
		var err error
		if h.source, h.free, err = h.server.acquire(id); err != nil {
			return nil, h.server.unavailable(id, err)
		}
		h.id = id
	}
	c.svid = h.source.Renewed()
	m := &material{svid: h.source.SVID(), trust: h.server.cfg.Authority.Trust()}
	if m.svid == nil {
		return nil, nil
	}
	var err error
	if m.private, err = x509.MarshalPKCS8PrivateKey(m.svid.PrivateKey); err != nil {
		return nil, h.server.unavailable(id, errors.New("the key cannot be written")) // the cause could quote it
	}
	m.key = id + m.svid.Leaf.SerialNumber.Text(16) + string(m.trust.PEM)
	return m, nil
}

// roots are those of other trust domains, each by its SPIFFE ID and never
// joined, and a text that is another when they are.
func (s *Server) roots(c *changes) (all map[string][]byte, key string) {
	all = map[string][]byte{}
	for _, b := range c.federated {
		if der := bytes.Join(b.DER, nil); len(der) > 0 {
			all[scheme+b.TrustDomain] = der
			key += b.TrustDomain + "\n" + string(der)
		}
	}
	return all, key
}

// FetchX509Bundles streams the roots of the trust domain, and of others.
func (s *Server) FetchX509Bundles(_ *workload.X509BundlesRequest, stream grpc.ServerStreamingServer[workload.X509BundlesResponse]) error {
	ctx := stream.Context()
	if err := checkHeader(ctx); err != nil {
		return err
	}
	return s.follow(ctx, func(_ string, c *changes) (string, func() error, error) {
		der := bytes.Join(s.cfg.Authority.Trust().DER, nil)
		all, key := s.roots(c)
		all[s.domain()] = der
		return string(der) + key, func() error {
			return stream.Send(&workload.X509BundlesResponse{Bundles: all})
		}, nil
	})
}

// domain is the SPIFFE ID of the trust domain.
func (s *Server) domain() string { return scheme + s.cfg.TrustDomain }

// FetchJWTSVID gives a JWT-SVID for an audience.
func (s *Server) FetchJWTSVID(ctx context.Context, r *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	if err := checkHeader(ctx); err != nil {
		return nil, err
	}
	if err := spiffe.CheckAudience(r.Audience); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	id, err := s.identify(ctx)
	if err != nil {
		return nil, err
	}
	if r.SpiffeId != "" && r.SpiffeId != id {
		return nil, denied()
	}
	now := s.cfg.Now()
	if !s.take(id, now) {
		return nil, status.Errorf(codes.ResourceExhausted, "more than %d JWT-SVIDs a second", tokenRate)
	}
	token, _, err := s.cfg.Authority.IssueJWT(id, r.Audience, now)
	if err != nil {
		return nil, s.unavailable(id, err)
	}
	return &workload.JWTSVIDResponse{Svids: []*workload.JWTSVID{{SpiffeId: id, Svid: token}}}, nil
}

// FetchJWTBundles streams the keys of JWT-SVIDs.
func (s *Server) FetchJWTBundles(_ *workload.JWTBundlesRequest, stream grpc.ServerStreamingServer[workload.JWTBundlesResponse]) error {
	ctx := stream.Context()
	if err := checkHeader(ctx); err != nil {
		return err
	}
	return s.follow(ctx, func(_ string, c *changes) (string, func() error, error) {
		jwks := s.cfg.Authority.Trust().JWKS
		all, key := map[string][]byte{}, string(jwks)
		for _, b := range c.federated {
			if b.Keys() > 0 {
				all[scheme+b.TrustDomain] = b.JWKS
				key += b.TrustDomain + "\n" + string(b.JWKS)
			}
		}
		all[s.domain()] = jwks
		return key, func() error {
			return stream.Send(&workload.JWTBundlesResponse{Bundles: all})
		}, nil
	})
}

// ValidateJWTSVID says whom a JWT-SVID proves to the audience.
func (s *Server) ValidateJWTSVID(ctx context.Context, r *workload.ValidateJWTSVIDRequest) (*workload.ValidateJWTSVIDResponse, error) {
	if err := checkHeader(ctx); err != nil {
		return nil, err
	}
	if _, err := s.identify(ctx); err != nil {
		return nil, err
	}
	svid, err := spiffe.VerifyJWT(r.Svid, r.Audience, s.cfg.TrustDomain, s.cfg.Authority.Trust().Key, s.cfg.Now())
	if err != nil {
		// Each trust domain's tokens by its own bundle alone.
		others, _ := s.cfg.Federated()
		for _, b := range others {
			if v, ferr := spiffe.VerifyJWT(r.Svid, r.Audience, b.TrustDomain, b.Key, s.cfg.Now()); ferr == nil {
				svid, err = v, nil
				break
			}
		}
	}
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	claims, err := structpb.NewStruct(svid.Claims)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, "the token's claims cannot be written")
	}
	return &workload.ValidateJWTSVIDResponse{SpiffeId: svid.ID, Claims: claims}, nil
}
