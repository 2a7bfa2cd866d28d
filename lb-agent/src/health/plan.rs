//! Which ports of `healthCheckNodePort` are to answer, where, and what (semantics 15).

use std::{collections::BTreeMap, net::IpAddr, sync::Mutex};

use tokio::sync::Notify;

use super::lock::lock;
use crate::{
    desired::health::HealthCheck,
    kube::{api::events::EventWriter, objects::Key},
    net::IpFamily,
};

/// What is to be served.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    /// Where, by family.
    pub addresses: [Vec<IpAddr>; 2],
    pub checks: BTreeMap<Key, HealthCheck>,
}

impl Plan {
    /// Every server with its port.
    pub(super) fn servers(&self) -> impl Iterator<Item = ((Key, IpFamily), u16)> + '_ {
        self.checks.iter().flat_map(|(key, check)| {
            IpFamily::BOTH
                .into_iter()
                .filter(|family| check.local[family.index()].is_some())
                .map(|family| ((key.clone(), family), check.port))
        })
    }
    pub(super) fn count(&self, key: &Key, family: IpFamily) -> usize {
        let check = self.checks.get(key);
        check
            .and_then(|check| check.local[family.index()])
            .unwrap_or(0)
    }
}

/// The plan as the loop sets it and the servers read it.
#[derive(Debug, Default)]
pub(crate) struct HealthChecks {
    pub(super) plan: Mutex<Plan>,
    pub(super) node: Mutex<(String, EventWriter)>,
    pub(super) changed: Notify,
}

impl HealthChecks {
    /// Takes a plan. Only what the maps already serve may be in it (semantics 15.9).
    pub(crate) fn set(&self, plan: Plan) {
        *lock(&self.plan) = plan;
        self.changed.notify_one();
    }
    /// Who says that a port cannot be opened, and where.
    pub(crate) fn tell(&self, node: &str, events: EventWriter) {
        *lock(&self.node) = (node.to_owned(), events);
    }
}
