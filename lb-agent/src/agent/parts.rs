//! Everything that the agent holds. What it does with it stands in the files beside this one.

use super::{ageing::Ageing, hooks::Hooks, observer::Observer, stale_sockets::StaleSockets};
use crate::{
    bpf::config::ConfigEntry,
    config::{Config, RunArgs, conntrack},
    dataplane::{Dataplane, pinned::PinnedMaps},
    desired::Desired,
    kube::store::ObjectStore,
    node::{Snapshot, Watch},
    port_set::PortSet,
};

/// Everything that the agent holds.
pub(super) struct Agent {
    /// As they were given.
    pub(super) args: RunArgs,
    pub(super) config: Config,
    pub(super) objects: ObjectStore,
    pub(super) desired: Desired,
    pub(super) dataplane: Dataplane<PinnedMaps>,
    pub(super) entry: ConfigEntry,
    pub(super) hooks: Hooks,
    pub(super) watch: Watch,
    pub(super) snapshot: Snapshot,
    pub(super) stale_sockets: StaleSockets,
    pub(super) ageing: Ageing,
    /// Ports that source translation may take.
    pub(super) snat_ports: PortSet,
    pub(super) cookie: u64,
    /// Settings of a conntrack that is not loaded yet.
    pub(super) conntrack: Vec<conntrack::Setting>,
    /// The Node object exists; one that is gone is remembered for its zone and addresses (semantics 2.6).
    pub(super) is_node_there: bool,
    pub(super) observer: Observer,
}
