//! `interfaces`: what the programs know of each interface that is served.

use std::ffi::CStr;

use anyhow::Result;
use lb_common::abi::{Interface, InterfaceFlags, InterfaceRole};
use serde::Serialize;

use super::table::{Output, print};
use crate::bpf::maps::Maps;

/// An interface.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// Its index.
    pub ifindex: u32,
    /// Its name in the namespace of the command; absent where it has none.
    pub name: Option<String>,
    /// `external` or `pod`.
    pub role: &'static str,
    /// Largest IP packet.
    pub mtu: u32,
    /// Link-layer address; absent without.
    pub mac: Option<String>,
    /// XDP may transmit by it.
    pub xdp_transmit: bool,
}

impl Row {
    fn new(ifindex: u32, name: Option<String>, interface: &Interface) -> Row {
        let pod = interface.role == InterfaceRole::Pod as u8;
        let octets = interface.mac.octets().map(|octet| format!("{octet:02x}"));
        Row {
            ifindex,
            name,
            role: if pod { "pod" } else { "external" },
            mtu: interface.mtu,
            mac: (!interface.mac.is_zero()).then(|| octets.join(":")),
            xdp_transmit: interface.flags & InterfaceFlags::XDP_TRANSMIT != 0,
        }
    }
}

fn name(ifindex: u32) -> Option<String> {
    let mut buffer = [0; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the IF_NAMESIZE bytes that the call may write.
    let found = unsafe { libc::if_indextoname(ifindex, buffer.as_mut_ptr()) };
    let bytes = buffer.map(|c| c.to_ne_bytes()[0]);
    (!found.is_null())
        .then(|| {
            CStr::from_bytes_until_nul(&bytes)
                .ok()
                .map(|name| name.to_string_lossy().into_owned())
        })
        .flatten()
}

/// Prints the interfaces.
pub fn interfaces(maps: &Maps, output: Output) -> Result<()> {
    let mut rows: Vec<_> = maps
        .interfaces
        .entries()?
        .iter()
        .map(|(ifindex, interface)| Row::new(*ifindex, name(*ifindex), interface))
        .collect();
    rows.sort_by_key(|row| row.ifindex);
    print(
        output,
        ["IFINDEX", "NAME", "ROLE", "MTU", "MAC", "XDP-TRANSMIT"],
        &rows,
        |r| {
            let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
            [
                r.ifindex.to_string(),
                or_dash(&r.name),
                r.role.into(),
                r.mtu.to_string(),
                or_dash(&r.mac),
                r.xdp_transmit.to_string(),
            ]
        },
    )
}

#[cfg(test)]
mod tests {
    use lb_common::abi::MacAddr;

    use super::*;

    #[test]
    fn a_row_shows_role_and_address() {
        let interface = Interface {
            role: InterfaceRole::Pod as u8,
            mac: MacAddr::new([2, 0, 0, 0, 0, 10]),
            ..Interface::default()
        };
        let row = Row::new(3, None, &interface);
        assert_eq!(
            (row.role, row.mac.as_deref(), row.xdp_transmit),
            ("pod", Some("02:00:00:00:00:0a"), false)
        );
    }
}
