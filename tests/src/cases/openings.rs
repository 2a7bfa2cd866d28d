//! First packets that are no SYN, and answers to others → a flow, or none.

use lb_common::abi::{Counter, DropReason, FlowFlags, FrontendKind};
use lb_common::flow_table::Class;

use super::{
    At, CONVERSATION, CaseNode, DataplaneOf, FamilyMaps, Net, PROTOCOLS, answer, at, first, local,
    packet, remote, reply,
};
use crate::packet::{ACK, FIN, RST, SYN, TCP, UDP};

cases! {
    data_in_mid_stream_opens_at_a_virtual_address,
    data_in_mid_stream_opens_nothing_at_an_address_of_the_node,
    segments_without_data_open_nothing,
    answer_to_a_query_of_the_node_passes,
    reply_of_a_remote_backend_behind_a_pod_interface_is_found,
    same_tuple_at_two_hooks_is_two_flows,
    reply_that_another_nat_waits_for_is_left_to_it,
}

/// This node takes over from another one, or from another proxy.
fn data_in_mid_stream_opens_at_a_virtual_address<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    let (pod, vip, to) = node.pod_to_cluster_ip(TCP);
    node.translated(At::Pod, &packet(TCP, pod, vip), &packet(TCP, pod, to));
    let (class, record) = node.flow();
    assert_eq!(class, Class::Opening);
    assert!(record.flags.contains(FlowFlags::MIDSTREAM));
    node.translated(At::Pod, &packet(TCP, pod, vip), &packet(TCP, pod, to));
    assert_eq!(node.flow().0, Class::Opening, "nobody has answered");
    node.translated(At::Out, &reply(TCP, to, pod), &reply(TCP, vip, pod));
    node.translated(At::Pod, &packet(TCP, pod, vip), &packet(TCP, pod, to));
    assert_eq!(node.flow().0, Class::Confirmed);
    // By what the numbers had come to it is closed.
    node.sent(At::Out, &CONVERSATION.reply_rst(to, pod));
    assert_eq!(node.flow().0, Class::Closed);

    let (client, front) = (at(node.h.client, 40_000), at(node.h.external, 443));
    let here = local(node.h.pod2, 8080);
    node.service_with(front, TCP, FrontendKind::LoadBalancer, &[here], |_| {});
    let output = packet(TCP, client, here.addr);
    node.translated(At::External, &packet(TCP, client, front), &output);
    // A SYN is another connection.
    let syn = first(TCP, client, here.addr);
    node.translated(At::External, &first(TCP, client, front), &syn);
    node.counted(Counter::Reselected, 1);
    node.counted(Counter::NewFlow, 3);
}

/// It may be the answer to a connection of the node's own, from a port that is a frontend's, too.
fn data_in_mid_stream_opens_nothing_at_an_address_of_the_node<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    for (count, endpoint) in [
        (1, local(node.h.pod, 8080)),
        (2, remote(node.h.remote, 8080)),
    ] {
        let (client, front, _) = node.client_to_node_port(TCP, endpoint);
        node.untouched(At::External, &packet(TCP, client, front));
        node.counted(Counter::NotOpened, count);
    }
    assert_eq!(FamilyMaps::<F>::records(node.dataplane), []);
}

fn segments_without_data_open_nothing<F: Net, D: DataplaneOf<F>>(node: &mut CaseNode<'_, F, D>) {
    let (pod, vip, _) = node.pod_to_cluster_ip(TCP);
    let (client, front, _) = node.client_to_node_port(TCP, local(node.h.pod, 8080));
    let external = at(node.h.external, 443);
    let here = [local(node.h.pod2, 8080)];
    node.service_with(external, TCP, FrontendKind::LoadBalancer, &here, |_| {});
    let mut not_opened = 0;
    for (hook, from, to) in [
        (At::Pod, pod, vip),
        (At::External, client, external),
        (At::External, client, front),
    ] {
        for (flags, is_answer) in [
            (ACK, false),
            (FIN | ACK, false),
            (RST, true),
            (RST | ACK, true),
            (SYN | ACK, true),
        ] {
            let segment = CONVERSATION.data(from, to).flags(flags);
            if is_answer || to == front {
                node.untouched(hook, &segment);
                not_opened += 1;
            } else {
                node.dropped(hook, &segment, DropReason::NoFlow);
            }
            node.counted(Counter::NotOpened, not_opened);
        }
    }
    assert_eq!(FamilyMaps::<F>::records(node.dataplane), []);
}

/// The node asks a server from a port that is also a frontend's: a resolver of the host, or a pod behind a masquerade.
fn answer_to_a_query_of_the_node_passes<F: Net, D: DataplaneOf<F>>(node: &mut CaseNode<'_, F, D>) {
    let (client, front, to) = node.client_to_node_port(UDP, local(node.h.pod, 8080));
    let server = at(node.h.router, 53);
    // What is sent from a port of no frontend keeps nothing.
    node.untouched(At::Out, &packet(UDP, at(node.h.node, 30_081), server));
    node.untouched(At::Out, &packet(UDP, front, server));
    for _ in 0..2 {
        node.untouched(At::Xdp, &reply(UDP, server, front));
        node.untouched(At::External, &reply(UDP, server, front));
    }
    assert_eq!(FamilyMaps::<F>::records(node.dataplane), []);
    node.counted(Counter::NotOpened, 4);
    // Another one's datagram is a client's, and from another port of the server, too.
    let output = packet(UDP, client, to);
    node.translated(At::External, &packet(UDP, client, front), &output);
    let other = at(node.h.router, 54);
    let output = packet(UDP, other, to);
    node.translated(At::External, &packet(UDP, other, front), &output);
    // Replies of flows are no queries.
    node.translated(At::Out, &reply(UDP, to, client), &reply(UDP, front, client));
    node.translated(
        At::External,
        &packet(UDP, client, front),
        &packet(UDP, client, to),
    );
}

/// Semantics 28.50: endpoints written by hand, which no slice says are local.
fn reply_of_a_remote_backend_behind_a_pod_interface_is_found<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    for proto in PROTOCOLS {
        let (client, front, to) = node.client_to_node_port(proto, remote(node.h.remote, 8080));
        let between = node.middle(&first(proto, client, front));
        let snat = at(node.h.node, between.port());
        node.translated(
            At::Pod,
            &answer(proto, to, snat),
            &answer(proto, to, between),
        );
        let restored = answer(proto, front, client);
        node.translated(At::Out, &answer(proto, to, between), &restored);
        // Who is not that backend is nobody's.
        let stranger = at(node.h.pod2, 8080);
        node.untouched(At::Pod, &answer(proto, stranger, snat));
    }
}

/// What a pod sends follows no flow of another interface.
fn same_tuple_at_two_hooks_is_two_flows<F: Net, D: DataplaneOf<F>>(node: &mut CaseNode<'_, F, D>) {
    let (client, front) = (at(node.h.client, 40_000), at(node.h.external, 443));
    let here = local(node.h.pod2, 8080);
    let kind = FrontendKind::LoadBalancer;
    let placed = node.service_with(front, UDP, kind, &[here], |_| {});
    node.sent(At::External, &packet(UDP, client, front));
    let other = remote(node.h.remote, 8080);
    node.put_backend(100, other, placed.service.id, 0);
    node.dataplane
        .put_rows(placed.service.cluster.offset, &[100]);
    let output = packet(UDP, client, other.addr);
    node.translated(At::Pod, &packet(UDP, client, front), &output);
    node.counted(Counter::NewFlow, 2);
}

/// A masquerade between the two hooks took the packet: egress never saw it with the source that the flow has there, and
/// the answer comes to the port that the other NAT chose.
fn reply_that_another_nat_waits_for_is_left_to_it<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    node.routes(&[node.h.remote, node.h.client]);
    for proto in PROTOCOLS {
        let (client, front, to) = node.client_to_node_port(proto, remote(node.h.remote, 8080));
        let between = node.sent(At::External, &first(proto, client, front)).source;
        let masked = at(node.h.node, between.port());
        node.untouched(At::Out, &first(proto, masked, to));
        node.untouched(At::External, &answer(proto, to, masked));
        // All of the connection goes by the stack, where the other NAT follows it.
        for hook in [At::Xdp, At::External] {
            node.untouched(hook, &answer(proto, to, masked));
        }
        node.untouched(At::Xdp, &packet(proto, client, front));
        // The other NAT has put the source back that it saw.
        let half = answer(proto, to, between);
        node.translated(At::Out, &half, &answer(proto, front, client));
    }
}
