package attest

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"merlon"
	"merlon/identity/jwt"
)

// tokenFile is where the kubelet puts a pod's token, in the pod's own files.
const tokenFile = "/var/run/secrets/kubernetes.io/serviceaccount/token"

// Cluster verifies the tokens of a Kubernetes cluster's service accounts by the
// cluster's public keys, without asking it.
type Cluster struct{ verifier *jwt.Verifier }

// NewCluster makes a Cluster. Issuer is what the API server has as
// --service-account-issuer, audience what its tokens are for, and keys the
// answer of /openid/v1/jwks.
func NewCluster(issuer, audience string, keys []byte) (*Cluster, error) {
	v, err := jwt.New([]merlon.LoginRule{{Name: "cluster", Issuer: issuer, Audience: audience, Keys: string(keys),
		Algorithms: []string{"RS256", "ES256"}}}, jwt.Options{})
	if err != nil {
		return nil, fmt.Errorf("the keys of the Kubernetes cluster: %w", err)
	}
	return &Cluster{v}, nil
}

// serviceAccount holds for a process in a pod that runs as this account.
func serviceAccount(want string) selector {
	return func(s *subject) (bool, func() string, error) {
		got, err := s.account()
		if errors.Is(err, errNoPod) {
			return false, err.Error, nil
		}
		return got == want, said("its pod runs as " + got), err
	}
}

var errNoPod = errors.New("it is in no pod")

// account is the service account of the pod that a process is in.
//
// The token is taken from the pod's files, where a program could have put
// another one: it must be bound to the pod (a projected token is) whose
// control group the kernel says the process is in.
func (c *Cluster) account(s *subject, now time.Time) (string, error) {
	path, err := s.cgroup()
	if err != nil {
		return "", err
	}
	uid := podOf(path)
	if uid == "" {
		return "", errNoPod
	}
	f, err := s.OpenInRoot(tokenFile)
	if err != nil {
		return "", err
	}
	defer f.Close()
	token, err := io.ReadAll(io.LimitReader(f, jwt.MaxToken+1))
	if err != nil {
		return "", err
	}
	return c.inPod(strings.TrimSpace(string(token)), uid, now)
}

// inPod is the service account of a token that is bound to the pod with this
// UID.
func (c *Cluster) inPod(token, uid string, now time.Time) (string, error) {
	account, pod, err := c.Account(token, now)
	if err == nil && pod != uid {
		return "", errors.New("the pod's token is not bound to the pod that the process is in")
	}
	return account, err
}

// Account is the service account of a token, as NAMESPACE/NAME, and the UID of
// the pod that it is bound to: one that is bound to none is no pod's.
func (c *Cluster) Account(token string, now time.Time) (account, pod string, err error) {
	caller, err := c.verifier.Verify(token, now)
	if err != nil {
		return "", "", err
	}
	claims, _ := caller.Claims["kubernetes.io"].(map[string]any)
	text := func(in, name string) string {
		m, _ := claims[in].(map[string]any)
		s, _ := m[name].(string)
		return s
	}
	namespace, _ := claims["namespace"].(string)
	name := text("serviceaccount", "name")
	switch pod = text("pod", "uid"); {
	case namespace == "" || name == "" || caller.Subject != "system:serviceaccount:"+namespace+":"+name:
		return "", "", errors.New("the token is not that of a service account")
	case pod == "":
		return "", "", errors.New("the token is bound to no pod")
	}
	return namespace + "/" + name, pod, nil
}
