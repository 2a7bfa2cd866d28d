//! The ports for source translation are kept out of the host's ephemeral ports
//! (`net.ipv4.ip_local_reserved_ports`), beside what is reserved already.

use std::{env, fs, io, path::PathBuf};

use lb_common::abi::PortRange;

/// Names the directory with this node's `net/` settings where `/proc/sys` is not writable: in a container that is not
/// privileged the host's is mounted elsewhere.
const PROC_SYS: &str = "LB_PROC_SYS";

fn path() -> PathBuf {
    let root = env::var_os(PROC_SYS).map_or_else(|| PathBuf::from("/proc/sys"), PathBuf::from);
    root.join("net/ipv4/ip_local_reserved_ports")
}

/// Reserves a range; `false`: it was reserved already.
pub(crate) fn reserve(range: PortRange) -> io::Result<bool> {
    match with_range(&fs::read_to_string(path())?, range) {
        Some(list) => fs::write(path(), list).map(|()| true),
        None => Ok(false),
    }
}

/// Gives a range back that [`reserve`] added.
pub(crate) fn release(range: PortRange) -> io::Result<()> {
    let list = fs::read_to_string(path())?;
    let left = without_range(&list, range);
    if left == list.trim() {
        Ok(())
    } else {
        fs::write(path(), left + "\n")
    }
}

fn without_range(list: &str, range: PortRange) -> String {
    let added = range.to_string();
    list.trim()
        .split(',')
        .filter(|item| *item != added)
        .collect::<Vec<_>>()
        .join(",")
}

/// The list with the range added; `None`: it is in there.
fn with_range(list: &str, range: PortRange) -> Option<String> {
    let list = list.trim();
    let ranges = list.split(',').filter_map(|item| match item.contains('-') {
        true => item.parse().ok(),
        false => item.trim().parse().ok().map(PortRange::one),
    });
    if ranges
        .into_iter()
        .any(|other: PortRange| other.covers(range))
    {
        return None;
    }
    let added = range.to_string();
    Some(if list.is_empty() {
        added
    } else {
        format!("{list},{added}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: PortRange = PortRange {
        first: 20_000,
        last: 29_999,
    };

    #[test]
    fn what_is_reserved_stays_reserved() {
        assert_eq!(with_range("\n", RANGE).as_deref(), Some("20000-29999"));
        assert_eq!(
            with_range("80,8000-8100\n", RANGE).as_deref(),
            Some("80,8000-8100,20000-29999")
        );
        assert_eq!(with_range("80,20000-30000\n", RANGE), None);
    }

    #[test]
    fn only_the_range_that_was_added_is_given_back() {
        assert_eq!(
            without_range("80,8000-8100,20000-29999\n", RANGE),
            "80,8000-8100"
        );
        assert_eq!(without_range("20000-29999", RANGE), "");
        assert_eq!(without_range("80", RANGE), "80");
    }
}
