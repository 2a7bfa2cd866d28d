//! Clients' ports and those that may be taken → the source port of a translated flow.

use lb_common::abi::{Counter, DropReason};
use lb_common::flow_table::Class;

use super::{
    At, CONVERSATION, CaseNode, DataplaneOf, Net, PROTOCOLS, answer, at, first, packet, remote,
};
use crate::packet::TCP;

cases! {
    own_port_is_taken_before_another,
    port_that_may_not_be_taken_never_is,
    flow_that_is_over_gives_its_port_away,
    port_that_rests_is_taken_last,
}

/// Two clients that chose one port are told apart at their backend.
fn own_port_is_taken_before_another<F: Net, D: DataplaneOf<F>>(node: &mut CaseNode<'_, F, D>) {
    for proto in PROTOCOLS {
        let (_, front, to) = node.client_to_node_port(proto, remote(node.h.remote, 8080));
        let (client, other) = (at(node.h.client, 25_000), at(node.h.router, 25_000));
        let own = node.middle(&first(proto, client, front));
        assert_eq!(own, client);
        let moved = node.middle(&first(proto, other, front));
        assert_ne!(moved.port(), 25_000);
        for (client, between) in [(client, own), (other, moved)] {
            let snat = at(node.h.node, between.port());
            let half = answer(proto, to, between);
            node.translated(At::External, &answer(proto, to, snat), &half);
            node.translated(At::Out, &half, &answer(proto, front, client));
        }
    }
    node.counted(Counter::PortRewritten, 2);
}

fn port_that_may_not_be_taken_never_is<F: Net, D: DataplaneOf<F>>(node: &mut CaseNode<'_, F, D>) {
    let (_, front, _) = node.client_to_node_port(TCP, remote(node.h.remote, 8080));
    node.snat_ports(&[20_003], 20_002..=20_003);
    // Its own port lies in the range, and is somebody else's.
    let client = at(node.h.client, 20_002);
    assert_eq!(node.middle(&first(TCP, client, front)).port(), 20_003);
    let next = at(node.h.client, 20_003);
    node.dropped(
        At::External,
        &first(TCP, next, front),
        DropReason::PortsExhausted,
    );
    node.counted(Counter::NewFlow, 1);
}

fn flow_that_is_over_gives_its_port_away<F: Net, D: DataplaneOf<F>>(node: &mut CaseNode<'_, F, D>) {
    let (client, front, to) = node.client_to_node_port(TCP, remote(node.h.remote, 8080));
    node.snat_ports(&[20_000], 20_000..=20_000);
    let next = at(node.h.client, 40_001);
    let (snat, between) = (at(node.h.node, 20_000), at(node.h.client, 20_000));
    node.middle(&first(TCP, client, front));
    node.sent(At::External, &CONVERSATION.syn_ack(to, snat));
    node.dropped(
        At::External,
        &first(TCP, next, front),
        DropReason::PortsExhausted,
    );
    node.sent(At::External, &packet(TCP, client, front));
    node.dropped(
        At::External,
        &first(TCP, next, front),
        DropReason::PortsExhausted,
    );
    node.sent(At::External, &CONVERSATION.fin(client, front));
    node.dropped(
        At::External,
        &first(TCP, next, front),
        DropReason::PortsExhausted,
    );
    node.sent(At::External, &CONVERSATION.reply_fin(to, snat));
    let output = first(TCP, between, to);
    node.translated(At::External, &first(TCP, next, front), &output);
    node.sent(At::Out, &output);
    assert_eq!(node.flow().0, Class::Opening);
    // What comes late of the old connection opens nothing, and goes to no other client.
    node.untouched(At::External, &packet(TCP, client, front));
    let late = CONVERSATION.after(1_000).reply(to, snat);
    let data = late.clone().payload(b"late");
    node.dropped(At::External, &data, DropReason::StrayReply);
    // A bare ACK may be the backend asking about a connection of this tuple: the new client ends that one.
    node.sent(At::External, &late);
    assert_eq!(node.flow().0, Class::Opening);
}

/// What may still be on its way for a connection that has ended has some seconds to arrive.
fn port_that_rests_is_taken_last<F: Net, D: DataplaneOf<F>>(node: &mut CaseNode<'_, F, D>) {
    let (client, front, to) = node.client_to_node_port(TCP, remote(node.h.remote, 8080));
    node.snat_ports(&[20_000, 20_001], 20_000..=20_001);
    let between = node.middle(&first(TCP, client, front));
    let snat = at(node.h.node, between.port());
    node.sent(At::External, &CONVERSATION.syn_ack(to, snat));
    node.sent(At::External, &packet(TCP, client, front));
    node.sent(At::External, &CONVERSATION.reply_rst(to, snat));
    assert_eq!(node.flow().0, Class::Closed);
    let next = node.middle(&first(TCP, at(node.h.client, 40_001), front));
    assert_ne!(next.port(), between.port());
    let last = node.middle(&first(TCP, at(node.h.client, 40_002), front));
    assert_eq!(last.port(), between.port());
}
