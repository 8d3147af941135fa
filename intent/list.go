package intent

import (
	"io/fs"

	"merlon"
)

// Files lists the intent files that Load would read: merlon.yaml at the root
// and every *.merlon.yaml below it.
func Files(fsys fs.FS) ([]string, merlon.Diagnostics) {
	var r reporter
	names := find(fsys, &r)
	return names, r.ds
}
