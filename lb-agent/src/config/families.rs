//! Addresses of a family that the host or the Node does not have: an error where kube-proxy has one, else a warning
//! (semantics 9.3, 24.12).

use std::{net::IpAddr, path::Path};

use super::{
    compat::LocalDetector,
    error::{ConfigError, invalid},
    flags::RunArgs,
    values::Config,
};
use crate::{
    kube::objects::Node,
    net::{IpFamily, Prefix},
};

/// Whether the kernel has IPv6: without it this is a host of one family.
pub(super) fn host_has_ipv6() -> bool {
    Path::new("/proc/net/if_inet6").exists()
}

fn has(prefixes: &[Prefix], family: IpFamily) -> bool {
    let of = |prefix: &Prefix| IpFamily::of(&prefix.addr) == family;
    prefixes.iter().any(of)
}

const fn other(family: IpFamily) -> IpFamily {
    match family {
        IpFamily::V4 => IpFamily::V6,
        IpFamily::V6 => IpFamily::V4,
    }
}

/// Whether all of them, and at least one, are of the other family.
fn are_foreign(prefixes: &[Prefix], family: IpFamily) -> bool {
    has(prefixes, other(family)) && !has(prefixes, family)
}

/// What the flags alone tell.
pub(super) fn check(
    args: &RunArgs,
    cluster_cidrs: &[Prefix],
    bind: Option<IpAddr>,
    has_ipv6: bool,
    warnings: &mut Vec<String>,
) -> Result<(), ConfigError> {
    if has_ipv6 {
        return Ok(());
    }
    if are_foreign(cluster_cidrs, IpFamily::V4) {
        let mode = args.detect_local_mode.as_deref().unwrap_or_default();
        let problem = "has IPv6 prefixes only, and this host has no IPv6; add an IPv4 prefix";
        let given = args.cluster_cidr.join(",");
        // Without a mode kube-proxy goes by these prefixes, too.
        if matches!(mode, "" | "ClusterCIDR") {
            return Err(invalid("cluster-cidr", given, problem));
        }
        warnings.push(format!("--cluster-cidr {given}: {problem}"));
    }
    if bind.is_some_and(|addr| addr.is_ipv6()) {
        warnings.push(String::from(
            "--bind-address is of IPv6, which this host does not have; name an IPv4 address",
        ));
    }
    Ok(())
}

impl Config {
    /// What the Node says about families: what a person should know, or why this node cannot be served (semantics 9.3,
    /// 24.12). Its first address tells the primary family.
    pub(crate) fn check_node(&self, node: &Node) -> Result<Vec<String>, ConfigError> {
        let mut warnings = Vec::new();
        let Some(primary) = self.bind_address.as_ref().or(node.addresses.first()) else {
            return Ok(warnings);
        };
        let primary = IpFamily::of(primary);
        let name = primary.name();
        if are_foreign(&self.cluster_cidrs, primary) {
            warnings.push(format!(
                "--cluster-cidr has no {name} prefix, the family of the node's first address"
            ));
        }
        if are_foreign(&node.pod_cidrs, primary) {
            let problem = format!(
                "podCIDRs of the Node {} have no {name} prefix, the family of its first address",
                node.name
            );
            if self.local_detector == LocalDetector::NodeCidr {
                return Err(invalid("detect-local-mode", "NodeCIDR", problem));
            }
            warnings.push(problem);
        }
        let is_dual = |prefixes: &[Prefix]| IpFamily::BOTH.iter().all(|f| has(prefixes, *f));
        let addresses = |family| {
            node.addresses
                .iter()
                .any(|addr| IpFamily::of(addr) == family)
        };
        let is_dual_stack = is_dual(&self.cluster_cidrs)
            || is_dual(&node.pod_cidrs)
            || IpFamily::BOTH.into_iter().all(addresses);
        let open = IpFamily::BOTH.map(|family| self.node_port_addresses.is_open(family));
        let listed: Vec<Prefix> = self
            .node_port_list
            .split(',')
            .filter_map(|item| Prefix::parse(item.trim()))
            .collect();
        for family in IpFamily::BOTH {
            if is_dual_stack && are_foreign(&listed, family) && open[family.index()] {
                warnings.push(format!(
                    "--nodeport-addresses names no {} prefix: NodePorts of that family are served at every address of this node",
                    family.name()
                ));
            }
        }
        Ok(warnings)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        run: RunArgs,
    }

    fn config(has_ipv6: bool, flags: &[&str]) -> Result<Config, ConfigError> {
        let line = ["lb-agent", "--manifests", "/"].iter().chain(flags);
        let args = Line::try_parse_from(line).unwrap().run;
        args.checked(Vec::new(), has_ipv6)
    }

    fn node(addresses: &[&str], pod_cidrs: &[&str]) -> Node {
        let addresses = addresses.iter().map(|addr| addr.parse().unwrap());
        Node {
            name: "a".into(),
            zone: None,
            addresses: addresses.collect(),
            pod_cidrs: pod_cidrs
                .iter()
                .map(|text| Prefix::parse(text).unwrap())
                .collect(),
            leaving: false,
        }
    }

    // semantics 9.3, 24.12
    #[test]
    fn cluster_cidrs_of_a_family_that_the_host_lacks_are_fatal_in_their_mode() {
        let v6 = ["--cluster-cidr", "fd00::/48"];
        for mode in [&[][..], &["--detect-local-mode", "ClusterCIDR"]] {
            let error = config(false, &[&v6, mode].concat())
                .unwrap_err()
                .to_string();
            assert!(error.contains("--cluster-cidr fd00::/48"), "{error}");
        }
        let elsewhere = [&v6[..], &["--detect-local-mode", "NodeCIDR"]].concat();
        assert_eq!(config(false, &elsewhere).unwrap().warnings.len(), 1);
        assert!(config(true, &v6).unwrap().warnings.is_empty());
        let both = ["--cluster-cidr", "fd00::/48,10.244.0.0/16"];
        assert!(config(false, &both).unwrap().warnings.is_empty());
    }

    // semantics 9.3, 24.12
    #[test]
    fn pod_cidrs_of_the_other_family_alone_are_fatal_in_their_mode() {
        let of_v6 = node(&["192.0.2.1"], &["fd00::/64"]);
        let by_node = config(true, &["--detect-local-mode", "NodeCIDR"]).unwrap();
        let error = by_node.check_node(&of_v6).unwrap_err().to_string();
        assert!(error.contains("podCIDRs of the Node a"), "{error}");
        let both = node(&["192.0.2.1"], &["fd00::/64", "10.244.1.0/24"]);
        assert!(by_node.check_node(&both).unwrap().is_empty());
        let other = config(true, &[]).unwrap();
        assert_eq!(other.check_node(&of_v6).unwrap().len(), 1);
    }

    // semantics 24.7, 24.12
    #[test]
    fn prefixes_of_one_family_in_a_dual_stack_cluster_are_a_warning() {
        let dual = node(&["192.0.2.1", "fd00::1"], &[]);
        let warnings =
            |flags: &[&str], node: &Node| config(true, flags).unwrap().check_node(node).unwrap();
        let v4_only = ["--nodeport-addresses", "192.0.2.0/24"];
        let said = warnings(&v4_only, &dual);
        assert!(
            said.len() == 1 && said[0].contains("no IPv6 prefix"),
            "{said:?}"
        );
        for quiet in [
            "192.0.2.0/24,primary",
            "192.0.2.0/24,::/0,localhost",
            "primary",
        ] {
            let said = warnings(&["--nodeport-addresses", quiet], &dual);
            assert!(said.is_empty(), "{quiet}: {said:?}");
        }
        let single = node(&["192.0.2.1"], &["10.244.1.0/24"]);
        assert!(warnings(&v4_only, &single).is_empty());
        let said = warnings(&["--cluster-cidr", "fd00::/48"], &single);
        assert!(said[0].contains("no IPv4 prefix"), "{said:?}");
    }

    // semantics 20.3, 24.3, 24.12
    #[test]
    fn a_bind_address_is_the_primary_family_and_one_that_cannot_be_is_a_warning() {
        let v6 = ["--bind-address", "fd00::1"];
        let lacking = config(false, &v6).unwrap();
        assert!(
            lacking.warnings[0].contains("--bind-address"),
            "{:?}",
            lacking.warnings
        );
        let flags = [&v6[..], &["--cluster-cidr", "10.244.0.0/16"]].concat();
        let bound = config(true, &flags).unwrap();
        let said = bound
            .check_node(&node(&["192.0.2.1", "fd00::1"], &[]))
            .unwrap();
        assert!(
            said.len() == 1 && said[0].contains("no IPv6 prefix"),
            "{said:?}"
        );
        assert_eq!(bound.healthz.unwrap().to_string(), "[::]:10256");
        assert_eq!(bound.metrics.unwrap().to_string(), "[::1]:10249");
        assert!(config(true, &["--bind-address", "here"]).is_err());
    }
}
