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

// FileVersion is what the content of a file is known by: as long as it is the
// same, so is the content. It lasts, which is to say that it may be remembered
// until this system ends, unless the file was changed a moment ago, or others than
// this kernel could change it (a file system that a user serves, or one of the
// network), or a mount that is gone could be taken for another (before Linux 6.8).
func FileVersion(f *os.File, now time.Time) (id FileID, lasts bool, err error) {
	var fs unix.Statfs_t
	var st unix.Statx_t
	fd := int(f.Fd())
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID_UNIQUE, &st); err != nil {
		return id, false, os.NewSyscallError("statx", err)
	}
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return id, false, os.NewSyscallError("fstatfs", err)
	}
	id = FileID{version{st.Mnt_id, st.Ino, st.Size, st.Dev_major, st.Dev_minor, st.Ctime, st.Mtime}}
	switch uint32(fs.Type) {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC: // not tmpfs: writing through a mapping leaves no trace in its times
		age := now.Sub(time.Unix(st.Ctime.Sec, int64(st.Ctime.Nsec)))
		lasts = st.Mask&unix.STATX_MNT_ID_UNIQUE != 0 && age >= settled
	}
	return id, lasts, nil
}
