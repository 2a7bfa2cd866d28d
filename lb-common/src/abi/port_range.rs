//! A range of ports, as the configuration holds it and as flags write it.

use core::fmt;
use core::ops::RangeInclusive;
use core::str::FromStr;

/// A range of ports in host byte order, both ends in it.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct PortRange {
    /// Its first port.
    pub first: u16,
    /// Its last port, not below the first.
    pub last: u16,
}
const _: () = assert!(size_of::<PortRange>() == 4);

impl PortRange {
    /// The range of one port.
    pub const fn one(port: u16) -> PortRange {
        PortRange {
            first: port,
            last: port,
        }
    }
    /// Whether the port is in it.
    #[inline(always)]
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
    /// Whether every port of another range is in it.
    pub const fn covers(self, other: PortRange) -> bool {
        self.first <= other.first && other.last <= self.last
    }
    /// Its ports in order.
    pub const fn ports(self) -> RangeInclusive<u16> {
        self.first..=self.last
    }
}

/// A text that is no range of ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortRangeError;

impl fmt::Display for PortRangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("write FIRST-LAST, such as 20000-29999")
    }
}

impl core::error::Error for PortRangeError {}

impl FromStr for PortRange {
    type Err = PortRangeError;

    /// `FIRST-LAST`; spaces around a port are trimmed.
    fn from_str(text: &str) -> Result<PortRange, PortRangeError> {
        let port = |text: &str| text.trim().parse().map_err(|_no_port| PortRangeError);
        let (first, last) = text.split_once('-').ok_or(PortRangeError)?;
        let (first, last) = (port(first)?, port(last)?);
        (first <= last)
            .then_some(PortRange { first, last })
            .ok_or(PortRangeError)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::ToString as _;

    use super::*;

    #[test]
    fn a_range_of_ports_has_both_ends() {
        let range: PortRange = "8000 - 8100".parse().unwrap();
        assert_eq!(range.to_string(), "8000-8100");
        assert!([8000, 8050, 8100].iter().all(|port| range.contains(*port)));
        assert!(![7999, 8101].iter().any(|port| range.contains(*port)));
        assert!(range.covers("8001-8100".parse().unwrap()));
        assert!(!range.covers("8001-8101".parse().unwrap()));
        for bad in ["", "5", "9-8", "1-65536", "a-b"] {
            assert_eq!(bad.parse::<PortRange>(), Err(PortRangeError), "{bad}");
        }
    }
}
