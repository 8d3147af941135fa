package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"merlon/learn"
)

func newInit(u *ui) *cobra.Command {
	var print bool
	c := &cobra.Command{
		Use:   "init [DIR]",
		Short: "write a first intent from what a project says of itself",
		Long: `init reads OpenAPI and protobuf contracts, docker-compose files and Kubernetes
manifests in DIR and writes DIR/merlon.yaml: the services it found, and who may
call whom as far as the files prove it. Everything else is denied, with
suggestions in comments. A merlon.yaml that is there is never touched.`,
		Args:              takes(0, 1),
		ValidArgsFunction: completeDir(0),
		RunE: func(_ *cobra.Command, args []string) error {
			dir := dirArg(args, 0)
			files, err := openDir(dir)
			if err != nil {
				return err
			}
			name := filepath.Join(dir, "merlon.yaml")
			if !print {
				if _, err := os.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
					return hinted(fmt.Errorf("%s is there already", name), "merlon init --print shows what init would write")
				}
			}
			text, notes, err := learn.Scan(files)
			if err != nil {
				return err
			}
			found := []map[string]any{}
			for _, note := range notes {
				found = append(found, map[string]any{"pos": note.Pos, "text": note.Text})
				u.say("%v", note)
			}
			switch {
			case print && u.json:
				u.printJSON(map[string]any{"ok": true, "intent": string(text), "notes": found})
				return nil
			case print:
				u.printf("%s", text)
				return nil
			}
			f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
			if err != nil {
				return err
			}
			_, err = f.Write(text)
			if err := errors.Join(err, f.Close()); err != nil {
				return err
			}
			if u.json {
				u.printJSON(map[string]any{"ok": true, "file": name, "notes": found})
				return nil
			}
			u.printf("%s wrote %s\n", u.green("ok:"), name)
			u.printf("%s\n", u.dim("next: read it, then merlon check "+dir+" and merlon up "+dir))
			return nil
		},
	}
	c.Flags().BoolVar(&print, "print", false, "print the intent instead of writing it")
	return c
}
