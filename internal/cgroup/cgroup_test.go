package cgroup

import (
	"os"
	"strings"
	"testing"
	"testing/fstest"
)

func TestMemory(t *testing.T) {
	t.Parallel()
	const (
		v2      = "26 20 0:23 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
		pod     = "26 20 0:23 /kube/pod1 /sys/fs/cgroup ro - cgroup2 cgroup rw\n"
		v1      = "30 20 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
		docker1 = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro master:9 - cgroup cgroup rw,memory\n"
		noBound = "9223372036854771712"
	)
	for _, tt := range []struct {
		name, cgroup, mounts string
		files                map[string]string
		want                 int64
		fail                 string
	}{
		{name: "no groups"},
		{name: "version 2, namespace of its own", cgroup: "0::/\n", mounts: v2, files: map[string]string{"memory.max": "67108864\n"}, want: 64 << 20},
		{name: "version 2, no bound", cgroup: "0::/a\n", mounts: v2, files: map[string]string{"a/memory.max": "max\n"}},
		{name: "version 2, the outer bound is less", cgroup: "0::/a/b\n", mounts: v2, files: map[string]string{"a/memory.max": "100", "a/b/memory.max": "200"}, want: 100},
		{name: "version 2, the inner bound is less", cgroup: "0::/a/b\n", mounts: v2, files: map[string]string{"a/memory.max": "200", "a/b/memory.max": "100"}, want: 100},
		{name: "version 2, mounted below", cgroup: "0::/kube/pod1/c\n", mounts: pod, files: map[string]string{"c/memory.max": "100"}, want: 100},
		{name: "version 2, outside of the mount", cgroup: "0::/../other\n", mounts: pod, files: map[string]string{"memory.max": "100"}, want: 100},
		{name: "version 1", cgroup: "5:cpu:/\n4:memory:/a\n0::/\n", mounts: v1, files: map[string]string{"memory/memory.limit_in_bytes": noBound, "memory/a/memory.limit_in_bytes": "100"}, want: 100},
		{name: "version 1, no bound", cgroup: "4:memory:/a\n", mounts: v1, files: map[string]string{"memory/a/memory.limit_in_bytes": noBound}},
		{name: "version 1, mounted below", cgroup: "4:memory:/docker/abc\n", mounts: docker1, files: map[string]string{"memory/memory.limit_in_bytes": "100"}, want: 100},
		{name: "not mounted", cgroup: "4:memory:/a\n0::/\n", mounts: "26 20 0:23 / / rw - ext4 sda rw\n"},
		{name: "no number", cgroup: "0::/\n", mounts: v2, files: map[string]string{"memory.max": "lots"}, fail: `/sys/fs/cgroup/memory.max: "lots" is no number`},
		{name: "lines that say nothing", cgroup: "\n:\n0::/\n", mounts: "\nx - y\n" + v2, files: map[string]string{"memory.max": "100"}, want: 100},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			root := fstest.MapFS{}
			if tt.cgroup != "" {
				root["proc/self/cgroup"] = &fstest.MapFile{Data: []byte(tt.cgroup)}
				root["proc/self/mountinfo"] = &fstest.MapFile{Data: []byte(tt.mounts)}
			}
			for name, text := range tt.files {
				root["sys/fs/cgroup/"+name] = &fstest.MapFile{Data: []byte(text)}
			}
			got, err := Memory(root)
			if tt.fail != "" {
				if err == nil || !strings.Contains(err.Error(), tt.fail) {
					t.Errorf("%v, want %q", err, tt.fail)
				}
				return
			}
			if err != nil || got.Bytes != tt.want || (got.File == "") != (tt.want == 0) {
				t.Errorf("%+v, %v, want %d", got, err, tt.want)
			}
		})
	}
}

// TestHere reads what this system says.
func TestHere(t *testing.T) {
	t.Parallel()
	limit, err := Memory(os.DirFS("/"))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", limit)
}

// FuzzMemory: whatever a kernel writes, the answer is a bound or none.
func FuzzMemory(f *testing.F) {
	f.Add("0::/a/../..\n", "26 20 0:23 / /sys rw - cgroup2 c rw\n", "max")
	f.Add("4:memory:/a\n", "35 31 0:32 / /m rw - cgroup cgroup rw,memory\n", "100")
	f.Fuzz(func(t *testing.T, groups, mounts, bound string) {
		root := fstest.MapFS{
			"proc/self/cgroup":    {Data: []byte(groups)},
			"proc/self/mountinfo": {Data: []byte(mounts)},
			"sys/memory.max":      {Data: []byte(bound)},
		}
		if l, err := Memory(root); err == nil && (l.Bytes < 0 || l.Bytes >= unlimited) {
			t.Errorf("%+v", l)
		}
	})
}
