//! An agent in a node of the world: its own bpffs, its own cgroup, its own manifests and log.
//!
//! What it leaves in the kernel (pins, links, the cgroup) is in places that the test made and removes,
//! so nothing outlives the test.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use socket2::{Domain, Type};

use crate::cgroup::Cgroup;
use crate::tempdir::{Bpffs, TempDir};
use crate::{manifest::ManifestDir, netns::NetNs, topology::Node, wait};

/// How long an agent may take to become ready, or to end, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The agent's binary: `LB_AGENT`, or what was built last into the workspace's target folder.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("LB_AGENT") {
        return Ok(PathBuf::from(path));
    }
    let target = target_dir();
    let candidates = ["release", "debug"].map(|profile| target.join(profile).join("lb-agent"));
    let built = |path: &&PathBuf| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    candidates
        .iter()
        .filter(|path| path.is_file())
        .max_by_key(built)
        .cloned()
        .ok_or_else(|| {
            anyhow!(
                "no lb-agent below {}; run `cargo xtask build`, or name one by LB_AGENT",
                target.display()
            )
        })
}

/// The workspace's target folder.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
        PathBuf::from,
    )
}

/// How an agent is started.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// `--xdp`.
    pub xdp: &'static str,
    /// More flags.
    pub flags: Vec<String>,
    /// `RUST_LOG`.
    pub log: String,
    /// Its log is not printed when it is dropped.
    pub is_quiet: bool,
}

impl Default for AgentOptions {
    fn default() -> Self {
        AgentOptions {
            xdp: "off",
            flags: Vec::new(),
            log: std::env::var("LB_TEST_LOG").unwrap_or_else(|_| "info".into()),
            is_quiet: false,
        }
    }
}

impl AgentOptions {
    /// With XDP in native mode.
    pub fn native() -> Self {
        AgentOptions {
            xdp: "native",
            ..AgentOptions::default()
        }
    }

    /// With one more flag.
    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.extend(flag.split(' ').map(String::from));
        self
    }
}

/// Port of `/readyz` and `/livez` on the node's loopback.
const HEALTH_PORT: u16 = 10256;

/// Port of `/metrics` on the node's loopback.
const METRICS_PORT: u16 = 10249;

/// An agent and its surroundings. They stay while it is stopped and started again.
#[derive(Debug)]
pub struct Agent {
    name: String,
    ns: NetNs,
    options: AgentOptions,
    /// The flag that names where objects come from, and its value.
    source: (&'static str, PathBuf),
    binary: PathBuf,
    bpffs: Bpffs,
    cgroup: Arc<Cgroup>,
    home: TempDir,
    child: Option<Child>,
}

impl Agent {
    /// Starts an agent on a node and waits until it is ready. The node's sockets are from now on in
    /// the agent's cgroup.
    pub fn start(node: &Node, manifests: &ManifestDir, options: AgentOptions) -> Result<Agent> {
        let mut agent = Agent::prepare(node, manifests, options)?;
        agent.run()?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// Everything but the process.
    pub fn prepare(node: &Node, manifests: &ManifestDir, options: AgentOptions) -> Result<Agent> {
        Agent::prepare_on(node, "--manifests", manifests.path(), options)
    }

    /// The same for an agent that gets its objects from an API server.
    pub fn prepare_api(node: &Node, kubeconfig: &Path, options: AgentOptions) -> Result<Agent> {
        Agent::prepare_on(node, "--kubeconfig", kubeconfig, options)
    }

    fn prepare_on(
        node: &Node,
        flag: &'static str,
        source: &Path,
        options: AgentOptions,
    ) -> Result<Agent> {
        let name = node.host.name.clone();
        let cgroup = Arc::new(Cgroup::new(&name)?);
        node.host.enter_cgroup(Some(Arc::clone(&cgroup)));
        Ok(Agent {
            ns: node.host.ns.clone(),
            options,
            source: (flag, source.to_owned()),
            binary: binary()?,
            bpffs: Bpffs::mount(&format!("{name}-bpf"))?,
            home: TempDir::new(&format!("{name}-home"))?,
            cgroup,
            child: None,
            name,
        })
    }

    /// Starts the process without waiting for it.
    pub fn run(&mut self) -> Result<()> {
        if self.child.is_some() {
            bail!("the agent of {} runs already", self.name);
        }
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())?;
        let child = self
            .ns
            .command(&self.binary)
            .args([
                "run",
                "--hostname-override",
                &self.name,
                "--external-interfaces",
                crate::topology::UPLINK,
            ])
            .args(["--xdp", self.options.xdp])
            .arg(self.source.0)
            .arg(&self.source.1)
            .arg("--bpffs")
            .arg(self.bpffs.path())
            .arg("--cgroup")
            .arg(self.cgroup.path())
            .args([
                "--healthz-bind-address",
                &format!("127.0.0.1:{HEALTH_PORT}"),
            ])
            .args([
                "--metrics-bind-address",
                &format!("127.0.0.1:{METRICS_PORT}"),
            ])
            .args(&self.options.flags)
            .env("RUST_LOG", &self.options.log)
            .env("LB_RUN_DIR", self.run_dir())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", self.binary.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// Waits until `/readyz` answers 200; an agent that ended instead is an error with its log.
    pub fn wait_ready(&mut self) -> Result<()> {
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            match self.http(HEALTH_PORT, "/readyz") {
                Ok((200, _)) => return Ok(()),
                Ok((status, body)) if std::time::Instant::now() > end => {
                    bail!(
                        "the agent of {} is not ready after {PATIENCE:?}: {status} {body}\n{}",
                        self.name,
                        self.log()
                    )
                }
                Err(error) if std::time::Instant::now() > end => {
                    bail!(
                        "the agent of {} is not ready after {PATIENCE:?}: {error:#}\n{}",
                        self.name,
                        self.log()
                    )
                }
                _ => {}
            }
            if let Some(status) = self.exited()? {
                bail!("the agent of {} ended: {status}\n{}", self.name, self.log());
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Exit status, once the process has ended by itself.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        match &mut self.child {
            Some(child) => Ok(child.try_wait()?),
            None => Ok(None),
        }
    }

    /// Sends a signal and waits for the end.
    pub fn stop(&mut self, signal: Signal) -> Result<ExitStatus> {
        let mut child = self
            .child
            .take()
            .ok_or_else(|| anyhow!("the agent of {} does not run", self.name))?;
        kill(Pid::from_raw(i32::try_from(child.id())?), signal)?;
        let ended = wait::until("agent ends", PATIENCE, || {
            child.try_wait()?.ok_or_else(|| anyhow!("still running"))
        });
        match ended {
            Ok(status) => Ok(status),
            Err(error) => {
                child.kill()?;
                child.wait()?;
                bail!(
                    "the agent of {} ignores {signal}: {error:#}\n{}",
                    self.name,
                    self.log()
                )
            }
        }
    }

    /// SIGTERM: it must end with status 0.
    pub fn terminate(&mut self) -> Result<()> {
        let status = self.stop(Signal::SIGTERM)?;
        if !status.success() {
            bail!(
                "the agent of {} ended with {status} on SIGTERM\n{}",
                self.name,
                self.log()
            );
        }
        Ok(())
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        let status = self.stop(Signal::SIGKILL)?;
        match status.signal() {
            Some(signal) if signal == Signal::SIGKILL as i32 => Ok(()),
            _ => bail!(
                "the agent of {} ended before it was killed: {status}\n{}",
                self.name,
                self.log()
            ),
        }
    }

    /// Starts it again, with what it left pinned, and waits until it is ready.
    pub fn start_again(&mut self) -> Result<()> {
        self.run()?;
        self.wait_ready()
    }

    /// Options for the next start.
    pub fn options_mut(&mut self) -> &mut AgentOptions {
        &mut self.options
    }

    /// Process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Its bpffs.
    pub fn bpffs(&self) -> &Path {
        self.bpffs.path()
    }

    /// Where it keeps what it tells its commands: `LB_RUN_DIR`.
    pub fn run_dir(&self) -> &Path {
        self.home.path()
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> &Arc<Cgroup> {
        &self.cgroup
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.home.path().join("log")
    }

    /// Waits until the log holds a text.
    pub fn wait_log(&self, text: &str) -> Result<()> {
        wait::until(
            &format!("`{text}` in the log of {}", self.name),
            PATIENCE,
            || {
                if self.log().contains(text) {
                    Ok(())
                } else {
                    bail!("the log is:\n{}", self.log())
                }
            },
        )
    }

    /// A command of the agent (`services`, `status` …) on this agent's pins, run in its node.
    pub fn command(&self, args: &[&str]) -> Result<Output> {
        let mut command: Command = self.ns.command(&self.binary);
        Ok(command
            .args(args)
            .arg("--bpffs")
            .arg(self.bpffs.path())
            .env("LB_RUN_DIR", self.run_dir())
            .output()?)
    }

    /// Output of such a command as JSON; it must succeed.
    pub fn json(&self, args: &[&str]) -> Result<serde_json::Value> {
        let output = self.command(&[args, &["-o", "json"]].concat())?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!(
                "`lb-agent {}`: {}{}",
                args.join(" "),
                text,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        serde_json::from_str(&text)
            .with_context(|| format!("`lb-agent {}` printed: {text}", args.join(" ")))
    }

    /// Status and body of a request to its health address.
    pub fn health(&self, path: &str) -> Result<(u16, String)> {
        self.http(HEALTH_PORT, path)
    }

    /// All metrics as text.
    pub fn metrics(&self) -> Result<String> {
        match self.http(METRICS_PORT, "/metrics")? {
            (200, body) => Ok(body),
            (status, body) => bail!("/metrics of {}: {status} {body}", self.name),
        }
    }

    /// Sum of the samples whose line starts with the name and contains every label.
    pub fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        let text = self.metrics()?;
        let samples = text.lines().filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with([' ', '{']))
                && labels.iter().all(|label| line.contains(label))
        });
        let values: Vec<f64> = samples
            .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
            .collect();
        if values.is_empty() {
            bail!("no metric {name} with {labels:?} in:\n{text}");
        }
        Ok(values.iter().sum())
    }

    fn http(&self, port: u16, path: &str) -> Result<(u16, String)> {
        let socket = self.ns.socket(Domain::IPV4, Type::STREAM, None)?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
        let mut stream = TcpStream::from(socket);
        stream.write_all(
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                .as_bytes(),
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        drop(stream.shutdown(Shutdown::Both));
        let (head, body) = text
            .split_once("\r\n\r\n")
            .ok_or_else(|| anyhow!("no HTTP answer: {text}"))?;
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        Ok((
            status.ok_or_else(|| anyhow!("no HTTP status: {head}"))?,
            body.to_owned(),
        ))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
        if self.options.is_quiet {
            return;
        }
        // The test runner shows what a test prints only when it fails.
        eprintln!("log of the agent of {}:\n{}", self.name, self.log());
    }
}
