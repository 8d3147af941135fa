package sockowner

import (
	"fmt"
	"os/user"
	"strconv"
	"strings"
)

// UserID is the number of a user of this host, who may be given by number. A
// name that is all digits is a name first, as everywhere.
func UserID(name string) (uint32, error) {
	u, err := user.Lookup(name)
	id := name
	if err == nil {
		id = u.Uid
	}
	uid, perr := strconv.ParseUint(id, 10, 32)
	switch {
	case perr == nil:
		return uint32(uid), nil
	case err == nil:
		return 0, fmt.Errorf("user %q has the id %q, which is no number", name, id)
	}
	return 0, err
}

// Describe says who holds s, as far as it can be seen, for people.
func Describe(s Socket) string {
	var b strings.Builder
	fmt.Fprintf(&b, "uid %d", s.UID)
	if u, err := user.LookupId(strconv.FormatUint(uint64(s.UID), 10)); err == nil {
		fmt.Fprintf(&b, " (%s)", u.Username)
	}
	p, err := Find(s)
	if err != nil {
		b.WriteString(", in a process that cannot be seen")
		return b.String()
	}
	defer p.Close()
	fmt.Fprintf(&b, ", pid %d", p.PID())
	if exe := p.Executable(); exe != "" {
		fmt.Fprintf(&b, " (%s)", exe)
	}
	return b.String()
}

// FileID names a file and what is in it; see FileVersion. It is comparable.
type FileID struct{ version }
