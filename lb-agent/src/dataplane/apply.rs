//! Changes → map writes, in one order for both families at once, so that what programs read is whole at every
//! moment. [`Dataplane::settle`] is that order; each step is a file of `family/`:
//!
//! 1. *prepare*: backends under free ids → the Maglev tables that name them, in free ranges → source ranges → state
//!    words of backends that stay. No frontend shows the new ones yet.
//! 2. *publish*: the prefix of ClusterIPs grows → affinity of an earlier time is forgotten → frontend by frontend, the
//!    bit of its port in `port_filter`, its entry of `services_*`, and a ClusterIP's address-only entry. One update of an
//!    entry shows all that was prepared for it.
//! 3. *finish*: entries of `services_*` that nobody wants (the bits of their ports stay for the flows through them, see
//!    `port_filter`) → the source ranges that they showed → generations of their backends grow; these ids and the old
//!    tables are laid to rest → address-only entries without a ClusterIP → the prefix of ClusterIPs shrinks.
//! 4. *rest*: one wait for an RCU grace period → generations grow once more → ids and ranges may be used again.
//!
//! Before the first of them, `port_filter` and `config` learn the ports for source translation. A service port of which
//! something fails keeps what it had and is tried again.

use std::net::IpAddr;

use lb_common::{V4, V6};

use super::{
    family::FamilyState,
    gc::{FlowGc, GcReport, Now, Owners},
    report::{ApplyReport, Usage},
    shared::Shared,
    store::{MapStore, StoreResult},
};
use crate::{
    desired::state::{Change, PortKey},
    net::IpFamily,
    port_set::PortSet,
};

/// What the dataplane must know besides the desired state.
#[derive(Clone, Debug, Default)]
pub(crate) struct DataplaneConfig {
    /// Ports that source translation may take.
    pub(crate) snat_ports: PortSet,
}

/// The maps and what they should hold.
#[derive(Debug)]
pub(crate) struct Dataplane<S: MapStore> {
    pub(super) shared: Shared<S>,
    pub(super) v4: FamilyState<V4>,
    pub(super) v6: FamilyState<V6>,
    /// Whether the complete desired state was told.
    pub(super) is_started: bool,
}

impl<S: MapStore> Dataplane<S> {
    /// Brings the maps to the next desired state. The first call takes the complete desired state:
    /// what it does not name is removed (semantics 2.10, 25.4); every later one takes the steps from
    /// the last.
    pub(crate) fn apply(&mut self, changes: &[Change]) -> ApplyReport {
        for change in changes {
            let (key, want) = match change {
                Change::Set(port) => (&port.key, Some(port.clone())),
                Change::Remove(key) => (key, None),
            };
            match key.family {
                IpFamily::V4 => self.v4.want(key, want),
                IpFamily::V6 => self.v6.want(key, want),
            }
        }
        self.is_started = true;
        self.settle()
    }

    /// Tries again what failed. Cheap when nothing did.
    pub(crate) fn retry(&mut self) -> ApplyReport {
        if !self.is_started {
            return ApplyReport::default();
        }
        self.settle()
    }

    /// Brings the maps to what is wanted, as far as they have room and take writes.
    fn settle(&mut self) -> ApplyReport {
        self.shared.write_snat_ports();
        // What was full may fit once what this round freed has rested.
        for _ in 0..2 {
            let shared = &mut self.shared;
            let ready_v4 = self.v4.prepare(shared);
            let ready_v6 = self.v6.prepare(shared);
            self.v4.publish(shared, &ready_v4);
            self.v6.publish(shared, &ready_v6);
            self.v4.finish(shared, &ready_v4);
            self.v6.finish(shared, &ready_v6);
            let is_room_made = self.rest();
            if is_room_made {
                self.v4.take_up_short(&self.shared);
                self.v6.take_up_short(&self.shared);
            }
            if !is_room_made || !self.is_pending() {
                break;
            }
            // The next round names again what fails again.
            self.shared.report.errors.clear();
        }
        self.report()
    }

    /// Waits for a grace period if something rests, then frees it; `true`: something is free again.
    fn rest(&mut self) -> bool {
        let shared = &mut self.shared;
        let is_resting = shared.selection.is_resting()
            || shared.service_ids.is_resting()
            || self.v4.backends().is_resting()
            || self.v6.backends().is_resting();
        if !is_resting {
            return false;
        }
        if let Err(source) = shared.store.barrier() {
            shared.report.errors.push(source.into());
            return false;
        }
        shared.report.barriers += 1;
        shared.selection.release();
        shared.service_ids.release(|_| true);
        self.v4.release(shared);
        self.v6.release(shared);
        true
    }

    /// Whether something failed and waits for [`Dataplane::retry`].
    pub(crate) fn is_pending(&self) -> bool {
        self.v4.is_pending() || self.v6.is_pending()
    }

    /// Tells which addresses are this node's own; endpoints on them are of the host network.
    pub(crate) fn set_local_addresses(&mut self, addrs: &[IpAddr]) -> ApplyReport {
        let addrs = addrs.iter().copied().collect();
        if addrs == self.shared.local_addrs {
            return ApplyReport::default();
        }
        self.shared.local_addrs = addrs;
        self.v4.write_flags(&mut self.shared);
        self.v6.write_flags(&mut self.shared);
        self.report()
    }

    fn report(&mut self) -> ApplyReport {
        self.v4.report_short(&mut self.shared);
        self.v6.report_short(&mut self.shared);
        self.shared.report.pending = self.v4.pending() + self.v6.pending();
        std::mem::take(&mut self.shared.report)
    }

    /// The maps, to read.
    pub(crate) fn store(&self) -> &S {
        &self.shared.store
    }

    /// The maps, to bend in tests.
    #[cfg(test)]
    pub(crate) fn store_mut(&mut self) -> &mut S {
        &mut self.shared.store
    }

    /// Looks at flows for as long as there is time: the dead ones go, and those of UDP follow their frontends.
    pub(crate) fn age(
        &mut self,
        gc: &mut FlowGc,
        now: Now,
        has_time: &mut dyn FnMut() -> bool,
    ) -> StoreResult<GcReport> {
        let moves = self.frontend_moves();
        let (v4, v6) = (&self.v4, &self.v6);
        let owners = Owners {
            moves,
            v4: &|key| v4.owner(key),
            v6: &|key| v6.owner(key),
        };
        let Shared {
            store, used_ports, ..
        } = &mut self.shared;
        let report = gc.tick(store, &owners, now, has_time)?;
        if report.is_round_complete {
            used_ports.round_over(store, &gc.found().ports)?;
        }
        Ok(report)
    }

    /// Grows with every UDP frontend that goes or changes hands; `None` before the first complete desired state.
    pub(crate) fn frontend_moves(&self) -> Option<u64> {
        let moves = self.v4.udp_moves() + self.v6.udp_moves();
        self.is_started.then_some(moves)
    }

    /// How full the maps are.
    pub(crate) fn usage(&self) -> Usage {
        let rows = self.shared.store.capacities().selection_rows;
        Usage {
            frontends: [self.v4.frontends(), self.v6.frontends()],
            backends: [self.v4.backends().used(), self.v6.backends().used()],
            service_ports: self.shared.service_ids.used(),
            rows: rows - self.shared.selection.free_rows(),
            short: self.v4.short() + self.v6.short(),
        }
    }

    /// Service id of a service port: index of `service_stats`.
    pub(crate) fn service_id(&self, key: &PortKey) -> Option<u32> {
        match key.family {
            IpFamily::V4 => self.v4.service_id(key),
            IpFamily::V6 => self.v6.service_id(key),
        }
    }
}
