//! A real control plane: etcd, kube-apiserver and the EndpointSlice controller in a namespace of their own, and the
//! real kube-proxy in the node of a world.
//!
//! Nodes reach the API server over a link of its own, `mgmt`, so that Service traffic and API traffic never meet.
//! There is no kubelet: a test writes Pods and their status, the real controller makes the slices.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use http::Method;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    echo::{Dial, Proto},
    manifest::NAMESPACE,
    netns::NetNs,
    tempdir::TempDir,
    topology::{Ip, Place, World},
    wait,
};

mod api;
mod credentials;
mod kube_proxy;
mod process;

pub use self::api::{Api, path};
pub use self::credentials::Role;
use self::credentials::{agent_rights, kubeconfig_name, write_credentials};
pub use self::kube_proxy::{KubeProxy, Mode};
use self::process::Process;

/// Environment variable with the folders of the programs, separated like `PATH`. `cargo xtask test` sets it.
pub const FOLDERS: &str = "LB_CONTROL_PLANE";

/// How long a part of the control plane may take to start or to follow a change on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Where the API server listens: on the bridge that all management links hang on.
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

const SERVER_PORT: u16 = 6443;

/// Pod addresses of both families.
pub const CLUSTER_CIDR: &str = "10.244.0.0/16,fd00:10:244::/48";

/// A program of the control plane, or why there is none.
pub fn program(name: &str) -> Result<PathBuf> {
    let mut folders: Vec<PathBuf> = Vec::new();
    for variable in [FOLDERS, "KUBEBUILDER_ASSETS"] {
        if let Some(list) = std::env::var_os(variable) {
            folders.extend(std::env::split_paths(&list));
        }
    }
    folders.extend(built());
    folders
        .iter()
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| {
            anyhow!("no {name} in {folders:?}; run `cargo xtask setup` or set KUBEBUILDER_ASSETS")
        })
}

/// What xtask built, newest first: for a plain `cargo test`.
fn built() -> Vec<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
        .unwrap_or_default()
        .join("lb-ebpf");
    let mut folders: Vec<PathBuf> = fs::read_dir(cache)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("control-plane-") && !name.ends_with(".partial")
        })
        .map(|entry| entry.path())
        .collect();
    let age = |path: &PathBuf| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    folders.sort_by_key(|path| std::cmp::Reverse(age(path)));
    folders
}

/// etcd, kube-apiserver and kube-controller-manager. Dropped, they end and leave nothing behind.
#[derive(Debug)]
pub struct ControlPlane {
    controllers: Option<Process>,
    server: Option<Process>,
    etcd: Option<Process>,
    api: Api,
    ns: NetNs,
    links: AtomicU16,
    dir: TempDir,
}

impl ControlPlane {
    /// Starts all of it and waits until Services can be written. The namespace of the tests and the rights of the agent
    /// are there.
    pub fn start() -> Result<ControlPlane> {
        let ns = NetNs::new("control-plane")?;
        ns.ip(&format!(
            "link set lo up\n\
             link add br0 type bridge forward_delay 0 mcast_snooping 0\n\
             addr add {SERVER}/16 dev br0\n\
             link set br0 up\n"
        ))?;
        let dir = TempDir::new("control-plane")?;
        write_credentials(dir.path())?;
        let api = Api::new(&ns, &dir.path().join(kubeconfig_name(Role::Admin)))?;
        let mut plane = ControlPlane {
            controllers: None,
            server: None,
            etcd: None,
            api,
            ns,
            links: AtomicU16::new(2),
            dir,
        };
        plane.start_etcd()?;
        plane.start_server()?;
        plane.api.apply(&json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE },
        }))?;
        for object in agent_rights()? {
            plane.api.apply(&object)?;
        }
        Ok(plane)
    }

    /// Reads and writes objects as administrator.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// Where the API server is for `--apiserver`.
    pub fn url(&self) -> String {
        format!("https://{SERVER}:{SERVER_PORT}")
    }

    /// The kubeconfig of a role.
    pub fn kubeconfig(&self, role: Role) -> PathBuf {
        self.dir.path().join(kubeconfig_name(role))
    }

    /// Links a node to the API server.
    pub fn link(&self, place: &Place) -> Result<()> {
        let number = self.links.fetch_add(1, Ordering::Relaxed);
        let [high, low] = number.to_be_bytes();
        self.ns.ip(&format!(
            "link add to-{number} type veth peer name mgmt netns {}\nlink set to-{number} master br0 up\n",
            place.ns.path().display()
        ))?;
        // IPv4 only: an IPv6 address more would be one more candidate for the source of masqueraded traffic.
        place.ns.ip(&format!(
            "addr add 198.18.{high}.{low}/16 dev mgmt\nlink set mgmt up\n"
        ))
    }

    /// Starts the EndpointSlice controller: from now on Pods become endpoints of the Services that select them.
    pub fn start_controllers(&mut self) -> Result<()> {
        let mut command = self.command("kube-controller-manager")?;
        command
            .arg("--kubeconfig")
            .arg(self.kubeconfig(Role::Admin))
            .arg("--cert-dir")
            .arg(self.dir.path())
            .args([
                "--controllers=endpointslice-controller",
                "--leader-elect=false",
                "--use-service-account-credentials=false",
                "--endpointslice-updates-batch-period=0s",
                "--secure-port=0",
            ]);
        self.controllers = Some(Process::start("controllers", command, self.dir.path())?);
        Ok(())
    }

    /// Stops the API server at once; etcd keeps what it knew.
    pub fn stop_server(&mut self) -> Result<()> {
        let mut server = self.server.take().context("the API server does not run")?;
        server.stop(Signal::SIGKILL)
    }

    /// Starts the API server (again) and waits until Services can be written.
    pub fn start_server(&mut self) -> Result<()> {
        let path = |name: &str| self.dir.path().join(name).into_os_string();
        let mut command = self.command("kube-apiserver")?;
        command.args([
            "--etcd-servers=http://127.0.0.1:2379",
            &format!("--bind-address={SERVER}"),
            &format!("--advertise-address={SERVER}"),
            &format!("--secure-port={SERVER_PORT}"),
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/112",
            "--service-node-port-range=30000-32767",
            "--disable-admission-plugins=ServiceAccount",
            // What is in the queue is lost with the process either way.
            "--shutdown-delay-duration=0s",
            // Tests count changes a second, not the fairness between their own clients.
            "--enable-priority-and-fairness=false",
        ]);
        for (flag, file) in [
            ("--tls-cert-file", "server.crt"),
            ("--tls-private-key-file", "server.key"),
            ("--token-auth-file", "tokens.csv"),
            ("--service-account-key-file", "accounts.pub"),
            ("--service-account-signing-key-file", "accounts.key"),
        ] {
            command.arg(flag).arg(path(file));
        }
        self.server = Some(Process::start("apiserver", command, self.dir.path())?);
        let ready = wait::until("the API server is ready", PATIENCE, || {
            if let Some(server) = &mut self.server {
                server.check()?;
            }
            self.api.text(Method::GET, "/readyz", &Value::Null)?;
            // Services are refused before.
            let cidrs = "/apis/networking.k8s.io/v1/servicecidrs/kubernetes";
            let cidr = self.api.get(cidrs)?;
            let conditions = cidr["status"]["conditions"].to_string();
            ensure!(conditions.contains("True"), "{cidr}");
            Ok(())
        });
        ready.with_context(|| self.logs())
    }

    fn start_etcd(&mut self) -> Result<()> {
        let mut command = self.command("etcd")?;
        command
            .arg("--data-dir")
            .arg(self.dir.path().join("etcd"))
            .args([
                "--unsafe-no-fsync",
                "--quota-backend-bytes=4294967296",
                "--listen-client-urls=http://127.0.0.1:2379",
                "--advertise-client-urls=http://127.0.0.1:2379",
                "--listen-peer-urls=http://127.0.0.1:2380",
            ]);
        self.etcd = Some(Process::start("etcd", command, self.dir.path())?);
        Ok(())
    }

    fn command(&self, name: &str) -> Result<Command> {
        let mut command = self.ns.command(program(name)?);
        command.current_dir(self.dir.path());
        Ok(command)
    }

    /// The last lines that each part logged.
    pub fn logs(&self) -> String {
        let parts = [&self.etcd, &self.server, &self.controllers];
        parts
            .into_iter()
            .flatten()
            .map(Process::last_lines)
            .collect()
    }
}

/// Writes the world's Nodes and links them to the control plane.
pub fn join(plane: &ControlPlane, world: &World) -> Result<()> {
    for node in &world.nodes {
        plane.link(&node.host)?;
        plane
            .api()
            .apply(&crate::manifest::node(&node.host, None))?;
    }
    Ok(())
}

/// Waits until a frontend answers the place in both families.
pub fn wait_answer(from: &Place, frontends: [IpAddr; 2], port: u16) -> Result<()> {
    for addr in frontends {
        wait::until(&format!("{} reaches {addr}", from.name), PATIENCE, || {
            Dial::new(from, Proto::Tcp, (addr, port).into())
                .timeout(Duration::from_millis(300))
                .ask()
                .map_err(Into::into)
        })
        .with_context(|| format!("{:?}", Ip::of(addr)))?;
    }
    Ok(())
}
