//! A Docker daemon: the machine's own where one answers, else one that is started here.
//!
//! A daemon of our own runs in a network namespace of its own, with its data in the cache folder: interfaces, routes and
//! packet filters of the machine stay as they are.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::{command, paths, setup};

/// Network namespace of our own daemon; the nodes' bridge and published ports are there.
const NETNS: &str = "lb-kind";
/// Kubelets set these for the whole machine, in whatever namespace they run.
const SYSCTLS: [&str; 7] = [
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/pid_max",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
];

/// How to reach the daemon.
pub(super) struct Engine {
    /// The folder of all that kind needs.
    pub(super) folder: PathBuf,
    /// Started here.
    is_own: bool,
}

impl Engine {
    /// Finds a daemon or starts one, after installing it where it is missing.
    pub(super) fn up() -> Result<Self> {
        let folder = folder()?;
        fs::create_dir_all(folder.join("docker"))
            .with_context(|| format!("cannot create {}", folder.display()))?;
        save_sysctls(&folder)?;
        let engine = match Self::running()? {
            Some(engine) => engine,
            None => {
                setup::setup(&["containers"])?;
                Self::start(folder)?
            }
        };
        Ok(engine)
    }

    /// The daemon that answers, if one does.
    pub(super) fn running() -> Result<Option<Self>> {
        for is_own in [true, false] {
            let engine = Self {
                folder: folder()?,
                is_own,
            };
            if command::read(engine.docker().arg("info")).is_ok() {
                return Ok(Some(engine));
            }
        }
        Ok(None)
    }

    fn start(folder: PathBuf) -> Result<Self> {
        let engine = Self {
            folder,
            is_own: true,
        };
        let namespace = Path::new("/run/netns").join(NETNS);
        if !namespace.exists() {
            command::read(command::program("ip").args(["netns", "add", NETNS]))?;
            command::read(engine.inside("ip").args(["link", "set", "lo", "up"]))?;
        }
        let docker = engine.folder.join("docker");
        let settings = json!({
            "runtimes": { "runc-here": { "path": paths::workspace().join("tests/kind/runc") } },
            "default-runtime": "runc-here",
            "bip": "172.31.240.1/24",
            // More than one: networks of an earlier start are still known to the daemon.
            "default-address-pools": [{ "base": "172.31.240.0/20", "size": 24 }],
        });
        fs::write(docker.join("daemon.json"), settings.to_string())
            .context("cannot write the daemon's settings")?;
        let log = File::create(docker.join("log")).context("cannot create the daemon's log")?;
        // nsenter and not `ip netns exec`, which hides the cgroup mounts.
        let mut daemon = engine.inside("dockerd");
        daemon
            .arg("--config-file")
            .arg(docker.join("daemon.json"))
            .arg("--data-root")
            .arg(docker.join("data"))
            .arg("--exec-root")
            .arg(docker.join("exec"))
            .arg("--pidfile")
            .arg(docker.join("pid"))
            .args(["--host", &engine.socket()])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // ^C ends the task, not the cluster.
            .process_group(0);
        daemon.spawn().context("cannot start dockerd")?;
        let deadline = Instant::now() + Duration::from_secs(60);
        while let Err(error) = command::read(engine.docker().arg("info")) {
            if Instant::now() > deadline {
                return Err(error.context(format!(
                    "the Docker daemon does not answer; see {}",
                    docker.join("log").display()
                )));
            }
            thread::sleep(Duration::from_millis(300));
        }
        Ok(engine)
    }

    /// Stops a daemon of our own and gives the machine its settings back.
    pub(super) fn down(&self) -> Result<()> {
        if self.is_own {
            let pid = fs::read_to_string(self.folder.join("docker/pid")).unwrap_or_default();
            let pid = pid.trim();
            if !pid.is_empty() {
                command::read(command::program("kill").arg(pid))?;
                let deadline = Instant::now() + Duration::from_secs(60);
                while Path::new("/proc").join(pid).exists() {
                    if Instant::now() > deadline {
                        bail!("dockerd ({pid}) does not end; see its log");
                    }
                    thread::sleep(Duration::from_millis(200));
                }
            }
            if Path::new("/run/netns").join(NETNS).exists() {
                command::read(command::program("ip").args(["netns", "delete", NETNS]))?;
            }
        }
        restore_sysctls(&self.folder)
    }

    /// `docker` with this daemon.
    pub(super) fn docker(&self) -> Command {
        let mut docker = command::program("docker");
        self.point(&mut docker);
        docker
    }

    /// A program that sees the network of the machine the daemon runs on: nodes, published ports.
    pub(super) fn inside(&self, program: impl AsRef<Path>) -> Command {
        let mut command = if self.is_own {
            let mut nsenter = command::program("nsenter");
            nsenter
                .arg(format!("--net=/run/netns/{NETNS}"))
                .arg(program.as_ref());
            nsenter
        } else {
            command::program(program.as_ref())
        };
        self.point(&mut command);
        command
    }

    /// Tells a program which daemon to use.
    pub(super) fn point(&self, command: &mut Command) {
        if self.is_own {
            command.env("DOCKER_HOST", self.socket());
        }
    }

    fn socket(&self) -> String {
        format!("unix://{}", self.folder.join("docker/socket").display())
    }
}

/// Where programs, images and the daemon's data are kept.
pub(super) fn folder() -> Result<PathBuf> {
    Ok(paths::cache()?.join("kind"))
}

fn save_sysctls(folder: &Path) -> Result<()> {
    let path = folder.join("sysctls");
    if path.exists() {
        return Ok(());
    }
    let mut text = String::new();
    for name in SYSCTLS {
        let value = fs::read_to_string(Path::new("/proc/sys").join(name)).unwrap_or_default();
        text.push_str(&format!("{name} {}\n", value.trim()));
    }
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn restore_sysctls(folder: &Path) -> Result<()> {
    let path = folder.join("sysctls");
    let Ok(text) = fs::read_to_string(&path) else {
        return Ok(());
    };
    for (name, value) in text.lines().filter_map(|line| line.split_once(' ')) {
        fs::write(Path::new("/proc/sys").join(name), value)
            .with_context(|| format!("cannot set {name} back to {value}"))?;
    }
    fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
}
