//! Fragments: the ports of a datagram's first one, for the later ones.

use super::head::{FragmentPart, Parsed};
use super::ip::Ip;
use super::tables::Tables;
use crate::abi::{Fragment, FragmentKey, Side};

/// Fills in the ports of a later fragment; false where its first has not been seen.
#[inline(always)]
pub(super) fn with_ports<F: Ip, T: Tables<F>>(
    tables: &T,
    parsed: &mut Parsed<F>,
    side: Side,
) -> bool {
    if parsed.ip.fragment != FragmentPart::Later {
        return true;
    }
    let Some(ports) = tables.fragment(&key(parsed, side)) else {
        return false;
    };
    (parsed.sport, parsed.dport) = (ports.sport, ports.dport);
    true
}

#[inline(always)]
pub(super) fn remember<F: Ip, T: Tables<F>>(tables: &T, parsed: &Parsed<F>, side: Side) {
    let value = Fragment {
        sport: parsed.sport,
        dport: parsed.dport,
    };
    tables.set_fragment(&key(parsed, side), &value);
}

#[inline(always)]
fn key<F: Ip>(parsed: &Parsed<F>, side: Side) -> FragmentKey<F> {
    FragmentKey::new(
        parsed.ip.saddr,
        parsed.ip.daddr,
        parsed.ip.id,
        parsed.transport.proto(),
        side,
    )
}
