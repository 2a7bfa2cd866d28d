//! Numbers of TCP segments → what they may do to a flow: open, confirm or close it, or nothing.

use std::net::SocketAddr;

use lb_common::abi::{Counter, DropReason, FlowFlags, FrontendKind};
use lb_common::flow_table::Class;

use super::{
    At, CONVERSATION, CaseNode, DataplaneOf, EXTERNAL, Net, at, first, local, packet, remote, reply,
};
use crate::packet::{ACK, Conversation, FIN, PacketBuilder, RST, SYN, TCP};

cases! {
    syn_ack_that_does_not_acknowledge_is_not_the_flows,
    ack_of_another_number_confirms_nothing,
    handshake_of_who_sees_no_answer_confirms_nothing,
    fin_and_rst_out_of_window_change_nothing,
    window_of_fin_and_rst_follows_the_data,
    fin_with_the_first_ack_confirms,
    syn_again_changes_nothing_and_another_starts_anew,
    refused_opening_is_over,
    syn_ack_of_fast_open_is_the_flows,
    reset_in_midstream_confirms_nothing,
    forged_opening_leaves_a_direct_connection_alone,
    direct_connection_before_one_through_a_frontend_goes_on,
}

/// Of somebody else.
const OTHER: Conversation = Conversation {
    client: 0x1111_1111,
    server: 0x2222_2222,
};

fn syn_ack_that_does_not_acknowledge_is_not_the_flows<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    let (pod, vip, to) = node.pod_to_cluster_ip(TCP);
    node.sent(At::Pod, &first(TCP, pod, vip));
    node.untouched(At::Out, &OTHER.syn_ack(to, pod));
    node.untouched(At::Out, &reply(TCP, to, pod));
    let seen = node.flow().1.flags.contains(FlowFlags::REPLY_SEEN);
    assert!(!seen, "what is not the flow's answers nothing");
    let (answer, restored) = (
        CONVERSATION.syn_ack(to, pod),
        CONVERSATION.syn_ack(vip, pod),
    );
    node.translated(At::Out, &answer, &restored);
    node.translated(At::Out, &answer, &restored);
    node.untouched(At::Out, &OTHER.syn_ack(to, pod));

    // Where the port is this node's, it is nobody's.
    let (client, front, to) = node.client_to_node_port(TCP, remote(node.h.remote, 8080));
    let between = node.middle(&first(TCP, client, front));
    let snat = at(node.h.node, between.port());
    node.dropped(
        At::External,
        &OTHER.syn_ack(to, snat),
        DropReason::StrayReply,
    );
    let half = CONVERSATION.syn_ack(to, between);
    node.translated(At::External, &CONVERSATION.syn_ack(to, snat), &half);
}

fn ack_of_another_number_confirms_nothing<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    let (pod, vip, to) = node.pod_to_cluster_ip(TCP);
    node.sent(At::Pod, &first(TCP, pod, vip));
    node.sent(At::Out, &CONVERSATION.syn_ack(to, pod));
    let client = CONVERSATION.client + 1;
    for acknowledged in [0, CONVERSATION.server, CONVERSATION.server + 0x1_0001, !0] {
        let shaped = |from, to| CONVERSATION.data(from, to).numbers(client, acknowledged);
        node.translated(At::Pod, &shaped(pod, vip), &shaped(pod, to));
        assert_eq!(node.flow().0, Class::Opening, "{acknowledged:#x}");
    }
    // Some data may have come by the time that the client says so.
    let late = CONVERSATION.server + 0x1_0000;
    node.sent(At::Pod, &CONVERSATION.data(pod, vip).numbers(client, late));
    assert_eq!(node.flow().0, Class::Confirmed);
}

/// Who forges a client's address sees no answer: neither of a server that answers nor of one that does not.
fn handshake_of_who_sees_no_answer_confirms_nothing<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    let (_, front, to) = node.client_to_node_port(TCP, remote(node.h.remote, 8080));
    for port in 0..20 {
        let forged = at(node.h.client, 41_000 + port);
        let between = node.middle(&first(TCP, forged, front));
        if port % 2 == 0 {
            let snat = at(node.h.node, between.port());
            node.sent(At::External, &CONVERSATION.syn_ack(to, snat));
        }
        for server in [0, OTHER.server, CONVERSATION.client] {
            let guess = Conversation {
                server,
                ..CONVERSATION
            };
            node.sent(At::External, &guess.data(forged, front));
            node.sent(At::External, &guess.data(forged, front).payload(b"x"));
        }
    }
    node.counted(Counter::FlowConfirmed, 0);
    assert_eq!(
        (node.flows(Class::Opening), node.flows(Class::Confirmed)),
        (20, 0)
    );
}

fn fin_and_rst_out_of_window_change_nothing<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    let (pod, vip, to) = node.pod_to_cluster_ip(TCP);
    node.connected(At::Pod, pod, vip, to);
    let mut counted = 0;
    for far in [0x0100_0000, 0x7fff_ffff, 0xff00_0000] {
        let blind = CONVERSATION.after(far);
        for flags in [FIN | ACK, RST, RST | ACK] {
            let sent = |from, to| blind.data(from, to).flags(flags);
            let answered = |from, to| blind.reply(from, to).flags(flags);
            node.translated(At::Pod, &sent(pod, vip), &sent(pod, to));
            node.translated(At::Out, &answered(to, pod), &answered(vip, pod));
            counted += 2;
            node.counted(Counter::OutOfWindow, counted);
            let (class, record) = node.flow();
            assert_eq!(class, Class::Confirmed);
            assert!(!record.flags.intersects(FlowFlags::CLOSING));
        }
    }
    // In window, each in its way.
    let near = CONVERSATION.after(100_000);
    node.sent(At::Pod, &near.fin(pod, vip));
    assert_eq!(node.flow().0, Class::Confirmed, "half closed");
    node.sent(At::Out, &near.reply_fin(to, pod));
    let (class, record) = node.flow();
    assert_eq!(class, Class::Closed);
    assert!(record.flags.contains(FlowFlags::FIN | FlowFlags::REPLY_FIN));
    for (port, resets) in [
        (40_001, Conversation::rst as fn(_, _, _) -> _),
        (40_002, Conversation::reply_rst),
    ] {
        let pod = at(node.h.pod, port);
        node.connected(At::Pod, pod, vip, to);
        if port == 40_001 {
            node.sent(At::Pod, &resets(near, pod, vip));
        } else {
            node.sent(At::Out, &resets(near, to, pod));
        }
    }
    assert_eq!(node.flows(Class::Closed), 3);
    node.counted(Counter::OutOfWindow, counted);
}

/// A connection carries more than the numbers can count.
fn window_of_fin_and_rst_follows_the_data<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    const STEP: u32 = 3 << 20;
    let (pod, vip, to) = node.pod_to_cluster_ip(TCP);
    node.connected(At::Pod, pod, vip, to);
    let mut conversation = CONVERSATION;
    for _ in 0..1500 {
        conversation = conversation.after(STEP);
        node.sent(At::Pod, &conversation.data(pod, vip));
        node.sent(At::Out, &conversation.reply(to, pod));
    }
    let old = conversation.after(0u32.wrapping_sub(20 * STEP));
    node.sent(At::Pod, &old.rst(pod, vip));
    node.sent(At::Out, &old.reply_rst(to, pod));
    node.counted(Counter::OutOfWindow, 2);
    assert_eq!(node.flow().0, Class::Confirmed);
    node.sent(At::Out, &conversation.reply_rst(to, pod));
    assert_eq!(node.flow().0, Class::Closed);
}

/// That FIN is not noted: the client sends it again, or answers the server's.
fn fin_with_the_first_ack_confirms<F: Net, D: DataplaneOf<F>>(node: &mut CaseNode<'_, F, D>) {
    let (pod, vip, to) = node.pod_to_cluster_ip(TCP);
    node.sent(At::Pod, &first(TCP, pod, vip));
    node.sent(At::Out, &CONVERSATION.syn_ack(to, pod));
    node.translated(
        At::Pod,
        &CONVERSATION.fin(pod, vip),
        &CONVERSATION.fin(pod, to),
    );
    assert_eq!(node.flow().0, Class::Confirmed);
    let restored = CONVERSATION.reply_fin(vip, pod);
    node.translated(At::Out, &CONVERSATION.reply_fin(to, pod), &restored);
    node.sent(At::Pod, &CONVERSATION.fin(pod, vip));
    assert_eq!(node.flow().0, Class::Closed);
}

/// Semantics 18.3.
fn syn_again_changes_nothing_and_another_starts_anew<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    let (pod, vip, to) = node.pod_to_cluster_ip(TCP);
    let syn = first(TCP, pod, vip);
    node.translated(At::Pod, &syn, &first(TCP, pod, to));
    node.sent(At::Out, &CONVERSATION.syn_ack(to, pod));
    // Lost on the way to the client: the SYN comes once more, and its ACK still confirms.
    let before = node.flow();
    node.translated(At::Pod, &syn, &first(TCP, pod, to));
    assert_eq!(node.flow(), before);
    // The client gives up and tries anew from the same port.
    node.translated(At::Pod, &OTHER.syn(pod, vip), &OTHER.syn(pod, to));
    node.untouched(At::Out, &CONVERSATION.syn_ack(to, pod));
    node.sent(At::Pod, &packet(TCP, pod, vip));
    assert_eq!(node.flow().0, Class::Opening, "an ACK of the first try");
    node.translated(At::Out, &OTHER.syn_ack(to, pod), &OTHER.syn_ack(vip, pod));
    node.sent(At::Pod, &packet(TCP, pod, vip));
    assert_eq!(node.flow().0, Class::Opening, "an ACK of the first try");
    node.sent(At::Pod, &OTHER.data(pod, vip));
    assert_eq!(node.flow().0, Class::Confirmed);
    // A live connection outlives a SYN of any number.
    node.translated(At::Pod, &syn, &first(TCP, pod, to));
    assert_eq!(node.flow().0, Class::Confirmed);
    node.counted(Counter::NewFlow, 1);
}

/// RFC 9293, 3.10.7.3.
fn refused_opening_is_over<F: Net, D: DataplaneOf<F>>(node: &mut CaseNode<'_, F, D>) {
    let (pod, vip, to) = node.pod_to_cluster_ip(TCP);
    node.sent(At::Pod, &first(TCP, pod, vip));
    for blind in [OTHER.refusal(to, pod), OTHER.reply_rst(to, pod)] {
        node.untouched(At::Out, &blind);
        assert_eq!(node.flow().0, Class::Opening);
    }
    let restored = CONVERSATION.refusal(vip, pod);
    node.translated(At::Out, &CONVERSATION.refusal(to, pod), &restored);
    let (class, record) = node.flow();
    assert_eq!(class, Class::Closed);
    assert!(record.flags.contains(FlowFlags::REPLY_RST));
    // The server is there by now; and it thinks better of it once it has accepted.
    node.translated(At::Pod, &OTHER.syn(pod, vip), &OTHER.syn(pod, to));
    node.counted(Counter::Reselected, 1);
    node.sent(At::Out, &OTHER.syn_ack(to, pod));
    node.translated(
        At::Out,
        &OTHER.reply_rst(to, pod),
        &OTHER.reply_rst(vip, pod),
    );
    assert_eq!(node.flow().0, Class::Closed);
}

/// A client has a connection to a backend past the frontends; a forged SYN of the same address and port reaches a
/// frontend of that backend.
fn forged_opening_leaves_a_direct_connection_alone<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    let (front, to) = (at(node.h.external, 443), at(node.h.pod, 8080));
    let here = [local(node.h.pod, 8080)];
    node.service_with(front, TCP, FrontendKind::LoadBalancer, &here, |_| {});
    node.exit = EXTERNAL;
    type Segment = fn(Conversation, SocketAddr, SocketAddr) -> PacketBuilder;
    let theirs: [Segment; 3] = [Conversation::syn, Conversation::data, Conversation::fin];
    let ours: [Segment; 5] = [
        Conversation::syn_ack,
        Conversation::reply,
        Conversation::refusal,
        Conversation::reply_fin,
        Conversation::reply_rst,
    ];
    // Before it, or in the middle of it.
    for (port, is_before) in [(40_000, true), (40_001, false)] {
        let client = at(node.h.client, port);
        if !is_before {
            node.untouched(At::External, &OTHER.syn(client, to));
            node.untouched(At::Out, &OTHER.syn_ack(to, client));
        }
        node.sent(At::External, &CONVERSATION.syn(client, front));
        for segment in theirs {
            node.untouched(At::External, &segment(OTHER, client, to));
        }
        for segment in ours {
            node.untouched(At::Out, &segment(OTHER, to, client));
        }
    }
    assert_eq!(node.flows(Class::Opening), 2);
}

/// The other way round it gets another port: see `direct_connection_from_a_taken_port_gets_another`.
fn direct_connection_before_one_through_a_frontend_goes_on<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    let (pod, vip, to) = node.pod_to_cluster_ip(TCP);
    node.untouched(At::Pod, &OTHER.syn(pod, to));
    node.untouched(At::Out, &OTHER.syn_ack(to, pod));
    node.sent(At::Pod, &CONVERSATION.syn(pod, vip));
    for flags in [ACK, FIN | ACK, RST, SYN | ACK] {
        node.untouched(At::Out, &OTHER.reply(to, pod).flags(flags));
        if flags != SYN | ACK {
            node.untouched(At::Pod, &OTHER.data(pod, to).flags(flags));
        }
    }
}

/// RFC 7413: the SYN carried data, and the server has taken it.
fn syn_ack_of_fast_open_is_the_flows<F: Net, D: DataplaneOf<F>>(node: &mut CaseNode<'_, F, D>) {
    let (pod, vip, to) = node.pod_to_cluster_ip(TCP);
    node.sent(At::Pod, &first(TCP, pod, vip));
    let taken = |from| {
        let acknowledged = CONVERSATION.client.wrapping_add(101);
        CONVERSATION
            .syn_ack(from, pod)
            .numbers(CONVERSATION.server, acknowledged)
    };
    node.translated(At::Out, &taken(to), &taken(vip));
    node.translated(At::Out, &taken(to), &taken(vip));
}

/// Two segments of who sees no answer, and what a backend says that knows no such connection.
fn reset_in_midstream_confirms_nothing<F: Net, D: DataplaneOf<F>>(node: &mut CaseNode<'_, F, D>) {
    let (pod, vip, to) = node.pod_to_cluster_ip(TCP);
    let data = CONVERSATION.data(pod, vip).payload(b"x");
    node.sent(At::Pod, &data);
    node.sent(At::Out, &CONVERSATION.reply_rst(to, pod));
    node.sent(At::Pod, &data);
    node.sent(At::Out, &CONVERSATION.reply_rst(to, pod));
    let (class, record) = node.flow();
    assert_eq!(class, Class::Closed);
    assert!(!record.flags.contains(FlowFlags::CONFIRMED));
}
