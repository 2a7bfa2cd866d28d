//! The Node object, the kernel's addresses and the flags → this node as the decisions see it ([`NodeView`]) and as the
//! programs do (`config` and `node_addrs_*`).

use std::{collections::HashMap, net::IpAddr};

use anyhow::Result;
use lb_common::{
    Family,
    abi::{InterfaceRole, ModeFlags, NodeAddrFlags, NodeAddrKey},
};

use super::parts::Agent;
use crate::{
    bpf::maps::{MapResult, TypedMap},
    config::{Masquerade, ObjectSource, SocketLb},
    desired::{NodeView, node::accepted},
    kube::{batch::Batch, objects::ObjectEvent, store::List},
    net::IpFamily,
    node::{self, Interface},
    telemetry::log::wants_events,
};

impl Agent {
    /// Whether load balancers may send to this node (semantics 16.5). Manifests need no Node object; where there is an
    /// API server, a node without one is none of the cluster's.
    pub(super) fn is_eligible(&self) -> bool {
        let by_api = matches!(self.config.source, ObjectSource::Api(_));
        let is_leaving = self.objects.node().is_some_and(|node| node.leaving);
        !is_leaving && (self.is_node_there || !by_api)
    }

    /// This node as the decisions see it. Without a Node object its addresses are those of the default routes.
    pub(super) fn view(&self) -> NodeView {
        let node = self.objects.node();
        NodeView {
            name: self.config.node_name.clone(),
            zone: node.and_then(|node| node.zone.clone()),
            object_addresses: with_bind_address(
                self.config.bind_address,
                node.map(|node| node.addresses.clone())
                    .filter(|addresses| !addresses.is_empty())
                    .unwrap_or_else(|| self.snapshot.default_addresses()),
            ),
            local_addresses: self.snapshot.local_addresses(),
            node_port_addresses: self.config.node_port_addresses.clone(),
            allow_external_ips: self.config.allow_external_ips,
        }
    }

    /// Own address of a family: the Node object's, the default route's, or any external interface's.
    fn primary(&self, family: IpFamily) -> Option<IpAddr> {
        let of = |addr: &IpAddr| IpFamily::of(addr) == family;
        let external = |interface: Interface| match family {
            IpFamily::V4 => interface.saddr_v4.map(IpAddr::V4),
            IpFamily::V6 => interface.saddr_v6.map(IpAddr::V6),
        };
        let outside = |interface: &Interface| interface.role == InterfaceRole::External;
        let declared = self.desired.node().primary(family);
        declared
            .or_else(|| self.snapshot.default_addresses().into_iter().find(of))
            .or_else(|| {
                node::interfaces(&self.snapshot, &self.rules())
                    .into_iter()
                    .filter(outside)
                    .find_map(external)
            })
    }

    /// Writes the node's part of `config`, and `node_addrs_*`.
    pub(super) fn write_node(&mut self) -> Result<()> {
        self.observer.node_eligible(self.is_eligible());
        let (v4, v6) = (self.primary(IpFamily::V4), self.primary(IpFamily::V6));
        let modes = self.modes();
        let hz = self.ageing.hz();
        let (config, cookie) = (&self.config, self.cookie);
        self.entry.update(&mut |entry| {
            entry.node_v4 = if let Some(IpAddr::V4(addr)) = v4 {
                addr.into()
            } else {
                entry.node_v4
            };
            entry.node_v6 = if let Some(IpAddr::V6(addr)) = v6 {
                addr.into()
            } else {
                entry.node_v6
            };
            entry.modes = modes;
            entry.netns_cookie = cookie;
            entry.hz = hz;
            entry.refusals_per_sec = config.refusals_per_sec;
        })?;
        let view = self.desired.node();
        let maps = self.dataplane.store().maps();
        let flags = |family| addr_flags(view, family, if family == IpFamily::V4 { v4 } else { v6 });
        sync(
            &maps.v4.node_addrs,
            &flags(IpFamily::V4),
            |addr| match addr {
                IpAddr::V4(addr) => Some((*addr).into()),
                IpAddr::V6(_) => None,
            },
        )?;
        sync(
            &maps.v6.node_addrs,
            &flags(IpFamily::V6),
            |addr| match addr {
                IpAddr::V6(addr) => Some((*addr).into()),
                IpAddr::V4(_) => None,
            },
        )?;
        Ok(())
    }

    fn modes(&self) -> ModeFlags {
        let flags = [
            (
                self.config.masquerade == Masquerade::KubeProxy,
                ModeFlags::MASQUERADE_KUBE_PROXY,
            ),
            (self.config.masquerade_all, ModeFlags::MASQUERADE_ALL),
            (
                self.config.socket_lb == SocketLb::All,
                ModeFlags::SOCKET_ALL,
            ),
            (wants_events(), ModeFlags::DEBUG_EVENTS),
        ];
        flags
            .into_iter()
            .filter(|(on, _)| *on)
            .fold(ModeFlags::NONE, |modes, (_, flag)| modes | flag)
    }
}

/// Whether the Node exists, as far as a batch tells.
pub(super) fn tells_node(batch: &Batch) -> Option<bool> {
    let listed = batch.lists.iter().rfind(|relist| relist.list == List::Node);
    let is_there = |event: &ObjectEvent| matches!(event, ObjectEvent::Node(Some(_)));
    let listed = listed.map(|relist| relist.events.iter().any(is_there));
    let changed = batch.changes.iter().rev().find_map(|event| match event {
        ObjectEvent::Node(node) => Some(node.is_some()),
        _ => None,
    });
    changed.or(listed)
}

/// `--bind-address` takes the place of the node's addresses of its family (semantics 12.5).
fn with_bind_address(bind: Option<IpAddr>, known: Vec<IpAddr>) -> Vec<IpAddr> {
    let Some(bind) = bind else { return known };
    let others = known
        .into_iter()
        .filter(|addr| IpFamily::of(addr) != IpFamily::of(&bind));
    std::iter::once(bind).chain(others).collect()
}

/// Flags of each local address of a family.
fn addr_flags(
    view: &NodeView,
    family: IpFamily,
    primary: Option<IpAddr>,
) -> HashMap<IpAddr, NodeAddrFlags> {
    let local = view
        .local_addresses
        .iter()
        .copied()
        .filter(|addr| IpFamily::of(addr) == family);
    let mut flags: HashMap<IpAddr, NodeAddrFlags> =
        local.map(|addr| (addr, NodeAddrFlags::NONE)).collect();
    for addr in accepted(view, family) {
        *flags.entry(addr).or_default() |= NodeAddrFlags::NODE_PORT;
    }
    if let Some(addr) = primary {
        *flags.entry(addr).or_default() |= NodeAddrFlags::PRIMARY;
    }
    flags
}

/// Makes a map hold exactly these addresses.
fn sync<F: Family>(
    map: &TypedMap<NodeAddrKey<F>, NodeAddrFlags>,
    wanted: &HashMap<IpAddr, NodeAddrFlags>,
    of_family: impl Fn(&IpAddr) -> Option<F::Addr>,
) -> MapResult<()> {
    let wanted: HashMap<F::Addr, NodeAddrFlags> = wanted
        .iter()
        .filter_map(|(addr, flags)| Some((of_family(addr)?, *flags)))
        .collect();
    let present: HashMap<F::Addr, NodeAddrFlags> = map
        .entries()?
        .into_iter()
        .map(|(key, flags)| (key.addr, flags))
        .collect();
    for addr in present.keys().filter(|addr| !wanted.contains_key(addr)) {
        map.delete(&NodeAddrKey { addr: *addr })?;
    }
    for (addr, flags) in &wanted {
        if present.get(addr) != Some(flags) {
            map.update(&NodeAddrKey { addr: *addr }, flags)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, sync::Arc};

    use super::*;
    use crate::kube::batch::Relist;

    // semantics 2.6, 16.5
    #[test]
    fn a_batch_tells_whether_the_node_exists() {
        let node = |there: bool| ObjectEvent::Node(there.then(Arc::default));
        let list = |events| Relist {
            list: List::Node,
            events,
            keep: HashSet::default(),
        };
        let batch = |lists, changes| Batch {
            lists,
            changes,
            ..Batch::default()
        };
        let told = |lists, changes| tells_node(&batch(lists, changes));
        assert_eq!(told(vec![], vec![]), None);
        assert_eq!(told(vec![list(vec![])], vec![]), Some(false));
        assert_eq!(told(vec![list(vec![node(false)])], vec![]), Some(false));
        assert_eq!(told(vec![list(vec![node(true)])], vec![]), Some(true));
        assert_eq!(told(vec![], vec![node(true), node(false)]), Some(false));
        assert_eq!(told(vec![list(vec![])], vec![node(true)]), Some(true));
    }

    // semantics 12.5, 24.3
    #[test]
    fn a_bind_address_is_the_primary_one_of_its_family() {
        let addresses = ["192.0.2.1", "192.0.2.2", "fd00::1"].map(|addr| addr.parse().unwrap());
        let bind: IpAddr = "198.51.100.1".parse().unwrap();
        assert_eq!(
            with_bind_address(Some(bind), addresses.to_vec()),
            [bind, addresses[2]]
        );
        assert_eq!(with_bind_address(None, addresses.to_vec()), addresses);
    }

    #[test]
    fn addresses_carry_what_they_are_good_for() {
        let view = NodeView {
            object_addresses: vec!["192.0.2.1".parse().unwrap()],
            local_addresses: vec![
                "127.0.0.1".parse().unwrap(),
                "192.0.2.1".parse().unwrap(),
                "::1".parse().unwrap(),
            ],
            ..NodeView::default()
        };
        let flags = addr_flags(&view, IpFamily::V4, view.primary(IpFamily::V4));
        let own: IpAddr = "192.0.2.1".parse().unwrap();
        assert_eq!(
            flags[&own],
            NodeAddrFlags::NODE_PORT | NodeAddrFlags::PRIMARY
        );
        let loopback: IpAddr = "127.0.0.1".parse().unwrap();
        assert_eq!(flags[&loopback], NodeAddrFlags::NONE);
        assert_eq!(flags.len(), 2);
    }
}
