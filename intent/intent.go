// Package intent is the language in which people say what they want: what the
// services are, what they offer and who may call whom.
//
// An intent is merlon.yaml at the root of a directory, and every
// *.merlon.yaml below it, in which the owners of services keep what is theirs
// beside their code. The order of files and of keys has no meaning. Load reads
// it strictly: what is unknown, missing, doubtful or written twice is a
// Diagnostic that shows the word, and says what to do. All are found at once.
//
//	loaded, ds := intent.Load(os.DirFS("examples/shop"))
//	intent.Render(os.Stderr, fsys, ds, true)
//	if ds.Failed() { ... }
//
// One table, in table.go, holds every key of the language. The parser's
// checks, the JSON Schema and the reference in docs/intent.md are made from it.
//
// What an intent means depends on the bytes of the files read and on nothing
// else: no clock, no environment, no network. Those bytes are the Bundle, and
// loading the bundle gives the same intent again.
package intent

import (
	"io/fs"
	"slices"

	"merlon"
)

// Loaded is an intent that was read without an error.
type Loaded struct {
	Intent *merlon.Intent
	Hash   string // SHA-256 of the names and contents of all files read, in hex
	Bundle []byte // these files as a zip, the same bytes for the same files
}

// Load reads the intent in fsys. Loaded is nil when a diagnostic is more than
// a warning: half an intent is none.
//
// Paths in the intent never leave fsys by their text; that a symbolic link
// does not either is for fsys to see to (os.Root does, os.DirFS does not).
func Load(fsys fs.FS) (*Loaded, merlon.Diagnostics) {
	e := &estate{report: &reporter{}, named: map[string]merlon.Pos{}, dubious: map[string]bool{}}
	rec := &recorder{fsys: fsys, files: map[string][]byte{}}
	lang := language()
	names := find(fsys, e.report)
	e.domainSeen = !slices.Contains(names, rootFile) // that is the one thing to say, then
	for _, name := range names {
		text, err := rec.ReadFile(name)
		if err != nil {
			e.incomplete = true
			e.report.at(word{pos: merlon.Pos{File: name}}, codeFile, "", "cannot read the file: %v", cause(err))
			continue
		}
		s, ok := readSource(name, text, e.report)
		if !ok {
			e.incomplete = true
			continue
		}
		e.read(s, lang)
	}
	e.resolve(rec)
	ds := e.report.sorted()
	if ds.Failed() {
		return nil, ds
	}
	bundle, err := rec.bundle()
	if err != nil {
		e.report.at(word{pos: merlon.Pos{File: rootFile}}, codeFile, "", "cannot pack the files: %v", err)
		return nil, e.report.sorted()
	}
	return &Loaded{Intent: e.intent(), Hash: rec.hash(), Bundle: bundle}, ds
}

func (e *estate) failed() bool { return e.report.ds.Failed() }
