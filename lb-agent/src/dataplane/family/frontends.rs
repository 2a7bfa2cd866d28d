//! Wanted entries → `services_*`, and what hangs on an entry: the bit of its port in `port_filter`, and of a
//! ClusterIP the address-only entry beside it and the prefix in `config`. What programs ask first is there
//! before the entry and goes after it; a port's bit stays for as long as flows need it.

use std::{collections::HashSet, net::IpAddr};

use lb_common::abi::{Service, ServiceKey, proto};

use crate::dataplane::{
    cluster_span::ClusterSpan,
    frontend_map::FrontendMap,
    model,
    port_filter::UsedPorts,
    shared::Shared,
    store::{FamilyMaps, MapStore, StoreFamily, StoreResult},
    uses::Uses,
};

/// The frontends of one family.
#[derive(Debug)]
pub(crate) struct Frontends<F: StoreFamily> {
    /// `services_*` as it is.
    entries: FrontendMap<F, Service>,
    /// Entries of ClusterIPs by address.
    cluster_ips: Uses<F::Addr>,
    /// Addresses whose address-only entry may have to go.
    idle_addrs: HashSet<F::Addr>,
    span: ClusterSpan,
    /// UDP frontends that went or changed hands so far: flows through them are another's now, or nobody's.
    udp_moves: u64,
}

impl<F: StoreFamily> Frontends<F> {
    /// The entries as they were in the map before the start.
    pub(crate) fn adopt<S: MapStore>(
        store: &mut S,
        entries: FrontendMap<F, Service>,
        used_ports: &mut UsedPorts,
    ) -> StoreResult<Self> {
        let mut cluster_ips = Uses::default();
        for (key, value) in entries.iter() {
            used_ports.adopt(&key);
            if is_cluster_ip(value) {
                cluster_ips.acquire(key.addr);
            }
        }
        // Without a ClusterIP in the maps the configuration says nothing: it is new.
        let span = if cluster_ips.is_empty() {
            ClusterSpan::default()
        } else {
            ClusterSpan::read::<F, S>(store)?
        };
        Ok(Frontends {
            entries,
            cluster_ips,
            idle_addrs: HashSet::new(),
            span,
            udp_moves: 0,
        })
    }

    /// The entry of a frontend.
    pub(crate) fn get(&self, key: &ServiceKey<F>) -> Option<&Service> {
        self.entries.get(key)
    }

    /// UDP frontends that went or changed hands so far.
    pub(crate) fn udp_moves(&self) -> u64 {
        self.udp_moves
    }

    /// Number of entries.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Takes the addresses of ClusterIPs to come into the prefix; `false`: it could not be written.
    pub(crate) fn widen_span<S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        cluster_ips: impl Iterator<Item = IpAddr>,
    ) -> bool {
        let written = self.span.widen::<F, S>(&mut shared.store, cluster_ips);
        written
            .map_err(|source| shared.report.errors.push(source.into()))
            .is_ok()
    }

    /// Leaves the addresses of ClusterIPs that are gone out of the prefix.
    pub(crate) fn narrow_span<S: MapStore>(&mut self, shared: &mut Shared<S>) {
        let addrs = self.cluster_ips.things().map(model::to_ip::<F>);
        if let Err(source) = self.span.narrow::<F, S>(&mut shared.store, addrs) {
            shared.report.errors.push(source.into());
        }
    }

    /// Writes an entry, and of a ClusterIP the one of its whole address, where they differ.
    pub(crate) fn publish<S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        key: &ServiceKey<F>,
        value: &Service,
    ) -> StoreResult<()> {
        self.write(shared, key, value)?;
        if is_cluster_ip(value) {
            let (key, value) = model::address_entry::<F>(key.addr);
            self.write(shared, &key, &value)?;
        }
        Ok(())
    }

    fn write<S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        key: &ServiceKey<F>,
        value: &Service,
    ) -> StoreResult<()> {
        let present = self.entries.get(key);
        if present == Some(value) {
            return Ok(());
        }
        let is_new = present.is_none();
        let changes_hands = present.is_some_and(|present| present.id != value.id);
        let was_cluster_ip = present.is_some_and(is_cluster_ip);
        if is_new {
            shared.used_ports.acquire(&mut shared.store, key)?;
        }
        if let Err(error) = shared.maps_mut::<F>().write_service(key, value) {
            if is_new {
                shared.used_ports.release(key);
            }
            return Err(error);
        }
        shared.report.services_written += 1;
        self.udp_moves += u64::from(changes_hands && key.proto == proto::UDP);
        self.entries.insert(key, *value);
        self.count_cluster_ip(key.addr, was_cluster_ip, is_cluster_ip(value));
        Ok(())
    }

    /// Removes an entry.
    pub(crate) fn remove<S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        key: &ServiceKey<F>,
    ) -> StoreResult<()> {
        shared.maps_mut::<F>().remove_service(key)?;
        if let Some(value) = self.entries.remove(key) {
            shared.report.services_removed += 1;
            self.udp_moves += u64::from(key.proto == proto::UDP);
            shared.used_ports.release(key);
            self.count_cluster_ip(key.addr, is_cluster_ip(&value), false);
        }
        Ok(())
    }

    fn count_cluster_ip(&mut self, addr: F::Addr, was: bool, is: bool) {
        match (was, is) {
            (false, true) => self.cluster_ips.acquire(addr),
            (true, false) if self.cluster_ips.release(&addr) => {
                self.idle_addrs.insert(addr);
                self.span.loosen();
            }
            _ => {}
        }
    }

    /// Removes the address-only entries whose ClusterIP is gone.
    pub(crate) fn remove_idle_addresses<S: MapStore>(&mut self, shared: &mut Shared<S>) {
        for addr in std::mem::take(&mut self.idle_addrs) {
            let (key, _) = model::address_entry::<F>(addr);
            if !self.cluster_ips.contains(&addr)
                && self.entries.contains_key(&key)
                && let Err(source) = self.remove(shared, &key)
            {
                shared.report.errors.push(source.into());
                self.idle_addrs.insert(addr);
            }
        }
    }

    /// Removes the entries that nobody wants; `false`: some could not be. Address-only entries without a
    /// ClusterIP go with [`Frontends::remove_idle_addresses`].
    pub(crate) fn remove_unwanted<S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        wanted: &FrontendMap<F, ()>,
    ) -> bool {
        let (addresses, frontends): (Vec<_>, Vec<_>) =
            self.entries.keys().partition(|key| key.proto == 0);
        let mut all = true;
        for key in frontends.iter().filter(|key| !wanted.contains_key(key)) {
            if let Err(source) = self.remove(shared, key) {
                shared.report.errors.push(source.into());
                all = false;
            }
        }
        let addrs = addresses.into_iter().map(|key| key.addr);
        self.idle_addrs
            .extend(addrs.filter(|addr| !self.cluster_ips.contains(addr)));
        self.span.loosen();
        all
    }

    /// Compares the map with what is held; returns how many entries are missing, different or superfluous.
    /// Superfluous ones are removed; the others are held so that they differ from what can be wanted.
    pub(crate) fn audit<S: MapStore>(&mut self, shared: &mut Shared<S>) -> StoreResult<usize> {
        let mut present = FrontendMap::default();
        F::maps(&shared.store).each_service(&mut |key, value| {
            present.insert(key, *value);
        })?;
        let different = self
            .entries
            .iter()
            .filter(|(key, held)| present.get(key) != Some(*held))
            .count();
        let extra: Vec<_> = present
            .keys()
            .filter(|key| !self.entries.contains_key(key))
            .collect();
        for key in &extra {
            shared.maps_mut::<F>().remove_service(key)?;
            present.remove(key);
        }
        let lost: Vec<_> = self
            .entries
            .keys()
            .filter(|key| !present.contains_key(key))
            .collect();
        for key in lost {
            // The use of its port and address is counted again when it is written again.
            if let Some(was) = self.entries.remove(&key) {
                shared.used_ports.release(&key);
                self.udp_moves += u64::from(key.proto == proto::UDP);
                self.count_cluster_ip(key.addr, is_cluster_ip(&was), false);
            }
        }
        for (key, value) in present.iter() {
            if let Some(held) = self.entries.get_mut(&key)
                && *held != *value
            {
                // Only the check need differ for the entry to be written whole.
                held.check = !held.check;
            }
        }
        Ok(different + extra.len())
    }
}

fn is_cluster_ip(value: &Service) -> bool {
    value.is_internal() && value.id != 0
}
