package control

import (
	"context"
	"errors"
	"net/http"
	"time"

	"merlon/node"
)

// tokenRequest is the body of a request for a join token.
type tokenRequest struct {
	Node string        `json:"node"`
	TTL  time.Duration `json:"ttl"`
}

type tokenAnswer struct {
	Token string `json:"token"`
}

var errNoNodes = &statusError{http.StatusNotFound, errors.New("no nodes are served here: start merlon up with --node-endpoint")}

func (c *Control) serveNodes(*http.Request) (any, error) {
	if c.opt.Nodes == nil {
		return nil, errNoNodes
	}
	return c.opt.Nodes(), nil
}

func (c *Control) serveToken(r *http.Request) (any, error) {
	var in tokenRequest
	if err := read(r, &in); err != nil {
		return nil, err
	}
	if c.opt.JoinToken == nil {
		return nil, errNoNodes
	}
	t, err := c.opt.JoinToken(in.Node, in.TTL)
	if err != nil {
		return nil, &statusError{http.StatusBadRequest, err}
	}
	return tokenAnswer{t.String()}, nil
}

// Nodes asks how the nodes of the intent in force are.
func (c *Client) Nodes(ctx context.Context) ([]node.Status, error) {
	all, err := call[[]node.Status](ctx, c, http.MethodGet, "/v1/nodes", nil)
	if err != nil {
		return nil, err
	}
	return *all, nil
}

// JoinToken asks for a join token for a node, good for so long. It is a secret.
func (c *Client) JoinToken(ctx context.Context, name string, ttl time.Duration) (string, error) {
	t, err := call[tokenAnswer](ctx, c, http.MethodPost, "/v1/token", tokenRequest{name, ttl})
	if err != nil {
		return "", err
	}
	return t.Token, nil
}
