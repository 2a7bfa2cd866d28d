//! Properties of checksums and translation over random packets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_common::abi::{Be16, Translation};
use lb_common::pipeline::packet::Offset;
use lb_common::pipeline::parse;
use lb_common::pipeline::rewrite::{self, Addresses};
use lb_common::wire::checksum::{Diff, fold};
use lb_common::{V4, V6};
use lb_tests::cases::{At, Dataplane, EXTERNAL, Net};
use lb_tests::native::{Halves, Native, Packet};
use lb_tests::packet::{Checksum, PacketBuilder, Parsed};
use proptest::prelude::*;

/// The checksum of words, from scratch.
fn checksum(words: &[u32]) -> u16 {
    !fold(words.iter().map(|word| u64::from(*word)).sum())
}

type Ends = (SocketAddr, SocketAddr);

fn ends(v6: bool) -> impl Strategy<Value = Ends> {
    let addr = any::<u128>().prop_map(move |bits| match v6 {
        true => IpAddr::V6(Ipv6Addr::from_bits(bits)),
        false => IpAddr::V4(Ipv4Addr::from_bits((bits >> 96) as u32)),
    });
    let end = (addr, any::<u16>()).prop_map(SocketAddr::from);
    (end.clone(), end)
}

fn both() -> impl Strategy<Value = (Ends, Ends)> {
    prop_oneof![(ends(false), ends(false)), (ends(true), ends(true))]
}

fn translation<F: Net>((source, destination): Ends) -> Translation<F> {
    Translation {
        saddr: F::addr(source.ip()),
        daddr: F::addr(destination.ip()),
        sport: Be16::from_host(source.port()),
        dport: Be16::from_host(destination.port()),
    }
}

fn translate<F: Net + Halves>(bytes: &[u8], to: Ends, which: Addresses) -> Vec<u8> {
    let mut packet = Packet::new(bytes, At::Xdp, EXTERNAL, &Native::default());
    let Some(parsed) = parse::any::<F, _>(&packet, Offset::ETH) else {
        panic!("not read: {bytes:?}");
    };
    let to = translation::<F>(to);
    let done = rewrite::translate(&mut packet, &parsed, &to, (to.sport, to.dport), which);
    assert_eq!(done, Ok(()));
    packet.bytes
}

fn round<F: Net + Halves>(
    original: &PacketBuilder,
    translated: &PacketBuilder,
    from: Ends,
    to: Ends,
) {
    let (before, after) = (original.build(), translated.build());
    assert_eq!(translate::<F>(&before, to, Addresses::Both), after);
    assert_eq!(translate::<F>(&after, from, Addresses::Both), before);
    // By halves, as tc does it.
    let half = translate::<F>(&before, to, Addresses::Destination);
    assert!(Parsed::frame(&half).is_ok());
    assert_eq!(translate::<F>(&half, to, Addresses::Source), after);
}

proptest! {
    #[test]
    fn incremental_checksum_is_the_recomputed_one(
        mut words in proptest::collection::vec(any::<u32>(), 1..40),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u32>()), 0..20),
    ) {
        prop_assume!(words.iter().any(|word| *word != 0));
        let before = Be16 { be: checksum(&words) };
        let mut diff = Diff::NONE;
        for (index, new) in changes {
            let i = index.index(words.len());
            diff = diff.word(words[i], new);
            words[i] = new;
        }
        prop_assume!(words.iter().any(|word| *word != 0));
        let expected = Be16 { be: checksum(&words) };
        prop_assert_eq!(diff.apply(before), expected);
        // Folded, as a helper takes it.
        let folded = !fold(u64::from(diff.to_u32()) + u64::from(!before.be));
        prop_assert_eq!(folded, expected.be);
    }

    #[test]
    fn a_translated_packet_is_the_one_built_so_and_goes_back(
        (from, to) in both(),
        tcp in any::<bool>(),
        bare in any::<bool>(),
        payload in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let build = |(source, destination): Ends| {
            let builder = match tcp {
                true => PacketBuilder::tcp(source, destination),
                false => PacketBuilder::udp(source, destination),
            };
            let builder = builder.payload(&payload);
            if bare && !tcp && source.is_ipv4() { builder.checksum(Checksum::Zero) } else { builder }
        };
        if from.0.is_ipv4() {
            round::<V4>(&build(from), &build(to), from, to);
        } else {
            round::<V6>(&build(from), &build(to), from, to);
        }
    }

    #[test]
    fn a_hop_less_is_the_packet_built_with_one_less(
        ((source, destination), _) in both(),
        ttl in 1u8..,
        tos in any::<u8>(),
    ) {
        let build = |ttl| PacketBuilder::udp(source, destination).ttl(ttl).tos(tos).build();
        let mut packet = Packet::new(&build(ttl), At::Xdp, EXTERNAL, &Native::default());
        use lb_common::pipeline::ip::Ip;
        if source.is_ipv4() {
            V4::decrement_ttl(&mut packet, Offset::ETH).unwrap();
        } else {
            V6::decrement_ttl(&mut packet, Offset::ETH).unwrap();
        }
        prop_assert_eq!(packet.bytes, build(ttl - 1));
    }

    /// Whatever the bytes: no panic, and without a flow nothing changes.
    #[test]
    fn rubbish_passes_every_hook_untouched(
        v6 in any::<bool>(),
        protocol in prop_oneof![Just(1u8), Just(6), Just(17), Just(58), Just(44), Just(0), any::<u8>()],
        mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        if bytes.len() > 24 {
            bytes[12..14].copy_from_slice(if v6 { &[0x86, 0xdd] } else { &[8, 0] });
            bytes[14] = if v6 { 0x60 } else { 0x40 | (bytes[14] & 15) };
            bytes[if v6 { 20 } else { 23 }] = protocol;
        }
        let mut world = Native::default();
        for at in [At::Xdp, At::External, At::Pod, At::Out] {
            let (_, after) = world.run(at, EXTERNAL, &bytes);
            prop_assert_eq!(&after, &bytes);
        }
    }
}
