package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"merlon/authority"
	"merlon/control"
	"merlon/federation"
)

const authorityName = "authority"

func newIDStatus(u *ui) *cobra.Command {
	return &cobra.Command{
		Use:   "status [DIR]",
		Short: "say how the keys of the running authority fare, and what nears its end",
		Long: `status lists the roots, intermediates and JWT keys of the authority that runs for the
intent in DIR: what signs, what is prepared and what only stays to verify by.`,
		Args:              takes(0, 1),
		ValidArgsFunction: completeDir(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := dirArg(args, 0)
			s, err := control.NewClient(u.stateDir(dir)).Authority(cmd.Context())
			if errors.Is(err, control.ErrNotRunning) {
				return errStopped(dir)
			}
			if err != nil {
				return err
			}
			if u.json {
				u.printJSON(map[string]any{"ok": len(s.Alarms) == 0, "authority": s.Status, "federation": s.Federation})
			} else {
				u.authority(s)
			}
			failed := func(f federation.Status) bool { return f.Err != "" }
			if len(s.Alarms) > 0 || slices.ContainsFunc(s.Federation, failed) {
				return &exit{code: exitFailed}
			}
			return nil
		},
	}
}

// authority shows how the authority's keys fare.
func (u *ui) authority(s *control.Identity) {
	rows := [][]string{{u.dim("key"), u.dim("state"), u.dim("from"), u.dim("until"), u.dim("serial")}}
	for _, l := range s.Lives {
		rows = append(rows, []string{u.bold(l.Kind), l.State, l.From.UTC().Format(time.RFC3339), l.Until.UTC().Format(time.RFC3339), l.Serial})
	}
	u.table("", rows)
	for _, kind := range sortedKeys(s.Alarms) {
		u.printf("\n%s\n", u.red("alarm: "+kind+": "+s.Alarms[kind]+", and it has no successor"))
	}
	if s.Err != "" {
		u.printf("\n%s\n", u.red(s.Err))
	}
	u.federation(s.Federation)
}

func newIDBundle(u *ui) *cobra.Command {
	return &cobra.Command{
		Use:   "bundle [DIR]",
		Short: "print the roots by which others verify the running system",
		Long: `bundle prints the roots of the trust domain that runs for the intent in DIR, PEM: for
agents of nodes that have no join token. It holds no secret, but who can change it on
its way decides whom they believe.`,
		Args:              takes(0, 1),
		ValidArgsFunction: completeDir(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := dirArg(args, 0)
			s, err := control.NewClient(u.stateDir(dir)).Authority(cmd.Context())
			if errors.Is(err, control.ErrNotRunning) {
				return errStopped(dir)
			}
			if err != nil {
				return err
			}
			if u.json {
				u.printJSON(map[string]any{"ok": true, "roots": s.Roots})
				return nil
			}
			u.printf("%s", s.Roots)
			return nil
		},
	}
}

func newIDRequest(u *ui) *cobra.Command {
	return &cobra.Command{
		Use:   "csr [DIR]",
		Short: "print a certificate request, for an offline root to sign the intermediate",
		Long: `csr prints what a root that is kept elsewhere is to sign, so that the authority of the
intent in DIR has no root of its own. The key stays in the state directory. What
was signed is taken by merlon id install.`,
		Args:              takes(0, 1),
		ValidArgsFunction: completeDir(0),
		RunE: func(_ *cobra.Command, args []string) error {
			dir, trustDomain, err := u.authorityDir(dirArg(args, 0))
			if err != nil {
				return err
			}
			csr, err := authority.Request(dir, trustDomain)
			if err != nil {
				return err
			}
			u.printf("%s", csr)
			return nil
		},
	}
}

func newIDInstall(u *ui) *cobra.Command {
	return &cobra.Command{
		Use:   "install CERTIFICATES [DIR]",
		Short: "take what an offline root made of the last request",
		Long: `install takes a PEM file, or - for the standard input: the signed intermediate first,
then what lies between it and the root, then the root, which every workload will
trust. It is tried before it is kept. A running merlon up takes it up when its
intermediate is due; the next one begins with it.`,
		Args: takes(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, trustDomain, err := u.authorityDir(dirArg(args, 1))
			if err != nil {
				return err
			}
			certs, err := readInput(cmd.InOrStdin(), args[0])
			if err != nil {
				return err
			}
			if err := authority.Install(dir, trustDomain, certs, time.Now()); err != nil {
				return err
			}
			u.say("installed in %s", relative(dir))
			return nil
		},
	}
}

// maxCertificates bounds what install reads.
const maxCertificates = 1 << 20

func readInput(stdin io.Reader, name string) ([]byte, error) {
	in := stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxCertificates+1))
	if err == nil && len(b) > maxCertificates {
		err = fmt.Errorf("%s has more than %d bytes", name, maxCertificates)
	}
	return b, err
}

// authorityDir is where the authority of the intent in dir keeps its state, and
// its trust domain.
func (u *ui) authorityDir(dir string) (state, trustDomain string, err error) {
	loaded, _, _, err := u.read(dir)
	if err != nil {
		return "", "", err
	}
	state = u.stateDir(dir)
	if err := makeState(state); err != nil {
		return "", "", err
	}
	return filepath.Join(state, authorityName), loaded.Intent.TrustDomain, nil
}

// lifetimes are those of what the authority signs; 0 is the usual one.
type lifetimes struct{ svid, intermediate, root time.Duration }

// leastLifetime is the shortest lifetime that may be asked for: a successor has to
// reach everyone within an eighth of it.
const leastLifetime = 10 * time.Second

// leastPublished is the shortest life of a root whose bundle other trust domains
// fetch: it is known for a tenth of its life before it signs, and they look every
// five minutes.
const leastPublished = 2 * time.Hour

func (l *lifetimes) flags(c *cobra.Command) {
	c.Flags().DurationVar(&l.svid, "svid-ttl", 0, "`lifetime` of X.509-SVIDs, 10s to 168h; default is 1h, or that of the intermediate")
	c.Flags().DurationVar(&l.intermediate, "intermediate-ttl", 0, "`lifetime` of intermediates, from the next one on; default is 2160h, 90 days, or that of the root")
	c.Flags().DurationVar(&l.root, "root-ttl", 0, "`lifetime` of roots, from the next one on; default is 87672h, ten years")
}

// check refuses what cannot work.
func (l *lifetimes) check(o upOptions) error {
	below, longest := "", 3*87672*time.Hour // what a longer life would outlive
	for _, f := range []struct {
		flag    string
		life    time.Duration
		longest time.Duration
	}{{"--root-ttl", l.root, longest}, {"--intermediate-ttl", l.intermediate, longest}, {"--svid-ttl", l.svid, 168 * time.Hour}} {
		switch {
		case f.life == 0:
			continue
		case f.life < leastLifetime:
			return usage("%s %v is too short\nhint: %v is the least: what succeeds a certificate has to reach everyone before it is needed", f.flag, f.life, leastLifetime)
		case f.life > f.longest:
			return usage("%s %v is too long\nhint: %v is the most", f.flag, f.life, f.longest)
		case f.life > longest:
			return usage("%s %v is longer than %s %v\nhint: nothing outlives what signed it", f.flag, f.life, below, longest)
		}
		below, longest = f.flag, f.life
	}
	switch {
	case l.root != 0 && o.vault.address != "":
		return usage("--root-ttl says nothing with --vault: the root is the Vault's")
	case l.root != 0 && l.root < leastPublished && o.federation.listen != "":
		return usage("--root-ttl %v is too short with --bundle-endpoint\nhint: %v is the least: other trust domains look for new roots every five minutes only", l.root, leastPublished)
	}
	return nil
}

// vaultOptions say which Vault signs the intermediates.
type vaultOptions struct{ address, mount, namespace, tokenFile, caFile string }

func (o *vaultOptions) flags(c *cobra.Command) {
	c.Flags().StringVar(&o.address, "vault", "", "`address` of a Vault or OpenBao that signs the intermediates, such as https://vault.example:8200")
	c.Flags().StringVar(&o.mount, "vault-mount", "pki", "`path` of its PKI engine")
	c.Flags().StringVar(&o.namespace, "vault-namespace", "", "`namespace` of its PKI engine")
	c.Flags().StringVar(&o.tokenFile, "vault-token", "", "`file` with a token for it")
	c.Flags().StringVar(&o.caFile, "vault-ca", "", "`file` with the CA of its certificate; default is the system's")
}

// upstream is the Vault, or nil when none is named.
func (o *vaultOptions) upstream() (authority.Upstream, error) {
	if o.address == "" {
		if slices.ContainsFunc([]string{o.namespace, o.tokenFile, o.caFile}, func(s string) bool { return s != "" }) {
			return nil, usage("the other words about a Vault say nothing without --vault")
		}
		return nil, nil
	}
	v := &authority.Vault{Address: o.address, Mount: o.mount, Namespace: o.namespace, TokenFile: o.tokenFile}
	if o.caFile != "" {
		text, err := os.ReadFile(o.caFile)
		if err != nil {
			return nil, err
		}
		v.Roots = x509.NewCertPool()
		if !v.Roots.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s holds no certificate", o.caFile)
		}
	}
	return v, v.Check()
}
