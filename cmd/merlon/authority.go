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
