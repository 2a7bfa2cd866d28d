//! The bytes of a packet and a translation → there and back is the identity, and what an independent reader accepts
//! before it accepts after.

use arbitrary::{Arbitrary, Unstructured};
use lb_common::abi::{Be16, Translation};
use lb_common::family::Address;
use lb_common::pipeline::head::{FragmentPart, Parsed};
use lb_common::pipeline::ip::Ip;
use lb_common::pipeline::packet::{Offset, PacketBuf};
use lb_common::pipeline::parse::{self, Fast};
use lb_common::pipeline::rewrite::{self, Addresses};
use lb_common::{V4, V6};
use lb_tests::cases::At;
use lb_tests::native::{Native, Packet};

use crate::reader;
use crate::world;

#[derive(Arbitrary, Debug)]
struct Input {
    is_v6: bool,
    to: ([u32; 4], [u32; 4], u16, u16),
    which: u8,
    bytes: Vec<u8>,
}

/// Runs one input.
pub fn run(bytes: &[u8]) {
    let mut input = Unstructured::new(bytes);
    let Ok(is_v6) = bool::arbitrary(&mut input) else {
        return;
    };
    let Ok((to, which)) = Arbitrary::arbitrary(&mut input) else {
        return;
    };
    let frame = world::frame(is_v6, input.take_rest());
    let input = Input {
        is_v6,
        to,
        which,
        bytes: frame,
    };
    if input.is_v6 {
        there_and_back::<V6>(&input);
    } else {
        there_and_back::<V4>(&input);
    }
}

fn packet(bytes: &[u8]) -> Packet {
    Packet::new(bytes, At::Xdp, 1, &Native::default())
}

fn there_and_back<F: Ip>(input: &Input) {
    let before = packet(&input.bytes);
    let Some(parsed) = parse::any::<F, _>(&before, Offset::ETH) else {
        assert!(
            !matches!(parse::fast::<F, _>(&before, Offset::ETH), Fast::Plain(_)),
            "the fast stage reads what the slow one does not"
        );
        return;
    };
    if let Fast::Plain(mut fast) = parse::fast::<F, _>(&before, Offset::ETH) {
        // Asked of fragments alone.
        fast.ip.id = parsed.ip.id;
        assert_eq!(format!("{fast:?}"), format!("{parsed:?}"), "fast and slow");
    }
    let which = match input.which % 3 {
        0 => Addresses::Destination,
        1 => Addresses::Source,
        _ => Addresses::Both,
    };
    let (saddr, daddr, sport, dport) = input.to;
    let to = Translation::<F> {
        saddr: F::Addr::from_words(saddr),
        daddr: F::Addr::from_words(daddr),
        sport: Be16::from_host(sport),
        dport: Be16::from_host(dport),
    };
    let from = Translation::<F> {
        saddr: parsed.ip.saddr,
        daddr: parsed.ip.daddr,
        sport: parsed.sport,
        dport: parsed.dport,
    };
    let was = reader::read(&input.bytes);
    let Some(there) = translated(&input.bytes, &parsed, &to, which) else {
        return;
    };
    if let Ok(was) = &was {
        let is = match reader::read(&there) {
            Ok(is) => is,
            Err(problem) => panic!("{was:?} became unreadable: {problem}"),
        };
        assert_eq!(was.protocol, is.protocol);
    }
    let parsed = match parse::any::<F, _>(&packet(&there), Offset::ETH) {
        Some(again) => Parsed {
            // Of a later fragment the caller knows the ports.
            sport: if again.ip.fragment == FragmentPart::Later {
                to.sport
            } else {
                again.sport
            },
            dport: if again.ip.fragment == FragmentPart::Later {
                to.dport
            } else {
                again.dport
            },
            ..again
        },
        None => panic!("translated it cannot be read any more"),
    };
    let Some(back) = translated(&there, &parsed, &from, which) else {
        panic!("translated it cannot be translated back");
    };
    if was.is_ok() {
        assert_eq!(
            with_one_zero(&back),
            with_one_zero(&input.bytes),
            "there and back"
        );
    }
}

/// Ones' complement has two zeros, and a checksum comes back as the other one: both are written alike.
fn with_one_zero(frame: &[u8]) -> Vec<u8> {
    frame
        .iter()
        .map(|byte| if *byte == 0xff { 0 } else { *byte })
        .collect()
}

/// The packet behind the translation; `None` where it is to be dropped, because it is cut short.
fn translated<F: Ip>(
    bytes: &[u8],
    parsed: &Parsed<F>,
    to: &Translation<F>,
    which: Addresses,
) -> Option<Vec<u8>> {
    let mut packet = packet(bytes);
    rewrite::translate(&mut packet, parsed, to, (to.sport, to.dport), which).ok()?;
    assert_eq!(packet.len() as usize, bytes.len());
    Some(packet.bytes)
}
