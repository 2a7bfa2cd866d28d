//! Session affinity: which backend a client keeps (semantics 13).

use super::flow::is_generation;
use super::ip::Ip;
use super::service;
use super::tables::Tables;
use crate::abi::{Affinity, AffinityKey, Service, ServiceKey};
use crate::flow_table::Record;

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
pub fn remember_flow<F: Ip, T: Tables<F>>(tables: &T, record: &Record<F>) {
    let dial = &record.original;
    let key = ServiceKey::new(dial.daddr(), dial.dport(), dial.proto());
    let Some(service) = service::find(tables, &key) else {
        return;
    };
    if service.affinity_secs != 0
        && let Some(backend) = tables.backend(record.backend)
        && is_generation(backend.generation(), record)
    {
        let client = dial.saddr();
        remember(
            tables,
            &service,
            client,
            record.backend,
            backend.generation(),
        );
    }
}
