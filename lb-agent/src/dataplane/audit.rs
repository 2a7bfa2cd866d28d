//! The slow second path: a fresh list of service ports against what the dataplane holds, and what it
//! holds against the maps. Differences are repaired and counted.

use std::{collections::HashSet, sync::Arc};

use super::{
    apply::Dataplane,
    report::AuditReport,
    store::{MapStore, StoreResult},
};
use crate::{
    desired::state::{Change, PortKey, ServicePort},
    net::IpFamily,
};

impl<S: MapStore> Dataplane<S> {
    /// Compares a complete, fresh list of service ports and the maps with what is held, and repairs.
    pub(crate) fn audit(&mut self, fresh: &[Arc<ServicePort>]) -> StoreResult<AuditReport> {
        let mut report = AuditReport::default();
        if !self.is_started || self.is_pending() {
            report.is_skipped = true;
            return Ok(report);
        }
        let shared = &mut self.shared;
        report.ports = shared
            .used_ports
            .audit(&mut shared.store, &mut shared.report)?;
        self.v4.audit(shared, &mut report)?;
        self.v6.audit(shared, &mut report)?;
        let changes = self.changes_to(fresh);
        report.service_ports = changes.len();
        // What is held is what is in the maps now, so every service port writes what differs.
        self.v4.take_up_all();
        self.v6.take_up_all();
        report.repair = self.apply(&changes);
        Ok(report)
    }

    fn changes_to(&self, fresh: &[Arc<ServicePort>]) -> Vec<Change> {
        let names: HashSet<&PortKey> = fresh.iter().map(|p| &p.key).collect();
        let held = |key: &PortKey| match key.family {
            IpFamily::V4 => self.v4.held(key),
            IpFamily::V6 => self.v6.held(key),
        };
        let keys = self.v4.keys().chain(self.v6.keys());
        let gone = keys.filter(|key| !names.contains(key));
        let different = fresh.iter().filter(|port| held(&port.key) != Some(port));
        gone.cloned()
            .map(Change::Remove)
            .chain(different.cloned().map(Change::Set))
            .collect()
    }
}
