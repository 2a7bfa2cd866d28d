//! A real control plane: etcd, kube-apiserver and the EndpointSlice controller in a namespace of their own, and the
//! real kube-proxy in the node of a world.
//!
//! Nodes reach the API server over a link of its own, `mgmt`, so that Service traffic and API traffic never meet.
//! There is no kubelet: a test writes Pods and their status, the real controller makes the slices.

use std::{
    fmt::Write as _,
    fs::{self, File},
    net::{IpAddr, Ipv4Addr},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use http::{Method, Request};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

use crate::{
    agent::TempDir,
    echo::{Dial, Proto},
    manifest::NAMESPACE,
    netns::NetNs,
    topology::{Ip, Place, World},
    wait,
};

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

/// Who a process is to the API server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Everything is allowed.
    Admin,
    /// The agent, with the rights of `deploy/` and no others.
    Agent,
    /// kube-proxy, with the rights that every cluster gives it.
    KubeProxy,
}

impl Role {
    const ALL: [Role; 3] = [Role::Admin, Role::Agent, Role::KubeProxy];

    fn user(self) -> (&'static str, &'static str) {
        match self {
            Role::Admin => ("admin", "system:masters"),
            Role::Agent => (
                "system:serviceaccount:kube-system:lb-agent",
                "system:serviceaccounts",
            ),
            Role::KubeProxy => ("system:kube-proxy", "system:nodes-proxies"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Role::Admin => "admin",
            Role::Agent => "agent",
            Role::KubeProxy => "kube-proxy",
        }
    }
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

fn kubeconfig_name(role: Role) -> String {
    format!("{}.kubeconfig", role.name())
}

/// Keys, certificates, tokens and a kubeconfig for each role.
fn write_credentials(dir: &Path) -> Result<()> {
    let write = |name: &str, text: &str| {
        fs::write(dir.join(name), text).with_context(|| format!("cannot write {name}"))
    };
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority
        .distinguished_name
        .push(DnType::CommonName, "authority of the tests");
    let authority_key = KeyPair::generate()?;
    write(
        "authority.crt",
        &authority.self_signed(&authority_key)?.pem(),
    )?;
    let authority = Issuer::new(authority, authority_key);
    let server_key = KeyPair::generate()?;
    let mut server =
        CertificateParams::new(vec![SERVER.to_string(), "kubernetes.default.svc".into()])?;
    server
        .distinguished_name
        .push(DnType::CommonName, "kube-apiserver");
    write(
        "server.crt",
        &server.signed_by(&server_key, &authority)?.pem(),
    )?;
    write("server.key", &server_key.serialize_pem())?;
    let accounts = KeyPair::generate()?;
    write("accounts.key", &accounts.serialize_pem())?;
    write("accounts.pub", &accounts.public_key_pem())?;
    let mut tokens = String::new();
    for role in Role::ALL {
        let (user, group) = role.user();
        let token = format!("token-of-{}", role.name());
        writeln!(tokens, "{token},{user},{user},\"{group}\"")?;
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{ "name": "test", "cluster": {
                "server": format!("https://{SERVER}:{SERVER_PORT}"),
                "certificate-authority": dir.join("authority.crt"),
            } }],
            "users": [{ "name": "test", "user": { "token": token } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
        });
        write(&kubeconfig_name(role), &config.to_string())?;
    }
    write("tokens.csv", &tokens)
}

/// The objects that give the agent its rights, as they are deployed.
fn agent_rights() -> Result<Vec<Value>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kustomize/base/rbac.yaml");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_yaml_ng::Deserializer::from_str(&text)
        .map(|document| {
            serde::Deserialize::deserialize(document)
                .with_context(|| format!("cannot read {}", path.display()))
        })
        .collect()
}

/// Reads and writes objects, from inside the control plane's namespace. Clones share connections.
#[derive(Clone)]
pub struct Api {
    client: Client,
    runtime: Arc<tokio::runtime::Runtime>,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

/// Who owns the fields that tests apply.
const MANAGER: &str = "fieldManager=test&force=true";

impl Api {
    fn new(ns: &NetNs, kubeconfig: &Path) -> Result<Api> {
        let inside = ns.clone();
        let failed = Arc::new(Mutex::new(None));
        let failure = Arc::clone(&failed);
        // Sockets belong to the namespace of the thread that makes them; all requests are made by these.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .on_thread_start(move || {
                if let Err(error) = inside.enter() {
                    *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                }
            })
            .build()?;
        let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
        let client = runtime.block_on(async {
            tokio::spawn(async {
                let mut config =
                    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                        .await?;
                config.connect_timeout = Some(Duration::from_secs(5));
                config.read_timeout = Some(PATIENCE);
                anyhow::Ok(Client::try_from(config)?)
            })
            .await?
        })?;
        if let Some(error) = failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(error);
        }
        Ok(Api {
            client,
            runtime: Arc::new(runtime),
        })
    }

    /// One request; answers that are no success are errors.
    pub fn text(&self, method: Method, path: &str, body: &Value) -> Result<String> {
        let what = format!("{method} {path}");
        let kind = match () {
            () if method != Method::PATCH => "application/json",
            () if path.contains(MANAGER) => "application/apply-patch+yaml",
            () => "application/merge-patch+json",
        };
        let bytes = match body {
            Value::Null => Vec::new(),
            body => body.to_string().into_bytes(),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", kind)
            .body(bytes)?;
        let client = self.client.clone();
        self.runtime
            .block_on(
                self.runtime
                    .spawn(async move { client.request_text(request).await }),
            )?
            .with_context(|| format!("{what}: {body}"))
    }

    /// One request that answers with an object.
    pub fn request(&self, method: Method, path: &str, body: &Value) -> Result<Value> {
        Ok(serde_json::from_str(&self.text(method, path, body)?)?)
    }

    /// An object or list by its path.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.request(Method::GET, path, &Value::Null)
    }

    /// Creates an object or makes it as it is here, its status included.
    pub fn apply(&self, object: &Value) -> Result<Value> {
        let path = path(object)?;
        let mut applied = object.clone();
        let status = applied
            .as_object_mut()
            .and_then(|fields| fields.remove("status"));
        let applied = self.request(Method::PATCH, &format!("{path}?{MANAGER}"), &applied)?;
        match status {
            // Merged, not applied: a Node's addresses of one type have one key.
            Some(status) => {
                let status = json!({ "status": status });
                self.request(Method::PATCH, &format!("{path}/status"), &status)
            }
            None => Ok(applied),
        }
    }

    /// Creates an object that is not there yet: cheaper for the server than [`Api::apply`].
    pub fn create(&self, object: &Value) -> Result<Value> {
        let path = path(object)?;
        let (collection, _name) = path
            .rsplit_once('/')
            .with_context(|| format!("not the path of an object: {path}"))?;
        self.request(Method::POST, collection, object)
    }

    /// Applies all of them.
    pub fn apply_all(&self, objects: &[Value]) -> Result<()> {
        for object in objects {
            self.apply(object)?;
        }
        Ok(())
    }

    /// Changes some fields of an object.
    pub fn patch(&self, object: &Value, patch: &Value) -> Result<Value> {
        self.request(Method::PATCH, &path(object)?, patch)
    }

    /// Deletes an object at once.
    pub fn delete(&self, object: &Value) -> Result<()> {
        self.delete_in(object, Duration::ZERO)
    }

    /// Deletes an object with a grace period. Pods stay, terminating, until they are deleted at once.
    pub fn delete_in(&self, object: &Value, grace: Duration) -> Result<()> {
        let options = json!({ "gracePeriodSeconds": grace.as_secs() });
        self.text(Method::DELETE, &path(object)?, &options)
            .map(drop)
    }

    /// Writes a Pod that runs at a place on a node, ready, with these labels.
    pub fn run_pod(&self, pod: &Place, node: &Place, labels: &Value) -> Result<Value> {
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": pod.name, "namespace": NAMESPACE, "labels": labels },
            "spec": {
                "nodeName": node.name,
                "containers": [{ "name": "server", "image": "none", "ports": [{ "name": "web", "containerPort": crate::scene::TARGET }] }],
            },
        });
        let written = self.apply(&object)?;
        self.pod_ready(pod, node, true)?;
        Ok(written)
    }

    /// Writes a Pod's status.
    pub fn pod_ready(&self, pod: &Place, node: &Place, is_ready: bool) -> Result<()> {
        let status = json!({ "status": {
            "phase": "Running",
            "podIP": pod.v4, "podIPs": [{ "ip": pod.v4 }, { "ip": pod.v6 }],
            "hostIP": node.v4, "hostIPs": [{ "ip": node.v4 }, { "ip": node.v6 }],
            "conditions": [{ "type": "Ready", "status": if is_ready { "True" } else { "False" } }],
        } });
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{}/status", pod.name);
        self.request(Method::PATCH, &path, &status).map(drop)
    }
}

/// Where an object lives in the API.
pub fn path(object: &Value) -> Result<String> {
    let text = |value: &Value| {
        value
            .as_str()
            .map(str::to_owned)
            .with_context(|| format!("not a whole object: {object}"))
    };
    let version = text(&object["apiVersion"])?;
    let name = text(&object["metadata"]["name"])?;
    let kind = text(&object["kind"])?;
    let group = if version.contains('/') { "apis" } else { "api" };
    let plural = kind.to_lowercase() + "s";
    let namespace = match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("namespaces/{namespace}/"),
        None => String::new(),
    };
    Ok(format!("/{group}/{version}/{namespace}{plural}/{name}"))
}

/// A process and its log.
#[derive(Debug)]
struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(name: &str, mut command: Command, dir: &Path) -> Result<Process> {
        let log = dir.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log)?;
        // SAFETY: between fork and exec the closure makes one system call; it neither allocates nor takes a lock.
        unsafe {
            // A killed test leaves no server behind.
            command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Process {
            name: name.to_owned(),
            child,
            log,
        })
    }

    /// An error once the process has ended.
    fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("{} ended: {status}\n{}", self.name, self.last_lines()),
            None => Ok(()),
        }
    }

    fn stop(&mut self, signal: Signal) -> Result<()> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id())?);
        nix::sys::signal::kill(pid, signal)?;
        self.child.wait()?;
        Ok(())
    }

    fn last_lines(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(30)..].join("\n");
        format!("log of {}:\n{last}\n", self.name)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// kube-proxy's modes that it is compared in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// `mode: nftables`.
    Nftables,
    /// `mode: iptables`.
    Iptables,
}

impl Mode {
    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Nftables => "nftables",
            Mode::Iptables => "iptables",
        }
    }
}

/// The real kube-proxy on a node.
#[derive(Debug)]
pub struct KubeProxy {
    process: Process,
    _dir: TempDir,
}

impl KubeProxy {
    /// Starts it in a node that is linked to the control plane.
    pub fn start(plane: &ControlPlane, host: &Place, mode: Mode) -> Result<KubeProxy> {
        KubeProxy::start_with_period(plane, host, mode, "50ms")
    }

    /// The same with another `minSyncPeriod`; kube-proxy's default is `1s`.
    pub fn start_with_period(
        plane: &ControlPlane,
        host: &Place,
        mode: Mode,
        period: &str,
    ) -> Result<KubeProxy> {
        let dir = TempDir::new("kube-proxy")?;
        let config = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "mode": mode.name(),
            "hostnameOverride": host.name,
            "clientConnection": { "kubeconfig": plane.kubeconfig(Role::KubeProxy), "qps": 100.0, "burst": 200 },
            "clusterCIDR": CLUSTER_CIDR,
            "detectLocalMode": "ClusterCIDR",
            "nodePortAddresses": ["primary"],
            "healthzBindAddress": "127.0.0.1:10256",
            "metricsBindAddress": "127.0.0.1:10249",
            // Limits of the machine, which a namespace cannot set.
            "conntrack": { "maxPerCore": 0, "min": 0 },
            "iptables": { "minSyncPeriod": period, "localhostNodePorts": false },
            "nftables": { "minSyncPeriod": period },
        });
        let path = dir.path().join("config.json");
        fs::write(&path, config.to_string())?;
        let mut command = host.ns.command(program("kube-proxy")?);
        // Its log tells local times.
        command.arg("--config").arg(path).env("TZ", "UTC");
        let process = Process::start("kube-proxy", command, dir.path())?;
        Ok(KubeProxy { process, _dir: dir })
    }

    /// What it logged last.
    pub fn log(&self) -> String {
        self.process.last_lines()
    }

    /// Everything it has logged.
    pub fn whole_log(&self) -> String {
        fs::read_to_string(&self.process.log).unwrap_or_default()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.child.id()
    }

    /// An error once it has ended.
    pub fn check(&mut self) -> Result<()> {
        self.process.check()
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
