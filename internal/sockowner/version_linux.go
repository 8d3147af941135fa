package sockowner

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// version is what the kernel says of a file.
type version struct {
	mount, inode, size uint64
	major, minor       uint32
	changed, modified  unix.StatxTimestamp
}

// settled is how long a file must be unchanged for its change time to tell it
// from what it was: kernels count that time in ticks of up to 10 ms.
const settled = 2 * time.Second

// FileVersion is what the content of a file is known by while this system runs:
// the same version is the same content. There is none of a file that was changed
// a moment ago, nor where others than this kernel could change it (a file system
// that a user serves, or one of the network), nor where a mount that is gone
// could be taken for another (before Linux 6.8).
func FileVersion(f *os.File, now time.Time) (FileID, bool) {
	var fs unix.Statfs_t
	var st unix.Statx_t
	const want = unix.STATX_BASIC_STATS | unix.STATX_MNT_ID_UNIQUE
	fd := int(f.Fd())
	if unix.Fstatfs(fd, &fs) != nil || unix.Statx(fd, "", unix.AT_EMPTY_PATH, want, &st) != nil || st.Mask&want != want {
		return FileID{}, false
	}
	switch uint32(fs.Type) {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC:
	default:
		return FileID{}, false
	}
	if age := now.Sub(time.Unix(st.Ctime.Sec, int64(st.Ctime.Nsec))); age < settled {
		return FileID{}, false
	}
	return FileID{version{st.Mnt_id, st.Ino, st.Size, st.Dev_major, st.Dev_minor, st.Ctime, st.Mtime}}, true
}
