package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"merlon/federation"
)

// federationOptions say where our own bundle is served, and how.
type federationOptions struct {
	listen, cert, key string
	issuer            string
	caFile            string
}

func (o *federationOptions) flags(c *cobra.Command) {
	c.Flags().StringVar(&o.listen, "bundle-endpoint", "", "`address` where the trust bundle is served for other trust domains, such as :8444; default is nowhere")
	c.Flags().StringVar(&o.cert, "bundle-cert", "", "`file` with the certificate chain of the bundle endpoint (https_web); default is an SVID (https_spiffe)")
	c.Flags().StringVar(&o.key, "bundle-key", "", "`file` with its private key")
	c.Flags().StringVar(&o.issuer, "jwt-issuer", "", "`URL` that stands in JWT-SVIDs and under which the bundle endpoint is found, for who takes them as tokens of OpenID Connect")
	c.Flags().StringVar(&o.caFile, "bundle-ca", "", "`file` with the CAs of partners' bundle endpoints (https_web); default is the system's")
}

// check refuses what cannot work.
func (o *federationOptions) check() error {
	switch {
	case (o.cert == "") != (o.key == ""):
		return usage("--bundle-cert and --bundle-key go together")
	case o.listen == "" && o.cert != "":
		return usage("--bundle-cert says nothing without --bundle-endpoint")
	case o.issuer != "" && (o.listen == "" || o.cert == ""):
		return usage("--jwt-issuer needs --bundle-endpoint and a public certificate for it, --bundle-cert: who takes tokens by OpenID Connect knows no SVID")
	case o.issuer != "":
		if err := federation.CheckIssuer(o.issuer); err != nil {
			return usage("--jwt-issuer: %v", err)
		}
	}
	return nil
}

// endpointPath is that of the SPIFFE ID by which the bundle endpoint proves
// itself. No service has a name of two segments.
const endpointPath = "merlon/bundle-endpoint"

// openPartners makes what looks after the bundles of partners.
func (s *system) openPartners(o federationOptions) (err error) {
	opt := federation.Options{Dir: filepath.Join(s.state, "federation"), Log: s.log}
	if o.caFile != "" {
		text, err := os.ReadFile(o.caFile)
		if err != nil {
			return err
		}
		opt.Roots = x509.NewCertPool()
		if !opt.Roots.AppendCertsFromPEM(text) {
			return fmt.Errorf("%s holds no certificate", o.caFile)
		}
	}
	s.partners, err = federation.Open(opt)
	return err
}

// serveBundle serves our own bundle.
func (s *system) serveBundle(o federationOptions) error {
	if o.listen == "" {
		return nil
	}
	e, err := federation.NewEndpoint(s.authority.Trust, filepath.Join(s.state, "federation"), o.issuer)
	if err != nil {
		return err
	}
	var config *tls.Config
	if o.cert != "" {
		config, err = federation.FileConfig(o.cert, o.key)
	} else {
		source, serr := s.authority.Source(s.ctx, "spiffe://"+s.trustDomain+"/"+endpointPath, s.log)
		if err = serr; err == nil {
			config = federation.SourceConfig(source)
		}
	}
	if err != nil {
		return fmt.Errorf("the bundle endpoint: %w", err)
	}
	l, err := net.Listen("tcp", o.listen)
	if err != nil {
		return fmt.Errorf("the bundle endpoint: %w", err)
	}
	s.bundle, s.bundleAt = e, "https://"+l.Addr().String()+federation.BundlePath
	go func() {
		if err := e.Serve(l, config); err != nil {
			s.log.Error("the bundle endpoint ended", "err", err)
		}
	}()
	return nil
}

// federation shows how the bundles of partners fare.
func (u *ui) federation(list []federation.Status) {
	if len(list) == 0 {
		return
	}
	rows := [][]string{{u.dim("partner"), u.dim("profile"), u.dim("roots"), u.dim("JWT keys"), u.dim("fetched")}}
	for _, f := range list {
		fetched := "never"
		if !f.Fetched.IsZero() {
			fetched = f.Fetched.UTC().Format(time.RFC3339)
		}
		rows = append(rows, []string{u.bold(f.TrustDomain), f.Profile, strconv.Itoa(f.Roots), strconv.Itoa(f.Keys), fetched})
	}
	u.printf("\n")
	u.table("", rows)
	for _, f := range list {
		if f.Err != "" {
			u.printf("\n%s\n", u.red(f.TrustDomain+": its bundle cannot be fetched; the last one stays in use: "+f.Err))
		}
	}
}
