//! ClusterIPs → the smallest prefix that holds them all, in `config`. It is widened before the first entry of
//! a ClusterIP outside it is written and narrowed after the last one is gone.

use std::net::IpAddr;

use lb_common::family::{Address, Family};

use super::{
    model::to_ip,
    store::{MapStore, StoreFamily, StoreResult},
};

/// The prefix of ClusterIPs of one family as it stands in `config`.
#[derive(Debug, Default)]
pub(crate) struct ClusterSpan {
    /// `None`: there is no ClusterIP.
    span: Option<Span>,
    is_written: bool,
    /// Whether a smaller one may do: looked at when a round ends with nothing pending.
    is_loose: bool,
}

impl ClusterSpan {
    /// Reads what was there before the start.
    pub(crate) fn read<F: StoreFamily, S: MapStore>(store: &mut S) -> StoreResult<Self> {
        let mut span = None;
        store.update_config(&mut |config| {
            let (net, mask) = F::cluster_words(config);
            span = Span::from_words::<F>(net, mask);
        })?;
        Ok(ClusterSpan {
            span,
            is_written: span.is_some(),
            is_loose: false,
        })
    }

    /// A ClusterIP is gone, or one may be in it that nobody wants.
    pub(crate) fn loosen(&mut self) {
        self.is_loose = true;
    }

    /// Takes in addresses whose entries are about to be written.
    pub(crate) fn widen<F: StoreFamily, S: MapStore>(
        &mut self,
        store: &mut S,
        addrs: impl Iterator<Item = IpAddr>,
    ) -> StoreResult<()> {
        let span = addrs.map(Span::of).chain(self.span).reduce(Span::join);
        // An entry that it is widened for may fail, and be unwanted before it is tried again.
        self.is_loose |= span != self.span;
        self.write::<F, S>(store, span)
    }

    /// Leaves out what is none of these addresses any more.
    pub(crate) fn narrow<F: StoreFamily, S: MapStore>(
        &mut self,
        store: &mut S,
        addrs: impl Iterator<Item = IpAddr>,
    ) -> StoreResult<()> {
        if self.is_loose {
            self.write::<F, S>(store, addrs.map(Span::of).reduce(Span::join))?;
            self.is_loose = false;
        }
        Ok(())
    }

    fn write<F: StoreFamily, S: MapStore>(
        &mut self,
        store: &mut S,
        span: Option<Span>,
    ) -> StoreResult<()> {
        if self.span == span && self.is_written {
            return Ok(());
        }
        let (net, mask) = Span::to_words::<F>(span);
        // Programs compare `(addr ^ net) & mask` and may read between two words being written. Of a wider
        // prefix the mask goes first, of a narrower one the network: in between both prefixes match.
        let is_wider = span.is_some_and(|new| self.span.is_some_and(|old| new.contains(old)));
        let mut write = |is_mask: bool| {
            store.update_config(&mut |config| {
                let (old_net, old_mask) = F::cluster_words(config);
                if is_mask {
                    *old_mask = mask;
                } else {
                    *old_net = net;
                }
            })
        };
        let written = write(is_wider).and_then(|()| write(!is_wider));
        self.is_written = written.is_ok();
        if self.is_written {
            self.span = span;
        } else {
            // The mask may be written and the network not: both prefixes match, and both are due.
            self.is_loose = true;
        }
        written
    }
}

/// The smallest prefix that holds every ClusterIP: its network and mask as bits from the top.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Span {
    net: u128,
    mask: u128,
}

impl Span {
    /// Of one address.
    fn of(addr: IpAddr) -> Self {
        Span {
            net: bits(addr),
            mask: u128::MAX,
        }
    }
    /// Whether it holds all of another.
    fn contains(self, other: Span) -> bool {
        self.mask & other.mask == self.mask && other.net & self.mask == self.net
    }
    /// The smallest that holds both.
    #[must_use]
    fn join(self, other: Span) -> Self {
        let differ = (self.net ^ other.net) | !self.mask | !other.mask;
        let mask = u128::MAX
            .checked_shl(128 - differ.leading_zeros())
            .unwrap_or(0);
        Span {
            net: self.net & mask,
            mask,
        }
    }
    /// From the words in `config`; `None` when they hold nothing.
    fn from_words<F: Family>(net: &F::Addr, mask: &F::Addr) -> Option<Self> {
        let (net, mask) = (bits(to_ip::<F>(net)), bits(to_ip::<F>(mask)));
        let whole = !F::IS_V6 && mask == u128::MAX << 96;
        let none = net == mask && (whole || mask == u128::MAX);
        (net & !mask == 0 && !none).then_some(Span {
            net,
            mask: if whole { u128::MAX } else { mask },
        })
    }
    /// As words in `config`; with no ClusterIP both are all 1, which is no address that
    /// could be one.
    fn to_words<F: Family>(span: Option<Span>) -> (F::Addr, F::Addr) {
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
    use std::net::Ipv4Addr;

    use lb_common::{V4, V6};
    use proptest::prelude::*;

    use super::*;
    use crate::dataplane::fake::FakeStore;

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

    fn ips(addrs: &[u32]) -> impl Iterator<Item = IpAddr> {
        addrs.iter().map(|addr| Ipv4Addr::from(*addr).into())
    }

    /// Whether programs take all these for ClusterIPs.
    fn holds(store: &FakeStore, addrs: &[u32]) -> bool {
        let (net, mask) = (
            store.config.cluster_net_v4.be,
            store.config.cluster_mask_v4.be,
        );
        addrs.iter().all(|addr| (addr.to_be() ^ net) & mask == 0)
    }

    proptest! {
        #[test]
        fn every_cluster_ip_is_in_it_between_two_words_too(
            old in prop::collection::vec(any::<u32>(), 1..4),
            new in prop::collection::vec(any::<u32>(), 0..4),
        ) {
            let mut store = FakeStore::small();
            let mut span = ClusterSpan::default();
            span.widen::<V4, _>(&mut store, ips(&old)).unwrap();
            prop_assert!(holds(&store, &old));

            // The second word is not written.
            store.fail_in(1);
            let cut = span.widen::<V4, _>(&mut store, ips(&new));
            prop_assert!(holds(&store, &old));
            prop_assert!(cut.is_err() || holds(&store, &new));
            store.journal.borrow_mut().fail_in.clear();
            span.widen::<V4, _>(&mut store, ips(&new)).unwrap();
            prop_assert!(holds(&store, &old) && holds(&store, &new));

            span.loosen();
            store.fail_in(1);
            let cut = span.narrow::<V4, _>(&mut store, ips(&new));
            prop_assert!(cut.is_ok() || holds(&store, &new));
            store.journal.borrow_mut().fail_in.clear();
            span.narrow::<V4, _>(&mut store, ips(&new)).unwrap();
            prop_assert!(holds(&store, &new));

            let mut fresh = FakeStore::small();
            ClusterSpan::default().widen::<V4, _>(&mut fresh, ips(&new)).unwrap();
            prop_assert_eq!(store.config, fresh.config);
        }
    }
}
