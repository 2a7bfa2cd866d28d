//! Changes → map writes in a safe order, for both families at once:
//! backends, tables and source ranges; then each frontend by one update; then removals; then one grace
//! period; then freed ids and ranges may be used again. A service port whose writes fail keeps what it
//! had and is tried again.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use lb_common::{
    V4, V6,
    abi::{
        Backend, BackendState, Be16, PORT_FILTER_ENTRIES, PORT_FILTER_WORDS, PortFilter,
        SelectionList, Service, ServiceKey, SrcRangeKey, port_filter_slot,
    },
    names::maps,
};

use super::{
    diff,
    frontends::FrontendMap,
    ids::Ids,
    maglev::{Maglev, Member, rows_for},
    model::{self, DataplaneConfig, Tables},
    report::{ApplyError, ApplyReport, NamedKey, Usage},
    restore::Left,
    slab::Slab,
    span::Span,
    store::{FamilyMaps, MapStore, StoreError, StoreFamily, StoreResult},
};
use crate::{
    desired::state::{Change, FrontendKindOrd, PortKey, ServicePort},
    net::IpFamily,
};

/// What both families share.
#[derive(Debug)]
pub(super) struct Shared<S> {
    pub(super) store: S,
    pub(super) config: DataplaneConfig,
    pub(super) slab: Slab,
    pub(super) service_ids: Ids,
    pub(super) filter: Filter,
    pub(super) local_addrs: HashSet<IpAddr>,
    pub(super) report: ApplyReport,
    pub(super) maglev: Maglev,
    /// Whether the ports for source translation are in `port_filter` and `config`.
    pub(super) has_snat_ports: bool,
}

/// `port_filter` as it is, and how many entries use each bit.
#[derive(Debug)]
pub(super) struct Filter {
    pub(super) words: [Box<PortFilter>; PORT_FILTER_ENTRIES as usize],
    pub(super) uses: HashMap<(u32, u16), u32>,
}

impl Filter {
    fn is_set(&self, slot: u32, port: u16) -> bool {
        self.words[slot as usize].words[usize::from(port) / 32] >> (port % 32) & 1 == 1
    }

    pub(super) fn write<S: MapStore>(
        &mut self,
        store: &mut S,
        slot: u32,
        port: u16,
        on: bool,
    ) -> StoreResult<()> {
        if self.is_set(slot, port) != on {
            store.write_port(slot, port, on)?;
            self.words[slot as usize].words[usize::from(port) / 32] ^= 1 << (port % 32);
        }
        Ok(())
    }

    /// Ports whose bit is set.
    fn set_ports(&self, slot: u32) -> Vec<u16> {
        let words = &self.words[slot as usize].words;
        (0..=u16::MAX)
            .filter(|p| words[usize::from(*p) / 32] >> (p % 32) & 1 == 1)
            .collect()
    }
}

const _: () = assert!(PORT_FILTER_WORDS * 32 == 65_536);

/// What a service port has replaced and some frontend may still show.
#[derive(Debug)]
pub(super) struct Replaced<F: StoreFamily> {
    pub(super) keys: Vec<ServiceKey<F>>,
    pub(super) ids: Vec<u32>,
    pub(super) tables: Vec<SelectionList>,
    pub(super) ranges: Vec<SrcRangeKey<F>>,
}

impl<F: StoreFamily> Default for Replaced<F> {
    fn default() -> Self {
        Replaced {
            keys: Vec::new(),
            ids: Vec::new(),
            tables: Vec::new(),
            ranges: Vec::new(),
        }
    }
}

/// A service port as its backends and tables stand in the maps.
#[derive(Debug)]
pub(super) struct Port<F: StoreFamily> {
    pub(super) want: Arc<ServicePort>,
    /// Service id.
    pub(super) id: u32,
    /// Backend ids, parallel to `want.endpoints`.
    pub(super) ids: Box<[u32]>,
    pub(super) tables: Tables,
    pub(super) ranges: Box<[SrcRangeKey<F>]>,
    pub(super) replaced: Option<Box<Replaced<F>>>,
    /// Removed from the desired state; goes when nothing of it is left in the maps.
    pub(super) is_removed: bool,
}

/// What is kept of one family: mirrors of its maps and its service ports.
#[derive(Debug)]
pub(super) struct FamilyState<F: StoreFamily> {
    pub(super) ports: HashMap<PortKey, Port<F>>,
    /// `services_*` as it is.
    pub(super) services: FrontendMap<F, Service>,
    /// State words of `backends_*` as they are, by id.
    pub(super) states: Vec<u32>,
    pub(super) backend_ids: Ids,
    /// ClusterIP entries by address.
    pub(super) cluster_ips: HashMap<F::Addr, u32>,
    /// Addresses whose address-only entry may have to go.
    idle_addrs: HashSet<F::Addr>,
    /// Service ports that are not as wanted: to be tried again.
    pub(super) pending: HashMap<PortKey, Option<Arc<ServicePort>>>,
    /// What was in the maps before the start and is nobody's yet.
    pub(super) left: Option<Left<F>>,
    /// The prefix of ClusterIPs in `config`.
    pub(super) span: Option<Span>,
    pub(super) is_span_written: bool,
    span_is_loose: bool,
    scratch: Scratch,
}

/// Memory that is used again from one service port to the next.
#[derive(Debug, Default)]
struct Scratch {
    cluster: Vec<Member>,
    local: Vec<Member>,
    old_cluster: Vec<Member>,
    old_local: Vec<Member>,
}

/// The maps and what they should hold.
#[derive(Debug)]
pub struct Dataplane<S: MapStore> {
    pub(super) shared: Shared<S>,
    pub(super) v4: FamilyState<V4>,
    pub(super) v6: FamilyState<V6>,
    pub(super) is_started: bool,
}

impl<S: MapStore> Dataplane<S> {
    /// Brings the maps to the next desired state. The first call takes the complete desired state:
    /// what it does not name is removed (semantics 2.10, 25.4); every later one takes the steps from
    /// the last.
    pub fn apply(&mut self, changes: &[Change]) -> ApplyReport {
        for change in changes {
            let (key, want) = match change {
                Change::Set(port) => (&port.key, Some(port.clone())),
                Change::Remove(key) => (key, None),
            };
            match key.family {
                IpFamily::V4 => self.v4.pending.insert(key.clone(), want),
                IpFamily::V6 => self.v6.pending.insert(key.clone(), want),
            };
        }
        self.is_started = true;
        self.settle()
    }

    /// Tries again what failed. Cheap when nothing did.
    pub fn retry(&mut self) -> ApplyReport {
        if !self.is_started {
            return ApplyReport::default();
        }
        self.settle()
    }

    /// Whether something failed and waits for [`Dataplane::retry`].
    pub fn is_pending(&self) -> bool {
        !self.v4.pending.is_empty()
            || !self.v6.pending.is_empty()
            || self.v4.left.is_some()
            || self.v6.left.is_some()
    }

    /// Tells which addresses are this node's own; endpoints on them are of the host network.
    pub fn set_local_addresses(&mut self, addrs: &[IpAddr]) -> ApplyReport {
        let addrs: HashSet<_> = addrs.iter().copied().collect();
        if addrs == self.shared.local_addrs {
            return ApplyReport::default();
        }
        self.shared.local_addrs = addrs;
        self.v4.write_states(&mut self.shared);
        self.v6.write_states(&mut self.shared);
        self.report()
    }

    /// The maps, to read.
    pub fn store(&self) -> &S {
        &self.shared.store
    }

    /// The maps; flows may be aged through it, nothing else written.
    pub fn store_mut(&mut self) -> &mut S {
        &mut self.shared.store
    }

    /// How full the maps are.
    pub fn usage(&self) -> Usage {
        Usage {
            frontends: [self.v4.services.len(), self.v6.services.len()],
            backends: [self.v4.backend_ids.used(), self.v6.backend_ids.used()],
            service_ports: self.shared.service_ids.used(),
            rows: self.shared.store.capacities().selection_rows - self.shared.slab.free_rows(),
        }
    }

    /// Service id of a service port: index of `service_stats`.
    pub fn service_id(&self, key: &PortKey) -> Option<u32> {
        match key.family {
            IpFamily::V4 => self.v4.ports.get(key).map(|p| p.id),
            IpFamily::V6 => self.v6.ports.get(key).map(|p| p.id),
        }
    }

    pub(super) fn settle(&mut self) -> ApplyReport {
        self.shared.write_snat_ports();
        // What was full may fit once what this batch freed has rested.
        for _ in 0..2 {
            let v4 = self.v4.prepare(&mut self.shared);
            let v6 = self.v6.prepare(&mut self.shared);
            self.v4.publish(&mut self.shared, &v4);
            self.v6.publish(&mut self.shared, &v6);
            self.v4.finish(&mut self.shared, &v4);
            self.v6.finish(&mut self.shared, &v6);
            if !(self.rest() && self.is_pending()) {
                break;
            }
            // The next round names again what fails again.
            self.shared.report.errors.clear();
        }
        self.report()
    }

    /// Waits for a grace period if something rests, then frees it.
    fn rest(&mut self) -> bool {
        let shared = &mut self.shared;
        let resting = shared.slab.is_resting()
            || shared.service_ids.is_resting()
            || self.v4.backend_ids.is_resting()
            || self.v6.backend_ids.is_resting();
        if !resting {
            return false;
        }
        if let Err(source) = shared.store.barrier() {
            shared.report.errors.push(source.into());
            return false;
        }
        shared.report.barriers += 1;
        shared.slab.release();
        shared.service_ids.release(|_| true);
        self.v4.release_backends(shared);
        self.v6.release_backends(shared);
        true
    }

    fn report(&mut self) -> ApplyReport {
        self.shared.report.pending = self.v4.pending.len() + self.v6.pending.len();
        std::mem::take(&mut self.shared.report)
    }
}

impl<S: MapStore> Shared<S> {
    fn write_snat_ports(&mut self) {
        if self.has_snat_ports {
            return;
        }
        let range = self.config.snat_ports;
        for slot in 0..PORT_FILTER_ENTRIES {
            for port in range.ports() {
                if let Err(source) = self.filter.write(&mut self.store, slot, port, true) {
                    self.report.errors.push(source.into());
                    return;
                }
            }
        }
        let written = self.store.update_config(&mut |config| {
            config.snat_port_min = range.first;
            config.snat_port_max = range.last;
        });
        match written {
            Ok(()) => self.has_snat_ports = true,
            Err(source) => self.report.errors.push(source.into()),
        }
    }

    fn is_snat_port(&self, port: u16) -> bool {
        self.config.snat_ports.contains(port)
    }

    /// Clears the bits that nothing uses, whoever set them.
    pub(super) fn clear_idle_ports(&mut self) {
        for slot in 0..PORT_FILTER_ENTRIES {
            for port in self.filter.set_ports(slot) {
                self.clear_port_if_idle(slot, port);
            }
        }
    }

    fn clear_port_if_idle(&mut self, slot: u32, port: u16) {
        if self.filter.uses.contains_key(&(slot, port)) || self.is_snat_port(port) {
            return;
        }
        if let Err(source) = self.filter.write(&mut self.store, slot, port, false) {
            self.report.errors.push(source.into());
        }
    }

    /// The table of a list in a fresh range.
    fn write_table(&mut self, list: &mut [Member], external: bool) -> StoreResult<SelectionList> {
        let rows = rows_for(list.len(), external);
        let Some(range) = self.slab.take(rows) else {
            return Err(StoreError::Full {
                map: maps::SELECTION,
            });
        };
        let table = self.maglev.build(list, rows);
        if let Err(error) = self.store.write_rows(range.offset, table) {
            self.slab.give_back(range);
            return Err(error);
        }
        self.report.tables_written += 1;
        self.report.rows_written += rows as usize;
        Ok(range)
    }
}

/// What was made for a service port before it is known whether all of it fits.
#[derive(Debug)]
struct Made<F: StoreFamily> {
    ids: Vec<u32>,
    tables: Vec<SelectionList>,
    ranges: Vec<SrcRangeKey<F>>,
}

impl<F: StoreFamily> FamilyState<F> {
    pub(super) fn new(
        backend_ids: Ids,
        states: Vec<u32>,
        services: FrontendMap<F, Service>,
    ) -> Self {
        FamilyState {
            ports: HashMap::new(),
            services,
            states,
            backend_ids,
            cluster_ips: HashMap::new(),
            idle_addrs: HashSet::new(),
            pending: HashMap::new(),
            left: None,
            span: None,
            is_span_written: false,
            span_is_loose: false,
            scratch: Scratch::default(),
        }
    }

    /// Makes backends, tables and source ranges of every pending service port; returns those whose
    /// frontends can be published.
    fn prepare<S: MapStore>(&mut self, shared: &mut Shared<S>) -> Vec<PortKey> {
        let mut ready = Vec::with_capacity(self.pending.len());
        // One order for every run: the same objects fit, errors name the same ones.
        let mut pending: Vec<_> = std::mem::take(&mut self.pending).into_iter().collect();
        pending.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        for (key, want) in pending {
            match self.prepare_port(shared, &key, want.as_ref()) {
                Ok(true) => ready.push(key),
                Ok(false) => {}
                Err(source) => {
                    let port = NamedKey(key.clone());
                    shared.report.errors.push(match source {
                        StoreError::Full { map } => ApplyError::NoRoom { port, map },
                        source => ApplyError::Port { port, source },
                    });
                    self.pending.insert(key, want);
                }
            }
        }
        ready
    }

    fn prepare_port<S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        key: &PortKey,
        want: Option<&Arc<ServicePort>>,
    ) -> StoreResult<bool> {
        let is_removed = want.is_none();
        if !self.ports.contains_key(key) {
            let Some(want) = want else {
                return Ok(false);
            };
            let port = match self.adopt(shared, want) {
                Some(port) => port,
                None => Self::new_port(shared, key)?,
            };
            self.ports.insert(key.clone(), port);
        }
        let want = want
            .cloned()
            .unwrap_or_else(|| Arc::new(model::nothing(key)));
        let Some(mut port) = self.ports.remove(key) else {
            return Ok(false);
        };
        let result = self.change_port(shared, &mut port, want, is_removed);
        if result.is_err() && port.is_blank() {
            // Nothing of it was ever in the maps.
            shared.service_ids.give_back(port.id);
        } else {
            self.ports.insert(key.clone(), port);
        }
        result.map(|()| true)
    }

    fn new_port<S: MapStore>(shared: &mut Shared<S>, key: &PortKey) -> StoreResult<Port<F>> {
        let Some(id) = shared.service_ids.take() else {
            return Err(StoreError::Full {
                map: maps::SERVICE_STATS,
            });
        };
        if let Err(error) = shared.store.zero_service_stats(id) {
            shared.service_ids.give_back(id);
            return Err(error);
        }
        Ok(Port {
            want: Arc::new(model::nothing(key)),
            id,
            ids: Box::default(),
            tables: Tables {
                cluster: Some(SelectionList::default()),
                local: Some(SelectionList::default()),
            },
            ranges: Box::default(),
            replaced: None,
            is_removed: true,
        })
    }

    /// Changes a service port's backends, tables and source ranges. On failure it is as before.
    fn change_port<S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        port: &mut Port<F>,
        want: Arc<ServicePort>,
        is_removed: bool,
    ) -> StoreResult<()> {
        let mut matched = diff::endpoints(&port.want.endpoints, &port.ids, &want.endpoints);
        let mut made = Made {
            ids: Vec::new(),
            tables: Vec::new(),
            ranges: Vec::new(),
        };
        let made_tables = self.make(shared, port, &want, &mut matched.ids, &mut made);
        let (tables, ranges) = match made_tables {
            Ok(made_tables) => made_tables,
            Err(error) => {
                self.unmake(shared, port, made);
                return Err(error);
            }
        };

        let replaced = port.replaced.get_or_insert_default();
        replaced.ids.append(&mut matched.gone);
        for old in [port.tables.cluster, port.tables.local]
            .into_iter()
            .flatten()
        {
            if old.len > 0
                && ![tables.cluster, tables.local].contains(&Some(old))
                && !replaced.tables.contains(&old)
            {
                replaced.tables.push(old);
            }
        }
        replaced.ranges.extend(port.ranges.iter().copied());
        replaced.ranges.retain(|r| !ranges.contains(r));
        let proto = want.key.name.protocol.number();
        replaced.keys.extend(
            port.want
                .frontends
                .iter()
                .filter_map(|f| model::service_key::<F>(f, proto)),
        );
        let wanted: FrontendMap<F, ()> = want
            .frontends
            .iter()
            .filter_map(|f| model::service_key::<F>(f, proto))
            .collect();
        replaced.keys.retain(|k| !wanted.contains_key(k));

        port.want = want;
        port.ids = matched.ids.into_boxed_slice();
        port.tables = tables;
        port.ranges = ranges.into_boxed_slice();
        port.is_removed = is_removed;
        Ok(())
    }

    fn make<S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        port: &Port<F>,
        want: &ServicePort,
        ids: &mut [u32],
        made: &mut Made<F>,
    ) -> StoreResult<(Tables, Vec<SrcRangeKey<F>>)> {
        for (endpoint, id) in want
            .endpoints
            .iter()
            .zip(ids.iter_mut())
            .filter(|(_, id)| **id == 0)
        {
            let Some(addr) = model::to_addr::<F>(endpoint.addr) else {
                continue;
            };
            *id = self.backend_ids.take().ok_or(StoreError::Full {
                map: maps::BACKENDS[F::INDEX],
            })?;
            made.ids.push(*id);
            let state = model::next_generation(self.state(*id))
                | model::state_flags(endpoint, shared.local_addrs.contains(&endpoint.addr));
            let zone = model::zone_number(endpoint.zone.as_ref());
            let backend = Backend::new(addr, Be16::from_host(endpoint.port), zone, state, port.id);
            F::maps_mut(&mut shared.store).write_backend(*id, &backend)?;
            shared.report.backends_written += 1;
            self.set_state(*id, state);
        }

        let tables = self.make_tables(shared, port, want, ids, made)?;

        let ranges = model::source_range_keys::<F>(want, port.id);
        for range in &ranges {
            let present = port.ranges.contains(range)
                || port
                    .replaced
                    .as_ref()
                    .is_some_and(|r| r.ranges.contains(range));
            if !present {
                F::maps_mut(&mut shared.store).write_source_range(range)?;
                shared.report.ranges_changed += 1;
            }
            if !port.ranges.contains(range) {
                made.ranges.push(*range);
            }
        }

        for (endpoint, id) in want.endpoints.iter().zip(ids.iter()) {
            self.write_state(shared, *id, endpoint)?;
        }
        Ok((tables, ranges))
    }

    fn make_tables<S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        port: &Port<F>,
        want: &ServicePort,
        ids: &[u32],
        made: &mut Made<F>,
    ) -> StoreResult<Tables> {
        let Scratch {
            cluster,
            local,
            old_cluster,
            old_local,
        } = &mut self.scratch;
        model::members(want, ids, false, cluster);
        model::members(want, ids, true, local);
        model::members(&port.want, &port.ids, false, old_cluster);
        model::members(&port.want, &port.ids, true, old_local);
        let mut tables = Tables {
            cluster: diff::kept_table(want, cluster, [old_cluster, old_local], &port.tables),
            local: None,
        };
        if tables.cluster.is_none() {
            let table = shared.write_table(cluster, want.external)?;
            made.tables.push(table);
            tables.cluster = Some(table);
        }
        tables.local = if diff::same_members(cluster, local) {
            tables.cluster
        } else {
            diff::kept_table(want, local, [old_cluster, old_local], &port.tables)
        };
        if tables.local.is_none() {
            let table = shared.write_table(local, want.external)?;
            made.tables.push(table);
            tables.local = Some(table);
        }
        Ok(tables)
    }

    fn unmake<S: MapStore>(&mut self, shared: &mut Shared<S>, port: &mut Port<F>, made: Made<F>) {
        for id in made.ids {
            self.backend_ids.give_back(id);
        }
        for table in made.tables {
            shared.slab.give_back(table);
        }
        for range in made.ranges {
            // It stays an allowance of this service port until it can be removed.
            if F::maps_mut(&mut shared.store)
                .remove_source_range(&range)
                .is_err()
            {
                port.replaced.get_or_insert_default().ranges.push(range);
            } else if let Some(replaced) = &mut port.replaced {
                replaced.ranges.retain(|r| *r != range);
            }
        }
    }

    fn state(&self, id: u32) -> u32 {
        self.states.get(id as usize).copied().unwrap_or(0)
    }

    fn set_state(&mut self, id: u32, state: u32) {
        let id = id as usize;
        if self.states.len() <= id {
            self.states.resize(id + 1, 0);
        }
        self.states[id] = state;
    }

    fn write_state<S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        id: u32,
        endpoint: &crate::desired::state::Endpoint,
    ) -> StoreResult<()> {
        if id == 0 {
            return Ok(());
        }
        let flags = model::state_flags(endpoint, shared.local_addrs.contains(&endpoint.addr));
        let state = (self.state(id) & BackendState::GENERATION) | flags;
        self.write_state_word(shared, id, state)
    }

    fn write_state_word<S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        id: u32,
        state: u32,
    ) -> StoreResult<()> {
        if self.state(id) != state {
            F::maps_mut(&mut shared.store).write_backend_state(id, state)?;
            shared.report.states_written += 1;
            self.set_state(id, state);
        }
        Ok(())
    }

    /// Writes every state word that is not as wanted.
    fn write_states<S: MapStore>(&mut self, shared: &mut Shared<S>) {
        let ports = std::mem::take(&mut self.ports);
        for (key, port) in &ports {
            for (endpoint, id) in port.want.endpoints.iter().zip(&port.ids) {
                if let Err(source) = self.write_state(shared, *id, endpoint) {
                    shared.report.errors.push(ApplyError::Port {
                        port: NamedKey(key.clone()),
                        source,
                    });
                    self.pending
                        .entry(key.clone())
                        .or_insert_with(|| (!port.is_removed).then(|| port.want.clone()));
                }
            }
        }
        self.ports = ports;
    }

    /// Publishes the frontends of prepared service ports.
    fn publish<S: MapStore>(&mut self, shared: &mut Shared<S>, keys: &[PortKey]) {
        let is_open = self.widen_span(shared, keys) && self.void_affinity(shared, keys);
        for key in keys {
            let Some(port) = self.ports.get(key) else {
                continue;
            };
            let proto = key.name.protocol.number();
            let (want, id, tables) = (port.want.clone(), port.id, port.tables);
            let mut all = is_open;
            for frontend in want.frontends.iter().filter(|_| is_open) {
                let Some(entry) = model::service_key::<F>(frontend, proto) else {
                    continue;
                };
                let value = model::service_value(&want, frontend.kind, &entry, id, &tables);
                let done = self
                    .write_entry(shared, &entry, &value)
                    .and_then(|()| self.write_address_entry(shared, frontend.kind, entry.addr));
                if let Err(source) = done {
                    shared
                        .report
                        .errors
                        .push(frontend_error(key, &entry, source));
                    all = false;
                }
            }
            if !all {
                self.keep_pending(key);
            }
        }
    }

    fn keep_pending(&mut self, key: &PortKey) {
        if let Some(port) = self.ports.get(key) {
            self.pending
                .insert(key.clone(), (!port.is_removed).then(|| port.want.clone()));
        }
    }

    /// Forgets the clients of service ports whose affinity was off and is switched on (semantics 13.7).
    /// A new id needs nothing: entries under it name generations that are gone.
    fn void_affinity<S: MapStore>(&mut self, shared: &mut Shared<S>, keys: &[PortKey]) -> bool {
        let mut fresh = HashSet::new();
        for port in keys
            .iter()
            .filter_map(|k| self.ports.get(k))
            .filter(|p| p.want.affinity_secs > 0)
        {
            let proto = port.want.key.name.protocol.number();
            let was_off = port
                .want
                .frontends
                .iter()
                .filter_map(|f| model::service_key::<F>(f, proto))
                .any(|k| {
                    self.services
                        .get(&k)
                        .is_some_and(|s| s.id == port.id && s.affinity_secs == 0)
                });
            if was_off {
                fresh.insert(port.id);
            }
        }
        if fresh.is_empty() {
            return true;
        }
        let voided = F::maps_mut(&mut shared.store)
            .retain_affinity(&mut |key, _| !fresh.contains(&key.service_id));
        voided
            .map_err(|source| shared.report.errors.push(source.into()))
            .is_ok()
    }

    fn write_entry<S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        key: &ServiceKey<F>,
        value: &Service,
    ) -> StoreResult<()> {
        let present = self.services.get(key);
        if present == Some(value) {
            return Ok(());
        }
        let was_cluster_ip = present.is_some_and(is_cluster_ip);
        let is_new = present.is_none();
        let slot = port_filter_slot(key.proto);
        if let Some(slot) = slot {
            shared
                .filter
                .write(&mut shared.store, slot, key.port.to_host(), true)?;
        }
        F::maps_mut(&mut shared.store).write_service(key, value)?;
        shared.report.services_written += 1;
        self.services.insert(key, *value);
        if is_new && let Some(slot) = slot {
            *shared
                .filter
                .uses
                .entry((slot, key.port.to_host()))
                .or_default() += 1;
        }
        self.count_cluster_ip(key.addr, was_cluster_ip, is_cluster_ip(value));
        Ok(())
    }

    fn remove_entry<S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        key: &ServiceKey<F>,
    ) -> StoreResult<()> {
        F::maps_mut(&mut shared.store).remove_service(key)?;
        let Some(value) = self.services.remove(key) else {
            return Ok(());
        };
        shared.report.services_removed += 1;
        if let Some(slot) = port_filter_slot(key.proto) {
            let place = (slot, key.port.to_host());
            if let Some(uses) = shared.filter.uses.get_mut(&place) {
                *uses -= 1;
                if *uses == 0 {
                    shared.filter.uses.remove(&place);
                    shared.clear_port_if_idle(place.0, place.1);
                }
            }
        }
        self.count_cluster_ip(key.addr, is_cluster_ip(&value), false);
        Ok(())
    }

    pub(super) fn count_cluster_ip(&mut self, addr: F::Addr, was: bool, is: bool) {
        match (was, is) {
            (false, true) => {
                *self.cluster_ips.entry(addr).or_default() += 1;
            }
            (true, false) => {
                if let Some(uses) = self.cluster_ips.get_mut(&addr) {
                    *uses -= 1;
                    if *uses == 0 {
                        self.cluster_ips.remove(&addr);
                        self.idle_addrs.insert(addr);
                        self.span_is_loose = true;
                    }
                }
            }
            _ => {}
        }
    }

    fn write_address_entry<S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        kind: FrontendKindOrd,
        addr: F::Addr,
    ) -> StoreResult<()> {
        if kind != FrontendKindOrd::ClusterIp {
            return Ok(());
        }
        let (key, value) = model::address_entry::<F>(addr);
        self.write_entry(shared, &key, &value)
    }

    /// Removes what prepared service ports have replaced, where nothing shows it any more.
    fn finish<S: MapStore>(&mut self, shared: &mut Shared<S>, keys: &[PortKey]) {
        for key in keys {
            if !self.pending.contains_key(key) && !self.finish_port(shared, key) {
                self.keep_pending(key);
            }
        }
        self.sweep(shared);
        for addr in std::mem::take(&mut self.idle_addrs) {
            if self.cluster_ips.contains_key(&addr) {
                continue;
            }
            let (key, _) = model::address_entry::<F>(addr);
            if self.services.contains_key(&key)
                && let Err(source) = self.remove_entry(shared, &key)
            {
                shared.report.errors.push(source.into());
                self.idle_addrs.insert(addr);
            }
        }
        self.narrow_span(shared);
    }

    fn finish_port<S: MapStore>(&mut self, shared: &mut Shared<S>, key: &PortKey) -> bool {
        let Some(mut port) = self.ports.remove(key) else {
            return true;
        };
        let mut replaced = port.replaced.take().unwrap_or_default();
        let mut failed = Vec::new();
        for entry in std::mem::take(&mut replaced.keys) {
            // Another service port may hold this frontend by now.
            if self.services.get(&entry).is_some_and(|s| s.id == port.id)
                && let Err(source) = self.remove_entry(shared, &entry)
            {
                shared
                    .report
                    .errors
                    .push(frontend_error(key, &entry, source));
                failed.push(entry);
            }
        }
        replaced.keys = failed;
        if replaced.keys.is_empty() {
            self.retire(shared, key, &mut replaced);
        }
        let done = replaced.is_empty();
        if !done {
            port.replaced = Some(replaced);
        }
        if done && port.is_removed {
            shared.service_ids.rest(port.id);
        } else {
            self.ports.insert(key.clone(), port);
        }
        done
    }

    /// Lays to rest what no frontend shows any more. The generation of an id grows now, so that UDP
    /// flows select again at once (semantics 17), and again after the grace period, for a flow made
    /// meanwhile by a program that still read the old table.
    fn retire<S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        key: &PortKey,
        replaced: &mut Replaced<F>,
    ) {
        for range in std::mem::take(&mut replaced.ranges) {
            match F::maps_mut(&mut shared.store).remove_source_range(&range) {
                Ok(_) => shared.report.ranges_changed += 1,
                Err(source) => {
                    shared.report.errors.push(ApplyError::Port {
                        port: NamedKey(key.clone()),
                        source,
                    });
                    replaced.ranges.push(range);
                }
            }
        }
        for id in std::mem::take(&mut replaced.ids) {
            match self.retire_id(shared, id) {
                Ok(()) => {}
                Err(source) => {
                    shared.report.errors.push(ApplyError::Port {
                        port: NamedKey(key.clone()),
                        source,
                    });
                    replaced.ids.push(id);
                }
            }
        }
        for table in std::mem::take(&mut replaced.tables) {
            shared.slab.rest(table);
        }
    }

    pub(super) fn retire_id<S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        id: u32,
    ) -> StoreResult<()> {
        if id != 0 {
            self.write_state_word(shared, id, model::next_generation(self.state(id)))?;
            self.backend_ids.rest(id);
        }
        Ok(())
    }

    fn release_backends<S: MapStore>(&mut self, shared: &mut Shared<S>) {
        let mut ids = std::mem::replace(&mut self.backend_ids, Ids::new(0, Vec::new()));
        ids.release(|id| {
            let grown = model::next_generation(self.state(id));
            self.write_state_word(shared, id, grown)
                .map_err(|e| shared.report.errors.push(e.into()))
                .is_ok()
        });
        self.backend_ids = ids;
    }

    /// Removes what was in the maps before the start and nobody has claimed.
    fn sweep<S: MapStore>(&mut self, shared: &mut Shared<S>) {
        if self.left.is_none() {
            return;
        }
        let wanted = self.wanted_keys();
        let stale: Vec<_> = self
            .services
            .keys()
            .filter(|k| k.proto != 0 && !wanted.contains_key(k))
            .collect();
        let mut all = true;
        for entry in stale {
            if let Err(source) = self.remove_entry(shared, &entry) {
                shared.report.errors.push(source.into());
                all = false;
            }
        }
        let addrs: Vec<_> = self
            .services
            .keys()
            .filter(|k| k.proto == 0)
            .map(|k| k.addr)
            .collect();
        self.idle_addrs.extend(
            addrs
                .into_iter()
                .filter(|a| !self.cluster_ips.contains_key(a)),
        );
        self.span_is_loose = true;
        // A frontend that could not be changed still shows what it had.
        if all && self.pending.is_empty() {
            self.sweep_left(shared);
            shared.clear_idle_ports();
        }
    }

    /// The frontends that service ports hold or are about to hold.
    fn wanted_keys(&self) -> FrontendMap<F, ()> {
        let pending = self.pending.values().flatten();
        let mut keys = FrontendMap::default();
        for want in self.ports.values().map(|p| &p.want).chain(pending) {
            let proto = want.key.name.protocol.number();
            for key in want
                .frontends
                .iter()
                .filter_map(|f| model::service_key::<F>(f, proto))
            {
                keys.insert(&key, ());
            }
        }
        for replaced in self.ports.values().filter_map(|p| p.replaced.as_ref()) {
            for key in &replaced.keys {
                keys.insert(key, ());
            }
        }
        keys
    }

    fn widen_span<S: MapStore>(&mut self, shared: &mut Shared<S>, keys: &[PortKey]) -> bool {
        let wanted = keys
            .iter()
            .filter_map(|k| self.ports.get(k))
            .flat_map(|p| p.want.frontends.iter())
            .filter(|f| f.kind == FrontendKindOrd::ClusterIp)
            .map(|f| Span::of(f.addr));
        let span = wanted.chain(self.span).reduce(Span::join);
        self.write_span(shared, span)
    }

    fn narrow_span<S: MapStore>(&mut self, shared: &mut Shared<S>) {
        if !self.span_is_loose || !self.pending.is_empty() {
            return;
        }
        let span = self
            .cluster_ips
            .keys()
            .map(|a| Span::of(model::to_ip::<F>(a)))
            .reduce(Span::join);
        self.span_is_loose = !self.write_span(shared, span);
    }

    fn write_span<S: MapStore>(&mut self, shared: &mut Shared<S>, span: Option<Span>) -> bool {
        if self.span == span && self.is_span_written {
            return true;
        }
        let (net, mask) = Span::to_words::<F>(span);
        // Programs compare `(addr ^ net) & mask` and may read between two words being written. Of a wider
        // prefix the mask goes first, of a narrower one the network: in between both prefixes match.
        let wider = span.is_some_and(|new| self.span.is_some_and(|old| new.contains(old)));
        let mut write = |of_mask: bool| {
            shared.store.update_config(&mut |config| {
                use lb_common::family::Address;
                let words = |a: &F::Addr| [a.word(0), a.word(1), a.word(2), a.word(3)];
                match (F::IS_V6, of_mask) {
                    (false, false) => config.cluster_net_v4 = Address::from_words(words(&net)),
                    (false, true) => config.cluster_mask_v4 = Address::from_words(words(&mask)),
                    (true, false) => config.cluster_net_v6 = Address::from_words(words(&net)),
                    (true, true) => config.cluster_mask_v6 = Address::from_words(words(&mask)),
                }
            })
        };
        let written = write(wider).and_then(|()| write(!wider));
        match written {
            Ok(()) => {
                self.span = span;
                self.is_span_written = true;
                true
            }
            Err(source) => {
                // The mask may be written and the network not: both prefixes match, and both are due.
                self.is_span_written = false;
                self.span_is_loose = true;
                shared.report.errors.push(source.into());
                false
            }
        }
    }
}

impl<F: StoreFamily> Port<F> {
    /// Whether nothing of it is in the maps.
    fn is_blank(&self) -> bool {
        self.ids.is_empty()
            && self.ranges.is_empty()
            && self.replaced.is_none()
            && self.want.frontends.is_empty()
    }
}

impl<F: StoreFamily> Replaced<F> {
    fn is_empty(&self) -> bool {
        self.keys.is_empty()
            && self.ids.is_empty()
            && self.tables.is_empty()
            && self.ranges.is_empty()
    }
}

fn is_cluster_ip(value: &Service) -> bool {
    value.is_internal() && value.id != 0
}

fn frontend_error<F: StoreFamily>(
    key: &PortKey,
    entry: &ServiceKey<F>,
    source: StoreError,
) -> ApplyError {
    ApplyError::Frontend {
        port: NamedKey(key.clone()),
        addr: model::to_ip::<F>(&entry.addr),
        number: entry.port.to_host(),
        source,
    }
}
