package assertion

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	mathrand "math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"merlon"
	"merlon/internal/jws"
)

const (
	gateway = "spiffe://shop.example/gateway"
	orders  = "orders"
)

var epoch = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func signer(key crypto.Signer) *Signer {
	return NewSigner(func() (crypto.Signer, string) { return key, "k1" }, gateway)
}

func login() *merlon.Caller {
	return &merlon.Caller{
		Kind: merlon.Login, Name: "staff", Subject: "ann", Client: "192.0.2.7",
		Claims: map[string]any{"role": "support", "n": int64(9007199254740993), "f": 1.0, "list": []any{nil, true, "a\n\"\\<é\u2028"}},
	}
}

func token(t testing.TB, s *Signer, c *merlon.Caller) string {
	t.Helper()
	token, err := s.Token(c, orders, epoch)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	s, cache := signer(key), NewCache(0)
	for _, c := range []*merlon.Caller{
		login(),
		{Kind: merlon.Login, Name: "staff", Subject: "ann"},
		{Kind: merlon.Login, Name: "staff", Subject: "ann", Claims: map[string]any{}},
		{Kind: merlon.Anyone, Client: "2001:db8::1"},
		{Kind: merlon.Anyone},
		{Kind: merlon.Workload, Name: "web", Subject: "spiffe://shop.example/web"},
	} {
		token := token(t, s, c)
		for range 2 {
			got, err := Verify(token, key.Public(), gateway, orders, epoch)
			if err != nil || !reflect.DeepEqual(got, *c) {
				t.Errorf("%+v became %+v, %v", *c, got, err)
			}
			got, err = cache.Verify(token, key.Public(), gateway, orders, epoch)
			if err != nil || !reflect.DeepEqual(got, *c) {
				t.Errorf("cached, %+v became %+v, %v", *c, got, err)
			}
		}
	}
}

// Others read our assertions as ordinary JWTs.
func TestStandard(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	obj, err := jose.ParseSignedCompact(token(t, signer(key), login()), []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	payload, err := obj.Verify(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	var claims struct {
		Iss, Aud, Sub, Kind, Name, Client string
		Iat, Exp                          int64
		Claims                            map[string]any
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	if claims.Iss != gateway || claims.Aud != orders || claims.Sub != "ann" || claims.Kind != "login" || claims.Name != "staff" ||
		claims.Iat != epoch.Unix() || claims.Exp != epoch.Unix()+60 || claims.Claims["role"] != "support" {
		t.Errorf("%s", payload)
	}
	if h := obj.Signatures[0].Protected; h.KeyID != "k1" || h.ExtraHeaders["typ"] != Type {
		t.Errorf("%+v", h)
	}
}

// Any claims that a token can hold arrive as they left.
func TestClaimsProperty(t *testing.T) {
	t.Parallel()
	key, r := newKey(t), mathrand.New(mathrand.NewPCG(1, 2))
	s := signer(key)
	var value func(depth int) any
	value = func(depth int) any {
		kinds := 8
		if depth == 0 {
			kinds = 6
		}
		switch r.IntN(kinds) {
		case 0:
			return nil
		case 1:
			return r.IntN(2) == 0
		case 2:
			return int64(r.Uint64())
		case 3:
			return r.NormFloat64() * 1e10
		case 4:
			return float64(r.IntN(1000)) // whole, but no integer
		case 5:
			b := make([]rune, r.IntN(9))
			for i := range b {
				b[i] = []rune("a\"\\\x00\x1f\u007fé\u2028\U0001F600<&")[r.IntN(11)]
			}
			return string(b)
		case 6:
			list := make([]any, r.IntN(4))
			for i := range list {
				list[i] = value(depth - 1)
			}
			return list
		}
		m := map[string]any{}
		for range r.IntN(4) {
			m[fmt.Sprintf("k%d\"", r.IntN(10))] = value(depth - 1)
		}
		return m
	}
	for range 2000 {
		c := merlon.Caller{Kind: merlon.Login, Name: "staff", Subject: "ann", Claims: map[string]any{"x": value(4), "y": value(2)}}
		got, err := Verify(token(t, s, &c), key.Public(), gateway, orders, epoch)
		if err != nil || !reflect.DeepEqual(got, c) {
			t.Fatalf("%#v became %#v, %v", c, got, err)
		}
	}
}

// Whatever jwt lets in as claims must not be refused by the next gate for its depth.
func TestDepthOfTokens(t *testing.T) {
	t.Parallel()
	claims, err := jws.Object([]byte(`{"x":`+strings.Repeat("[", 16)+strings.Repeat("]", 16)+`}`), 16)
	if err != nil {
		t.Fatal(err)
	}
	key := newKey(t)
	c := &merlon.Caller{Kind: merlon.Login, Name: "staff", Subject: "ann", Claims: claims}
	if _, err := Verify(token(t, signer(key), c), key.Public(), gateway, orders, epoch); err != nil {
		t.Error(err)
	}
}

func TestRefusedToSign(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	deep := any("x")
	for range 40 {
		deep = []any{deep}
	}
	cycle := map[string]any{}
	cycle["x"] = cycle
	withClaims := func(claims map[string]any) *merlon.Caller {
		return &merlon.Caller{Kind: merlon.Login, Name: "staff", Subject: "ann", Claims: claims}
	}
	tests := []struct {
		name     string
		key      crypto.Signer
		caller   *merlon.Caller
		audience string
	}{
		{"nobody", key, &merlon.Caller{}, orders},
		{"nobody with a name", key, &merlon.Caller{Name: "staff", Subject: "ann"}, orders},
		{"unknown kind", key, &merlon.Caller{Kind: 9, Name: "staff", Subject: "ann"}, orders},
		{"anyone with a name", key, &merlon.Caller{Kind: merlon.Anyone, Name: "staff"}, orders},
		{"anyone with claims", key, &merlon.Caller{Kind: merlon.Anyone, Claims: map[string]any{}}, orders},
		{"login without name", key, &merlon.Caller{Kind: merlon.Login, Subject: "ann"}, orders},
		{"login without subject", key, &merlon.Caller{Kind: merlon.Login, Name: "staff"}, orders},
		{"workload with claims", key, &merlon.Caller{Kind: merlon.Workload, Name: "web", Subject: "x", Claims: map[string]any{"a": "b"}}, orders},
		{"line break", key, &merlon.Caller{Kind: merlon.Login, Name: "staff", Subject: "ann\nbob"}, orders},
		{"client is no address", key, &merlon.Caller{Kind: merlon.Anyone, Client: "1.2.3.4, 5.6.7.8"}, orders},
		{"no audience", key, login(), ""},
		{"no key", nil, login(), orders},
		{"P-384", p384, login(), orders},
		{"Ed25519", ed, login(), orders},
		{"claims too large", key, withClaims(map[string]any{"x": strings.Repeat("a", MaxToken)}), orders},
		{"claims too deep", key, withClaims(map[string]any{"x": deep}), orders},
		{"claims in a circle", key, withClaims(cycle), orders},
		{"claim of a type that no token has", key, withClaims(map[string]any{"x": struct{}{}}), orders},
		{"claim not UTF-8", key, withClaims(map[string]any{"x": "\xff"}), orders},
		{"signer that fails", failing{key}, login(), orders},
		{"signer that makes nonsense", nonsense{key}, login(), orders},
	}
	for _, tt := range tests {
		if token, err := signer(tt.key).Token(tt.caller, tt.audience, epoch); err == nil || token != "" {
			t.Errorf("%s: signed", tt.name)
		}
	}
}

type failing struct{ crypto.Signer }

func (failing) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("the key service is away")
}

type nonsense struct{ crypto.Signer }

func (nonsense) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return []byte{0x30, 0x06, 0x02, 0x01, 0x00, 0x02, 0x01, 0xff}, nil
}

// raw signs any header and payload with a good key.
func raw(t testing.TB, key *ecdsa.PrivateKey, header, payload string) string {
	t.Helper()
	token, err := jws.Sign(key, []byte(header), []byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestRefusedToBelieve(t *testing.T) {
	t.Parallel()
	key, other := newKey(t), newKey(t)
	good := token(t, signer(key), login())
	const head = `{"alg":"ES256","kid":"k1","typ":"merlon-caller+jwt"}`
	claims := func(change map[string]any) string {
		m := map[string]any{"iss": gateway, "aud": orders, "sub": "ann", "kind": "login", "name": "staff", "iat": epoch.Unix(), "exp": epoch.Unix() + 60}
		maps.Copy(m, change)
		maps.DeleteFunc(m, func(_ string, v any) bool { return v == nil })
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	type args struct {
		token            string
		key              crypto.PublicKey
		issuer, audience string
		now              time.Time
	}
	ours := func(token string) args { return args{token, key.Public(), gateway, orders, epoch} }
	by := func(header string, change map[string]any) args { return ours(raw(t, key, header, claims(change))) }
	const sec = time.Second
	tests := map[string]struct {
		args
		good bool
	}{
		"good":                      {ours(good), true},
		"good by hand":              {by(head, nil), true},
		"last second":               {args{good, key.Public(), gateway, orders, epoch.Add(Lifetime + Skew - sec)}, true},
		"expired":                   {args{good, key.Public(), gateway, orders, epoch.Add(Lifetime + Skew)}, false},
		"clock behind by the skew":  {args{good, key.Public(), gateway, orders, epoch.Add(-Skew)}, true},
		"from the future":           {args{good, key.Public(), gateway, orders, epoch.Add(-Skew - sec)}, false},
		"another peer's key":        {args{good, other.Public(), gateway, orders, epoch}, false},
		"another issuer":            {args{good, key.Public(), "spiffe://shop.example/web", orders, epoch}, false},
		"another audience":          {args{good, key.Public(), gateway, "payments", epoch}, false},
		"no issuer":                 {args{raw(t, key, head, claims(map[string]any{"iss": ""})), key.Public(), "", orders, epoch}, false},
		"no audience":               {args{raw(t, key, head, claims(map[string]any{"aud": nil})), key.Public(), gateway, "", epoch}, false},
		"no key":                    {args{good, nil, gateway, orders, epoch}, false},
		"nil key":                   {args{good, (*ecdsa.PublicKey)(nil), gateway, orders, epoch}, false},
		"key by value":              {args{good, key.PublicKey, gateway, orders, epoch}, false},
		"P-384 key":                 {args{good, p384.Public(), gateway, orders, epoch}, false},
		"empty":                     {ours(""), false},
		"too long":                  {ours(good + strings.Repeat("A", MaxToken)), false},
		"padding":                   {ours(good + "="), false},
		"signature cut":             {ours(good[:len(good)-4]), false},
		"signed by another":         {ours(raw(t, other, head, claims(nil))), false},
		"alg none":                  {by(`{"alg":"none","typ":"merlon-caller+jwt"}`, nil), false},
		"alg HS256":                 {by(`{"alg":"HS256","typ":"merlon-caller+jwt"}`, nil), false},
		"no alg":                    {by(`{"typ":"merlon-caller+jwt"}`, nil), false},
		"no typ":                    {by(`{"alg":"ES256"}`, nil), false},
		"typ JWT":                   {by(`{"alg":"ES256","typ":"JWT"}`, nil), false},
		"key embedded":              {by(`{"alg":"ES256","typ":"merlon-caller+jwt","jwk":{}}`, nil), false},
		"crit":                      {by(`{"alg":"ES256","typ":"merlon-caller+jwt","crit":["x"]}`, nil), false},
		"b64":                       {by(`{"alg":"ES256","typ":"merlon-caller+jwt","b64":false}`, nil), false},
		"duplicate claim":           {ours(raw(t, key, head, strings.Replace(claims(nil), "{", `{"kind":"workload",`, 1))), false},
		"unknown claim":             {by(head, map[string]any{"admin": true}), false},
		"upper-case claim":          {by(head, map[string]any{"sub": nil, "Sub": "ann"}), false},
		"audiences":                 {by(head, map[string]any{"aud": []string{orders}}), false},
		"kind nobody":               {by(head, map[string]any{"kind": "nobody"}), false},
		"kind unknown":              {by(head, map[string]any{"kind": "root"}), false},
		"no kind":                   {by(head, map[string]any{"kind": nil}), false},
		"anyone with a name":        {by(head, map[string]any{"kind": "anyone"}), false},
		"workload with claims":      {by(head, map[string]any{"kind": "workload", "claims": map[string]any{}}), false},
		"login without name":        {by(head, map[string]any{"name": nil}), false},
		"login without sub":         {by(head, map[string]any{"sub": nil}), false},
		"sub empty":                 {by(head, map[string]any{"sub": ""}), false},
		"claims a list":             {by(head, map[string]any{"claims": []int{}}), false},
		"claims null":               {by(head, map[string]any{"claims": json.RawMessage("null")}), false},
		"client no address":         {by(head, map[string]any{"client": "evil"}), false},
		"sub with a line break":     {by(head, map[string]any{"sub": "a\nb"}), false},
		"no iat":                    {by(head, map[string]any{"iat": nil}), false},
		"no exp":                    {by(head, map[string]any{"exp": nil}), false},
		"exp before iat":            {by(head, map[string]any{"exp": epoch.Unix() - 1}), false},
		"lives too long":            {by(head, map[string]any{"exp": epoch.Unix() + 61}), false},
		"lives for ever":            {by(head, map[string]any{"exp": int64(1) << 62}), false},
		"iat long ago, exp long on": {by(head, map[string]any{"iat": 1, "exp": epoch.Unix() + 60}), false},
	}
	for name, tt := range tests {
		cache := NewCache(16)
		for range 2 {
			c, err := Verify(tt.token, tt.key, tt.issuer, tt.audience, tt.now)
			if (err == nil) != tt.good || (c.Kind == merlon.Nobody) == tt.good {
				t.Errorf("%s: %+v, %v", name, c, err)
			}
			c, err = cache.Verify(tt.token, tt.key, tt.issuer, tt.audience, tt.now)
			if (err == nil) != tt.good || (c.Kind == merlon.Nobody) == tt.good {
				t.Errorf("%s, cached: %+v, %v", name, c, err)
			}
		}
		// What one peer proved must not help another, whatever is cached.
		cache.Verify(good, key.Public(), gateway, orders, epoch)
		if _, err := cache.Verify(tt.token, tt.key, tt.issuer, tt.audience, tt.now); (err == nil) != tt.good {
			t.Errorf("%s, after a good one: %v", name, err)
		}
	}
}

func TestMintedAnew(t *testing.T) {
	t.Parallel()
	key, kid := newKey(t), "k1"
	s := NewSigner(func() (crypto.Signer, string) { return key, kid }, gateway)
	at := func(c *merlon.Caller, d time.Duration) string {
		t.Helper()
		token, err := s.Token(c, orders, epoch.Add(d))
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	c := login()
	first := at(c, 0)
	if at(c, 29*time.Second) != first {
		t.Error("minted anew before half of its life")
	}
	if at(c, 30*time.Second) == first {
		t.Error("not minted anew at half of its life")
	}
	if at(c, -time.Second) == first {
		t.Error("a token from the future, after the clock was set back")
	}
	old, oldKID := key, kid
	key, kid = newKey(t), "k2"
	next := at(c, 0)
	if _, err := Verify(next, key.Public(), gateway, orders, epoch); err != nil {
		t.Error("after a rotation:", err)
	}
	// A connection from before the rotation.
	token, err := s.TokenBy(old, oldKID, c, orders, epoch)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(token, old.Public(), gateway, orders, epoch); err != nil {
		t.Error("by the old key:", err)
	}
	if _, err := Verify(token, key.Public(), gateway, orders, epoch); err == nil {
		t.Error("the new key proves what the old one signed")
	}
	key = nil
	s = NewSigner(func() (crypto.Signer, string) { return nil, "" }, gateway)
	if _, err := s.Token(c, orders, epoch); err == nil {
		t.Error("minted without a key")
	}
}

// Every difference between two callers is a different token: one caller's
// claims never travel under another's name.
func TestCallersApart(t *testing.T) {
	t.Parallel()
	s := signer(newKey(t))
	c := login()
	changes := map[string]func(*merlon.Caller){
		"subject":   func(c *merlon.Caller) { c.Subject = "bob" },
		"name":      func(c *merlon.Caller) { c.Name = "admins" },
		"client":    func(c *merlon.Caller) { c.Client = "192.0.2.8" },
		"claims":    func(c *merlon.Caller) { c.Claims = map[string]any{"role": "admin"} },
		"no claims": func(c *merlon.Caller) { c.Claims = nil },
		"kind":      func(c *merlon.Caller) { c.Kind, c.Claims = merlon.Workload, nil },
	}
	seen := map[string]string{token(t, s, c): "unchanged"}
	for name, change := range changes {
		d := *c
		change(&d)
		token := token(t, s, &d)
		if other, ok := seen[token]; ok {
			t.Errorf("%s gives the token of %s", name, other)
		}
		seen[token] = name
	}
	if other, err := s.Token(c, "payments", epoch); err != nil || seen[other] != "" {
		t.Error("another audience gives the same token")
	}
	// Names are views into a buffer that is used again.
	buf := []byte("ann")
	v := merlon.Caller{Kind: merlon.Login, Name: "staff", Subject: string(buf)}
	first := token(t, s, &v)
	v.Subject = "bob"
	if token(t, s, &v) == first {
		t.Error("bob got ann's token")
	}
}

func TestBounded(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	s, cache := signer(key), NewCache(32)
	for i := range entries + 200 {
		c := merlon.Caller{Kind: merlon.Login, Name: "staff", Subject: fmt.Sprint(i)}
		token := token(t, s, &c)
		if i < 200 {
			if _, err := cache.Verify(token, key.Public(), gateway, orders, epoch); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := s.minted.Len(); n > entries {
		t.Errorf("%d minted are kept", n)
	}
	if n := cache.known.Len(); n > 32 {
		t.Errorf("%d verified are kept", n)
	}
}

func TestHitAllocatesNothing(t *testing.T) {
	key := newKey(t)
	s, cache, c := signer(key), NewCache(0), login()
	public := key.Public()
	token := token(t, s, c)
	if _, err := cache.Verify(token, public, gateway, orders, epoch); err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() {
		if _, err := s.Token(c, orders, epoch); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations to mint again", n)
	}
	if n := testing.AllocsPerRun(100, func() {
		if _, err := cache.Verify(token, public, gateway, orders, epoch); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations to verify again", n)
	}
}

func FuzzVerify(f *testing.F) {
	key := newKey(f)
	good := token(f, signer(key), login())
	f.Add(good)
	f.Add("..")
	f.Add(raw(f, key, `{"alg":"ES256","typ":"merlon-caller+jwt"}`, `{}`))
	f.Fuzz(func(t *testing.T, token string) {
		c, err := Verify(token, key.Public(), gateway, orders, epoch)
		if (err == nil) != (token == good) || (err == nil) != (c.Kind == merlon.Login) {
			t.Errorf("%q: %+v, %v", token, c, err)
		}
	})
}

func BenchmarkToken(b *testing.B) {
	s, c := signer(newKey(b)), login()
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			if _, err := s.mint(s.mustKey(), "k1", c, orders, epoch.Unix()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("again", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := s.Token(c, orders, epoch); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func (s *Signer) mustKey() crypto.Signer { k, _ := s.key(); return k }

func BenchmarkVerify(b *testing.B) {
	key := newKey(b)
	token, cache, public := token(b, signer(key), login()), NewCache(0), key.Public()
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			if _, err := Verify(token, public, gateway, orders, epoch); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("again", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := cache.Verify(token, public, gateway, orders, epoch); err != nil {
				b.Fatal(err)
			}
		}
	})
}
