package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"merlon"
	"merlon/attest"
	"merlon/control"
	"merlon/internal/private"
	"merlon/internal/sockowner"
	"merlon/node"
	"merlon/workloadapi"
)

// openNodes makes the server of nodes, if they are to be served.
func (s *system) openNodes(o authorityOptions) error {
	if o.nodes == "" {
		return nil
	}
	cluster, err := o.workloads.cluster(node.EndpointID(s.trustDomain))
	if err != nil {
		return err
	}
	s.nodes, err = node.NewServer(node.Config{
		Authority: s.authority, TrustDomain: s.trustDomain, Dir: s.state, Cluster: cluster, Federated: s.partners.Bundles, Log: s.log,
	})
	if err != nil {
		return err
	}
	if in := s.control.Intent(); in != nil {
		s.nodes.Set(in)
	}
	return nil
}

// serveNodes serves nodes at address.
func (s *system) serveNodes(address string) error {
	if s.nodes == nil {
		return nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("the node endpoint: %w", err)
	}
	s.nodesAt = l.Addr().String()
	go func() {
		if err := s.nodes.Serve(l); err != nil {
			s.log.Error("the node endpoint ended", "err", err)
		}
	}()
	return nil
}

// checkNodes refuses an intent with a node that could never join.
func (s *system) checkNodes(in *merlon.Intent) error {
	switch {
	case len(in.Nodes) == 0:
		return nil
	case s.nodes == nil:
		return fmt.Errorf("%v: node %s can join nowhere\nhint: merlon up --node-endpoint :8445 serves nodes", in.Nodes[0].Pos, in.Nodes[0].Name)
	}
	return s.nodes.Check(in)
}

// nodeStatus is control.Options.Nodes.
func (s *system) nodeStatus() []node.Status {
	if s.nodes == nil {
		return []node.Status{}
	}
	return s.nodes.Status()
}

// joinToken is control.Options.JoinToken.
func (s *system) joinToken(name string, ttl time.Duration) (*node.JoinToken, error) {
	if s.nodes == nil {
		return nil, errors.New("no nodes are served here: start merlon up with --node-endpoint")
	}
	return s.nodes.JoinToken(name, ttl)
}

func newNode(u *ui) *cobra.Command {
	c := &cobra.Command{
		Use:   "node",
		Short: "let other hosts join, and say how they are",
	}
	c.AddCommand(newNodeToken(u), newNodeList(u))
	parent(c)
	return c
}

func newNodeToken(u *ui) *cobra.Command {
	var ttl time.Duration
	c := &cobra.Command{
		Use:   "token NAME [DIR]",
		Short: "print a token with which the agent of a node joins, once",
		Long: `token prints a join token for a node of the intent in DIR, for merlon agent --token-file.
It is a secret: whoever has it first is the node. It is good once and for a short
time, and the one that was made before is good for nothing then. It also says by
what the agent knows the authority.`,
		Args:              takes(1, 2),
		ValidArgsFunction: completeDir(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := dirArg(args, 1)
			token, err := control.NewClient(u.stateDir(dir)).JoinToken(cmd.Context(), args[0], ttl)
			if errors.Is(err, control.ErrNotRunning) {
				return errStopped(dir)
			}
			if err != nil {
				return err
			}
			if u.json {
				u.printJSON(map[string]any{"ok": true, "node": args[0], "token": token})
				return nil
			}
			u.printf("%s\n", token)
			return nil
		},
	}
	c.Flags().DurationVar(&ttl, "ttl", 10*time.Minute, "how long the token is good, at most 24h")
	return c
}

func newNodeList(u *ui) *cobra.Command {
	return &cobra.Command{
		Use:   "list [DIR]",
		Short: "list the nodes of the running intent, and which of them are connected",
		Long: `list shows each node of the intent that is in force: how it proves itself, which
services are on it, and since when its agents are connected.`,
		Args:              takes(0, 1),
		ValidArgsFunction: completeDir(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := dirArg(args, 0)
			all, err := control.NewClient(u.stateDir(dir)).Nodes(cmd.Context())
			if errors.Is(err, control.ErrNotRunning) {
				return errStopped(dir)
			}
			if err != nil {
				return err
			}
			if u.json {
				u.printJSON(map[string]any{"ok": true, "nodes": all})
				return nil
			}
			u.nodes(all)
			return nil
		},
	}
}

// nodes shows how nodes are.
func (u *ui) nodes(all []node.Status) {
	if len(all) == 0 {
		u.say("the intent has no nodes")
		return
	}
	rows := [][]string{{u.dim("node"), u.dim("proved by"), u.dim("services"), u.dim("connected since"), u.dim("from"), u.dim("SVID until")}}
	for _, n := range all {
		row := []string{u.bold(n.Node), n.Proof, strings.Join(n.Services, " ")}
		if len(n.Agents) == 0 {
			rows = append(rows, append(row, u.red("not connected"), "", ""))
		}
		for _, a := range n.Agents {
			rows = append(rows, append(row, a.Since.UTC().Format(time.RFC3339), a.Address, a.Until.UTC().Format(time.RFC3339)))
			row = []string{"", "", ""}
		}
	}
	u.table("", rows)
	for _, n := range all {
		for _, a := range n.Agents {
			if a.Problem != "" {
				u.printf("\n%s\n", u.red(fmt.Sprintf("%s, from %s: %q", n.Node, a.Address, a.Problem)))
			}
		}
	}
}

type agentOptions struct {
	node.AgentConfig
	tokenFile string
	rootFile  string
	workloads workloadOptions
}

func newAgent(u *ui) *cobra.Command {
	var o agentOptions
	c := &cobra.Command{
		Use:   "agent --server HOST:PORT --state DIR",
		Short: "give the services on this host their identities, by the authority of merlon up on another",
		Long: `agent proves to merlon up --node-endpoint which node of the intent this host is, and
serves the SPIFFE Workload API to the services that the intent puts on the node.

With a join token it needs nothing else. With a certificate or with the token of
its Kubernetes service account it also has to be told by what it knows the authority:
--trust-domain and --trust-bundle.

The state directory keeps the keys of the node and of its services. While the
authority is away, services keep what they have until it expires.`,
		Args: takes(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(u); err != nil {
				return err
			}
			return u.agent(cmd.Context(), o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.Server, "server", "", "`address` of merlon up's node endpoint, HOST:PORT")
	f.StringVar(&o.tokenFile, "token-file", "", "`file` with a join token, - for the standard input; needed until the node has joined")
	f.StringVar(&o.CertFile, "cert", "", "`file` with the certificate chain of this host, PEM")
	f.StringVar(&o.KeyFile, "key", "", "`file` with its private key")
	f.StringVar(&o.KubernetesFile, "kubernetes-token", "", "`file` with the projected token of the agent's pod")
	f.StringVar(&o.TrustDomain, "trust-domain", "", "`name` of the trust domain; a join token says it")
	f.StringVar(&o.rootFile, "trust-bundle", "", "`file` with the roots of the trust domain, PEM; a join token pins them")
	o.workloads.flags(c, "in the state directory")
	return c
}

// check refuses what cannot work.
func (o *agentOptions) check(u *ui) error {
	ways := 0
	for _, file := range []string{o.tokenFile, o.CertFile, o.KubernetesFile} {
		if file != "" {
			ways++
		}
	}
	_, _, err := net.SplitHostPort(o.Server)
	switch {
	case o.Server == "":
		return usage("nothing says where the authority is\nhint: give --server HOST:PORT; merlon up --node-endpoint prints it")
	case err != nil:
		return usage("--server: %q is not HOST:PORT", o.Server)
	case u.state == "":
		return usage("nothing says where the agent keeps its keys\nhint: give --state DIR")
	case ways > 1:
		return usage("--token-file, --cert and --kubernetes-token say the same in several ways\nhint: give the one that the intent names for this node")
	case (o.CertFile == "") != (o.KeyFile == ""):
		return usage("--cert and --key go together")
	case (o.CertFile != "" || o.KubernetesFile != "") && (o.rootFile == "" || o.TrustDomain == ""):
		return usage("nothing says by what the agent knows the authority\nhint: give --trust-domain and --trust-bundle")
	}
	return nil
}

// agent runs the agent of a node until ctx ends.
func (u *ui) agent(ctx context.Context, o agentOptions) (err error) {
	if !sockowner.Supported() {
		return sockowner.ErrUnsupported
	}
	if o.Attest, err = o.workloads.attestOptions(); err != nil {
		return err
	}
	if o.rootFile != "" {
		if o.Roots, err = os.ReadFile(o.rootFile); err != nil {
			return err
		}
	}
	if o.tokenFile != "" {
		o.Token = func() ([]byte, error) { return readInput(u.in, o.tokenFile) }
		if o.tokenFile == "-" { // which can be read once
			o.Token = sync.OnceValues(o.Token)
		}
	}
	if o.Dir, err = filepath.Abs(u.state); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(u.err, nil))
	o.Log = log
	a, err := node.OpenAgent(o.AgentConfig)
	if err != nil {
		if o.Token == nil && o.TrustDomain == "" {
			err = hinted(err, "give --token-file FILE, with what merlon node token prints")
		}
		return err
	}
	if err := o.workloads.keep(o.Dir); err != nil {
		return err
	}
	address := o.workloads.address
	if address == "" {
		address = "unix://" + filepath.Join(o.Dir, workloadsName)
	}
	l, err := listenWorkloads(address)
	if err != nil {
		return err
	}
	server, err := workloadapi.New(workloadapi.Config{
		Authority: a, TrustDomain: a.TrustDomain(), Identify: a.Identify, Changed: a.Changed, Federated: a.Federated, Log: log,
	})
	if err != nil {
		l.Close()
		return err
	}
	defer server.Close()
	if tcp, ok := l.Addr().(*net.TCPAddr); ok {
		address = "tcp://" + tcp.String() // its port may have been 0
	}
	failed := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		failed <- server.Serve(l)
		cancel()
	}()
	log.Info("the Workload API is served", "at", address)
	if err := a.Run(ctx); err != nil {
		return hinted(err, "merlon node token NAME makes a token, where the authority is")
	}
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

// attestName is the file in which an agent leaves how it tells workloads apart, for
// merlon id explain.
const attestName = "attest.json"

func (o workloadOptions) keep(dir string) error {
	b, err := json.Marshal(o)
	if err != nil {
		return err
	}
	return private.Replace(filepath.Join(dir, attestName), b)
}

// explainOnNode says which service a process is on the node whose agent keeps its
// state in dir, by what the agent was told last.
func explainOnNode(ctx context.Context, dir string, kept *node.Kept, pid int) (*control.Explanation, error) {
	text, err := os.ReadFile(filepath.Join(dir, attestName))
	if err != nil {
		return nil, err
	}
	var o workloadOptions
	if err := json.Unmarshal(text, &o); err != nil {
		return nil, fmt.Errorf("%s: %w", attestName, err)
	}
	opt, err := o.attestOptions()
	if err != nil {
		return nil, err
	}
	in := kept.Intent()
	a, _ := attest.New(in, opt) // the agent's log says what cannot be recognised here
	return explain(ctx, in, a, a.Identify, pid)
}
