//! The slow second path: a fresh list of service ports against what the dataplane holds, and what it
//! holds against the maps. Differences are repaired and counted.

use std::{collections::HashSet, sync::Arc};

use lb_common::abi::{Backend, Be16, PORT_FILTER_ENTRIES, SrcRangeKey, port_filter_slot};

use super::{
    apply::{Dataplane, FamilyState, Shared},
    frontends::FrontendMap,
    maglev::rows_for,
    model,
    report::ApplyReport,
    store::{FamilyMaps, MapStore, StoreFamily, StoreResult},
};
use crate::{
    desired::state::{Change, PortKey, ServicePort},
    net::IpFamily,
};

/// What an audit found, and repaired.
#[derive(Debug, Default)]
pub struct AuditReport {
    /// Service ports that the dataplane held otherwise than the fresh list says.
    pub service_ports: usize,
    /// Entries of `services_*` missing, different or superfluous.
    pub services: usize,
    /// Elements of `backends_*` that were different.
    pub backends: usize,
    /// Tables whose rows were different.
    pub tables: usize,
    /// Source ranges missing or superfluous.
    pub ranges: usize,
    /// Bits of `port_filter` that were different.
    pub ports: usize,
    /// Not audited, because writes are pending that failed.
    pub is_skipped: bool,
    /// What the repair did.
    pub repair: ApplyReport,
}

impl AuditReport {
    /// Differences found.
    pub fn differences(&self) -> usize {
        self.service_ports + self.services + self.backends + self.tables + self.ranges + self.ports
    }
}

impl<S: MapStore> Dataplane<S> {
    /// Compares a complete, fresh list of service ports and the maps with what is held, and repairs.
    pub fn audit(&mut self, fresh: &[Arc<ServicePort>]) -> StoreResult<AuditReport> {
        let mut report = AuditReport::default();
        if !self.is_started || self.is_pending() {
            report.is_skipped = true;
            return Ok(report);
        }
        self.audit_filter(&mut report)?;
        self.v4.audit(&mut self.shared, &mut report)?;
        self.v6.audit(&mut self.shared, &mut report)?;
        let changes = self.changes_to(fresh);
        report.service_ports = changes.len();
        // Mirrors hold what is in the maps now, so every service port writes what differs.
        self.v4.audit_all();
        self.v6.audit_all();
        report.repair = self.apply(&changes);
        Ok(report)
    }

    fn changes_to(&self, fresh: &[Arc<ServicePort>]) -> Vec<Change> {
        let names: HashSet<&PortKey> = fresh.iter().map(|p| &p.key).collect();
        let held = |key: &PortKey| match key.family {
            IpFamily::V4 => self.v4.ports.get(key).map(|p| &p.want),
            IpFamily::V6 => self.v6.ports.get(key).map(|p| &p.want),
        };
        let gone = self
            .v4
            .ports
            .keys()
            .chain(self.v6.ports.keys())
            .filter(|k| !names.contains(k));
        let mut changes: Vec<_> = gone.cloned().map(Change::Remove).collect();
        changes.extend(
            fresh
                .iter()
                .filter(|p| held(&p.key) != Some(p))
                .cloned()
                .map(Change::Set),
        );
        changes
    }

    fn audit_filter(&mut self, report: &mut AuditReport) -> StoreResult<()> {
        let shared = &mut self.shared;
        let mut present = shared.filter.words[0].clone();
        for slot in 0..PORT_FILTER_ENTRIES {
            shared.store.read_ports(slot, &mut present)?;
            for word in 0..present.words.len() {
                let (is, was) = (
                    present.words[word],
                    shared.filter.words[slot as usize].words[word],
                );
                report.ports += (is ^ was).count_ones() as usize;
                shared.filter.words[slot as usize].words[word] = is;
            }
        }
        if report.ports > 0 {
            shared.has_snat_ports = false;
            let uses: Vec<_> = shared.filter.uses.keys().copied().collect();
            for (slot, port) in uses {
                shared.filter.write(&mut shared.store, slot, port, true)?;
            }
            shared.clear_idle_ports();
        }
        Ok(())
    }
}

impl<F: StoreFamily> FamilyState<F> {
    fn audit<S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        report: &mut AuditReport,
    ) -> StoreResult<()> {
        self.audit_services(shared, report)?;
        self.audit_backends(shared, report)?;
        self.audit_tables(shared, report)?;
        self.audit_ranges(shared, report)
    }

    fn audit_services<S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        report: &mut AuditReport,
    ) -> StoreResult<()> {
        let mut present = FrontendMap::default();
        F::maps(&shared.store).each_service(&mut |key, value| {
            present.insert(key, *value);
        })?;
        let different = self
            .services
            .iter()
            .filter(|(k, v)| present.get(k) != Some(*v))
            .count();
        let extra: Vec<_> = present
            .keys()
            .filter(|k| !self.services.contains_key(k))
            .collect();
        report.services += different + extra.len();
        for key in extra {
            F::maps_mut(&mut shared.store).remove_service(&key)?;
            present.remove(&key);
        }
        let lost: Vec<_> = self
            .services
            .keys()
            .filter(|k| !present.contains_key(k))
            .collect();
        for key in lost {
            // The use of its port and address is counted again when it is written again.
            if let Some(slot) = port_filter_slot(key.proto)
                && let Some(uses) = shared.filter.uses.get_mut(&(slot, key.port.to_host()))
            {
                *uses -= 1;
                if *uses == 0 {
                    shared.filter.uses.remove(&(slot, key.port.to_host()));
                }
            }
            if let Some(was) = self.services.remove(&key) {
                self.count_cluster_ip(key.addr, was.is_internal() && was.id != 0, false);
            }
        }
        for (key, value) in present.iter() {
            if let Some(held) = self.services.get_mut(&key)
                && *held != *value
            {
                // Only the check need differ for the entry to be written whole.
                held.check = !held.check;
            }
        }
        Ok(())
    }

    fn audit_backends<S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        report: &mut AuditReport,
    ) -> StoreResult<()> {
        for port in self.ports.values() {
            for (endpoint, id) in port
                .want
                .endpoints
                .iter()
                .zip(&port.ids)
                .filter(|(_, id)| **id != 0)
            {
                let Some(addr) = model::to_addr::<F>(endpoint.addr) else {
                    continue;
                };
                let state = self.states.get(*id as usize).copied().unwrap_or(0);
                let present = F::maps(&shared.store).backend(*id)?;
                let wanted = Backend::new(
                    addr,
                    Be16::from_host(endpoint.port),
                    present.zone,
                    state,
                    port.id,
                );
                if present != wanted {
                    report.backends += 1;
                    F::maps_mut(&mut shared.store).write_backend(*id, &wanted)?;
                }
            }
        }
        Ok(())
    }

    fn audit_tables<S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        report: &mut AuditReport,
    ) -> StoreResult<()> {
        let (mut list, mut rows) = (Vec::new(), Vec::new());
        for port in self.ports.values() {
            for (table, local) in [(port.tables.cluster, false), (port.tables.local, true)] {
                let Some(table) = table.filter(|t| t.len > 0) else {
                    continue;
                };
                if local && port.tables.cluster == Some(table) {
                    continue;
                }
                model::members(&port.want, &port.ids, local, &mut list);
                debug_assert_eq!(table.len, rows_for(list.len(), port.want.external));
                rows.resize(table.len as usize, 0);
                shared.store.read_rows(table.offset, &mut rows)?;
                let wanted = shared.maglev.build(&mut list, table.len);
                if rows != wanted {
                    report.tables += 1;
                    shared.store.write_rows(table.offset, wanted)?;
                }
            }
        }
        Ok(())
    }

    fn audit_ranges<S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        report: &mut AuditReport,
    ) -> StoreResult<()> {
        let mut present = Vec::new();
        F::maps(&shared.store).each_source_range(&mut |key| present.push(*key))?;
        let wanted: Vec<_> = self
            .ports
            .values()
            .flat_map(|p| p.ranges.iter().copied())
            .collect();
        let place = |key: &SrcRangeKey<F>| (key.service_id, key.client, key.prefix_len);
        let (is, should): (HashSet<_>, HashSet<_>) = (
            present.iter().map(place).collect(),
            wanted.iter().map(place).collect(),
        );
        for key in wanted.iter().filter(|k| !is.contains(&place(k))) {
            report.ranges += 1;
            F::maps_mut(&mut shared.store).write_source_range(key)?;
        }
        for key in present.iter().filter(|k| !should.contains(&place(k))) {
            report.ranges += 1;
            F::maps_mut(&mut shared.store).remove_source_range(key)?;
        }
        Ok(())
    }

    /// Takes every service port up again.
    fn audit_all(&mut self) {
        for (key, port) in &self.ports {
            self.pending.insert(key.clone(), Some(port.want.clone()));
        }
    }
}
