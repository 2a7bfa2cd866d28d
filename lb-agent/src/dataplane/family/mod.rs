//! The service ports of one family → its maps. `prepare` makes what no program looks at yet, `publish` shows it by one
//! update a frontend, `finish` takes away what is shown no more; the order of all writes stands in `apply`. A service
//! port of which a step fails keeps what it had and stays pending.

mod audit;
mod backends;
mod diff;
mod finish;
mod frontends;
mod held;
mod left;
mod prepare;
mod publish;
mod short;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use lb_common::abi::ServiceKey;

use self::held::HeldPort;
pub(crate) use self::{
    backends::{ALIVE, Backends},
    frontends::Frontends,
    left::{Left, LeftBackend},
};
use super::{
    maglev::Member,
    report::{ApplyError, NamedKey},
    shared::Shared,
    store::{MapStore, StoreFamily},
};
use crate::desired::state::{PortKey, ServicePort};

/// One family: what its maps hold, and what they should.
#[derive(Debug)]
pub(crate) struct FamilyState<F: StoreFamily> {
    held: HashMap<PortKey, HeldPort<F>>,
    frontends: Frontends<F>,
    backends: Backends<F>,
    /// Service ports that are not as wanted: to be tried again. `None`: to be removed.
    pending: HashMap<PortKey, Option<Arc<ServicePort>>>,
    /// Service ports that have less of the maps than they ask for.
    short: BTreeSet<PortKey>,
    /// What was in the maps before the start and is nobody's yet.
    left: Option<Left<F>>,
    lists: Lists,
}

/// The lists of a service port, new and old. Their memory is used again from one service port to the next.
#[derive(Debug, Default)]
struct Lists {
    cluster: Vec<Member>,
    local: Vec<Member>,
    old_cluster: Vec<Member>,
    old_local: Vec<Member>,
}

impl<F: StoreFamily> FamilyState<F> {
    /// What the maps held before the start, nobody's yet.
    pub(crate) fn adopt(frontends: Frontends<F>, backends: Backends<F>, left: Left<F>) -> Self {
        FamilyState {
            held: HashMap::new(),
            frontends,
            backends,
            pending: HashMap::new(),
            short: BTreeSet::new(),
            left: Some(left),
            lists: Lists::default(),
        }
    }

    /// Tells what a service port is to become; `None`: it is to be removed.
    pub(crate) fn want(&mut self, key: &PortKey, want: Option<Arc<ServicePort>>) {
        self.pending.insert(key.clone(), want);
    }

    /// Whether something is not as wanted.
    pub(crate) fn is_pending(&self) -> bool {
        !self.pending.is_empty() || self.left.is_some()
    }

    /// Number of service ports that are not as wanted.
    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// A service port as it was last taken on.
    pub(crate) fn held(&self, key: &PortKey) -> Option<&Arc<ServicePort>> {
        self.held.get(key).map(|port| &port.want)
    }

    /// Every service port that the maps hold something of.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &PortKey> {
        self.held.keys()
    }

    /// The service id of a service port.
    pub(crate) fn service_id(&self, key: &PortKey) -> Option<u32> {
        self.held.get(key).map(|port| port.service_id)
    }

    /// Service id of a frontend.
    pub(crate) fn owner(&self, key: &ServiceKey<F>) -> Option<u32> {
        self.frontends.get(key).map(|service| service.id)
    }

    /// Grows with every UDP frontend that goes or changes hands.
    pub(crate) fn udp_moves(&self) -> u64 {
        self.frontends.udp_moves()
    }

    /// Number of entries of `services_*`.
    pub(crate) fn frontends(&self) -> usize {
        self.frontends.len()
    }

    /// The backends, of which ids may rest.
    pub(crate) fn backends(&self) -> &Backends<F> {
        &self.backends
    }

    /// Frees the backend ids at rest; a grace period has passed.
    pub(crate) fn release<S: MapStore>(&mut self, shared: &mut Shared<S>) {
        self.backends.release(shared);
    }

    /// Writes every state word that is not as wanted.
    pub(crate) fn write_flags<S: MapStore>(&mut self, shared: &mut Shared<S>) {
        for (key, port) in &self.held {
            for (endpoint, id) in port.want.endpoints.iter().zip(&port.ids) {
                if let Err(source) = self.backends.write_flags(shared, *id, endpoint) {
                    shared.report.errors.push(ApplyError::Port {
                        port: NamedKey(key.clone()),
                        source,
                    });
                    // What is wanted by now is pending already.
                    self.pending
                        .entry(key.clone())
                        .or_insert_with(|| port.desired());
                }
            }
        }
    }

    /// A service port is not as wanted yet.
    fn keep_pending(&mut self, key: &PortKey) {
        if let Some(port) = self.held.get(key) {
            self.pending.insert(key.clone(), port.desired());
        }
    }
}
