//! The real kube-proxy in the node of a world.

use std::fs;

use anyhow::Result;
use serde_json::json;

use super::process::Process;
use super::{CLUSTER_CIDR, ControlPlane, Role, program};
use crate::{tempdir::TempDir, topology::Place};

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
