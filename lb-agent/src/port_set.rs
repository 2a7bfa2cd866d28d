//! Sets of ports: as flags and sysctls write them (`80,8000-8100`), and as an element of `port_filter`.

use std::{fmt, str::FromStr};

use lb_common::abi::{PORT_FILTER_WORDS, PortFilter, PortRange, PortRangeError};

/// A set of ports.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct PortSet(Box<PortFilter>);

impl Default for PortSet {
    fn default() -> Self {
        PortSet(Box::new(PortFilter {
            words: [0; PORT_FILTER_WORDS],
        }))
    }
}

impl PortSet {
    /// Whether a port is in it.
    pub(crate) fn contains(&self, port: u16) -> bool {
        self.0.words[usize::from(port / 32)] >> (port % 32) & 1 == 1
    }
    /// Takes a port in, or out.
    pub(crate) fn set(&mut self, port: u16, is_in: bool) {
        let word = &mut self.0.words[usize::from(port / 32)];
        *word = *word & !(1 << (port % 32)) | u32::from(is_in) << (port % 32);
    }
    /// Takes a range in.
    pub(crate) fn add(&mut self, range: PortRange) {
        range.ports().for_each(|port| self.set(port, true));
    }
    /// Takes another set out.
    pub(crate) fn subtract(&mut self, other: &PortSet) {
        for (word, other) in self.0.words.iter_mut().zip(other.0.words) {
            *word &= !other;
        }
    }
    /// Takes every port out.
    pub(crate) fn clear(&mut self) {
        self.0.words.fill(0);
    }
    /// Number of ports.
    pub(crate) fn len(&self) -> usize {
        self.0.words.iter().map(|w| w.count_ones() as usize).sum()
    }
    /// Its ports in order.
    pub(crate) fn ports(&self) -> impl Iterator<Item = u16> {
        let words = (0u16..).zip(self.0.words).filter(|(_, bits)| *bits != 0);
        words.flat_map(|(word, bits)| {
            (0u16..32)
                .filter(move |bit| bits >> bit & 1 == 1)
                .map(move |bit| word * 32 + bit)
        })
    }
    /// Its ports as ranges, in order.
    pub(crate) fn ranges(&self) -> Vec<PortRange> {
        let mut ranges: Vec<PortRange> = Vec::new();
        for port in self.ports() {
            match ranges.last_mut() {
                Some(range) if range.last.checked_add(1) == Some(port) => range.last = port,
                _ => ranges.push(PortRange::one(port)),
            }
        }
        ranges
    }
    /// The smallest range that holds it; 0-0: it is empty.
    pub(crate) fn span(&self) -> PortRange {
        let ranges = self.ranges();
        match (ranges.first(), ranges.last()) {
            (Some(first), Some(last)) => PortRange {
                first: first.first,
                last: last.last,
            },
            _ => PortRange::default(),
        }
    }
    /// As an element of `port_filter`.
    pub(crate) fn filter(&self) -> &PortFilter {
        &self.0
    }
    /// As an element of `port_filter`.
    pub(crate) fn filter_mut(&mut self) -> &mut PortFilter {
        &mut self.0
    }
}

impl FromIterator<PortRange> for PortSet {
    fn from_iter<I: IntoIterator<Item = PortRange>>(ranges: I) -> Self {
        let mut set = PortSet::default();
        ranges.into_iter().for_each(|range| set.add(range));
        set
    }
}

impl FromStr for PortSet {
    type Err = PortRangeError;

    /// Ranges and single ports, with commas between; spaces are trimmed, nothing at all is the empty set.
    fn from_str(text: &str) -> Result<PortSet, PortRangeError> {
        let items = text.split(',').map(str::trim);
        items
            .filter(|item| !item.is_empty())
            .map(|item| match item.parse() {
                Ok(port) => Ok(PortRange::one(port)),
                Err(_) => item.parse::<PortRange>(),
            })
            .collect()
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, range) in self.ranges().iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            if range.first == range.last {
                write!(f, "{comma}{}", range.first)?;
            } else {
                write!(f, "{comma}{range}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PortSet({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> PortSet {
        text.parse().unwrap()
    }

    #[test]
    fn a_set_is_written_as_sysctls_write_it() {
        assert_eq!(set("8001-8100, 80,8000\n").to_string(), "80,8000-8100");
        assert_eq!(set("\n").to_string(), "");
        assert_eq!(set("65535,0").to_string(), "0,65535");
        for bad in ["x", "9-8", "65536", "1-2-3"] {
            assert!(bad.parse::<PortSet>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_taken_out_leaves_holes() {
        let mut ports = set("1024-65535");
        ports.subtract(&set("30000-32767,32768-60999,8080"));
        assert_eq!(ports.to_string(), "1024-8079,8081-29999,61000-65535");
        assert_eq!(ports.len(), 28_975 + 4_536);
        let span = ports.span();
        assert_eq!((span.first, span.last), (1024, 65_535));
        assert_eq!(PortSet::default().span(), PortRange::default());
    }
}
