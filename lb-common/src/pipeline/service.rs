//! Destination → [`Service`]: which frontend a packet or a call names, if any.

use super::head::Parsed;
use super::ip::Ip;
use super::tables::Tables;
use super::verdict::Hook;
use crate::abi::{Be16, Config, Counter, Service, ServiceKey, service_check};

/// The frontend of a key, whose check holds. An element that was handed out again meanwhile is looked up once more.
#[inline(always)]
pub fn find<F: Ip, T: Tables<F>>(tables: &T, key: &ServiceKey<F>) -> Option<Service> {
    let service = tables.service(key)?;
    if service.check == service_check(key, &service) {
        return Some(service);
    }
    tables.count(Counter::StaleElement);
    let service = tables.service(key)?;
    if service.check == service_check(key, &service) {
        Some(service)
    } else {
        None
    }
}

/// Whether an arriving packet can concern us at all.
#[inline(always)]
pub fn may_be_ours<F: Ip, T: Tables<F>>(tables: &T, hook: Hook, parsed: &Parsed<F>) -> bool {
    if tables.may_be_ours(parsed.transport, parsed.dport) {
        return true;
    }
    // Every port of a ClusterIP concerns us: what no Service defines is refused (semantics 11.1).
    F::in_cluster_range(&tables.config(), &parsed.ip.daddr) && !hook.is_xdp()
}

/// Whether an address is a ClusterIP. The prefix of all ClusterIPs may hold other addresses, so the address itself is
/// asked for.
#[inline(always)]
pub fn is_cluster_ip<F: Ip, T: Tables<F>>(tables: &T, config: &Config, addr: &F::Addr) -> bool {
    F::in_cluster_range(config, addr)
        && find(tables, &ServiceKey::new(*addr, Be16 { be: 0 }, 0)).is_some()
}
