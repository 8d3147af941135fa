package control

import (
	"context"
	"errors"
	"net/http"

	"merlon/attest"
	"merlon/authority"
	"merlon/federation"
)

// Explanation says which service a process is, and why it is no other.
type Explanation struct {
	PID        int              `json:"pid"`
	Executable string           `json:"executable,omitzero"`
	Service    string           `json:"service,omitzero"` // "" for none
	ID         string           `json:"id,omitzero"`      // its SPIFFE ID
	Why        string           `json:"why,omitzero"`     // there is none
	Services   []attest.Finding `json:"services"`
}

// process is the body of a request to explain.
type process struct {
	PID int `json:"pid"`
}

func (c *Control) serveExplain(r *http.Request) (any, error) {
	var in process
	if err := read(r, &in); err != nil {
		return nil, err
	}
	switch {
	case c.opt.Explain == nil:
		return nil, &statusError{http.StatusNotFound, errors.New("no workloads are told apart here")}
	case in.PID <= 0:
		return nil, &statusError{http.StatusBadRequest, errors.New("a process has a number above 0")}
	}
	return c.opt.Explain(r.Context(), in.PID)
}

func (c *Control) serveAuthority(*http.Request) (any, error) {
	if c.opt.Authority == nil {
		return nil, &statusError{http.StatusNotFound, errors.New("there is no authority here")}
	}
	out := Identity{Status: c.opt.Authority()}
	if c.opt.Roots != nil {
		out.Roots = string(c.opt.Roots())
	}
	if c.opt.Federation != nil {
		out.Federation = c.opt.Federation()
	}
	if c.opt.Workloads != nil {
		out.Workloads = c.opt.Workloads()
	}
	if c.opt.Problems != nil {
		out.Problems = c.opt.Problems()
	}
	return out, nil
}

// Identity is how the keys of the authority fare, and what depends on them.
type Identity struct {
	authority.Status
	Federation []federation.Status `json:"federation,omitempty"`
	Roots      string              `json:"roots,omitzero"`       // of the trust domain, PEM
	Workloads  string              `json:"workloadAPI,omitzero"` // its address; "" where it is not served
	Problems   map[string][]string `json:"problems,omitempty"`   // why gates are not ready, by place
}

// Authority asks how the keys of the authority fare.
func (c *Client) Authority(ctx context.Context) (*Identity, error) {
	return call[Identity](ctx, c, http.MethodGet, "/v1/identity", nil)
}

// Explain asks which service a process is.
func (c *Client) Explain(ctx context.Context, pid int) (*Explanation, error) {
	return call[Explanation](ctx, c, http.MethodPost, "/v1/explain", process{pid})
}
