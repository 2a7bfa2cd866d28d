//! Segments of a connection → the entry that they make, follow, confirm or leave.

use std::net::IpAddr;

use lb_common::abi::{
    Be16, Counter, DropReason, FlowFlags, FrontendKind, ServiceFlags, ServiceKey, Side,
};
use lb_common::flow_table::{Class, Record, Tuple};

use super::{
    At, CONVERSATION, CaseNode, DataplaneOf, EXTERNAL, FamilyMaps, Net, PROTOCOLS, Verdict, answer,
    at, emptied, first, local, packet, remote, reply,
};
use crate::packet::{ACK, FIN, PacketBuilder, RST, TCP, UDP};

cases! {
    flow_after_reply_and_ack_is_confirmed,
    syn_on_a_closing_flow_selects_anew,
    retransmitted_syn_follows_its_flow,
    udp_flow_without_its_backend_moves,
    tcp_flow_without_its_backend_stays,
    segments_outside_the_window_or_late_are_translated,
    changed_service_judges_only_new_flows,
    element_of_another_key_is_not_believed,
    forged_twin_of_a_tuple_keeps_nobody_out,
}

fn flow_after_reply_and_ack_is_confirmed<F: Net, D: DataplaneOf<F>>(node: &mut CaseNode<'_, F, D>) {
    let (pod, vip, to) = node.pod_to_cluster_ip(TCP);
    node.sent(At::Pod, &first(TCP, pod, vip));
    // Without a reply an ACK confirms nothing: a scan must not fill the table.
    node.sent(At::Pod, &packet(TCP, pod, vip));
    assert_eq!(node.flow().0, Class::Opening);
    node.sent(At::Out, &answer(TCP, to, pod));
    node.sent(At::Pod, &first(TCP, pod, vip));
    assert_eq!(
        node.flow().0,
        Class::Opening,
        "a SYN alone confirms nothing"
    );
    node.sent(At::Pod, &packet(TCP, pod, vip));
    let (class, record) = node.flow();
    assert_eq!(class, Class::Confirmed);
    assert!(record.flags.contains(FlowFlags::CONFIRMED));
    node.counted(Counter::FlowConfirmed, 1);
}

/// Semantics 18.3: a reused port is not stuck to the old backend.
fn syn_on_a_closing_flow_selects_anew<F: Net, D: DataplaneOf<F>>(node: &mut CaseNode<'_, F, D>) {
    let (pod, vip, to) = (
        at(node.h.pod, 40_000),
        at(node.h.vip, 80),
        at(node.h.remote, 8080),
    );
    let placed = node.service(vip, TCP, &[remote(node.h.remote, 8080)]);
    node.connected(At::Pod, pod, vip, to);
    // The table has another backend by now.
    let second = remote(node.h.remote2, 8080);
    node.put_backend(100, second, placed.service.id, 0);
    node.dataplane
        .put_rows(placed.service.cluster.offset, &[100]);
    // Live, and half closed: the SYN follows the flow.
    node.translated(At::Pod, &first(TCP, pod, vip), &first(TCP, pod, to));
    node.sent(At::Out, &CONVERSATION.reply_fin(to, pod));
    node.translated(At::Pod, &packet(TCP, pod, vip), &packet(TCP, pod, to));
    node.translated(At::Pod, &first(TCP, pod, vip), &first(TCP, pod, to));
    node.sent(At::Pod, &CONVERSATION.fin(pod, vip));
    assert_eq!(node.flow().0, Class::Closed);
    node.translated(
        At::Pod,
        &first(TCP, pod, vip),
        &first(TCP, pod, second.addr),
    );
    node.counted(Counter::Reselected, 1);
    node.counted(Counter::NewFlow, 2);
    assert_eq!(node.flow().0, Class::Opening);
}

/// Semantics 18.3.
fn retransmitted_syn_follows_its_flow<F: Net, D: DataplaneOf<F>>(node: &mut CaseNode<'_, F, D>) {
    let (pod, vip) = (at(node.h.pod, 40_000), at(node.h.vip, 80));
    let placed = node.service(vip, TCP, &[remote(node.h.remote, 8080)]);
    node.sent(At::Pod, &first(TCP, pod, vip));
    node.put_backend(100, remote(node.h.remote2, 8080), placed.service.id, 0);
    node.dataplane
        .put_rows(placed.service.cluster.offset, &[100]);
    let same = first(TCP, pod, at(node.h.remote, 8080));
    node.translated(At::Pod, &first(TCP, pod, vip), &same);
    node.counted(Counter::NewFlow, 1);
}

/// Semantics 17.2.a, 17.2.c.
fn udp_flow_without_its_backend_moves<F: Net, D: DataplaneOf<F>>(node: &mut CaseNode<'_, F, D>) {
    let (pod, vip) = (at(node.h.pod, 40_000), at(node.h.vip, 53));
    let (old, new) = (remote(node.h.remote, 5353), remote(node.h.remote2, 5353));
    let placed = node.service(vip, UDP, &[old]);
    for confirmed in [false, true] {
        node.put_backend(placed.ids[0], old, placed.service.id, 0);
        node.dataplane
            .put_rows(placed.service.cluster.offset, &[placed.ids[0]]);
        let pod = at(pod.ip(), 40_000 + u16::from(confirmed));
        node.translated(At::Pod, &packet(UDP, pod, vip), &packet(UDP, pod, old.addr));
        if confirmed {
            node.sent(At::Out, &reply(UDP, old.addr, pod));
            node.sent(At::Pod, &packet(UDP, pod, vip));
            node.counted(Counter::FlowConfirmed, 1);
        }
        node.put_backend(placed.ids[0], old, placed.service.id, 1);
        node.put_backend(100, new, placed.service.id, 0);
        node.dataplane
            .put_rows(placed.service.cluster.offset, &[100]);
        node.translated(At::Pod, &packet(UDP, pod, vip), &packet(UDP, pod, new.addr));
        node.translated(At::Out, &reply(UDP, new.addr, pod), &reply(UDP, vip, pod));
    }
    node.counted(Counter::Reselected, 2);
    // None is left: refused at the very next packet.
    node.put_backend(100, new, placed.service.id, 1);
    node.frontend(vip, UDP, emptied(placed.service));
    let (verdict, _) = node.run(At::Pod, &packet(UDP, pod, vip).build());
    assert_eq!(verdict, Verdict::Reflect);
    node.counted(Counter::Refused, 1);
}

/// Semantics 10.5, 18.1.
fn tcp_flow_without_its_backend_stays<F: Net, D: DataplaneOf<F>>(node: &mut CaseNode<'_, F, D>) {
    let (pod, vip, old) = (
        at(node.h.pod, 40_000),
        at(node.h.vip, 80),
        remote(node.h.remote, 8080),
    );
    let placed = node.service(vip, TCP, &[old]);
    node.sent(At::Pod, &first(TCP, pod, vip));
    node.sent(At::Out, &answer(TCP, old.addr, pod));
    node.put_backend(placed.ids[0], old, placed.service.id, 1);
    node.frontend(vip, TCP, emptied(placed.service));
    for _ in 0..2 {
        node.translated(At::Pod, &packet(TCP, pod, vip), &packet(TCP, pod, old.addr));
        node.translated(At::Out, &reply(TCP, old.addr, pod), &reply(TCP, vip, pod));
    }
    // A new connection from the same port is a new one.
    let (verdict, _) = node.run(At::Pod, &first(TCP, pod, vip).build());
    assert_eq!(verdict, Verdict::Reflect);
}

/// Semantics 19.3, 28.18: segments far outside the window, and those that come when the connection is over, never pass as
/// they are.
fn segments_outside_the_window_or_late_are_translated<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    let (pod, vip, to) = node.pod_to_cluster_ip(TCP);
    node.connected(At::Pod, pod, vip, to);
    // How each end closes: nothing, by FIN, by RST.
    for (theirs, ours) in [(ACK, ACK), (FIN | ACK, FIN | ACK), (RST, ACK)] {
        for numbers in [(1, 1), (0x7fff_ffff, 0xffff_0000), (0xffff_ffff, 0)] {
            for (sent, answered) in [(theirs, ours), (ACK, ACK), (RST | ACK, RST | ACK)] {
                let shaped = |packet: PacketBuilder, flags| {
                    packet.flags(flags).numbers(numbers.0, numbers.1)
                };
                node.translated(
                    At::Pod,
                    &shaped(packet(TCP, pod, vip), sent),
                    &shaped(packet(TCP, pod, to), sent),
                );
                node.translated(
                    At::Out,
                    &shaped(packet(TCP, to, pod), answered),
                    &shaped(packet(TCP, vip, pod), answered),
                );
            }
        }
    }
}

/// Semantics 10.5, 11.3, 12.7: source ranges that come later, an endpoint that goes and a port that a Service drops are
/// for new flows.
fn changed_service_judges_only_new_flows<F: Net, D: DataplaneOf<F>>(node: &mut CaseNode<'_, F, D>) {
    let (client, pod) = (at(node.h.client, 40_000), at(node.h.pod, 40_000));
    let (front, vip) = (at(node.h.external, 80), at(node.h.vip, 80));
    let (here, there) = (local(node.h.pod2, 8080), remote(node.h.remote, 8080));
    let outside = node.service_with(front, TCP, FrontendKind::LoadBalancer, &[here], |_| {});
    node.service(vip, TCP, &[there]);
    node.cluster_ip_exists(vip);
    for (hook, from, to, backend) in [
        (At::External, client, front, here.addr),
        (At::Pod, pod, vip, there.addr),
    ] {
        node.connected(hook, from, to, backend);
    }
    node.counted(Counter::FlowConfirmed, 2);
    let mut restricted = outside.service;
    restricted.flags |= ServiceFlags::SOURCE_RANGES;
    node.frontend(front, TCP, restricted);
    node.dataplane.remove_service(ServiceKey::<F>::new(
        F::addr(vip.ip()),
        Be16::from_host(vip.port()),
        TCP,
    ));
    for (hook, from, to, backend) in [
        (At::External, client, front, here.addr),
        (At::Pod, pod, vip, there.addr),
    ] {
        node.translated(hook, &packet(TCP, from, to), &packet(TCP, from, backend));
        node.translated(At::Out, &reply(TCP, backend, from), &reply(TCP, to, from));
    }
    let other = at(node.h.router, 40_001);
    node.dropped(
        At::External,
        &first(TCP, other, front),
        DropReason::SourceRange,
    );
    let (verdict, _) = node.run(At::Pod, &first(TCP, at(pod.ip(), 40_001), vip).build());
    assert_eq!(
        verdict,
        Verdict::Reflect,
        "the port is not defined any more"
    );
}

/// docs/decisions.md, "Stale and torn elements".
fn element_of_another_key_is_not_believed<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    let (pod, vip) = (at(node.h.pod, 40_000), at(node.h.vip, 80));
    let placed = node.service(vip, TCP, &[remote(node.h.remote, 8080)]);
    // A frontend whose element belongs to another key by now.
    let key = ServiceKey::<F>::new(F::addr(node.h.vip), Be16::from_host(81), TCP);
    let other = ServiceKey::<F>::new(F::addr(node.h.vip), Be16::from_host(80), TCP);
    node.dataplane
        .put_service(key, placed.service.sealed(&other));
    node.untouched(At::Pod, &first(TCP, pod, at(node.h.vip, 81)));
    node.counted(Counter::StaleElement, 1);
    // A flow that is being rewritten while it is read: nobody follows it.
    let original = Tuple::<F>::new(
        &F::addr(node.h.pod),
        &F::addr(node.h.vip),
        Be16::from_host(40_000),
        Be16::from_host(80),
        TCP,
        Side::PodIn,
    );
    let (backend, port) = (F::addr(node.h.client), Be16::from_host(8080));
    let source = (&original.saddr(), original.sport());
    let mut torn = Record::new(original, (&backend, port), source, FlowFlags::NONE).checked();
    torn.check ^= 1;
    FamilyMaps::<F>::put_record(node.dataplane, torn, Class::Opening);
    let stranger = at(node.h.client, 8080);
    for reply in [answer(TCP, stranger, pod), reply(TCP, stranger, pod)] {
        node.untouched(At::Out, &reply);
    }
}

/// IPv6 packs the tuples of two protocols alike where the first source nibbles differ in one way. A forged source must
/// not keep a client out.
fn forged_twin_of_a_tuple_keeps_nobody_out<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    let front = at(node.h.external, 53);
    let to = at(node.h.pod, 8080);
    for proto in PROTOCOLS {
        node.service_with(
            front,
            proto,
            FrontendKind::LoadBalancer,
            &[local(node.h.pod, 8080)],
            |service| service.flags |= ServiceFlags::EXTERNAL_LOCAL,
        );
    }
    let twin = match node.h.client {
        IpAddr::V4(addr) => IpAddr::from((u32::from(addr) ^ (4 << 28)).to_be_bytes()),
        IpAddr::V6(addr) => IpAddr::from((u128::from(addr) ^ (4 << 124)).to_be_bytes()),
    };
    for (port, theirs, ours) in [(40_000, UDP, TCP), (40_001, TCP, UDP)] {
        let (forged, client) = (at(twin, port), at(node.h.client, port));
        node.sent(At::External, &first(theirs, forged, front));
        for packet in [first(ours, client, front), packet(ours, client, front)] {
            let arrived = node.sent(At::External, &packet);
            assert_eq!((arrived.source, arrived.destination), (client, to));
        }
        node.exit = EXTERNAL;
        let restored = answer(ours, front, client);
        node.translated(At::Out, &answer(ours, to, client), &restored);
    }
}
