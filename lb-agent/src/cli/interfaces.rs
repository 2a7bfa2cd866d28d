//! `interfaces`: what the programs know of each interface that is served, and what is attached to it.

use std::{collections::BTreeMap, ffi::CStr, fs, os::fd::AsFd as _, path::Path};

use anyhow::Result;
use lb_common::abi::{Interface, InterfaceFlags, InterfaceRole};
use serde::Serialize;

use super::{
    query::View,
    table::{NOTHING, or_nothing, print},
};
use crate::{
    bpf::{maps::Maps, sys},
    node::{
        netlink::Socket,
        tc::{self, Direction},
    },
    telemetry::state::{InterfaceReport, State},
};

/// An interface.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
pub(super) struct Row {
    /// Its index.
    pub ifindex: u32,
    /// Its name; absent where it has none.
    pub name: Option<String>,
    /// `external` or `pod`.
    pub role: &'static str,
    /// What is attached: `tc-ingress`, `tc-egress`, `xdp-native`, `xdp-generic`, `clsact-ingress`,
    /// `clsact-egress`.
    pub hooks: Vec<String>,
    /// Why tc programs are not attached; absent where they are, or where the reason is not known.
    pub tc_problem: Option<String>,
    /// Why XDP is not attached.
    pub xdp_reason: Option<String>,
    /// Largest IP packet.
    pub mtu: u32,
    /// Link-layer address; absent without.
    pub mac: Option<String>,
    /// Source address of translated packets that leave by it, IPv4.
    pub source_v4: Option<String>,
    /// The same for IPv6.
    pub source_v6: Option<String>,
    /// XDP may transmit by it.
    pub xdp_transmit: bool,
}

impl Row {
    fn new(
        ifindex: u32,
        name: Option<String>,
        interface: &Interface,
        hooks: Vec<String>,
        report: Option<&InterfaceReport>,
    ) -> Row {
        let pod = interface.role == InterfaceRole::Pod as u8;
        let octets = interface.mac.octets().map(|octet| format!("{octet:02x}"));
        let (v4, v6) = (
            std::net::Ipv4Addr::from(interface.saddr_v4),
            std::net::Ipv6Addr::from(interface.saddr_v6),
        );
        Row {
            ifindex,
            name,
            role: if pod { "pod" } else { "external" },
            hooks,
            tc_problem: report.and_then(|report| report.tc_problem.clone()),
            xdp_reason: report.and_then(|report| report.xdp_reason.clone()),
            mtu: interface.mtu,
            mac: (!interface.mac.is_zero()).then(|| octets.join(":")),
            source_v4: (!v4.is_unspecified()).then(|| v4.to_string()),
            source_v6: (!v6.is_unspecified()).then(|| v6.to_string()),
            xdp_transmit: interface.flags.contains(InterfaceFlags::XDP_TRANSMIT),
        }
    }

    /// How tc programs are attached, in a word.
    pub(super) fn tc(&self) -> String {
        let both = |prefix: &str| {
            self.hooks
                .iter()
                .filter(|hook| hook.starts_with(prefix))
                .count()
                == 2
        };
        if both("tc-") {
            "tcx".into()
        } else if both("clsact-") {
            "clsact".into()
        } else {
            self.tc_problem
                .as_ref()
                .map_or_else(|| "missing".into(), |problem| format!("failed: {problem}"))
        }
    }

    /// How XDP is attached, in a word, or why not.
    pub(super) fn xdp(&self) -> String {
        let hook = self.hooks.iter().find_map(|hook| hook.strip_prefix("xdp-"));
        match (hook, &self.xdp_reason) {
            (Some(mode), _) if self.xdp_transmit => format!("{mode}, transmits"),
            (Some(mode), _) => mode.into(),
            (None, Some(reason)) => format!("no: {reason}"),
            (None, None) => "no".into(),
        }
    }
}

/// Names of hooks with a link of ours, by interface; those of sockets under index 0.
pub(super) fn links(dir: &Path) -> BTreeMap<u32, Vec<String>> {
    let mut hooks: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for entry in fs::read_dir(dir.join("links"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let pin = entry.file_name().to_string_lossy().into_owned();
        let Ok(info) = sys::obj_get(&entry.path(), 0).and_then(|link| sys::link_info(link.as_fd()))
        else {
            continue;
        };
        let (place, hook) = pin.split_once('-').unwrap_or_default();
        match place.parse() {
            // A link whose device is gone has target 0.
            Ok(ifindex) if info.target == ifindex => {
                hooks.entry(ifindex).or_default().push(hook.to_owned())
            }
            Err(_) if place == "cgroup" => hooks.entry(0).or_default().push(hook.to_owned()),
            _ => {}
        }
    }
    hooks.values_mut().for_each(|hooks| hooks.sort());
    hooks
}

/// Filters of ours at an interface of this namespace.
fn filters(socket: &mut Socket, ifindex: u32) -> Vec<String> {
    [
        (Direction::Egress, "clsact-egress"),
        (Direction::Ingress, "clsact-ingress"),
    ]
    .into_iter()
    .filter(|(direction, _)| matches!(tc::attached(socket, ifindex, *direction), Ok(Some(_))))
    .map(|(_, name)| name.to_owned())
    .collect()
}

fn name(ifindex: u32) -> Option<String> {
    let mut buffer = [0; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the IF_NAMESIZE bytes that the call may write.
    let found = unsafe { libc::if_indextoname(ifindex, buffer.as_mut_ptr()) };
    let bytes = buffer.map(|c| c.to_ne_bytes()[0]);
    let name = CStr::from_bytes_until_nul(&bytes).ok()?;
    (!found.is_null()).then(|| name.to_string_lossy().into_owned())
}

/// The interfaces, by index.
pub(super) fn rows(maps: &Maps, state: Option<&State>) -> Result<Vec<Row>> {
    let mut links = links(&maps.dir);
    let mut socket = Socket::new().ok();
    let reports = state
        .map(|state| state.interfaces.as_slice())
        .unwrap_or_default();
    let mut rows: Vec<_> = maps
        .interfaces
        .entries()?
        .iter()
        .map(|(ifindex, interface)| {
            let mut hooks = links.remove(ifindex).unwrap_or_default();
            if !hooks.iter().any(|hook| hook.starts_with("tc-")) {
                hooks.extend(
                    socket
                        .as_mut()
                        .map(|socket| filters(socket, *ifindex))
                        .unwrap_or_default(),
                );
            }
            // The agent's namespace may be another than this command's.
            let report = reports.iter().find(|report| report.ifindex == *ifindex);
            let name = report
                .map(|report| report.name.clone())
                .or_else(|| name(*ifindex));
            Row::new(*ifindex, name, interface, hooks, report)
        })
        .collect();
    rows.sort_by_key(|row| row.ifindex);
    Ok(rows)
}

/// Prints the interfaces.
pub(super) fn interfaces(view: &View) -> Result<()> {
    let rows = rows(&view.maps, view.state.as_ref())?;
    let heads = [
        "INDEX",
        "NAME",
        "ROLE",
        "TC",
        "MTU",
        "MAC",
        "SOURCE",
        "SOURCE-V6",
        "XDP",
    ];
    print(view.output, heads, &rows, |r| {
        [
            r.ifindex.to_string(),
            or_nothing(r.name.as_deref()),
            r.role.into(),
            r.tc(),
            if r.mtu == 0 {
                NOTHING.into()
            } else {
                r.mtu.to_string()
            },
            or_nothing(r.mac.as_deref()),
            or_nothing(r.source_v4.as_deref()),
            or_nothing(r.source_v6.as_deref()),
            r.xdp(),
        ]
    })
}

#[cfg(test)]
mod tests {
    use lb_common::abi::MacAddr;

    use super::*;

    fn row(hooks: &[&str], report: Option<&InterfaceReport>) -> Row {
        let interface = Interface {
            role: InterfaceRole::Pod as u8,
            mac: MacAddr::new([2, 0, 0, 0, 0, 10]),
            ..Interface::default()
        };
        Row::new(
            3,
            None,
            &interface,
            hooks.iter().map(|hook| (*hook).to_owned()).collect(),
            report,
        )
    }

    #[test]
    fn a_row_shows_role_address_and_hooks() {
        let row = row(&["tc-egress", "tc-ingress", "xdp-native"], None);
        assert_eq!(
            (row.role, row.mac.as_deref(), row.xdp_transmit),
            ("pod", Some("02:00:00:00:00:0a"), false)
        );
        assert_eq!(
            (
                row.tc().as_str(),
                row.xdp().as_str(),
                row.source_v4.as_deref()
            ),
            ("tcx", "native", None)
        );
    }

    #[test]
    fn what_is_not_attached_says_why() {
        let report = InterfaceReport {
            tc_problem: Some("taken".into()),
            xdp_reason: Some("its tc hooks are missing".into()),
            ..InterfaceReport::default()
        };
        assert_eq!(row(&["tc-egress"], Some(&report)).tc(), "failed: taken");
        assert_eq!(
            row(&[], Some(&report)).xdp(),
            "no: its tc hooks are missing"
        );
        assert_eq!(
            row(&["clsact-egress", "clsact-ingress"], None).tc(),
            "clsact"
        );
        assert_eq!(row(&[], None).tc(), "missing");
    }
}
