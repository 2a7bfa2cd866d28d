//! One service port → the entries that its maps should hold. Pure: what is wanted, not what is there.

use std::{net::IpAddr, sync::Arc};

use lb_common::{
    abi::{
        BackendState, Be16, Be32, SelectionList, Service, ServiceFlags, ServiceKey, SrcRangeKey,
    },
    family::{Address, Family},
};

use super::maglev::Member;
use crate::{
    desired::state::{Endpoint, Frontend, FrontendKindOrd, PortKey, ServicePort},
    net::{PortRange, Prefix},
};

/// What the dataplane must know besides the desired state.
#[derive(Clone, Debug)]
pub struct DataplaneConfig {
    /// Ports for source translation, first and last.
    pub snat_ports: PortRange,
}

impl Default for DataplaneConfig {
    fn default() -> Self {
        DataplaneConfig {
            snat_ports: PortRange {
                first: 20_000,
                last: 29_999,
            },
        }
    }
}

/// The address as it lies in the packet; `None` for one of the other family.
pub fn to_addr<F: Family>(addr: IpAddr) -> Option<F::Addr> {
    let word = |octets: &[u8]| u32::from_ne_bytes([octets[0], octets[1], octets[2], octets[3]]);
    match addr {
        IpAddr::V4(addr) if !F::IS_V6 => Some(F::Addr::from_words([word(&addr.octets()), 0, 0, 0])),
        IpAddr::V6(addr) if F::IS_V6 => {
            let o = addr.octets();
            Some(F::Addr::from_words([
                word(&o),
                word(&o[4..]),
                word(&o[8..]),
                word(&o[12..]),
            ]))
        }
        _ => None,
    }
}

/// The address as the agent writes it.
pub fn to_ip<F: Family>(addr: &F::Addr) -> IpAddr {
    if F::IS_V6 {
        let mut octets = [0; 16];
        for i in 0..4 {
            octets[4 * i..4 * i + 4].copy_from_slice(&addr.word(i).to_ne_bytes());
        }
        IpAddr::from(octets)
    } else {
        IpAddr::from(addr.word(0).to_ne_bytes())
    }
}

/// Key of a frontend; `None` for one of the other family.
pub fn service_key<F: Family>(frontend: &Frontend, proto: u8) -> Option<ServiceKey<F>> {
    Some(ServiceKey::new(
        to_addr::<F>(frontend.addr)?,
        Be16::from_host(frontend.port),
        proto,
    ))
}

/// The tables of a service port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tables {
    /// Of the Cluster list; `None`: unknown, must be built.
    pub cluster: Option<SelectionList>,
    /// Of the Local list.
    pub local: Option<SelectionList>,
}

/// The entry of a frontend.
pub fn service_value<F: Family>(
    want: &ServicePort,
    kind: FrontendKindOrd,
    key: &ServiceKey<F>,
    id: u32,
    tables: &Tables,
) -> Service {
    let mut flags = 0;
    let cluster_ip = kind == FrontendKindOrd::ClusterIp;
    if want.internal_local && cluster_ip {
        flags |= ServiceFlags::INTERNAL_LOCAL;
    }
    if want.external_local && !cluster_ip {
        flags |= ServiceFlags::EXTERNAL_LOCAL;
    }
    if want.has_endpoints {
        flags |= ServiceFlags::HAS_ENDPOINTS;
    }
    if kind == FrontendKindOrd::LoadBalancer && !want.source_ranges.is_empty() {
        flags |= ServiceFlags::SOURCE_RANGES;
    }
    let mut value = Service::default();
    value.id = id;
    value.cluster = tables.cluster.unwrap_or_default();
    value.local = tables.local.unwrap_or_default();
    value.affinity_secs = want.affinity_secs;
    value.kind = kind.abi() as u8;
    value.flags = flags;
    value.sealed(key)
}

/// The entry that stands for a whole ClusterIP: what no Service defines on it is refused (semantics 11.1).
pub fn address_entry<F: Family>(addr: F::Addr) -> (ServiceKey<F>, Service) {
    let key = ServiceKey::new(addr, Be16::default(), 0);
    let mut value = Service::default();
    value.kind = FrontendKindOrd::ClusterIp.abi() as u8;
    value.flags = ServiceFlags::ADDRESS_ONLY;
    (key, value.sealed(&key))
}

/// Flags of an endpoint's state word.
pub fn state_flags(endpoint: &Endpoint, host: bool) -> u32 {
    let bit = |on: bool, bit: u32| if on { bit } else { 0 };
    bit(endpoint.local, BackendState::LOCAL)
        | bit(host, BackendState::HOST)
        | bit(endpoint.in_cluster, BackendState::IN_CLUSTER)
        | bit(endpoint.in_local, BackendState::IN_LOCAL)
        | bit(endpoint.usable, BackendState::USABLE)
}

/// Flags of which every endpoint in use has one; an id with none of them is dead.
pub const ALIVE: u32 = BackendState::IN_CLUSTER | BackendState::IN_LOCAL | BackendState::USABLE;

/// The state word of the next generation, without flags. Never generation 0.
pub const fn next_generation(state: u32) -> u32 {
    let next = (state & BackendState::GENERATION).wrapping_add(BackendState::GENERATION_STEP);
    if next == 0 {
        BackendState::GENERATION_STEP
    } else {
        next
    }
}

/// A zone's number: a hash of its name, so that it is the same after a restart. 0 unknown.
pub fn zone_number(zone: Option<&Arc<str>>) -> u16 {
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

/// Keys of the source ranges of a service port, host bits cleared, sorted. None unless a load-balancer
/// frontend asks for them (semantics 12.1).
pub fn source_range_keys<F: Family>(want: &ServicePort, id: u32) -> Vec<SrcRangeKey<F>> {
    if !want
        .frontends
        .iter()
        .any(|f| f.kind == FrontendKindOrd::LoadBalancer)
    {
        return Vec::new();
    }
    let mut prefixes: Vec<_> = want
        .source_ranges
        .iter()
        .filter_map(|p| {
            let len = u32::from(p.len).min(if F::IS_V6 { 128 } else { 32 });
            Some((to_addr::<F>(network(p))?, len))
        })
        .collect();
    prefixes.sort_unstable();
    prefixes.dedup();
    prefixes
        .into_iter()
        .map(|(client, len)| SrcRangeKey {
            prefix_len: 32 + len,
            service_id: Be32::from_host(id),
            client,
        })
        .collect()
}

fn network(prefix: &Prefix) -> IpAddr {
    match prefix.addr {
        IpAddr::V4(addr) => {
            let mask = u32::MAX
                .checked_shl(32 - u32::from(prefix.len.min(32)))
                .unwrap_or(0);
            std::net::Ipv4Addr::from(u32::from(addr) & mask).into()
        }
        IpAddr::V6(addr) => {
            let mask = u128::MAX
                .checked_shl(128 - u32::from(prefix.len.min(128)))
                .unwrap_or(0);
            std::net::Ipv6Addr::from(u128::from(addr) & mask).into()
        }
    }
}

/// A service port with nothing: what a removed one is changed to.
pub fn nothing(key: &PortKey) -> ServicePort {
    ServicePort {
        key: key.clone(),
        frontends: Vec::new(),
        internal_local: false,
        external_local: false,
        affinity_secs: 0,
        source_ranges: Vec::new(),
        endpoints: Vec::new(),
        has_endpoints: false,
        external: false,
    }
}

/// The members of one list of a service port, `ids` parallel to its endpoints.
pub fn members(want: &ServicePort, ids: &[u32], local: bool, out: &mut Vec<Member>) {
    out.clear();
    out.extend(
        want.endpoints
            .iter()
            .zip(ids)
            .filter(|(e, id)| **id != 0 && if local { e.in_local } else { e.in_cluster })
            .map(|(e, id)| Member {
                addr: e.addr,
                port: e.port,
                id: *id,
            }),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_wraps_past_zero() {
        assert_eq!(next_generation(0), 0x100);
        assert_eq!(next_generation(0xffff_ff1f), 0x100);
    }
}
