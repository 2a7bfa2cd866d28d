//! Prepared service ports → entries of `services_*`. One update of an entry shows a frontend's new backends,
//! tables and policies all at once.

use std::collections::HashSet;

use super::FamilyState;
use crate::{
    dataplane::{
        model,
        report::{ApplyError, NamedKey},
        shared::Shared,
        store::{FamilyMaps, MapStore, StoreFamily, StoreResult},
    },
    desired::state::{FrontendKindOrd, PortKey},
};

impl<F: StoreFamily> FamilyState<F> {
    /// Publishes the frontends of prepared service ports. Before the first of them, the prefix of ClusterIPs
    /// takes in the new ones, and clients whose affinity is of an earlier time are forgotten.
    pub(crate) fn publish<S: MapStore>(&mut self, shared: &mut Shared<S>, keys: &[PortKey]) {
        let is_open = self.widen_span(shared, keys) && self.void_affinity(shared, keys);
        for key in keys {
            if !(is_open && self.publish_port(shared, key)) {
                self.keep_pending(key);
            }
        }
    }

    fn widen_span<S: MapStore>(&mut self, shared: &mut Shared<S>, keys: &[PortKey]) -> bool {
        let cluster_ips = keys
            .iter()
            .filter_map(|key| self.held.get(key))
            .flat_map(|port| &port.want.frontends)
            .filter(|frontend| frontend.kind == FrontendKindOrd::ClusterIp)
            .map(|frontend| frontend.addr);
        self.frontends.widen_span(shared, cluster_ips)
    }

    /// Forgets the clients of service ports whose affinity was off and is switched on (semantics 13.7).
    /// A new id needs nothing: entries under it name generations that are gone.
    fn void_affinity<S: MapStore>(&mut self, shared: &mut Shared<S>, keys: &[PortKey]) -> bool {
        let mut fresh = HashSet::new();
        let ports = keys.iter().filter_map(|key| self.held.get(key));
        for port in ports.filter(|port| port.want.affinity_secs > 0) {
            let was_off = model::service_keys::<F>(&port.want)
                .filter_map(|key| self.frontends.get(&key))
                .any(|shown| shown.id == port.service_id && shown.affinity_secs == 0);
            if was_off {
                fresh.insert(port.service_id);
            }
        }
        if fresh.is_empty() {
            return true;
        }
        let voided = shared
            .maps_mut::<F>()
            .retain_affinity(&mut |key, _| !fresh.contains(&key.service_id));
        voided
            .map_err(|source| shared.report.errors.push(source.into()))
            .is_ok()
    }

    /// Sets the rows of tables that were not made for their list, before anything of it is shown: endpoints that are
    /// gone leave them here.
    fn mend_tables<S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        key: &PortKey,
    ) -> StoreResult<()> {
        let Some(port) = self.held.get(key) else {
            return Ok(());
        };
        let list = &mut self.lists.cluster;
        for (table, local) in [(port.tables.cluster, false), (port.tables.local, true)] {
            if !table.is_whole {
                model::members(&port.want, &port.ids, local, list);
                let Shared {
                    selection,
                    store,
                    report,
                    ..
                } = shared;
                report.rows_mended += selection.mend(store, table.range, list)?;
            }
        }
        Ok(())
    }

    /// `false`: some frontend could not be written.
    fn publish_port<S: MapStore>(&mut self, shared: &mut Shared<S>, key: &PortKey) -> bool {
        if let Err(source) = self.mend_tables(shared, key) {
            let port = NamedKey(key.clone());
            shared.report.errors.push(ApplyError::Port { port, source });
            return false;
        }
        let Some(port) = self.held.get(key) else {
            return true;
        };
        let proto = key.name.protocol.number();
        let mut all = true;
        for frontend in &port.want.frontends {
            let Some(entry) = model::service_key::<F>(frontend, proto) else {
                continue;
            };
            let value = model::service_value(
                &port.want,
                frontend.kind,
                &entry,
                port.service_id,
                &port.tables,
            );
            if let Err(source) = self.frontends.publish(shared, &entry, &value) {
                let error = ApplyError::frontend(key, &entry, source);
                shared.report.errors.push(error);
                all = false;
            }
        }
        all
    }
}
