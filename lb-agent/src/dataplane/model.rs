//! One service port → the entries that its maps should hold. Pure: what is wanted, not what is there.

use std::net::IpAddr;

use lb_common::{
    abi::{Be16, Be32, SelectionList, Service, ServiceFlags, ServiceKey, SrcRangeKey},
    family::{Address, Family},
};

use super::maglev::{Member, rows_for};
use crate::{
    desired::state::{Frontend, FrontendKindOrd, PortKey, ServicePort},
    net::Prefix,
};

/// The address as it lies in the packet; `None` for one of the other family.
pub(crate) fn to_addr<F: Family>(addr: IpAddr) -> Option<F::Addr> {
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
pub(crate) fn to_ip<F: Family>(addr: &F::Addr) -> IpAddr {
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
pub(crate) fn service_key<F: Family>(frontend: &Frontend, proto: u8) -> Option<ServiceKey<F>> {
    Some(ServiceKey::new(
        to_addr::<F>(frontend.addr)?,
        Be16::from_host(frontend.port),
        proto,
    ))
}

/// Keys of the frontends of a service port.
pub(crate) fn service_keys<F: Family>(want: &ServicePort) -> impl Iterator<Item = ServiceKey<F>> {
    let proto = want.key.name.protocol.number();
    want.frontends
        .iter()
        .filter_map(move |frontend| service_key(frontend, proto))
}

/// The table of a list in the map.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Table {
    /// Its rows.
    pub(crate) range: SelectionList,
    /// Endpoints of the list that have an id.
    pub(crate) endpoints: u32,
    /// Whether its rows are those that Maglev gives the list. Else each was set by itself, or nobody knows.
    pub(crate) is_whole: bool,
}

impl Table {
    /// Endpoints that its rows name.
    pub(crate) fn served(&self) -> u32 {
        self.range.len.min(self.endpoints)
    }

    /// How good it is, in rows of a table made for the list: one that was not is worse than a row an endpoint, because
    /// no other node has the same.
    pub(crate) fn worth(&self) -> u32 {
        if self.is_whole {
            self.range.len
        } else {
            self.range.len.min(self.endpoints.saturating_sub(1))
        }
    }

    /// Whether it is what the list of a port of this kind is to have.
    pub(crate) fn is_proper(&self, external: bool) -> bool {
        self.endpoints == 0
            || self.is_whole && self.range.len == rows_for(self.endpoints as usize, external)
    }
}

/// The tables of a service port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Tables {
    /// Of the Cluster list.
    pub(crate) cluster: Table,
    /// Of the Local list.
    pub(crate) local: Table,
}

impl Tables {
    /// Those that have rows.
    pub(crate) fn with_rows(&self) -> impl Iterator<Item = SelectionList> {
        let ranges = [self.cluster.range, self.local.range].into_iter();
        ranges.filter(|range| range.len > 0)
    }
}

/// The entry of a frontend.
pub(crate) fn service_value<F: Family>(
    want: &ServicePort,
    kind: FrontendKindOrd,
    key: &ServiceKey<F>,
    id: u32,
    tables: &Tables,
) -> Service {
    let mut flags = ServiceFlags::NONE;
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
    value.cluster = tables.cluster.range;
    value.local = tables.local.range;
    value.affinity_secs = want.affinity_secs;
    value.kind = kind.abi() as u8;
    value.flags = flags;
    value.sealed(key)
}

/// The entry that stands for a whole ClusterIP: what no Service defines on it is refused (semantics 11.1).
pub(crate) fn address_entry<F: Family>(addr: F::Addr) -> (ServiceKey<F>, Service) {
    let key = ServiceKey::new(addr, Be16::default(), 0);
    let mut value = Service::default();
    value.kind = FrontendKindOrd::ClusterIp.abi() as u8;
    value.flags = ServiceFlags::ADDRESS_ONLY;
    (key, value.sealed(&key))
}

/// Keys of the source ranges of a service port, host bits cleared, sorted. None unless a load-balancer
/// frontend asks for them (semantics 12.1).
pub(crate) fn source_range_keys<F: Family>(want: &ServicePort, id: u32) -> Vec<SrcRangeKey<F>> {
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
            let network = Prefix::masked(p.addr, p.len)?;
            Some((to_addr::<F>(network.addr)?, u32::from(network.len)))
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

/// A service port with nothing: what a removed one is changed to.
pub(crate) fn nothing(key: &PortKey) -> ServicePort {
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
pub(crate) fn members(want: &ServicePort, ids: &[u32], local: bool, out: &mut Vec<Member>) {
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
