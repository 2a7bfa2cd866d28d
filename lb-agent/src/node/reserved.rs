//! Which ports the host hands out by itself → which ports source translation may take. Those that flags take from the
//! host's ephemeral ones are kept out of these (`net.ipv4.ip_local_reserved_ports`), beside what is reserved already.

use std::{env, fs, io, path::PathBuf};

use lb_common::abi::PortRange;

use crate::port_set::PortSet;

/// Names the directory with this node's `net/` settings where `/proc/sys` is not writable: in a container that is not
/// privileged the host's is mounted elsewhere.
const PROC_SYS: &str = "LB_PROC_SYS";
const RESERVED: &str = "ip_local_reserved_ports";
const EPHEMERAL: &str = "ip_local_port_range";

/// Below are the ports that only the privileged bind.
const FIRST_PORT: u16 = 1024;
/// The API server's default of `--service-node-port-range`.
const NODE_PORTS: PortRange = PortRange {
    first: 30_000,
    last: 32_767,
};

fn path(setting: &str) -> PathBuf {
    let root = env::var_os(PROC_SYS).map_or_else(|| PathBuf::from("/proc/sys"), PathBuf::from);
    root.join("net/ipv4").join(setting)
}

fn read(setting: &str) -> io::Result<PortSet> {
    parse(&fs::read_to_string(path(setting))?).map_err(io::Error::other)
}

/// A list, or the two ends of a range with a tab between, as `ip_local_port_range` has them.
fn parse(text: &str) -> Result<PortSet, lb_common::abi::PortRangeError> {
    let ends: Vec<&str> = text.split_ascii_whitespace().collect();
    match ends.as_slice() {
        [first, last] if !text.contains(',') => format!("{first}-{last}").parse(),
        _ => text.parse(),
    }
}

/// The ports that source translation may take where no flag names them: all that the host, NodePorts and reservations
/// leave.
pub(crate) fn snat_ports() -> io::Result<PortSet> {
    Ok(left(&read(EPHEMERAL)?, &read(RESERVED)?))
}

fn left(ephemeral: &PortSet, reserved: &PortSet) -> PortSet {
    let all = PortRange {
        first: FIRST_PORT,
        last: u16::MAX,
    };
    let mut ports = PortSet::from_iter([all]);
    for taken in [&PortSet::from_iter([NODE_PORTS]), ephemeral, reserved] {
        ports.subtract(taken);
    }
    ports
}

/// Keeps those of these ports that the host would hand out to its own sockets from them; `false`: there are none, or they
/// were reserved already.
pub(crate) fn reserve(ports: &PortSet) -> io::Result<bool> {
    let before = fs::read_to_string(path(RESERVED))?;
    let list = with(
        &before,
        &ports.ranges(),
        &read(EPHEMERAL)?,
        &parse(&before).map_err(io::Error::other)?,
    );
    if list == before.trim() {
        return Ok(false);
    }
    fs::write(path(RESERVED), list).map(|()| true)
}

/// Gives the ranges back that [`reserve`] added.
pub(crate) fn release(ports: &PortSet) -> io::Result<()> {
    let list = fs::read_to_string(path(RESERVED))?;
    let left = without(&list, &ports.ranges());
    if left == list.trim() {
        Ok(())
    } else {
        fs::write(path(RESERVED), left + "\n")
    }
}

/// The list with those ranges added that hold an ephemeral port which is not reserved.
fn with(list: &str, ranges: &[PortRange], ephemeral: &PortSet, reserved: &PortSet) -> String {
    let mut list = list.trim().to_owned();
    for range in ranges {
        let is_needed = range
            .ports()
            .any(|port| ephemeral.contains(port) && !reserved.contains(port));
        if is_needed {
            let comma = if list.is_empty() { "" } else { "," };
            list = format!("{list}{comma}{range}");
        }
    }
    list
}

fn without(list: &str, ranges: &[PortRange]) -> String {
    let added: Vec<String> = ranges.iter().map(PortRange::to_string).collect();
    let items = list.trim().split(',');
    items
        .filter(|item| !added.iter().any(|added| added == item))
        .collect::<Vec<_>>()
        .join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> PortSet {
        parse(text).unwrap()
    }

    #[test]
    fn source_translation_takes_what_nobody_else_does() {
        let ports = left(&set("32768\t60999\n"), &set("\n"));
        assert_eq!(ports.to_string(), "1024-29999,61000-65535");
        let ports = left(&set("1024\t65535\n"), &set(""));
        assert_eq!(ports.len(), 0);
        let ports = left(&set("40000 50000"), &set("8080,20000-20010\n"));
        assert_eq!(
            ports.to_string(),
            "1024-8079,8081-19999,20011-29999,32768-39999,50001-65535"
        );
    }

    fn reserved(list: &str, ports: &str, ephemeral: &str) -> String {
        with(list, &set(ports).ranges(), &set(ephemeral), &set(list))
    }

    #[test]
    fn what_is_reserved_stays_reserved() {
        let ephemeral = "15000\t60999";
        let wanted = "20000-29999";
        assert_eq!(reserved("\n", wanted, ephemeral), wanted);
        assert_eq!(
            reserved("80,8000-8100\n", wanted, ephemeral),
            "80,8000-8100,20000-29999"
        );
        let covered = "80,20000-30000";
        assert_eq!(reserved(covered, wanted, ephemeral), covered);
    }

    #[test]
    fn ports_that_the_host_never_hands_out_need_no_reservation() {
        let ephemeral = "32768\t60999";
        assert_eq!(reserved("80\n", "20000-29999", ephemeral), "80");
        assert_eq!(
            reserved("80\n", "20000-29999,40000-40099", ephemeral),
            "80,40000-40099"
        );
    }

    #[test]
    fn only_the_ranges_that_were_added_are_given_back() {
        let ranges = set("20000-29999,40000-40099").ranges();
        assert_eq!(
            without("80,8000-8100,20000-29999\n", &ranges),
            "80,8000-8100"
        );
        assert_eq!(without("20000-29999,40000-40099", &ranges), "");
        assert_eq!(without("80", &ranges), "80");
    }
}
