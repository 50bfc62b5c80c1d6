//! Job: whether a descriptor that a front-end passed is what its message says: an eventfd, or memory.
//! Before: `wire` received it.
//! After: `session` writes to it or has it watched; `memory` maps it.
//! Rules: nothing here waits, and nothing that is accepted makes the device's thread wait later. A file of a file system that
//! is served by a process (FUSE) or over a network hangs whoever reads, maps or even asks for its size, for as long as that
//! process or network likes.

use rustix::fs::{AtFlags, FileType, StatxFlags, fcntl_get_seals, statx};
use std::fs::{read_link, read_to_string};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// File systems without a device of their own that wait for nobody, as /proc/self/mountinfo names them.
const LOCAL: [&str; 4] = ["btrfs", "overlay", "zfs", "bcachefs"];
/// What /proc/self/fd says of an eventfd. No file can have this name: all of those begin with a slash.
const EVENTFD: &str = "anon_inode:[eventfd]";

/// An eventfd, made non-blocking: it may be full. Whoever shares it can take that back, as far as only they are concerned.
pub fn eventfd(fd: OwnedFd) -> Result<OwnedFd, String> {
    let link = read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
        .map_err(|error| format!("its file descriptor cannot be looked at in /proc: {error}"))?;
    if link.as_os_str() != EVENTFD {
        return Err(format!("its file descriptor is no eventfd but {}", link.display()));
    }
    match rustix::io::ioctl_fionbio(&fd, true) {
        Ok(()) => Ok(fd),
        Err(error) => Err(format!("its file descriptor is of no use: {error}")),
    }
}

/// Whether `file` can be memory of a guest. The error says what it is instead.
pub fn is_memory(file: impl AsFd) -> Result<(), String> {
    // Only memfds and the files of tmpfs and hugetlbfs have seals, and the kernel asks nobody for them.
    if fcntl_get_seals(&file).is_ok() {
        return Ok(());
    }
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let about = statx(&file, c"", flags, StatxFlags::TYPE | StatxFlags::MNT_ID)
        .map_err(|error| format!("its file cannot be looked at: {error}"))?;
    match FileType::from_raw_mode(about.stx_mode.into()) {
        // Persistent memory.
        FileType::CharacterDevice => Ok(()),
        FileType::RegularFile if about.stx_dev_major != 0 => Ok(()),
        FileType::RegularFile => match file_system(about.stx_mnt_id).as_deref() {
            Some(name) if LOCAL.contains(&name) => Ok(()),
            name => Err(format!(
                "its file lies in a file system ({}) that can hang: use memory-backend-memfd",
                name.unwrap_or("unknown")
            )),
        },
        other => Err(format!("its file is no memory ({other:?})")),
    }
}

/// The kind of file system that is mounted under this number, as far as we see it.
fn file_system(mount: u64) -> Option<String> {
    let mounts = read_to_string("/proc/self/mountinfo").ok()?;
    let line = mounts.lines().find(|line| line.split(' ').next().is_some_and(|id| id.parse() == Ok(mount)))?;
    // proc_pid_mountinfo(5): optional fields, a dash, the file system.
    Some(line.split_once(" - ")?.1.split(' ').next()?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::EventfdFlags;
    use rustix::fs::{MemfdFlags, memfd_create};
    use std::fs::File;

    #[test]
    fn only_an_eventfd_is_one() {
        let real = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        assert!(eventfd(real).is_ok());
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let (pipe, _end) = rustix::pipe::pipe().unwrap();
        let file = File::open("/proc/self/status").unwrap();
        for (fd, what) in [(socket.into(), "socket:"), (pipe, "pipe:"), (file.into(), "/proc/")] {
            assert!(eventfd(fd).unwrap_err().contains(what));
        }
    }

    #[test]
    fn memory_and_files_on_disks_are_memory_and_nothing_else_is() {
        let memory = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        assert_eq!(is_memory(&memory), Ok(()));
        assert_eq!(is_memory(std::env::current_exe().and_then(File::open).unwrap()), Ok(()));
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(is_memory(&socket).is_err());
        assert!(is_memory(File::open("/").unwrap()).is_err());
        // procfs stands for all file systems without a device whose reads are answered by somebody.
        let answered = is_memory(File::open("/proc/self/status").unwrap()).unwrap_err();
        assert!(answered.contains("(proc)"), "{answered}");
    }
}
