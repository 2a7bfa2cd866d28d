//! Interfaces and cgroup as they are now → what the [`Hooks`](super::hooks::Hooks) are to serve, and what of it failed.

use std::path::PathBuf;

use anyhow::Result;

use super::parts::Agent;
use crate::{
    config::SocketLb,
    node::{self, Rules, cgroup2_mount},
};

impl Agent {
    pub(super) fn rules(&self) -> Rules {
        Rules {
            external: self.config.external_interfaces.clone(),
            pod: self.config.pod_interfaces.clone(),
            xdp: self.config.xdp,
        }
    }

    pub(super) fn serve_interfaces(&mut self) -> Result<()> {
        let wanted = node::interfaces(&self.snapshot, &self.rules());
        if self.hooks.reconcile(wanted)? {
            self.observer.interfaces(self.hooks.states());
        }
        Ok(())
    }

    pub(super) fn serve_sockets(&mut self) -> Result<()> {
        let cgroup: Option<PathBuf> = self.config.cgroup.clone().or_else(cgroup2_mount);
        let mut problems = Vec::new();
        if cgroup.is_none() && self.config.socket_lb != SocketLb::Off {
            problems.push(String::from(
                "no mount of type cgroup2: connections of host processes are not translated; mount one or name it with --cgroup",
            ));
        }
        for reason in self
            .hooks
            .sockets(self.config.socket_lb, cgroup.as_deref())?
        {
            problems.push(format!("socket hook not attached: {reason}"));
        }
        for problem in &problems {
            tracing::error!("{problem}");
        }
        self.observer.sockets(problems);
        Ok(())
    }

    /// Objects are long in coming: what an earlier agent left is served as it is, new interfaces included.
    pub(super) fn serve_pinned(&mut self) -> Result<()> {
        if self.dataplane.usage().service_ports == 0 {
            return Ok(());
        }
        self.serve_interfaces()
    }

    /// Attaches again what somebody detached (semantics 22.6).
    pub(super) fn repair_hooks(&mut self) -> Result<()> {
        // Those of an interface that went are gone, too.
        self.network_changed()?;
        for interface in self.hooks.forget_detached() {
            tracing::warn!(
                interface,
                "its programs were detached by somebody else; attached again"
            );
        }
        self.serve_interfaces()?;
        if !self.hooks.are_sockets_attached() {
            tracing::warn!("the socket hooks were detached by somebody else; attached again");
            self.serve_sockets()?;
        }
        Ok(())
    }
}
