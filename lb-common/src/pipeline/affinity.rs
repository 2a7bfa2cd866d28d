//! Session affinity: which backend a client keeps (semantics 13).

use super::ip::Ip;
use super::service;
use super::tables::Tables;
use crate::abi::{Affinity, AffinityKey, Flow, FlowKey, Service, ServiceKey};

/// Notes that a client keeps a backend, unless it keeps one already.
#[inline(always)]
pub fn remember<F: Ip, T: Tables<F>>(
    tables: &T,
    service: &Service,
    client: F::Addr,
    backend: u32,
    generation: u32,
) {
    let key = AffinityKey {
        service_id: service.id,
        client,
    };
    if tables.affinity(&key).is_some() {
        return;
    }
    let value = Affinity {
        backend,
        generation,
        last_used_ns: tables.now_ns(),
    };
    tables.set_affinity(&key, &value);
}

/// Notes what the client of a confirmed flow keeps (semantics 13.2).
#[inline(always)]
pub fn remember_flow<F: Ip, T: Tables<F>>(tables: &T, key: &FlowKey<F>, flow: &Flow<F>) {
    let Some(service) = service::find(tables, &ServiceKey::new(key.daddr, key.dport, key.proto))
    else {
        return;
    };
    if service.affinity_secs != 0 {
        remember(tables, &service, key.saddr, flow.backend, flow.generation);
    }
}
