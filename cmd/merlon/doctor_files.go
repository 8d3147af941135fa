package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"merlon/authority"
	"merlon/control"
	"merlon/internal/private"
	"merlon/record"
)

// checkFiles finds what others can reach and must not. The way goes through an
// os.Root: who could write there may have left links.
func checkFiles(_ context.Context, p *patient) []finding {
	if f := p.enter(); f != nil {
		p.shut = true
		return []finding{*f}
	}
	_, stateOpen := p.wide(".")
	_, keysOpen := p.wide(authorityName)
	secrets, _ := fs.Glob(p.root.FS(), authorityName+"/*.pem")
	known := false // keys may be: no mode takes that back
	for _, name := range secrets {
		_, open := p.wide(name)
		known = known || stateOpen && keysOpen && open
	}
	names := append([]string{".", authorityName}, secrets...)
	for _, pattern := range []string{authorityName + "/*.jsonl", "control.*", recordsName, recordsName + "/*", "federation", "federation/*", "nodes.json", "merlon.log", "ports.json"} {
		more, _ := fs.Glob(p.root.FS(), pattern)
		names = append(names, more...)
	}
	var found []finding
	left := 0
	for _, name := range names {
		path := relative(filepath.Join(p.state, name))
		if info, err := p.root.Lstat(name); err == nil && !private.Owned(info) {
			found, left = append(found, finding{What: path + " belongs to another user", Why: "merlon did not make it, or somebody has given it away",
				Do: "see who has put it there; if that was nobody of yours, restore a backup"}), left+1
			continue
		}
		mode, open := p.wide(name)
		if !open {
			continue
		}
		want := mode.Perm() &^ 0o077
		f := finding{What: fmt.Sprintf("others can reach %s (mode %04o)", path, mode.Perm()), Do: fmt.Sprintf("chmod %o %s", want, path)}
		switch {
		case known:
			f.Why = "the way to the keys of the authority stands open: who has an account on this host may know them"
			f.Do += ", if nobody can have read them; if somebody can, move " + relative(filepath.Join(p.state, authorityName)) + " away to begin a new trust domain"
		case mode.IsDir() && stateOpen && mode.Perm()&0o022 != 0:
			f.Why = "others can put files there: what was in force and what was recorded may be theirs"
			f.Do += ", if nobody can have done that; if somebody can, restore a backup"
		default:
			f.fix = func(context.Context) error {
				err := p.root.Chmod(name, want)
				if err == nil {
					left--
				}
				p.shut = left > 0 && !p.running()
				return err
			}
		}
		found, left = append(found, f), left+1
	}
	p.shut = left > 0 && !p.running() // nothing of merlon reads it as it is
	return found
}

// enter opens the state directory if it is one, and is ours: who could make doctor
// look at, and repair, another directory, could have root take it from all others.
func (p *patient) enter() *finding {
	link, err := os.Lstat(p.state)
	if err == nil {
		p.root, err = os.OpenRoot(p.state)
	}
	if err != nil {
		return &finding{What: err.Error(), Do: "run doctor as the user that merlon up runs as"}
	}
	path := relative(p.state)
	switch here, err := p.root.Stat("."); {
	case err != nil:
		return &finding{What: err.Error()}
	case !private.Owned(link), link.IsDir() && !os.SameFile(link, here):
		return &finding{What: path + " belongs to another user", Do: "run doctor as that user"} // what we made would be ours, and of no use to its owner
	case !private.Owned(here):
		return &finding{What: path + " leads to what belongs to another user", Do: "run doctor as that user"}
	}
	for _, name := range []string{"control.lock", "control.db", authorityName} {
		if _, err := p.root.Lstat(name); err == nil {
			return nil
		}
	}
	return &finding{What: path + " holds no state of merlon up", Do: "say with --state where that is"}
}

// wide reports whether others than its owner can reach a file of the state.
func (p *patient) wide(name string) (fs.FileMode, bool) {
	info, err := p.root.Lstat(name)
	if err != nil || info.Mode()&fs.ModeSymlink != 0 {
		return 0, false
	}
	return info.Mode(), info.Mode().Perm()&0o077 != 0
}

// checkSockets finds sockets that nobody serves.
func checkSockets(ctx context.Context, p *patient) []finding {
	var found []finding
	for _, path := range []string{control.SocketPath(p.state), filepath.Join(p.state, "spiffe.sock")} {
		info, err := os.Lstat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			found = append(found, finding{What: err.Error()})
			continue
		case info.Mode().Type() != fs.ModeSocket:
			found = append(found, finding{What: relative(path) + " is no socket, and is in the place of one", Do: "move it away: merlon did not make it"})
			continue
		}
		d := net.Dialer{Timeout: doctorAsks}
		c, err := d.DialContext(ctx, "unix", path)
		switch {
		case err == nil:
			c.Close()
			if path == control.SocketPath(p.state) && !p.running() {
				p.shut = true
				found = append(found, finding{What: "the control plane does not answer", Why: "something serves " + relative(path) + ", and gives no answer that can be used",
					Do: "look at what it says in its log, or stop it and run merlon up again"})
			}
		case errors.Is(err, syscall.ECONNREFUSED):
			found = append(found, finding{
				What: "nobody serves " + relative(path), Why: "the process that made it was killed", Do: "remove it; merlon up does so when it starts",
				fix: func(context.Context) error { return p.root.Remove(filepath.Base(path)) },
			})
		default:
			found = append(found, finding{What: fmt.Sprintf("%s cannot be reached: %v", relative(path), err), Do: "run doctor as the user that merlon up runs as"})
		}
	}
	return found
}

// checkAlarms finds keys that end without a successor, while they should have
// one.
func checkAlarms(_ context.Context, p *patient) []finding { return alarms(p, p.id.Status) }

// checkKeys finds keys that have ended or are about to while nobody was there.
func checkKeys(_ context.Context, p *patient) []finding {
	if p.intent == nil {
		return nil // nothing says of which trust domain they are; that was said
	}
	dir := filepath.Join(p.state, authorityName)
	var err error
	p.keys, err = authority.Inspect(dir, p.intent.TrustDomain, p.now)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil // merlon up makes it
	case err != nil:
		p.shut = true
		text, do, _ := strings.Cut(err.Error(), "; ")
		return []finding{{What: text, Do: do}}
	}
	return alarms(p, p.keys.Status)
}

// alarms are the findings of what the authority says of itself.
func alarms(p *patient, s authority.Status) []finding {
	called := map[string]string{"root": "root certificate", "intermediate": "intermediate certificate", "jwt": "key of JWT-SVIDs"}
	var found []finding
	for _, kind := range sortedKeys(s.Alarms) {
		f := finding{What: fmt.Sprintf("the %s has no successor (%s)", called[kind], s.Alarms[kind]), Why: s.Err}
		ended := s.Alarms[kind] == authority.Ended.String()
		switch {
		case p.running():
			f.Do = "merlon up tries again and again; what stops it is above, and in its log"
		case ended && kind == "root":
			f.Why = "it ended while the system was stopped, and so have all SVIDs below it"
			f.Do = "merlon up, or doctor --fix, makes another; workloads outside of merlon up, and partners, then need the new bundle"
		default:
			f.Why = "the system was stopped when it was due"
			f.Do = "merlon up, or doctor --fix, makes one"
		}
		if !p.running() {
			f.fix = p.renew
		}
		found = append(found, f)
	}
	if len(found) == 0 && s.Err != "" {
		found = append(found, finding{What: "a key of the authority could not be renewed", Why: s.Err, Do: "there is time: merlon up tries again and again; its log says more"})
	}
	return found
}

// renew opens the authority, which makes what has ended or is due, and ends a
// line of the journal that was torn.
func (p *patient) renew(context.Context) error {
	a, err := authority.Open(filepath.Join(p.state, authorityName), p.intent.TrustDomain, authority.Options{})
	if err != nil {
		return err
	}
	defer a.Close()
	if s := a.Status(p.now); len(s.Alarms) > 0 {
		return errors.New(s.Err)
	}
	return nil
}

// checkJournal looks at the list of what was signed.
func checkJournal(_ context.Context, p *patient) []finding {
	p.last = p.keys.Issued
	var found []finding
	if p.keys.Torn {
		found = append(found, finding{
			What: "the journal of the authority ends half-way through a line", Why: "a crash: what the line was about was not signed, or was and is lost",
			Do: "nothing: the next start goes on in a line of its own, and so does doctor --fix", fix: p.renew,
		})
	}
	if n := p.keys.Alien; n > 0 {
		found = append(found, finding{
			What: fmt.Sprintf("the journal of the authority has %s that it did not write", count(n, "line")),
			Why:  "what a crash leaves is not meant: this is a damaged disk, or somebody who writes there",
			Do:   "compare " + relative(filepath.Join(p.state, authorityName, "issued.jsonl")) + " with a backup",
		})
	}
	return found
}

// checkRecords proves the chains, as merlon record verify does.
func checkRecords(_ context.Context, p *patient) []finding {
	dir := filepath.Join(p.state, recordsName)
	if _, err := os.Lstat(dir); err != nil {
		return nil
	}
	chains, err := record.Chains(dir)
	if err != nil {
		return []finding{{What: err.Error()}}
	}
	var found []finding
	for _, chain := range chains {
		r, err := record.Verify(chain)
		if err != nil {
			text, hint := hintOf(inChain(err, dir, chain))
			found = append(found, finding{What: "the chain of records is broken: " + text, Why: "records were changed or lost after they were written", Do: hint})
			continue
		}
		if r.Last.After(p.last) {
			p.last = r.Last
		}
		if r.Unsealed > 0 && p.stopped() {
			found = append(found, finding{
				What: fmt.Sprintf("%d bytes behind the last seal of %s were being written in a crash", r.Unsealed, relative(chain)),
				Do:   "nothing: the next start moves them into a file of their own and says so in the chain; so does doctor --fix",
				fix:  func(context.Context) error { return reseal(chain, p) },
			})
		}
	}
	return found
}

func reseal(chain string, p *patient) error {
	opt := record.Options{Now: time.Now}
	if p.intent != nil {
		opt.TrustDomain = p.intent.TrustDomain
	}
	w, err := record.Open(chain, opt)
	if err != nil {
		return err
	}
	return w.Close()
}

// checkClock compares the clock with what was written down by it before.
func checkClock(_ context.Context, p *patient) []finding {
	if ahead := p.last.Sub(p.now); ahead > authority.Skew {
		return []finding{{
			What: fmt.Sprintf("the clock went back: it is %s, and something was written down at %s", p.now.UTC().Format(time.RFC3339), p.last.UTC().Format(time.RFC3339)),
			Why:  "certificates and tokens made since then are not valid yet, by this clock",
			Do:   "set the clock, and see that it is kept (timedatectl); if it was ahead before, wait until that time",
		}}
	}
	return nil
}
