//! Cgroups of a test, and sockets that belong to one from their first moment.

use std::{
    fs::{self, File},
    io::Read as _,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::unistd::Pid;
use socket2::{Domain, Socket, Type};

pub use crate::leftovers::cgroup2_mount;
use crate::leftovers::unique;
use crate::{netns::NetNs, wait};

/// A child of the cgroup2 root, for the host processes of one node. Removed on drop.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// A new cgroup.
    pub fn new(what: &str) -> Result<Cgroup> {
        let path = cgroup2_mount()?.join(unique(what));
        fs::create_dir(&path)
            .with_context(|| format!("cannot create the cgroup {}", path.display()))?;
        Ok(Cgroup { path })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A socket that belongs to this cgroup and to `ns`, usable by any thread.
    ///
    /// A socket's cgroup is that of the process which made it. So a short-lived process that shares
    /// this one's file descriptors enters both and makes it.
    pub fn socket(&self, ns: &NetNs, domain: Domain, kind: Type) -> Result<Socket> {
        let directory = File::open(&self.path)?;
        let netns = File::open(ns.path())?;
        let (reader, writer) = nix::unistd::pipe()?;
        // SAFETY: `clone_args` is plain data; all zero is a valid value.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        // Born in the cgroup (kernel 5.7): a move would stop every fork of the machine for a grace period.
        args.flags = u64::try_from(libc::CLONE_FILES)? | CLONE_INTO_CGROUP;
        args.exit_signal = u64::try_from(libc::SIGCHLD)?;
        args.cgroup = u64::try_from(directory.as_raw_fd())?;
        // SAFETY: without CLONE_VM the child gets a copy of the address space, like fork; the raw
        // call runs no handlers of libc, and the arguments outlive it.
        let pid = unsafe {
            libc::syscall(
                libc::SYS_clone3,
                &raw mut args,
                size_of::<libc::clone_args>(),
            )
        };
        if pid == 0 {
            make_socket(
                netns.as_raw_fd(),
                i32::from(domain),
                i32::from(kind),
                writer.as_raw_fd(),
            );
        }
        if pid < 0 {
            return Err(std::io::Error::last_os_error()).context("cannot start a process");
        }
        // The write end stays open here: the child shares the table, and closing would be its end, too.
        let mut answer = [0u8; 4];
        File::from(reader).read_exact(&mut answer)?;
        drop(writer);
        let pid = Pid::from_raw(i32::try_from(pid)?);
        nix::sys::wait::waitpid(pid, None)?;
        let answer = i32::from_ne_bytes(answer);
        if answer < 0 {
            return Err(std::io::Error::from_raw_os_error(-answer)).with_context(|| {
                format!(
                    "cannot make a socket in {} and {}",
                    self.path.display(),
                    ns.name()
                )
            });
        }
        // SAFETY: the child opened this descriptor in the shared table for us and ended; nobody else
        // owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(answer) };
        Ok(Socket::from(fd))
    }
}

/// `CLONE_INTO_CGROUP` of linux/sched.h: more than the 32 bits that libc has it in.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The child's part of [`Cgroup::socket`]: system calls only, then the end. Writes the descriptor, or a
/// negative errno.
fn make_socket(netns: i32, domain: i32, kind: i32, answer: i32) -> ! {
    fn errno() -> i32 {
        // SAFETY: returns this thread's errno location, always valid.
        let location = unsafe { libc::__errno_location() };
        // SAFETY: as above; nobody else writes it.
        -unsafe { *location }
    }
    // SAFETY: a system call on an open descriptor.
    let entered = unsafe { libc::setns(netns, libc::CLONE_NEWNET) };
    let mut result = if entered == 0 { 0 } else { errno() };
    if result == 0 {
        // SAFETY: a system call without pointers.
        let fd = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, 0) };
        result = if fd >= 0 { fd } else { errno() };
    }
    let bytes = result.to_ne_bytes();
    // SAFETY: writes four bytes of a local array.
    unsafe { libc::write(answer, bytes.as_ptr().cast(), 4) };
    // SAFETY: ends the process without running handlers that belong to the parent.
    unsafe { libc::_exit(0) }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let removed = wait::until("remove cgroup", Duration::from_secs(5), || {
            Ok(fs::remove_dir(&self.path)?)
        });
        if let Err(error) = removed {
            eprintln!(
                "cannot remove the cgroup {}: {error:#}",
                self.path.display()
            );
        }
    }
}
