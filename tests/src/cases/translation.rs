//! Packets to a frontend and their replies → what the backend and the client see of each other, by tc.

use std::net::SocketAddr;

use lb_common::abi::{Counter, FrontendKind, ModeFlags, ServiceFlags};
use lb_common::flow_table::Class;

use super::{
    At, CONVERSATION, CaseNode, DataplaneOf, EXTERNAL, FamilyMaps, Net, POD, PROTOCOLS, Verdict,
    answer, at, first, local, packet, parsed, quotes, remote, reply, turned,
};
use crate::packet::{ACK, Checksum, FIN, PacketBuilder, RST, SYN, TCP};

cases! {
    pod_to_cluster_ip_is_translated_both_ways,
    outside_to_local_backend_keeps_the_client,
    outside_to_remote_backend_is_translated_at_two_hooks,
    pod_that_is_its_own_backend_gets_its_packet_back,
    two_cluster_ips_of_one_backend_get_two_ports,
    direct_connection_from_a_taken_port_gets_another,
    port_used_again_past_the_frontends_is_untouched,
    traffic_that_is_not_ours_is_untouched,
    pod_to_local_backend_under_masquerade_all_is_seen_as_the_node,
    client_of_policy_local_under_masquerade_all_is_kept,
}

/// Semantics 8.2, first row; 8.14.
fn pod_to_cluster_ip_is_translated_both_ways<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    for proto in PROTOCOLS {
        for (port, endpoint) in [
            (80, remote(node.h.remote, 8080)),
            (81, local(node.h.pod2, 8080)),
            (82, remote(node.h.remote2, 82)),
        ] {
            let (pod, vip, to) = (at(node.h.pod, 40_000), at(node.h.vip, port), endpoint.addr);
            node.service(vip, proto, &[endpoint]);
            node.translated(At::Pod, &first(proto, pod, vip), &first(proto, pod, to));
            node.translated(At::Out, &answer(proto, to, pod), &answer(proto, vip, pod));
            node.translated(At::Pod, &packet(proto, pod, vip), &packet(proto, pod, to));
            node.translated(At::Out, &reply(proto, to, pod), &reply(proto, vip, pod));
        }
    }
    node.counted(Counter::NewFlow, 6);
    node.counted(Counter::FlowConfirmed, 6);
    node.counted(Counter::TcPodTranslated, 12);
    node.counted(Counter::TcOutTranslated, 12);
}

/// The client's address is kept (semantics 9.9).
fn outside_to_local_backend_keeps_the_client<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    for proto in PROTOCOLS {
        let (client, front, to) = node.client_to_node_port(proto, local(node.h.pod, 8080));
        // XDP leaves it to tc.
        node.untouched(At::Xdp, &first(proto, client, front));
        node.translated(
            At::External,
            &first(proto, client, front),
            &first(proto, client, to),
        );
        node.untouched(At::Pod, &answer(proto, to, client));
        node.translated(
            At::Out,
            &answer(proto, to, client),
            &answer(proto, front, client),
        );
        node.untouched(At::Xdp, &packet(proto, client, front));
        node.translated(
            At::External,
            &packet(proto, client, front),
            &packet(proto, client, to),
        );
    }
    node.counted(Counter::FlowConfirmed, 2);
}

/// Semantics 9.5. Destination at external ingress, source at egress, and the reverse (docs/decisions.md, "Two hooks, one
/// tuple between them"): what lies between sees the client and the backend (semantics 25.8).
fn outside_to_remote_backend_is_translated_at_two_hooks<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    for proto in PROTOCOLS {
        let (client, front, to) = node.client_to_node_port(proto, remote(node.h.remote, 8080));
        let between = node.middle(&first(proto, client, front));
        let snat = at(node.h.node, between.port());
        assert_eq!(between.ip(), client.ip());
        for round in 0..2 {
            let (out, back) = if round == 0 {
                (first as fn(_, _, _) -> _, answer as fn(_, _, _) -> _)
            } else {
                (packet as fn(_, _, _) -> _, reply as fn(_, _, _) -> _)
            };
            node.translated(
                At::External,
                &out(proto, client, front),
                &out(proto, between, to),
            );
            node.translated(At::Out, &out(proto, between, to), &out(proto, snat, to));
            let between = back(proto, to, between);
            node.translated(At::External, &back(proto, to, snat), &between);
            node.translated(At::Out, &between, &back(proto, front, client));
        }
    }
    node.counted(Counter::NewFlow, 2);
    node.counted(Counter::FlowConfirmed, 2);
    assert_eq!(node.flows(Class::Confirmed), 2);
    assert_eq!(node.flows(Class::Opening), 0);
}

/// Semantics 8.3, 9.2.d.
fn pod_that_is_its_own_backend_gets_its_packet_back<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    for proto in PROTOCOLS {
        let (pod, vip, own) = (
            at(node.h.pod, 40_000),
            at(node.h.vip, 80),
            at(node.h.pod, 8080),
        );
        node.service(vip, proto, &[local(node.h.pod, 8080)]);
        let (verdict, bytes) = node.run(At::Pod, &first(proto, pod, vip).build());
        assert_eq!(verdict, Verdict::Reflect);
        let masked = parsed(&bytes).source;
        assert_eq!(masked.ip(), node.h.node);
        assert_eq!(bytes, turned(first(proto, masked, own)).build());
        for back in [answer, reply] {
            node.check(
                At::Pod,
                &back(proto, own, masked),
                Verdict::Reflect,
                &turned(back(proto, vip, pod)),
            );
            let next = turned(packet(proto, masked, own));
            node.check(At::Pod, &packet(proto, pod, vip), Verdict::Reflect, &next);
        }
    }
    node.counted(Counter::FlowConfirmed, 2);
}

/// One client port, two VIPs, one backend: the replies would be the same packet.
fn two_cluster_ips_of_one_backend_get_two_ports<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    let (pod, vip, vip2) = (
        at(node.h.pod, 40_000),
        at(node.h.vip, 80),
        at(node.h.vip2, 80),
    );
    let placed = node.service(vip, TCP, &[remote(node.h.remote, 8080)]);
    node.frontend(vip2, TCP, placed.service);
    let to = at(node.h.remote, 8080);
    node.translated(At::Pod, &first(TCP, pod, vip), &first(TCP, pod, to));
    let moved = node.sent(At::Pod, &first(TCP, pod, vip2)).source;
    assert_eq!(moved.ip(), pod.ip());
    assert!((20_000..30_000).contains(&moved.port()));
    node.counted(Counter::PortRewritten, 1);
    node.translated(At::Out, &answer(TCP, to, pod), &answer(TCP, vip, pod));
    node.translated(At::Out, &answer(TCP, to, moved), &answer(TCP, vip2, pod));
    node.translated(At::Pod, &packet(TCP, pod, vip2), &packet(TCP, moved, to));
    node.translated(At::Pod, &packet(TCP, pod, vip), &packet(TCP, pod, to));
}

/// A pod dials a backend itself from the port of its flow through a VIP.
fn direct_connection_from_a_taken_port_gets_another<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    let (pod, vip, to) = node.pod_to_cluster_ip(TCP);
    node.untouched(At::Pod, &first(TCP, pod, to));
    node.sent(At::Pod, &first(TCP, pod, vip));
    let moved = node.sent(At::Pod, &first(TCP, pod, to)).source;
    assert_ne!(moved, pod);
    node.counted(Counter::DirectRewritten, 1);
    for back in [answer, reply] {
        let (back, restored, of_vip) = (
            back(TCP, to, moved),
            back(TCP, to, pod),
            back(TCP, vip, pod),
        );
        // A bridge in front of the pod's interface leaves it to the latter.
        node.exit = EXTERNAL;
        node.untouched(At::Out, &back);
        node.exit = POD;
        node.translated(At::Out, &back, &restored);
        let next = packet(TCP, pod, to);
        node.translated(At::Pod, &next, &packet(TCP, moved, to));
        node.translated(At::Out, &restored, &of_vip);
    }
    for len in quotes::<F>() {
        let error = node.error(node.h.router, node.h.pod, &packet(TCP, moved, to), len);
        let restored = node.error(node.h.router, node.h.pod, &packet(TCP, pod, to), len);
        node.exit = EXTERNAL;
        node.untouched(At::Out, &error);
        node.exit = POD;
        node.translated(At::Out, &error, &restored);
    }
}

/// A segment of the client by its flags.
fn client_segment(from: SocketAddr, to: SocketAddr, flags: u8) -> PacketBuilder {
    if flags == SYN {
        CONVERSATION.syn(from, to)
    } else {
        CONVERSATION.data(from, to).flags(flags)
    }
}

/// A segment of the server.
fn server_segment(from: SocketAddr, to: SocketAddr, flags: u8) -> PacketBuilder {
    if flags == SYN | ACK {
        CONVERSATION.syn_ack(from, to)
    } else {
        CONVERSATION.reply(from, to).flags(flags)
    }
}

/// A client outside reaches a backend past the frontends, from a port that it used at one of them before.
fn port_used_again_past_the_frontends_is_untouched<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    // How the connection through the frontend ends: flags of a packet of the client, of the backend, whether it is over.
    let endings = [
        (ACK, ACK, false),
        (FIN | ACK, ACK, false),
        (ACK, FIN | ACK, false),
        (FIN | ACK, FIN | ACK, true),
        (RST, ACK, true),
        (ACK, RST, true),
    ];
    let (front, to) = (at(node.h.node, 30_080), at(node.h.pod, 8080));
    node.service_with(
        front,
        TCP,
        FrontendKind::NodePort,
        &[local(node.h.pod, 8080)],
        |service| service.flags |= ServiceFlags::EXTERNAL_LOCAL,
    );
    node.exit = EXTERNAL;
    let mut over = 0;
    for (port, (client_flags, backend_flags, is_over)) in (40_000..).zip(endings) {
        let client = at(node.h.client, port);
        let sent = |flags| client_segment(client, front, flags);
        let arrived = |flags| client_segment(client, to, flags);
        let answer = |flags| server_segment(to, client, flags);
        let restored = |flags| server_segment(front, client, flags);
        for (theirs, ours) in [(SYN, SYN | ACK), (ACK, ACK), (client_flags, backend_flags)] {
            node.translated(At::External, &sent(theirs), &arrived(theirs));
            node.translated(At::Out, &answer(ours), &restored(ours));
        }
        node.untouched(At::External, &arrived(SYN));
        if is_over {
            over += 1;
            for flags in [SYN | ACK, ACK, FIN | ACK] {
                node.untouched(At::Out, &answer(flags));
            }
        } else {
            // The connection lives, and may have its SYN-ACK sent again.
            node.translated(At::Out, &answer(SYN | ACK), &restored(SYN | ACK));
        }
        node.counted(Counter::OverForgotten, over);
        // The frontend is used again.
        node.translated(At::External, &sent(SYN), &arrived(SYN));
        node.translated(At::Out, &answer(SYN | ACK), &restored(SYN | ACK));
    }
}

fn traffic_that_is_not_ours_is_untouched<F: Net, D: DataplaneOf<F>>(node: &mut CaseNode<'_, F, D>) {
    node.service(at(node.h.vip, 80), TCP, &[local(node.h.pod2, 8080)]);
    let (pod, other) = (at(node.h.pod, 40_000), at(node.h.router, 80));
    for hook in [At::Xdp, At::External, At::Pod, At::Out] {
        for proto in PROTOCOLS {
            node.untouched(hook, &first(proto, pod, other));
            node.untouched(hook, &packet(proto, pod, other));
            node.untouched(hook, &packet(proto, pod, other).checksum(Checksum::Wrong));
            node.untouched(hook, &packet(proto, pod, other).fragment(3, 64, false));
        }
        let echo = if F::IS_V6 { 128 } else { 8 };
        // Semantics 8.13: nothing but Service traffic is translated, to a ClusterIP neither.
        node.untouched(
            hook,
            &PacketBuilder::icmp(node.h.pod, node.h.vip, echo, 0, [0, 1, 0, 1]),
        );
        node.untouched(hook, &PacketBuilder::raw(node.h.pod, node.h.vip, 47));
    }
    assert_eq!(FamilyMaps::<F>::records(node.dataplane), []);
}

/// Semantics 9.2.b. `--masquerade-all`: the reply of a local backend comes in at its pod interface.
fn pod_to_local_backend_under_masquerade_all_is_seen_as_the_node<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    node.modes(ModeFlags::MASQUERADE_ALL);
    let (pod, vip, to) = (
        at(node.h.pod, 40_000),
        at(node.h.vip, 80),
        at(node.h.pod2, 8080),
    );
    node.service(vip, TCP, &[local(node.h.pod2, 8080)]);
    let between = node.sent(At::Pod, &first(TCP, pod, vip)).source;
    let masked = at(node.h.node, between.port());
    assert_eq!(between.ip(), pod.ip());
    for (there, back) in [
        (first as fn(_, _, _) -> _, answer as fn(_, _, _) -> _),
        (packet, reply),
    ] {
        node.translated(At::Pod, &there(TCP, pod, vip), &there(TCP, between, to));
        node.translated(At::Out, &there(TCP, between, to), &there(TCP, masked, to));
        node.translated(At::Pod, &back(TCP, to, masked), &back(TCP, to, between));
        node.translated(At::Out, &back(TCP, to, between), &back(TCP, vip, pod));
    }
}

/// Semantics 8.2, 9.2.b, 9.4: `--masquerade-all` hides no client of a frontend with the external policy Local.
fn client_of_policy_local_under_masquerade_all_is_kept<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    node.modes(ModeFlags::MASQUERADE_ALL);
    for (port, flags, is_kept) in [
        (80, ServiceFlags::EXTERNAL_LOCAL, true),
        (81, ServiceFlags::NONE, false),
    ] {
        let (client, front) = (at(node.h.client, 40_000 + port), at(node.h.external, port));
        node.service_with(
            front,
            TCP,
            FrontendKind::LoadBalancer,
            &[local(node.h.pod, 8080)],
            |service| service.flags |= flags,
        );
        let source = node.sent(At::External, &first(TCP, client, front)).source;
        assert_eq!(source == client, is_kept, "{front}: {source}");
    }
}
