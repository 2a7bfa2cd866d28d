//! Service, packet, affinity → backend.

use super::hash;
use super::ip::Ip;
use super::tables::Tables;
use crate::abi::{
    Affinity, AffinityKey, Backend, BackendFlags, Be16, Counter, SelectionList, Service,
    ServiceFlags, Transport,
};
use crate::family::Family;

/// Who dials, before any source translation (semantics 9.8).
#[derive(Clone, Copy, Debug)]
pub struct Dial<F: Family> {
    /// Client address.
    pub saddr: F::Addr,
    /// Dialled address.
    pub daddr: F::Addr,
    /// Client port.
    pub sport: Be16,
    /// Dialled port.
    pub dport: Be16,
    /// Protocol.
    pub transport: Transport,
    /// From a pod or process of this node: the short-circuit of semantics 8.6 applies.
    pub inside: bool,
}

/// A list in force.
#[derive(Clone, Copy, Debug)]
pub struct List {
    /// Its rows.
    pub rows: SelectionList,
    /// The flag that its members carry.
    pub member: BackendFlags,
}

/// A backend that was chosen.
#[derive(Clone, Copy, Debug)]
pub struct Choice<F: Family> {
    /// Its id.
    pub id: u32,
    /// The backend.
    pub backend: Backend<F>,
}

/// The list whose policy governs this traffic (semantics 8.2, 1.3, 8.6).
#[inline(always)]
pub fn list(service: &Service, inside: bool) -> List {
    let local = if service.is_internal() {
        service.has(ServiceFlags::INTERNAL_LOCAL)
    } else {
        service.has(ServiceFlags::EXTERNAL_LOCAL) && !inside
    };
    if local {
        List {
            rows: service.local,
            member: BackendFlags::IN_LOCAL,
        }
    } else {
        List {
            rows: service.cluster,
            member: BackendFlags::IN_CLUSTER,
        }
    }
}

/// Chooses a backend of a list that is not empty; `None` when what the row names is not a backend of
/// this service port (a table in mid-change).
///
/// A Service with affinity hashes the client address alone, so that every connection of a client
/// agrees before anything is stored; the entry, written when a flow is confirmed (UDP: made), keeps the choice
/// across changes of the list (13.5). A client whose entry has run out is spread by its connection:
/// else it could never meet another backend (13.8).
#[inline(always)]
pub fn backend<F: Ip, T: Tables<F>>(
    tables: &T,
    service: &Service,
    list: &List,
    dial: &Dial<F>,
) -> Option<Choice<F>> {
    let ports = crate::wire::Ports::join(dial.sport, dial.dport);
    if service.affinity_secs == 0 {
        return row(
            tables,
            service,
            list,
            hash::connection::<F>(&dial.saddr, &dial.daddr, ports, dial.transport.proto()),
        );
    }
    let key = AffinityKey {
        service_id: service.id,
        client: dial.saddr,
    };
    let Some(kept) = tables.affinity(&key) else {
        let chosen = row(tables, service, list, hash::client::<F>(&dial.saddr));
        // One exchange of datagrams never confirms its flow; of TCP a flood must not fill the table.
        if dial.transport == Transport::Udp
            && let Some(choice) = &chosen
        {
            let value = Affinity {
                backend: choice.id,
                generation: choice.backend.generation(),
                last_used_ns: tables.now_ns(),
            };
            tables.set_affinity(&key, &value);
        }
        return chosen;
    };
    let now_ns = tables.now_ns();
    let live =
        now_ns.wrapping_sub(kept.last_used_ns) <= service.affinity_secs as u64 * 1_000_000_000;
    let mut chosen = None;
    if live
        && let Some(backend) = tables.backend(kept.backend)
        && backend.service_id == service.id
        && backend.generation() == kept.generation
        && backend.state.flags().intersects(list.member)
    {
        tables.count(Counter::AffinityHit);
        chosen = Some(Choice {
            id: kept.backend,
            backend,
        });
    }
    if chosen.is_none() {
        let hash = if live {
            hash::client::<F>(&dial.saddr)
        } else {
            hash::connection::<F>(&dial.saddr, &dial.daddr, ports, dial.transport.proto())
        };
        chosen = row(tables, service, list, hash);
    }
    let choice = chosen?;
    // Each new connection refreshes the time (13.2); an entry that decided nothing is replaced (13.3).
    let value = Affinity {
        backend: choice.id,
        generation: choice.backend.generation(),
        last_used_ns: now_ns,
    };
    tables.set_affinity(&key, &value);
    Some(choice)
}

#[inline(always)]
fn row<F: Ip, T: Tables<F>>(
    tables: &T,
    service: &Service,
    list: &List,
    hash: u32,
) -> Option<Choice<F>> {
    let row = list
        .rows
        .offset
        .wrapping_add(hash::scale(hash, list.rows.len));
    let id = tables.selection_row(row);
    let backend = tables.backend(id)?;
    if id == 0 || backend.service_id != service.id {
        return None;
    }
    Some(Choice { id, backend })
}
