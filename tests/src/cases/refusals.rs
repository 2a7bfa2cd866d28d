//! Packets to a frontend that nobody serves → the answer that a closed port would give.

use std::net::{IpAddr, SocketAddr};

use lb_common::abi::{Counter, DropReason, FrontendKind};
use lb_common::pipeline::ip::Ip;

use super::{
    At, CONVERSATION, CaseNode, DataplaneOf, FamilyMaps, Net, Verdict, at, first, ip, least,
    packet, parsed, remote, turned,
};
use crate::packet::{ACK, DESTINATION_MAC, FIN, PacketBuilder, RST, SOURCE_MAC, SYN, TCP, UDP};

cases! {
    frontend_without_endpoints_refuses,
    undefined_port_of_a_cluster_ip_is_refused,
    packet_that_must_not_be_answered_is_dropped,
    refusals_past_the_limit_are_dropped,
}

/// What a refusal of TCP looks like: a segment without data, options and window.
#[track_caller]
pub(super) fn is_reset(
    bytes: &[u8],
    from: SocketAddr,
    to: SocketAddr,
    flags: u8,
    numbers: (u32, u32),
) {
    let parsed = parsed(bytes);
    assert_eq!((parsed.source, parsed.destination), (from, to));
    assert_eq!((parsed.flags, parsed.numbers), (flags, numbers));
    assert_eq!(
        (parsed.ttl, parsed.macs),
        (64, Some((SOURCE_MAC, DESTINATION_MAC)))
    );
    assert!(parsed.payload.is_empty() && parsed.options.is_empty());
    assert_eq!(bytes[bytes.len() - 6..bytes.len() - 4], [0, 0], "window");
}

/// Port unreachable from the dialled address, quoting the header and eight bytes.
pub(super) fn unreachable<F: Ip>(about: &PacketBuilder, from: IpAddr, to: IpAddr) -> PacketBuilder {
    let quoted = about.build_ip();
    turned(PacketBuilder::port_unreachable(from, to, &quoted[..least::<F>()]).ip_id(0, true))
}

/// Semantics 10.1, 10.7; RFC 9293 3.10.7.1.
fn frontend_without_endpoints_refuses<F: Net, D: DataplaneOf<F>>(node: &mut CaseNode<'_, F, D>) {
    for (hook, from, front) in [
        (At::Pod, node.h.pod, node.h.vip),
        (At::External, node.h.client, node.h.node),
        (At::External, node.h.client, node.h.external),
    ] {
        let kind = if front == node.h.vip {
            FrontendKind::ClusterIp
        } else {
            FrontendKind::NodePort
        };
        let (from, front) = (at(from, 40_000), at(front, 80));
        node.service_with(front, TCP, kind, &[], |_| {});
        node.service_with(front, UDP, kind, &[], |_| {});
        if hook == At::External {
            node.untouched(At::Xdp, &first(TCP, from, front));
        }
        let syn = first(TCP, from, front).tcp_options(&[2, 4, 5, 180]);
        let (verdict, bytes) = node.run(hook, &syn.build());
        assert_eq!(verdict, Verdict::Reflect);
        is_reset(&bytes, front, from, RST | ACK, (0, 1001));
        // With ACK the RST takes its place, and is no acknowledgement itself. Data to an address of the node may answer
        // the node's own connection.
        let long = packet(TCP, from, front).payload(&[1; 1000]);
        if front.ip() == node.h.node {
            node.untouched(hook, &long);
        } else {
            let (_, bytes) = node.run(hook, &long.build());
            is_reset(&bytes, front, from, RST, (CONVERSATION.server + 1, 0));
        }
        for payload in [&b""[..], b"x", &[7; 700]] {
            let datagram = packet(UDP, from, front).payload(payload);
            let answer = unreachable::<F>(&datagram, front.ip(), from.ip());
            node.check(hook, &datagram, Verdict::Reflect, &answer);
            // On its way out it is nobody's business.
            node.untouched(At::Out, &answer);
        }
    }
    node.counted(Counter::Refused, 14);
    node.counted(Counter::NotOpened, 1);
    assert_eq!(FamilyMaps::<F>::records(node.dataplane), []);
}

/// Semantics 11.1, 11.4.
fn undefined_port_of_a_cluster_ip_is_refused<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    let (pod, vip) = (at(node.h.pod, 40_000), at(node.h.vip, 80));
    let placed = node.service(vip, TCP, &[remote(node.h.remote, 8080)]);
    node.cluster_ip_exists(vip);
    let (verdict, bytes) = node.run(At::Pod, &first(TCP, pod, at(node.h.vip, 81)).build());
    assert_eq!(verdict, Verdict::Reflect);
    is_reset(&bytes, at(node.h.vip, 81), pod, RST | ACK, (0, 1001));
    // Data without ACK: all of it is acknowledged, SYN and FIN count one each.
    let odd = PacketBuilder::tcp(pod, at(node.h.vip, 81))
        .flags(SYN | FIN)
        .numbers(7, 0)
        .payload(b"12345");
    let (_, bytes) = node.run(At::Pod, &odd.build());
    is_reset(&bytes, at(node.h.vip, 81), pod, RST | ACK, (0, 14));
    // TCP port 80 says nothing about UDP port 80.
    let datagram = packet(UDP, pod, vip);
    node.check(
        At::Pod,
        &datagram,
        Verdict::Reflect,
        &unreachable::<F>(&datagram, vip.ip(), pod.ip()),
    );
    // An address that no Service has is not ours (semantics 11.2), nor is a port of any other address.
    node.untouched(At::Pod, &first(TCP, pod, at(node.h.vip2, 81)));
    node.frontend(at(node.h.external, 80), TCP, placed.service);
    node.untouched(
        At::External,
        &first(TCP, at(node.h.client, 1), at(node.h.external, 81)),
    );
}

/// RFC 1122 3.2.2, RFC 9293 3.5.2.
fn packet_that_must_not_be_answered_is_dropped<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    let (pod, vip) = (at(node.h.pod, 40_000), at(node.h.vip, 80));
    node.service(vip, TCP, &[]);
    node.service(vip, UDP, &[]);
    node.cluster_ip_exists(vip);
    for flags in [RST, RST | ACK] {
        // What ends a connection opens none; at a port that no Service defines nothing but an answer was at stake.
        node.untouched(At::Pod, &packet(TCP, pod, vip).flags(flags));
        node.dropped(
            At::Pod,
            &packet(TCP, pod, at(vip.ip(), 81)).flags(flags),
            DropReason::NoEndpoint,
        );
    }
    node.counted(Counter::NotOpened, 2);
    let many = if F::IS_V6 {
        ip("ff02::1")
    } else {
        ip("224.0.0.1")
    };
    node.dropped(
        At::Pod,
        &packet(UDP, at(many, 1), vip),
        DropReason::NoEndpoint,
    );
    let nobody = if F::IS_V6 { ip("::") } else { ip("0.0.0.0") };
    node.dropped(
        At::Pod,
        &packet(UDP, at(nobody, 1), vip),
        DropReason::NoEndpoint,
    );
    let group = packet(UDP, pod, vip).macs([0xff; 6], SOURCE_MAC);
    node.dropped(At::Pod, &group, DropReason::NoEndpoint);
    node.counted(Counter::Refused, 0);
}

fn refusals_past_the_limit_are_dropped<F: Net, D: DataplaneOf<F>>(node: &mut CaseNode<'_, F, D>) {
    let (pod, vip) = (at(node.h.pod, 40_000), at(node.h.vip, 80));
    node.service(vip, TCP, &[]);
    node.config.refusals_per_sec = 2;
    node.dataplane.put_config(node.config);
    node.dataplane.begin_second();
    for _ in 0..2 {
        assert_eq!(
            node.run(At::Pod, &first(TCP, pod, vip).build()).0,
            Verdict::Reflect
        );
    }
    node.dropped(At::Pod, &first(TCP, pod, vip), DropReason::RefusalLimit);
}
