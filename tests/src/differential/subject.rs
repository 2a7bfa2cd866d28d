//! A world with our agent or the real kube-proxy on both nodes, at one control plane with the others.

use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context as _, Result};

use super::Source;
use crate::{
    agent::{Agent, AgentOptions},
    control_plane::{self, CLUSTER_CIDR, ControlPlane, KubeProxy, Mode, Role},
    echo::Server,
    scene::TARGET,
    topology::{World, WorldOptions},
};

/// Who translates.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// Our agent as kube-proxy masquerades.
    OursLikeKubeProxy,
    /// Our agent by default.
    Ours,
    /// kube-proxy in nftables mode.
    Nftables,
    /// kube-proxy in iptables mode.
    Iptables,
}

impl Kind {
    /// All.
    pub const ALL: [Kind; 4] = [
        Kind::OursLikeKubeProxy,
        Kind::Ours,
        Kind::Nftables,
        Kind::Iptables,
    ];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Kind::OursLikeKubeProxy => "`--masquerade kube-proxy`",
            Kind::Ours => "default",
            Kind::Nftables => "nftables mode",
            Kind::Iptables => "iptables mode",
        }
    }
}

/// What runs on a node. Dropped, it ends.
#[derive(Debug)]
enum Proxy {
    Agent(Box<Agent>),
    KubeProxy(KubeProxy),
}

/// A world at work.
#[derive(Debug)]
pub struct Subject {
    /// Who translates in it.
    pub kind: Kind,
    proxies: Vec<Proxy>,
    _servers: Vec<Server>,
    ports: [AtomicU16; 5],
    /// The world.
    pub world: World,
}

impl Subject {
    /// Builds the world, with a server in every pod and on the host of node-a, and links it to the control plane.
    pub fn new(plane: &ControlPlane, kind: Kind) -> Result<Subject> {
        Subject::with(plane, kind, WorldOptions::default())
    }

    /// The same with another world.
    pub fn with(plane: &ControlPlane, kind: Kind, options: WorldOptions) -> Result<Subject> {
        let world = World::new(options)?;
        let mut servers = Vec::new();
        let hosts = std::iter::once(&world.a().host);
        for place in world.nodes.iter().flat_map(|node| &node.pods).chain(hosts) {
            servers.extend(Server::start_all(place, TARGET)?);
        }
        control_plane::join(plane, &world)?;
        Ok(Subject {
            kind,
            proxies: Vec::new(),
            _servers: servers,
            ports: Default::default(),
            world,
        })
    }

    /// Starts what translates, without waiting for it.
    pub fn start(&mut self, plane: &ControlPlane) -> Result<()> {
        for node in &self.world.nodes {
            self.proxies.push(match self.kind {
                Kind::Nftables => {
                    Proxy::KubeProxy(KubeProxy::start(plane, &node.host, Mode::Nftables)?)
                }
                Kind::Iptables => {
                    Proxy::KubeProxy(KubeProxy::start(plane, &node.host, Mode::Iptables)?)
                }
                Kind::Ours | Kind::OursLikeKubeProxy => {
                    let mut options = AgentOptions {
                        is_quiet: true,
                        ..AgentOptions::default()
                    };
                    // The table's dials outrun the default range towards one backend (docs/limits.md, source ports).
                    options = options.flag("--snat-ports 1024-29999");
                    if self.kind == Kind::OursLikeKubeProxy {
                        options = options
                            .flag("--masquerade kube-proxy")
                            .flag(&format!("--cluster-cidr {CLUSTER_CIDR}"));
                    }
                    let kubeconfig = plane.kubeconfig(Role::Agent);
                    let mut agent = Agent::prepare_api(node, &kubeconfig, options)?;
                    agent.run()?;
                    Proxy::Agent(Box::new(agent))
                }
            });
        }
        Ok(())
    }

    /// Waits until the Service that was written last answers on both nodes.
    pub fn wait(&mut self, frontends: [std::net::IpAddr; 2], port: u16) -> Result<()> {
        for proxy in &mut self.proxies {
            if let Proxy::Agent(agent) = proxy {
                agent.wait_ready()?;
            }
        }
        for node in &self.world.nodes {
            control_plane::wait_answer(&node.host, frontends, port)
                .with_context(|| format!("{}\n{}", self.kind.name(), self.logs()))?;
        }
        Ok(())
    }

    /// A client port that the source has not used before.
    pub(super) fn next_port(&self, source: Source) -> u16 {
        const FIRST: u16 = 32_768;
        const COUNT: u16 = 28_000;
        FIRST + self.ports[source as usize].fetch_add(1, Ordering::Relaxed) % COUNT
    }

    /// What our agents have counted as dropped or refused, by reason.
    pub fn drops(&self) -> String {
        let agents = self.proxies.iter().filter_map(|proxy| match proxy {
            Proxy::Agent(agent) => Some(agent),
            Proxy::KubeProxy(_) => None,
        });
        let mut lines = Vec::new();
        for agent in agents {
            let metrics = agent.metrics().unwrap_or_default();
            lines.extend(
                metrics
                    .lines()
                    .filter(|line| line.starts_with("lb_drop") || line.starts_with("lb_events"))
                    .filter(|line| !line.ends_with(" 0"))
                    .map(str::to_owned),
            );
        }
        lines.join("\n")
    }

    /// What was logged last.
    pub fn logs(&self) -> String {
        self.proxies
            .iter()
            .map(|proxy| match proxy {
                Proxy::Agent(agent) => agent.log(),
                Proxy::KubeProxy(proxy) => proxy.log(),
            })
            .collect()
    }
}
