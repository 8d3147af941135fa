package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"merlon/control"
	"merlon/node"
)

func newID(u *ui) *cobra.Command {
	c := &cobra.Command{
		Use:   "id",
		Short: "say who a process is, fetch one's own identity, and look after the authority",
	}
	c.AddCommand(newIDExplain(u), newIDFetch(u), newIDStatus(u), newIDBundle(u), newIDRequest(u), newIDInstall(u))
	parent(c)
	return c
}

func newIDExplain(u *ui) *cobra.Command {
	return &cobra.Command{
		Use:   "explain PID [DIR]",
		Short: "say why a process has an identity, or has none, selector by selector",
		Long: `explain asks the running merlon up which service of the intent in DIR a process of
this host is, and goes through all that the intent says of each service. On a node, with
the state directory of merlon agent as --state, it goes through the services that
the intent puts there.`,
		Args:              takes(1, 2),
		ValidArgsFunction: completeDir(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			pid, err := strconv.Atoi(args[0])
			if err != nil || pid <= 0 {
				return usage("%q is no number of a process\nhint: %s", args[0], cmd.UseLine())
			}
			dir := dirArg(args, 1)
			var e *control.Explanation
			if kept, kerr := node.ReadKept(u.stateDir(dir)); kerr == nil {
				e, err = explainOnNode(cmd.Context(), u.stateDir(dir), kept, pid)
			} else { // it is no agent's state
				e, err = control.NewClient(u.stateDir(dir)).Explain(cmd.Context(), pid)
			}
			if errors.Is(err, control.ErrNotRunning) {
				return errStopped(dir)
			}
			if err != nil {
				return err
			}
			if u.json {
				u.printJSON(map[string]any{"ok": true, "process": e})
				return nil
			}
			u.explain(e)
			return nil
		},
	}
}

// explain shows which service a process is.
func (u *ui) explain(e *control.Explanation) {
	name := fmt.Sprintf("process %d", e.PID)
	if e.Executable != "" {
		name += fmt.Sprintf(" (%q)", e.Executable) // its user chose the name
	}
	if e.ID != "" {
		u.printf("%s is %s, %s\n\n", name, u.bold(e.Service), u.cyan(e.ID))
	} else {
		u.printf("%s has no identity: %s\n\n", name, e.Why)
	}
	var rows [][]string
	for _, f := range e.Services {
		word := u.red("no")
		if f.Matches {
			word = u.green("yes")
		}
		first := []string{u.bold(f.Service), word}
		if len(f.Checks) == 0 {
			rows = append(rows, append(first, "nothing says how it is recognised", u.dim(f.Pos.String())))
		}
		for i, c := range f.Checks {
			if i > 0 {
				first = []string{"", ""}
			}
			rows = append(rows, append(slices.Clone(first), c.String(), u.dim(f.Pos.String())))
		}
	}
	u.table("  ", rows)
}

func newIDFetch(u *ui) *cobra.Command {
	var socket, audience, write string
	c := &cobra.Command{
		Use:   "fetch",
		Short: "fetch the identity of the process that runs this command, from the Workload API",
		Long: `fetch shows who the Workload API says that this process is. It is for scripts: with
--jwt it prints a JWT-SVID for an audience, with --write it leaves the X.509-SVID
as PEM files in a directory: svid.pem, key.pem and bundle.pem.

The address of the Workload API comes from SPIFFE_ENDPOINT_SOCKET, which merlon up
gives to the services that it starts.`,
		Args: takes(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if socket == "" {
				socket = os.Getenv("SPIFFE_ENDPOINT_SOCKET")
			}
			if socket == "" {
				return usage("nothing says where the Workload API is\nhint: set SPIFFE_ENDPOINT_SOCKET or give --socket; merlon up prints the address")
			}
			if audience != "" && write != "" {
				return usage("--jwt prints a token, --write leaves files\nhint: ask for one at a time")
			}
			return u.fetch(cmd.Context(), socket, audience, write)
		},
	}
	c.Flags().StringVar(&socket, "socket", "", "`address` of the Workload API, unix:///PATH or tcp://IP:PORT")
	c.Flags().StringVar(&audience, "jwt", "", "print a JWT-SVID for this `audience`")
	c.Flags().StringVar(&write, "write", "", "leave svid.pem, key.pem and bundle.pem in this `directory`")
	return c
}

// fetchTime bounds what fetch waits for.
const fetchTime = 30 * time.Second

func (u *ui) fetch(ctx context.Context, socket, audience, write string) error {
	client, done, err := dialWorkloads(socket)
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true"), fetchTime)
	defer cancel()
	if audience != "" {
		r, err := client.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{audience}})
		if err != nil {
			return fetchError(socket, err)
		}
		if len(r.Svids) == 0 {
			return errors.New("the Workload API gave no token")
		}
		if u.json {
			u.printJSON(map[string]any{"ok": true, "id": r.Svids[0].SpiffeId, "token": r.Svids[0].Svid})
			return nil
		}
		u.printf("%s\n", r.Svids[0].Svid)
		return nil
	}
	stream, err := client.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if err != nil {
		return fetchError(socket, err)
	}
	r, err := stream.Recv()
	if err != nil {
		return fetchError(socket, err)
	}
	if len(r.Svids) == 0 {
		return errors.New("the Workload API gave no SVID")
	}
	return u.fetched(r.Svids[0], write)
}

// fetched shows an X.509-SVID, or writes it.
func (u *ui) fetched(svid *workload.X509SVID, write string) error {
	chain, err := x509.ParseCertificates(svid.X509Svid)
	if err != nil || len(chain) == 0 {
		return errors.New("what the Workload API gave is no certificate")
	}
	roots, err := x509.ParseCertificates(svid.Bundle)
	if err != nil {
		return errors.New("what the Workload API gave is no bundle")
	}
	if write != "" {
		key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: svid.X509SvidKey})
		// The key last: who sees a new key finds the certificate that it is for.
		for _, f := range []struct {
			name string
			data []byte
			mode os.FileMode
		}{{"bundle.pem", pemOf(roots), 0o644}, {"svid.pem", pemOf(chain), 0o644}, {"key.pem", key, 0o600}} {
			if err := replaceFile(filepath.Join(write, f.name), f.data, f.mode); err != nil {
				return err
			}
		}
	}
	if u.json {
		u.printJSON(map[string]any{"ok": true, "id": svid.SpiffeId, "until": chain[0].NotAfter.UTC(), "roots": len(roots)})
		return nil
	}
	u.printf("%s\nuntil %s, by %s\n", u.bold(svid.SpiffeId), chain[0].NotAfter.UTC().Format(time.RFC3339), count(len(roots), "root"))
	return nil
}

func pemOf(certs []*x509.Certificate) (b []byte) {
	for _, c := range certs {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return b
}

// dialWorkloads is a client of the Workload API at an address as SPIFFE writes
// it (SPIFFE Workload Endpoint 4).
func dialWorkloads(address string) (workload.SpiffeWorkloadAPIClient, func(), error) {
	target, ok := address, strings.HasPrefix(address, "unix:")
	if at, tcp := strings.CutPrefix(address, "tcp://"); tcp {
		host, _, err := net.SplitHostPort(at)
		target, ok = "passthrough:///"+at, err == nil && net.ParseIP(host) != nil
	}
	if !ok {
		return nil, nil, usage("%q is no address of a Workload API\nhint: write unix:///PATH or tcp://IP:PORT", address)
	}
	c, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, err
	}
	return workload.NewSpiffeWorkloadAPIClient(c), func() { c.Close() }, nil
}

// fetchError says what an answer of the Workload API means.
func fetchError(socket string, err error) error {
	switch s := status.Convert(err); s.Code() {
	case codes.PermissionDenied:
		return hinted(errors.New("this process has no identity"), "merlon id explain PID says why a process that runs has none")
	case codes.Unavailable:
		return hinted(fmt.Errorf("the Workload API at %s does not answer: %s", socket, s.Message()), "merlon up prints its address")
	default:
		return fmt.Errorf("the Workload API: %s", s.Message())
	}
}
