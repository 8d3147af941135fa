package origdst

import (
	"encoding/binary"
	"errors"
	"net"
	"testing"
)

func sockaddr(family uint16, rest ...byte) []byte {
	return append(binary.NativeEndian.AppendUint16(nil, family), rest...)
}

func TestParse(t *testing.T) {
	t.Parallel()
	v6 := append([]byte{0x1f, 0x90, 0, 0, 0, 0, 0xfd}, append(make([]byte, 14), 1, 0, 0, 0, 0)...)
	mapped := append([]byte{0, 80, 0, 0, 0, 0}, append(make([]byte, 10), 0xff, 0xff, 10, 0, 0, 1)...)
	for _, tt := range []struct {
		in   []byte
		want string
	}{
		{sockaddr(inet, 0x1f, 0x90, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0), "10.0.0.1:8080"},
		{sockaddr(inet6, v6...), "[fd00::1]:8080"},
		{sockaddr(inet6, mapped...), "10.0.0.1:80"},
		{sockaddr(inet, 0x1f, 0x90, 10, 0, 0), ""},
		{sockaddr(inet6, v6[:21]...), ""},
		{sockaddr(inet, 0, 0, 10, 0, 0, 1), ""},
		{sockaddr(inet, 0, 1, 0, 0, 0, 0), ""},
		{sockaddr(1, 0, 1, 1, 1, 1, 1), ""},
		{nil, ""},
		{[]byte{2}, ""},
	} {
		got, err := parse(tt.in)
		if (err == nil) != (tt.want != "") || err == nil && got.String() != tt.want {
			t.Errorf("%x: %v %v, want %q", tt.in, got, err, tt.want)
		}
	}
}

// TestDirect: who dials the gate itself was going nowhere else.
func TestDirect(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Logf("no %s here: %v", address, err)
			continue
		}
		defer l.Close()
		out, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		in, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		if to, err := Of(in); err == nil {
			t.Errorf("it was going to %v", to)
		} else if Supported() && !errors.Is(err, ErrDirect) {
			t.Log(err) // without netfilter the kernel does not know the question
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(sockaddr(inet, 0x1f, 0x90, 10, 0, 0, 1))
	f.Add(sockaddr(inet6, make([]byte, 26)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if to, err := parse(b); err == nil && (!to.IsValid() || to.Port() == 0 || to.Addr().Is4In6() || to.Addr().Zone() != "") {
			t.Errorf("%x: %v", b, to)
		}
	})
}
