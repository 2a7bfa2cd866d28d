//! One control plane and two workers, their pod network, and the agent from deploy/.

use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::engine::Engine;
use crate::setup::{self, setup};
use crate::{command, image, paths};

/// Name of the cluster.
const NAME: &str = "lb";
/// What tests/kind/node-image.sh makes here.
const OWN_IMAGE: &str = "lb-kind-node:latest";
/// kind's own for the release of tests/kind/go.mod, of the minor version of Kubernetes there.
const PUBLISHED_IMAGE: &str =
    "kindest/node:v1.36.4@sha256:099e049362a1526b2db71494e1947aae99bd16290d7c895f2b7ea312e3cbfaed";
/// Unless told otherwise.
const WORKERS: usize = 2;

/// What the cluster is made of.
#[derive(clap::Args)]
pub(crate) struct Wanted {
    /// The archive of `cargo xtask image`, instead of making it
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Workers of a new cluster, two unless told otherwise
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// A node image that is there already
    #[arg(long, value_name = "NAME")]
    node_image: Option<String>,
    /// Give up making a node image after this time
    #[arg(long, value_name = "N")]
    node_image_minutes: Option<u32>,
    /// kube-proxy in this mode instead of the agent, to compare with
    #[arg(long, value_name = "MODE")]
    kube_proxy: Option<String>,
}

/// A node: a container.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) address: IpAddr,
    pod_cidr: String,
    pub(super) is_worker: bool,
}

/// A cluster that runs.
pub(super) struct Cluster {
    pub(super) engine: Engine,
    pub(super) nodes: Vec<Node>,
    /// kube-proxy serves it, and no agent.
    pub(super) is_kube_proxy: bool,
}

impl Cluster {
    /// Makes the cluster where it is not there, and installs the agent as it is now.
    pub(super) fn up(engine: Engine, options: &Wanted) -> Result<Self> {
        let cluster = Self::provision(engine, options)?;
        cluster.serve(options)?;
        Ok(cluster)
    }

    /// Makes the cluster where it is not there: what can fail without any doing of the agent.
    pub(super) fn provision(engine: Engine, options: &Wanted) -> Result<Self> {
        let mut cluster = Self {
            engine,
            nodes: Vec::new(),
            is_kube_proxy: options.kube_proxy.is_some(),
        };
        let containers = cluster.containers()?;
        if containers > 0 {
            if options
                .workers
                .is_some_and(|workers| workers + 1 != containers)
            {
                bail!(
                    "the cluster is there with {} workers; `cargo xtask kind down` first",
                    containers - 1
                );
            }
            let proxies = "kubectl --kubeconfig /etc/kubernetes/admin.conf --namespace kube-system get pods \
                           --selector k8s-app=kube-proxy --output name";
            let proxies = command::read(cluster.engine.docker().args([
                "exec",
                &control_plane(),
                "sh",
                "-c",
                proxies,
            ]))?;
            cluster.is_kube_proxy = !proxies.trim().is_empty();
            if options.kube_proxy.is_some() != cluster.is_kube_proxy && options.kube_proxy.is_some()
            {
                bail!("the cluster is there without kube-proxy; `cargo xtask kind down` first");
            }
        } else {
            cluster.create(options)?;
        }
        cluster.nodes = cluster.read_nodes()?;
        if cluster.needs_network()? {
            cluster.lay_network()?;
        }
        Ok(cluster)
    }

    /// Installs the agent, and waits until the cluster is whole.
    pub(super) fn serve(&self, options: &Wanted) -> Result<()> {
        if !self.is_kube_proxy {
            self.install(options.image.as_deref())?;
        }
        self.kubectl_ok(&[
            "wait",
            "--for=condition=Ready",
            "nodes",
            "--all",
            "--timeout=180s",
        ])?;
        self.kubectl_ok(&[
            "--namespace=kube-system",
            "rollout",
            "status",
            "deployment/coredns",
            "--timeout=180s",
        ])
        .map(drop)
    }

    /// `kubectl` as administrator, in the control plane's node: nothing on this machine has to reach the API server.
    pub(super) fn kubectl(&self) -> Command {
        let mut docker = self.engine.docker();
        docker.args([
            "exec",
            "--interactive",
            &control_plane(),
            "kubectl",
            "--kubeconfig=/etc/kubernetes/admin.conf",
        ]);
        docker
    }

    pub(super) fn kubectl_ok(&self, arguments: &[&str]) -> Result<String> {
        command::read(self.kubectl().args(arguments))
    }

    /// The answer of `kubectl get … -o json`.
    pub(super) fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = command::read(
            self.kubectl()
                .arg("get")
                .args(arguments)
                .arg("--output=json"),
        )?;
        serde_json::from_str(&text).context("kubectl wrote no JSON")
    }

    /// `kubectl apply` of objects given as text.
    pub(super) fn apply(&self, objects: &str) -> Result<()> {
        feed(
            self.kubectl().args(["apply", "--filename=-"]),
            objects.as_bytes(),
        )
    }

    /// A command in a node.
    pub(super) fn on_node(&self, node: &str, arguments: &[&str]) -> Result<String> {
        command::read(self.engine.docker().args(["exec", node]).args(arguments))
    }

    pub(super) fn workers(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.is_worker)
    }

    /// For programs on this machine, which have to be started by [`Engine::inside`].
    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.engine.folder.join("kubeconfig")
    }

    /// Its nodes as the container engine counts them.
    fn containers(&self) -> Result<usize> {
        let filter = format!("label=io.x-k8s.kind.cluster={NAME}");
        let nodes = command::read(
            self.engine
                .docker()
                .args(["ps", "--quiet", "--filter", &filter]),
        )?;
        Ok(nodes.lines().count())
    }

    fn create(&self, options: &Wanted) -> Result<()> {
        let image = self.node_image(options)?;
        let is_own = image == OWN_IMAGE;
        let mut nodes = vec![json!({ "role": "control-plane" })];
        // Each in a zone of its own, for what topology asks.
        nodes.extend((1..=options.workers.unwrap_or(WORKERS)).map(|number| {
            json!({ "role": "worker", "labels": { "topology.kubernetes.io/zone": format!("zone-{number}") } })
        }));
        let config = json!({
            "kind": "Cluster",
            "apiVersion": "kind.x-k8s.io/v1alpha4",
            "name": NAME,
            "networking": {
                "ipFamily": "ipv4",
                "kubeProxyMode": options.kube_proxy.as_deref().unwrap_or("none"),
                "disableDefaultCNI": is_own,
            },
            // For hosts that still have the version 1 cgroup controllers.
            "kubeadmConfigPatches": ["kind: KubeletConfiguration\nfailCgroupV1: false\n"],
            "nodes": nodes,
        });
        let path = self.engine.folder.join("cluster.json");
        fs::write(&path, config.to_string())
            .with_context(|| format!("cannot write {}", path.display()))?;
        let mut kind = self.engine.inside(kind_program(&self.engine)?);
        kind.args(["create", "cluster", "--image", &image, "--config"])
            .arg(&path)
            .arg("--kubeconfig")
            .arg(self.kubeconfig());
        command::run(&mut kind)
    }

    fn node_image(&self, options: &Wanted) -> Result<String> {
        if let Some(image) = &options.node_image {
            return Ok(image.clone());
        }
        for image in [OWN_IMAGE, PUBLISHED_IMAGE] {
            if command::read(self.engine.docker().args(["image", "inspect", image])).is_ok() {
                return Ok(image.to_owned());
            }
        }
        let mut pull = self.engine.docker();
        pull.args(["pull", "--quiet", PUBLISHED_IMAGE]);
        match command::read_within(&mut pull, Duration::from_secs(600)) {
            Ok(_) => Ok(PUBLISHED_IMAGE.to_owned()),
            Err(error) => {
                eprintln!("{error:#}\nmaking a node image of packages and Go modules instead");
                make(&self.engine, OWN_IMAGE, options.node_image_minutes)?;
                Ok(OWN_IMAGE.to_owned())
            }
        }
    }

    fn read_nodes(&self) -> Result<Vec<Node>> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let count = self.containers()?;
        loop {
            let list = self.get(&["nodes"])?;
            let nodes: Option<Vec<Node>> = list["items"]
                .as_array()
                .map(Vec::as_slice)
                .unwrap_or_default()
                .iter()
                .map(node)
                .collect();
            match nodes {
                Some(nodes) if nodes.len() == count => return Ok(nodes),
                _ if Instant::now() > deadline => {
                    bail!("the nodes have no addresses or pod ranges: {list}")
                }
                _ => std::thread::sleep(Duration::from_millis(500)),
            }
        }
    }

    /// Whether the node image brought no pod network of its own.
    fn needs_network(&self) -> Result<bool> {
        let files = self.on_node(&control_plane(), &["sh", "-c", "ls /kind/manifests"])?;
        Ok(!files.contains("default-cni"))
    }

    /// Gives each node a CNI configuration, routes to the others' pods, and the mount that systemd would make.
    fn lay_network(&self) -> Result<()> {
        for node in &self.nodes {
            let configuration = json!({
                "cniVersion": "0.4.0",
                "name": "pods",
                "plugins": [
                    {
                        "type": "ptp", "ipMasq": false, "mtu": 1500,
                        "ipam": {
                            "type": "host-local", "dataDir": "/run/cni-ipam-state",
                            "routes": [{ "dst": "0.0.0.0/0" }],
                            "ranges": [[{ "subnet": node.pod_cidr }]],
                        },
                    },
                    { "type": "portmap", "capabilities": { "portMappings": true } },
                ],
            });
            // Interfaces have it as it was set when they were made, whatever `ip_forward` says.
            let mut script = String::from(
                "set -e\nfor file in /proc/sys/net/ipv4/conf/*/forwarding; do echo 1 >$file; done\n",
            );
            for other in self.nodes.iter().filter(|other| other.name != node.name) {
                script.push_str(&format!(
                    "ip route replace {} via {}\n",
                    other.pod_cidr, other.address
                ));
            }
            // What pods send out of the cluster leaves with the node's address.
            let addresses: Vec<String> = self
                .nodes
                .iter()
                .map(|node| node.address.to_string())
                .collect();
            script.push_str(&format!(
                "nft -f - <<END\ntable ip pods\ndelete table ip pods\ntable ip pods {{\n\
                 chain out {{\ntype nat hook postrouting priority srcnat + 10;\n\
                 ip saddr 10.244.0.0/16 ip daddr != {{ 10.244.0.0/16, {} }} oifname eth0 masquerade\n}}\n}}\nEND\n\
                 mkdir -p /etc/cni/net.d\n\
                 cat >/etc/cni/net.d/.new <<'END'\n{configuration}\nEND\n\
                 mv /etc/cni/net.d/.new /etc/cni/net.d/10-pods.conflist\n\
                 mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf\n",
                addresses.join(", ")
            ));
            let mut docker = self.engine.docker();
            docker.args(["exec", "--interactive", "--privileged", &node.name, "sh"]);
            feed(&mut docker, script.as_bytes())
                .with_context(|| format!("cannot lay the pod network of {}", node.name))?;
        }
        Ok(())
    }

    /// Loads the image and applies deploy/.
    fn install(&self, archive: Option<&Path>) -> Result<()> {
        let archive = match archive {
            Some(path) => path.to_owned(),
            None => image::image(&setup(setup::BUILD)?)?,
        };
        let reference = image::reference(env!("CARGO_PKG_VERSION"));
        for node in &self.nodes {
            let mut import = self.engine.docker();
            import
                .args(["exec", "--interactive", &node.name])
                .args(["ctr", "--namespace=k8s.io", "images", "import", "-"])
                .stdin(fs::File::open(&archive)?);
            let output = import.output().context("cannot start docker")?;
            if !output.status.success() {
                bail!(
                    "cannot load the image: {}",
                    String::from_utf8_lossy(&output.stderr)
                );
            }
        }
        let control_plane = self
            .nodes
            .iter()
            .find(|node| !node.is_worker)
            .context("there is no control plane")?;
        let overlay = paths::target().join("kind/overlay");
        fs::create_dir_all(&overlay)?;
        // Kustomize takes only relative paths, and copies keep their place in the node.
        fs::write(
            overlay.join("kustomization.yaml"),
            overlay_of(
                &control_plane.address.to_string(),
                &self.cgroup(&control_plane.name)?,
                &reference,
            ),
        )?;
        let node = &control_plane.name;
        let deploy = paths::workspace().join("deploy");
        self.on_node(node, &["rm", "-rf", "/kind/lb"])?;
        self.on_node(node, &["mkdir", "-p", "/kind/lb/target/kind"])?;
        for (from, to) in [(&deploy, "/kind/lb/"), (&overlay, "/kind/lb/target/kind/")] {
            let to = format!("{node}:{to}");
            command::read(self.engine.docker().arg("cp").arg(from).arg(to))?;
        }
        self.kubectl_ok(&["apply", "--kustomize=/kind/lb/target/kind/overlay"])?;
        // The same tag may name another build now.
        self.kubectl_ok(&[
            "--namespace=kube-system",
            "rollout",
            "restart",
            "daemonset/lb-agent",
        ])?;
        self.rollout()
    }

    /// Waits until every agent is ready.
    pub(super) fn rollout(&self) -> Result<()> {
        self.kubectl_ok(&[
            "--namespace=kube-system",
            "rollout",
            "status",
            "daemonset/lb-agent",
            "--timeout=180s",
        ])
        .map(drop)
        .map_err(|error| {
            let pods = [
                "--namespace=kube-system",
                "logs",
                "daemonset/lb-agent",
                "--tail=20",
            ];
            let log = self.kubectl_ok(&pods).unwrap_or_default();
            error.context(format!("the agents do not become ready; one says:\n{log}"))
        })
    }

    /// The cgroup that the agents attach to: the node's own root, or a part of the machine's tree.
    fn cgroup(&self, node: &str) -> Result<String> {
        // The root of the machine's tree alone has no `cgroup.type`: where a node shows one, that root is its own.
        const FIND: &str = "for mount in /sys/fs/cgroup /sys/fs/cgroup/unified; do \
             [ -e $mount/cgroup.procs ] && [ -e $mount/cgroup.controllers ] || continue; \
             for cgroup in $mount $mount/kubelet.slice; do \
             if [ -e $cgroup/cgroup.type ]; then echo $cgroup; exit; fi; done; done; exit 1";
        let path = self
            .on_node(node, &["sh", "-c", FIND])
            .context("the node has no cgroup2 tree of its own and no kubelet.slice")?;
        Ok(path.trim().to_owned())
    }
}

/// Deletes the cluster.
pub(super) fn down(engine: &Engine) -> Result<()> {
    let mut kind = engine.inside(kind_program(engine)?);
    kind.args(["delete", "cluster", "--name", NAME, "--kubeconfig"])
        .arg(engine.folder.join("kubeconfig"));
    command::run(&mut kind)
}

fn control_plane() -> String {
    format!("{NAME}-control-plane")
}

/// kind as the node image's script builds it; else the one in PATH.
fn kind_program(engine: &Engine) -> Result<PathBuf> {
    let own = engine.folder.join("bin/kind");
    if own.exists() {
        return Ok(own);
    }
    if command::exists("kind") {
        return Ok(PathBuf::from("kind"));
    }
    make(engine, "kind", None)?;
    Ok(own)
}

/// Makes `what` by tests/kind/node-image.sh: an image, or programs.
pub(super) fn make(engine: &Engine, what: &str, minutes: Option<u32>) -> Result<()> {
    setup(&["go"])?;
    let node_image = file("node-image.sh");
    let mut script = match minutes {
        // In a process group of its own, which the limit ends as a whole.
        Some(minutes) => {
            let mut timeout = command::program("timeout");
            timeout.arg(format!("{minutes}m")).arg(node_image);
            timeout
        }
        // In ours, so that ^C reaches it.
        None => command::program(node_image),
    };
    engine.point(script.arg(&engine.folder).arg(what));
    command::run(&mut script)
}

fn node(object: &Value) -> Option<Node> {
    let addresses = object["status"]["addresses"].as_array()?;
    let address = addresses
        .iter()
        .find(|address| address["type"] == "InternalIP")?;
    let labels = &object["metadata"]["labels"];
    Some(Node {
        name: object["metadata"]["name"].as_str()?.to_owned(),
        address: address["address"].as_str()?.parse().ok()?,
        pod_cidr: object["spec"]["podCIDR"].as_str()?.to_owned(),
        is_worker: labels
            .get("node-role.kubernetes.io/control-plane")
            .is_none(),
    })
}

/// What this cluster changes in the base, as an operator would write it.
fn overlay_of(api_server: &str, cgroup: &str, image: &str) -> String {
    let (image, tag) = image.rsplit_once(':').unwrap_or((image, "latest"));
    format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources:
- ../../../deploy/kustomize/base
images:
- name: lb-agent
  newName: {image}
  newTag: {tag}
patches:
- patch: |
    apiVersion: apps/v1
    kind: DaemonSet
    metadata:
      name: lb-agent
      namespace: kube-system
    spec:
      template:
        spec:
          containers:
          - name: lb-agent
            imagePullPolicy: Never
            env:
            - name: LB_APISERVER
              value: https://{api_server}:6443
          volumes:
          - name: cgroup
            hostPath:
              path: {cgroup}
              type: Directory
"
    )
}

fn feed(command: &mut Command, input: &[u8]) -> Result<()> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start docker")?;
    child
        .stdin
        .take()
        .context("the child has no input")?
        .write_all(input)?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Where a file of tests/kind lies.
pub(super) fn file(name: &str) -> PathBuf {
    paths::workspace().join(Path::new("tests/kind")).join(name)
}
