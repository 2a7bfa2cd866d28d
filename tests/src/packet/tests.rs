//! What is built reads back, and every fault of it is noticed.

use std::net::SocketAddr;

use super::*;

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn pairs() -> [(SocketAddr, SocketAddr); 2] {
    [
        (addr("10.0.0.1:1234"), addr("10.96.0.10:80")),
        (addr("[fd00::1]:1234"), addr("[fd00:10:96::10]:80")),
    ]
}

#[test]
fn a_built_packet_reads_back_with_right_checksums() {
    for (source, destination) in pairs() {
        for builder in [PacketBuilder::tcp, PacketBuilder::udp, PacketBuilder::sctp]
            .map(|new| new(source, destination))
        {
            for payload in [&b""[..], b"x", b"hello, world"] {
                for checksum in [Checksum::Full, Checksum::Partial] {
                    let builder = builder
                        .clone()
                        .payload(payload)
                        .checksum(checksum)
                        .ttl(9)
                        .vlan(7);
                    let frame = builder.build();
                    let parsed = match checksum {
                        Checksum::Full => Parsed::frame(&frame).unwrap(),
                        _ => Parsed::frame_with_partial_checksum(&frame).unwrap(),
                    };
                    assert_eq!((parsed.source, parsed.destination), (source, destination));
                    assert_eq!((parsed.ttl, parsed.vlan), (9, Some(7)));
                    assert_eq!(parsed.payload, payload);
                    assert_eq!(parsed.macs, Some((DESTINATION_MAC, SOURCE_MAC)));
                }
                let wrong = builder
                    .clone()
                    .payload(payload)
                    .checksum(Checksum::Wrong)
                    .build();
                assert!(Parsed::frame(&wrong).is_err());
            }
        }
    }
}

#[test]
fn every_flipped_bit_of_a_packet_is_noticed() {
    for (source, destination) in pairs() {
        let whole = PacketBuilder::tcp(source, destination)
            .payload(b"abc")
            .without_ethernet()
            .build();
        let expected = Parsed::ip(&whole).unwrap();
        // IPv6 has no header checksum; the fields its pseudo header leaves out show in the result.
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let flow_label = source.is_ipv6() && (12..32).contains(&(bit ^ 7));
            assert!(
                flow_label || Parsed::ip(&flipped).as_ref() != Ok(&expected),
                "bit {bit}"
            );
        }
    }
}

#[test]
fn options_extension_headers_and_quoted_packets_are_read() {
    let [(s4, d4), (s6, d6)] = pairs();
    let parsed = Parsed::frame(&PacketBuilder::udp(s4, d4).ip_options(&[1, 1, 1]).build()).unwrap();
    assert_eq!(parsed.options, [1, 1, 1, 0]);
    let builder = PacketBuilder::udp(s6, d6)
        .extension(HOP_BY_HOP, &[])
        .extension(DESTINATION, &[1, 3, 0, 0, 0]);
    let parsed = Parsed::frame(&builder.build()).unwrap();
    assert_eq!(
        (parsed.options, parsed.destination),
        (vec![HOP_BY_HOP, DESTINATION], d6)
    );

    for (source, destination) in pairs() {
        let quoted = PacketBuilder::tcp(destination, source)
            .payload(b"x")
            .build_ip();
        let error = PacketBuilder::too_big(
            source.ip(),
            destination.ip(),
            1280,
            &quoted[..quoted.len() - 8],
        );
        let parsed = Parsed::frame(&error.build()).unwrap();
        assert_eq!(parsed.icmp.unwrap().2, [0, 0, 5, 0]);
        let quoted = parsed.quoted.unwrap();
        assert_eq!((quoted.source, quoted.destination), (destination, source));
    }
}

#[test]
fn fragments_put_together_are_the_datagram() {
    for (source, destination) in pairs() {
        let payload: Vec<u8> = (0..=255).cycle().take(2000).collect();
        let builder = PacketBuilder::udp(source, destination).payload(&payload);
        let fragments = builder.build_fragments(77, 1400);
        assert_eq!(fragments.len(), 2);
        let parsed: Vec<Parsed> = fragments
            .iter()
            .map(|frame| Parsed::frame(frame).unwrap())
            .collect();
        assert_eq!(
            parsed[0].fragment,
            Some(Fragment {
                id: 77,
                offset: 0,
                more: true
            })
        );
        assert_eq!(
            parsed[1].fragment,
            Some(Fragment {
                id: 77,
                offset: 1400,
                more: false
            })
        );
        assert_eq!(parsed[0].destination, destination);
        assert_eq!(
            [parsed[0].payload.clone(), parsed[1].payload.clone()].concat(),
            payload
        );
    }
}

#[test]
fn crc32c_is_that_of_the_published_example() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}
