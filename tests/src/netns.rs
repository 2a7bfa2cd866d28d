//! Network namespaces held by file descriptors, without names: what nobody refers to any more, the
//! kernel removes, even when the test process is killed.
//!
//! A closure enters a namespace on a thread of its own ([`NetNs::run`]), a process between fork and
//! exec ([`NetNs::command`]). Nothing ever changes the namespace of the caller's thread.

use std::{
    cell::RefCell,
    ffi::OsStr,
    fs::{self, File},
    io::Write as _,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::process::CommandExt as _,
    },
    panic,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    thread,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};
use socket2::{Domain, Protocol, Socket, Type};

thread_local! {
    /// The namespace that this thread is in, unless it is the one that the process started in.
    static ENTERED: RefCell<Option<Arc<OwnedFd>>> = const { RefCell::new(None) };
}

/// A network namespace. Clones share it; it ends with the last clone, socket and process in it.
#[derive(Clone, Debug)]
pub struct NetNs {
    name: Arc<str>,
    fd: Arc<OwnedFd>,
}

impl NetNs {
    /// A new, empty namespace. `name` appears in errors only.
    pub fn new(name: &str) -> Result<NetNs> {
        let fd = thread::spawn(|| -> Result<OwnedFd> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok(File::open("/proc/thread-self/ns/net")?.into())
        })
        .join()
        .unwrap_or_else(|panic| panic::resume_unwind(panic))
        .with_context(|| format!("cannot make the network namespace of {name}; run as root"))?;
        Ok(NetNs {
            name: name.into(),
            fd: Arc::new(fd),
        })
    }

    /// The name given at creation.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path that names the namespace to other processes as long as this process lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.fd.as_raw_fd()
        ))
    }

    /// Gives the namespace a name for `ip netns exec`, until the value returned is dropped.
    pub fn publish(&self, name: &str) -> Result<Published> {
        let dir = Path::new("/run/netns");
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let path = dir.join(name);
        File::create_new(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let published = Published(path);
        mount(
            Some(&self.path()),
            &published.0,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .with_context(|| format!("cannot mount {}", published.0.display()))?;
        Ok(published)
    }

    /// Moves the calling thread into the namespace for good: for threads that a pool starts.
    pub fn enter(&self) -> Result<()> {
        setns(self.fd.as_fd(), CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("cannot enter the namespace of {}", self.name))?;
        ENTERED.set(Some(Arc::clone(&self.fd)));
        Ok(())
    }

    /// Runs `f` on a thread inside the namespace and returns its result; a panic is passed on.
    pub fn run<R: Send>(&self, f: impl FnOnce() -> R + Send) -> Result<R> {
        if ENTERED.with_borrow(|fd| fd.as_ref().is_some_and(|fd| Arc::ptr_eq(fd, &self.fd))) {
            return Ok(f());
        }
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter()?;
                    Ok(f())
                })
                .join()
                .unwrap_or_else(|panic| panic::resume_unwind(panic))
        })
    }

    /// A command that will run inside the namespace. Mounts stay the caller's: unlike `ip netns
    /// exec` nothing is mounted over `/sys`, so bpffs and cgroups stay visible.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let fd = Arc::clone(&self.fd);
        // SAFETY: between fork and exec the closure makes one system call, `setns`, on a descriptor
        // that the Arc keeps open; it neither allocates nor takes a lock.
        unsafe {
            command
                .pre_exec(move || setns(fd.as_fd(), CloneFlags::CLONE_NEWNET).map_err(Into::into));
        }
        command
    }

    /// Runs `ip -batch` inside the namespace with these lines.
    pub fn ip(&self, lines: &str) -> Result<()> {
        let mut child = self
            .command("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run `ip`; install iproute2")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(lines.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!(
                "ip failed in {}: {}\nbatch:\n{lines}",
                self.name,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }

    /// Runs a program inside the namespace and returns what it printed; fails when it does.
    pub fn output(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self
            .command(program)
            .args(args)
            .output()
            .with_context(|| format!("cannot run `{program}`"))?;
        if !output.status.success() {
            bail!(
                "`{program} {}` failed in {}: {}{}",
                args.join(" "),
                self.name,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Writes settings below `/proc/sys/net`, for example `("ipv4/ip_forward", "1")`.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (name, value) in settings {
                let path = format!("/proc/sys/net/{name}");
                fs::write(&path, value)
                    .with_context(|| format!("cannot write {value} to {path}"))?;
            }
            Ok(())
        })?
    }

    /// A socket of this namespace; any thread may use it.
    pub fn socket(&self, domain: Domain, kind: Type, protocol: Option<Protocol>) -> Result<Socket> {
        let socket = self.run(|| Socket::new(domain, kind, protocol))?;
        socket.with_context(|| format!("cannot make a socket in {}", self.name))
    }

    /// Switches checksum, segmentation and receive offloads of an interface.
    pub fn offloads(&self, interface: &str, offloads: Offloads) -> Result<()> {
        let socket = self.socket(Domain::IPV4, Type::DGRAM, None)?;
        for (command, on) in [
            (ETHTOOL_SRXCSUM, offloads.transmit),
            (ETHTOOL_STXCSUM, offloads.transmit),
            (ETHTOOL_SSG, offloads.transmit),
            (ETHTOOL_STSO, offloads.transmit),
            (ETHTOOL_SGSO, offloads.transmit),
            (ETHTOOL_SGRO, offloads.gro),
        ] {
            set_feature(&socket, interface, command, on).with_context(|| {
                format!(
                    "cannot set offload {command:#x} of {interface} in {}",
                    self.name
                )
            })?;
        }
        Ok(())
    }
}

/// A name below `/run/netns`, removed on drop.
#[derive(Debug)]
pub struct Published(PathBuf);

impl Drop for Published {
    fn drop(&mut self) {
        // Not mounted where publishing failed half way.
        umount2(&self.0, MntFlags::MNT_DETACH).ok();
        if let Err(error) = fs::remove_file(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}

/// Which offloads an interface has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums, scatter-gather, TSO and GSO.
    pub transmit: bool,
    /// GRO; on a veth it also switches NAPI on, without which frames that XDP redirects to its peer
    /// are lost.
    pub gro: bool,
}

// linux/ethtool.h, the commands that set one feature.
const ETHTOOL_SRXCSUM: u32 = 0x15;
const ETHTOOL_STXCSUM: u32 = 0x17;
const ETHTOOL_SSG: u32 = 0x19;
const ETHTOOL_STSO: u32 = 0x1f;
const ETHTOOL_SGSO: u32 = 0x24;
const ETHTOOL_SGRO: u32 = 0x2c;

/// `struct ethtool_value` of linux/ethtool.h.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

fn set_feature(socket: &Socket, interface: &str, command: u32, on: bool) -> Result<()> {
    let mut value = EthtoolValue {
        command,
        data: u32::from(on),
    };
    // SAFETY: `ifreq` is plain data; all zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= libc::IFNAMSIZ {
        bail!("interface name `{interface}` is too long");
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: SIOCETHTOOL reads an `ifreq` whose data points to an `ethtool_value` for each of these
    // commands; both outlive the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(())
}
