//! What the decisions need of this node: its name, zone and addresses, and on which of these
//! NodePorts are accepted (semantics 14).

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
    sync::Arc,
};

use crate::net::{IpFamily, Prefix};

/// This node as the decisions see it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeView {
    /// Its name, lower-cased.
    pub name: String,
    /// Its zone label, where it has one.
    pub zone: Option<Arc<str>>,
    /// Addresses of the Node object, InternalIPs before ExternalIPs.
    pub object_addresses: Vec<IpAddr>,
    /// Addresses that the kernel considers local.
    pub local_addresses: Vec<IpAddr>,
    /// Where NodePorts are accepted.
    pub node_port_addresses: NodePortAddresses,
    /// Whether `spec.externalIPs` are served (semantics 4.3).
    pub allow_external_ips: bool,
}

impl NodeView {
    /// The node's primary address of a family (semantics 12.5).
    pub fn primary(&self, family: IpFamily) -> Option<IpAddr> {
        self.object_addresses
            .iter()
            .copied()
            .find(|addr| IpFamily::of(addr) == family)
    }
}

/// Where NodePorts are accepted: `--nodeport-addresses`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodePortAddresses {
    primary: bool,
    prefixes: Vec<Prefix>,
}

impl Default for NodePortAddresses {
    fn default() -> Self {
        NodePortAddresses {
            primary: true,
            prefixes: Vec::new(),
        }
    }
}

impl NodePortAddresses {
    fn of_family(&self, family: IpFamily) -> impl Iterator<Item = &Prefix> {
        let is_of_family = move |prefix: &&Prefix| IpFamily::of(&prefix.addr) == family;
        self.prefixes.iter().filter(is_of_family)
    }
    /// Whether every address of a family is accepted (14.5, 14.6).
    pub fn is_open(&self, family: IpFamily) -> bool {
        let mut prefixes = self.of_family(family).peekable();
        (prefixes.peek().is_none() && !self.primary) || prefixes.any(|prefix| prefix.len == 0)
    }
}

/// A `--nodeport-addresses` that cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NodePortAddressesError {
    /// Neither a prefix nor a keyword.
    #[error(
        "`{0}` is no prefix; write prefixes such as 192.0.2.0/24, or primary, localhost or all"
    )]
    Unknown(String),
    /// A keyword that is there already.
    #[error("`{0}` is given twice; write it once")]
    Twice(String),
}

impl FromStr for NodePortAddresses {
    type Err = NodePortAddressesError;

    /// Prefixes and the keywords `primary`, `localhost` and `all`, separated by commas (14.1).
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parsed = NodePortAddresses {
            primary: false,
            prefixes: Vec::new(),
        };
        let mut keywords = BTreeSet::new();
        for item in text.split(',').map(str::trim) {
            match item {
                "primary" => parsed.primary = true,
                "localhost" => parsed.prefixes.extend([
                    Prefix {
                        addr: Ipv4Addr::new(127, 0, 0, 0).into(),
                        len: 8,
                    },
                    Prefix {
                        addr: Ipv6Addr::LOCALHOST.into(),
                        len: 128,
                    },
                ]),
                "all" => parsed.prefixes.extend([
                    Prefix {
                        addr: Ipv4Addr::UNSPECIFIED.into(),
                        len: 0,
                    },
                    Prefix {
                        addr: Ipv6Addr::UNSPECIFIED.into(),
                        len: 0,
                    },
                ]),
                _ => {
                    let prefix = Prefix::parse(item);
                    let unknown = || NodePortAddressesError::Unknown(item.to_owned());
                    parsed.prefixes.push(prefix.ok_or_else(unknown)?);
                    continue;
                }
            }
            if !keywords.insert(item) {
                return Err(NodePortAddressesError::Twice(item.to_owned()));
            }
        }
        Ok(parsed)
    }
}

/// The addresses of a family on which this node accepts NodePorts, sorted.
///
/// `primary` without an address of the family opens nothing (14.3); a family that the list does not
/// mention is open on all local addresses (14.5). Loopback is accepted only where a prefix that lies
/// in loopback names it (14.8a), IPv6 link-local addresses only where a prefix longer than zero
/// does: they are no more than one interface's, and every interface has one.
pub(crate) fn accepted(node: &NodeView, family: IpFamily) -> Vec<IpAddr> {
    let rules = &node.node_port_addresses;
    let prefixes: Vec<&Prefix> = rules.of_family(family).collect();
    let mut accepted = BTreeSet::new();
    if rules.primary {
        accepted.extend(node.primary(family).filter(|addr| !addr.is_loopback()));
    }
    let named = |addr: &IpAddr, wanted: fn(&Prefix) -> bool| {
        prefixes
            .iter()
            .any(|prefix| wanted(prefix) && prefix.contains(addr))
    };
    let open = prefixes.is_empty() && !rules.primary;
    let loopback: IpAddr = match family {
        IpFamily::V4 => Ipv4Addr::LOCALHOST.into(),
        IpFamily::V6 => Ipv6Addr::LOCALHOST.into(),
    };
    let local = node.local_addresses.iter().chain([&loopback]).copied();
    accepted.extend(
        local
            .filter(|addr| IpFamily::of(addr) == family)
            .filter(|addr| {
                if addr.is_loopback() {
                    named(addr, |prefix| prefix.addr.is_loopback())
                } else if is_link_local(addr) {
                    named(addr, |prefix| prefix.len > 0)
                } else {
                    open || named(addr, |_| true)
                }
            }),
    );
    accepted.into_iter().collect()
}

/// The address that stands for any of a family.
pub(crate) const fn unspecified(family: IpFamily) -> IpAddr {
    match family {
        IpFamily::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpFamily::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

/// Whether an address means something on one link only.
pub(crate) fn is_link_local(addr: &IpAddr) -> bool {
    matches!(addr, IpAddr::V6(addr) if addr.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::testing::node;

    fn accepted_with(flag: &str, family: IpFamily, node: &NodeView) -> Vec<String> {
        let node = NodeView {
            node_port_addresses: flag.parse().unwrap(),
            ..node.clone()
        };
        accepted(&node, family)
            .iter()
            .map(IpAddr::to_string)
            .collect()
    }

    #[test]
    fn node_ports_are_accepted_where_the_flag_says() {
        use IpFamily::{V4, V6};
        // 192.0.2.11, 2001:db8:1::11 are the Node object's; local are also 10.0.0.1, 127.0.0.1,
        // 127.0.0.2, ::1, fe80::1.
        let node = node();
        let all4 = ["10.0.0.1", "192.0.2.11"].as_slice();
        for (flag, family, wanted) in [
            ("primary", V4, ["192.0.2.11"].as_slice()), // semantics 14.3
            ("primary", V6, &["2001:db8:1::11"]),
            ("10.0.0.0/8", V4, &["10.0.0.1"]), // semantics 14.4
            ("10.0.0.0/8", V6, &["2001:db8:1::11"]), // semantics 14.5, 20.6
            ("172.16.0.0/12", V4, &[]),
            ("0.0.0.0/0,10.0.0.0/8", V4, all4), // semantics 14.6
            ("all", V4, all4),                  // semantics 14.7: no loopback
            ("all", V6, &["2001:db8:1::11"]),
            ("localhost", V4, &["127.0.0.1", "127.0.0.2"]), // semantics 14.8
            ("localhost", V6, &["::1"]),
            ("127.0.0.1/32", V4, &["127.0.0.1"]),
            ("127.0.0.2/32", V4, &["127.0.0.2"]), // semantics 28.37
            (
                "all,localhost",
                V4,
                &["10.0.0.1", "127.0.0.1", "127.0.0.2", "192.0.2.11"],
            ),
            (
                "primary,localhost",
                V4,
                &["127.0.0.1", "127.0.0.2", "192.0.2.11"],
            ),
            ("primary,10.0.0.0/8", V4, all4),
            ("primary,10.0.0.0/8", V6, &["2001:db8:1::11"]),
            ("fe80::/10", V6, &["fe80::1"]),
        ] {
            assert_eq!(
                accepted_with(flag, family, &node),
                wanted,
                "{flag} {family:?}"
            );
        }
    }

    #[test]
    fn primary_opens_nothing_in_a_family_without_address() {
        // semantics 14.3, 28.33 [ours]
        let mut node = node();
        node.object_addresses.retain(IpAddr::is_ipv4);
        assert!(accepted_with("primary", IpFamily::V6, &node).is_empty());
        assert!(accepted_with("primary,10.0.0.0/8", IpFamily::V6, &node).is_empty());
        node.object_addresses = vec![Ipv4Addr::LOCALHOST.into()];
        assert!(accepted_with("primary", IpFamily::V4, &node).is_empty());
    }

    #[test]
    fn a_bad_list_names_the_item() {
        // semantics 14.1
        let twice = "primary,primary".parse::<NodePortAddresses>().unwrap_err();
        assert_eq!(twice, NodePortAddressesError::Twice("primary".into()));
        for bad in ["192.0.2.1", "primry", ""] {
            let error = bad.parse::<NodePortAddresses>().unwrap_err();
            assert_eq!(error, NodePortAddressesError::Unknown(bad.into()));
        }
    }
}
