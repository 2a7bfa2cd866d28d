//! Endpoints → elements of `backends_*`: which ids are free, in use or at rest, and the state word of each.
//! The address and port of an id never change while a program may hold it; its generation grows when it is
//! laid to rest, so that UDP flows select again at once (semantics 17), and once more after the grace period,
//! for a flow made meanwhile by a program that still read the old table.

use std::{marker::PhantomData, sync::Arc};

use lb_common::{
    abi::{Backend, BackendFlags, BackendState, Be16},
    names::maps,
};

use crate::{
    dataplane::{
        ids::Ids,
        model,
        shared::Shared,
        store::{FamilyMaps, MapStore, StoreError, StoreFamily, StoreResult},
    },
    desired::state::Endpoint,
};

/// The backends of one family.
#[derive(Debug)]
pub(crate) struct Backends<F> {
    ids: Ids,
    states: States,
    family: PhantomData<F>,
}

/// State words of `backends_*` as they are, by id.
#[derive(Debug)]
struct States(Vec<BackendState>);

impl States {
    fn of(&self, id: u32) -> BackendState {
        self.0.get(id as usize).copied().unwrap_or_default()
    }

    /// Notes what is in the map.
    fn note(&mut self, id: u32, state: BackendState) {
        let id = id as usize;
        if self.0.len() <= id {
            self.0.resize(id + 1, BackendState::default());
        }
        self.0[id] = state;
    }

    fn write<F: StoreFamily, S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        id: u32,
        state: BackendState,
    ) -> StoreResult<()> {
        if self.of(id) != state {
            shared.maps_mut::<F>().write_backend_state(id, state)?;
            shared.report.states_written += 1;
            self.note(id, state);
        }
        Ok(())
    }

    fn grow<F: StoreFamily, S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        id: u32,
    ) -> StoreResult<()> {
        let grown = next_generation(self.of(id), BackendFlags::NONE);
        self.write::<F, S>(shared, id, grown)
    }
}

impl<F: StoreFamily> Backends<F> {
    /// The ids in use and the state words of all, as they were in the map before the start.
    pub(crate) fn adopt(ids: Ids, states: Vec<BackendState>) -> Self {
        Backends {
            ids,
            states: States(states),
            family: PhantomData,
        }
    }

    /// Writes a new element for an endpoint of a service port, under a free id. `None`: the endpoint is of
    /// the other family.
    pub(crate) fn create<S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        endpoint: &Endpoint,
        service_id: u32,
    ) -> StoreResult<Option<u32>> {
        let Some(addr) = model::to_addr::<F>(endpoint.addr) else {
            return Ok(None);
        };
        let id = self.ids.take().ok_or(StoreError::Full {
            map: maps::BACKENDS[F::INDEX],
        })?;
        let state = next_generation(self.states.of(id), state_flags(endpoint, shared));
        let zone = zone_number(endpoint.zone.as_ref());
        let port = Be16::from_host(endpoint.port);
        let backend = Backend::new(addr, port, zone, state, service_id);
        if let Err(error) = shared.maps_mut::<F>().write_backend(id, &backend) {
            self.ids.give_back(id);
            return Err(error);
        }
        shared.report.backends_written += 1;
        self.states.note(id, state);
        Ok(Some(id))
    }

    /// Gives back an id that no table has named.
    pub(crate) fn give_back(&mut self, id: u32) {
        self.ids.give_back(id);
    }

    /// Writes the flags of an endpoint's state word in place, if they differ.
    pub(crate) fn write_flags<S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        id: u32,
        endpoint: &Endpoint,
    ) -> StoreResult<()> {
        if id == 0 {
            return Ok(());
        }
        let generation = self.states.of(id).generation();
        let state = BackendState::new(generation, state_flags(endpoint, shared));
        self.states.write::<F, S>(shared, id, state)
    }

    /// Lays an id to rest that no frontend leads to any more.
    pub(crate) fn retire<S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        id: u32,
    ) -> StoreResult<()> {
        if id != 0 {
            self.states.grow::<F, S>(shared, id)?;
            self.ids.rest(id);
        }
        Ok(())
    }

    /// Whether no id is free.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.ids.is_exhausted()
    }

    /// Whether some id rests.
    pub(crate) fn is_resting(&self) -> bool {
        self.ids.is_resting()
    }

    /// Frees the ids at rest; a grace period has passed.
    pub(crate) fn release<S: MapStore>(&mut self, shared: &mut Shared<S>) {
        let Backends { ids, states, .. } = self;
        ids.release(|id| match states.grow::<F, S>(shared, id) {
            Ok(()) => true,
            Err(source) => {
                shared.report.errors.push(source.into());
                false
            }
        });
    }

    /// Whether a flag stands in an id's state word.
    pub(crate) fn has(&self, id: u32, flag: BackendFlags) -> bool {
        self.states.of(id).flags().contains(flag)
    }

    /// Ids in use or at rest.
    pub(crate) fn used(&self) -> usize {
        self.ids.used()
    }

    /// Compares an element with its endpoint and repairs it; `true`: it was different.
    pub(crate) fn audit<S: MapStore>(
        &self,
        shared: &mut Shared<S>,
        id: u32,
        endpoint: &Endpoint,
        service_id: u32,
    ) -> StoreResult<bool> {
        let Some(addr) = model::to_addr::<F>(endpoint.addr).filter(|_| id != 0) else {
            return Ok(false);
        };
        let present = F::maps(&shared.store).backend(id)?;
        let port = Be16::from_host(endpoint.port);
        let wanted = Backend::new(addr, port, present.zone, self.states.of(id), service_id);
        if present == wanted {
            return Ok(false);
        }
        shared.maps_mut::<F>().write_backend(id, &wanted)?;
        Ok(true)
    }
}

/// Flags of an endpoint's state word.
fn state_flags<S>(endpoint: &Endpoint, shared: &Shared<S>) -> BackendFlags {
    let bit = |on: bool, bit| if on { bit } else { BackendFlags::NONE };
    let is_host = shared.local_addrs.contains(&endpoint.addr);
    bit(endpoint.local, BackendFlags::LOCAL)
        | bit(is_host, BackendFlags::HOST)
        | bit(endpoint.in_cluster, BackendFlags::IN_CLUSTER)
        | bit(endpoint.in_local, BackendFlags::IN_LOCAL)
        | bit(endpoint.usable, BackendFlags::USABLE)
}

/// Flags of which every endpoint in use has one; an id with none of them is dead.
pub(crate) const ALIVE: BackendFlags = BackendFlags::IN_CLUSTER
    .union(BackendFlags::IN_LOCAL)
    .union(BackendFlags::USABLE);

/// The state word of the next generation. Never generation 0.
const fn next_generation(state: BackendState, flags: BackendFlags) -> BackendState {
    let next = state
        .generation()
        .wrapping_add(BackendState::GENERATION_STEP);
    let next = if next == 0 {
        BackendState::GENERATION_STEP
    } else {
        next
    };
    BackendState::new(next, flags)
}

/// A zone's number: a hash of its name, so that it is the same after a restart. 0 unknown.
fn zone_number(zone: Option<&Arc<str>>) -> u16 {
    let Some(zone) = zone.filter(|z| !z.is_empty()) else {
        return 0;
    };
    let hash = zone.bytes().fold(0x811c_9dc5u32, |h, b| {
        (h ^ u32::from(b)).wrapping_mul(0x0100_0193)
    });
    #[expect(clippy::cast_possible_truncation, reason = "folded to 16 bits")]
    let folded = (hash ^ (hash >> 16)) as u16;
    folded.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_wraps_past_zero() {
        let next = |generation, flags| {
            let state = BackendState::new(generation, BackendFlags::from_bits(flags));
            next_generation(state, BackendFlags::NONE).word()
        };
        assert_eq!(next(0, 0), 0x100);
        assert_eq!(next(0xffff_ff00, 0x1f), 0x100);
    }
}
