//! Addresses → the smallest prefix that holds them all, and its words in `config`.

use std::net::IpAddr;

use lb_common::family::{Address, Family};

use super::model::to_ip;

/// The smallest prefix that holds every ClusterIP: its network and mask as bits from the top.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Span {
    net: u128,
    mask: u128,
}

impl Span {
    /// Of one address.
    pub(crate) fn of(addr: IpAddr) -> Self {
        Span {
            net: bits(addr),
            mask: u128::MAX,
        }
    }
    /// Whether it holds all of another.
    pub(crate) fn contains(self, other: Span) -> bool {
        self.mask & other.mask == self.mask && other.net & self.mask == self.net
    }
    /// The smallest that holds both.
    #[must_use]
    pub(crate) fn join(self, other: Span) -> Self {
        let differ = (self.net ^ other.net) | !self.mask | !other.mask;
        let mask = u128::MAX
            .checked_shl(128 - differ.leading_zeros())
            .unwrap_or(0);
        Span {
            net: self.net & mask,
            mask,
        }
    }
    /// From the words of the configuration; `None` when it holds nothing.
    pub(crate) fn from_words<F: Family>(net: &F::Addr, mask: &F::Addr) -> Option<Self> {
        let (net, mask) = (bits(to_ip::<F>(net)), bits(to_ip::<F>(mask)));
        let whole = !F::IS_V6 && mask == u128::MAX << 96;
        let none = net == mask && (whole || mask == u128::MAX);
        (net & !mask == 0 && !none).then_some(Span {
            net,
            mask: if whole { u128::MAX } else { mask },
        })
    }
    /// As words of the configuration; with no ClusterIP both are all 1, which is no address that
    /// could be one.
    pub(crate) fn to_words<F: Family>(span: Option<Span>) -> (F::Addr, F::Addr) {
        match span {
            None => (
                F::Addr::from_words([u32::MAX; 4]),
                F::Addr::from_words([u32::MAX; 4]),
            ),
            Some(span) => (
                F::Addr::from_words(words::<F>(span.net)),
                F::Addr::from_words(words::<F>(span.mask)),
            ),
        }
    }
}

/// An address as bits from the top; IPv4 in the upper 32.
fn bits(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(addr) => u128::from(u32::from(addr)) << 96,
        IpAddr::V6(addr) => u128::from(addr),
    }
}

fn words<F: Family>(bits: u128) -> [u32; 4] {
    let b = bits.to_be_bytes();
    let word = |i: usize| u32::from_ne_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]]);
    if F::IS_V6 {
        [word(0), word(4), word(8), word(12)]
    } else {
        [word(0), 0, 0, 0]
    }
}

#[cfg(test)]
mod tests {
    use lb_common::{V4, V6};

    use super::*;

    #[test]
    fn span_holds_all_and_no_more() {
        let span = |list: &[&str]| {
            list.iter()
                .map(|a| Span::of(a.parse().unwrap()))
                .reduce(Span::join)
        };
        let (net, mask) = Span::to_words::<V4>(span(&["10.96.0.1", "10.96.0.10", "10.97.3.4"]));
        assert_eq!(
            (to_ip::<V4>(&net), to_ip::<V4>(&mask)),
            ("10.96.0.0".parse().unwrap(), "255.254.0.0".parse().unwrap())
        );
        assert_eq!(
            Span::from_words::<V4>(&net, &mask),
            span(&["10.96.0.1", "10.97.3.4"])
        );
        let (net, mask) = Span::to_words::<V4>(span(&["10.96.0.1"]));
        assert_eq!(
            to_ip::<V4>(&mask),
            "255.255.255.255".parse::<IpAddr>().unwrap()
        );
        assert_eq!(Span::from_words::<V4>(&net, &mask), span(&["10.96.0.1"]));
        let (net, mask) = Span::to_words::<V4>(span(&["1.1.1.1", "200.0.0.1"]));
        assert_eq!((net, mask), Default::default());
        let (net, mask) = Span::to_words::<V6>(span(&["fd00::1", "fd00::ffff"]));
        assert_eq!(
            (to_ip::<V6>(&net), to_ip::<V6>(&mask)),
            (
                "fd00::".parse().unwrap(),
                "ffff:ffff:ffff:ffff:ffff:ffff:ffff:0".parse().unwrap()
            )
        );
        let (net, mask) = Span::to_words::<V6>(None);
        assert_eq!(Span::from_words::<V6>(&net, &mask), None);
    }
}
