//! What one family holds against its maps. Differences are repaired and counted.

use std::collections::HashSet;

use lb_common::abi::SrcRangeKey;

use super::FamilyState;
use crate::dataplane::{
    model,
    report::AuditReport,
    shared::Shared,
    store::{FamilyMaps, MapStore, StoreFamily, StoreResult},
};

impl<F: StoreFamily> FamilyState<F> {
    /// Compares every map with what is held. Frontends that differ are written with the next round, in which
    /// every service port is taken up again.
    pub(crate) fn audit<S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        report: &mut AuditReport,
    ) -> StoreResult<()> {
        report.services += self.frontends.audit(shared)?;
        report.backends += self.audit_backends(shared)?;
        report.tables += self.audit_tables(shared)?;
        report.ranges += self.audit_ranges(shared)?;
        Ok(())
    }

    /// Takes every service port up again.
    pub(crate) fn take_up_all(&mut self) {
        for (key, port) in &self.held {
            self.pending.insert(key.clone(), Some(port.want.clone()));
        }
    }

    fn audit_backends<S: MapStore>(&self, shared: &mut Shared<S>) -> StoreResult<usize> {
        let mut differences = 0;
        for port in self.held.values() {
            for (endpoint, id) in port.want.endpoints.iter().zip(&port.ids) {
                let is_different = self
                    .backends
                    .audit(shared, *id, endpoint, port.service_id)?;
                differences += usize::from(is_different);
            }
        }
        Ok(differences)
    }

    fn audit_tables<S: MapStore>(&self, shared: &mut Shared<S>) -> StoreResult<usize> {
        let Shared {
            selection, store, ..
        } = shared;
        let mut list = Vec::new();
        let mut differences = 0;
        for port in self.held.values() {
            for (table, local) in [(port.tables.cluster, false), (port.tables.local, true)] {
                let range = table.range;
                if range.len == 0 || local && port.tables.cluster.range == range {
                    continue;
                }
                model::members(&port.want, &port.ids, local, &mut list);
                if !table.is_whole {
                    differences += usize::from(selection.mend(store, range, &list)? > 0);
                } else if !selection.holds(store, range, &mut list)? {
                    differences += 1;
                    selection.repair(store, range, &mut list)?;
                }
            }
        }
        Ok(differences)
    }

    fn audit_ranges<S: MapStore>(&self, shared: &mut Shared<S>) -> StoreResult<usize> {
        let mut present = Vec::new();
        F::maps(&shared.store).each_source_range(&mut |key| present.push(*key))?;
        let wanted: Vec<_> = self
            .held
            .values()
            .flat_map(|port| port.ranges.iter().copied())
            .collect();
        let place = |key: &SrcRangeKey<F>| (key.service_id, key.client, key.prefix_len);
        let (is, should): (HashSet<_>, HashSet<_>) = (
            present.iter().map(place).collect(),
            wanted.iter().map(place).collect(),
        );
        let mut differences = 0;
        for key in wanted.iter().filter(|key| !is.contains(&place(key))) {
            differences += 1;
            shared.maps_mut::<F>().write_source_range(key)?;
        }
        for key in present.iter().filter(|key| !should.contains(&place(key))) {
            differences += 1;
            shared.maps_mut::<F>().remove_source_range(key)?;
        }
        Ok(differences)
    }
}
