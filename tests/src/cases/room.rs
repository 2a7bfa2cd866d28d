//! A table of two buckets, 28 places for flows → who gives way to a new flow, and who never does.

use std::net::SocketAddr;

use lb_common::abi::{Counter, DropReason};
use lb_common::flow_table::{Class, WAYS};

use super::{At, CONVERSATION, CaseNode, DataplaneOf, Net, at, first, packet, reply};
use crate::packet::TCP;

cases! {
    closed_flows_give_way_before_openings_and_confirmed_never,
    full_table_refuses_new_flows_and_keeps_the_others,
}

/// Places of the table.
#[expect(clippy::cast_possible_truncation, reason = "28")]
const PLACES: u16 = 2 * WAYS as u16;

/// All flows by class: confirmed, opening, closed.
fn counts<F: Net, D: DataplaneOf<F>>(node: &mut CaseNode<'_, F, D>) -> (usize, usize, usize) {
    (
        node.flows(Class::Confirmed),
        node.flows(Class::Opening),
        node.flows(Class::Closed),
    )
}

#[track_caller]
fn goes_on<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
    (pod, vip, to): (SocketAddr, SocketAddr, SocketAddr),
) {
    node.translated(At::Pod, &packet(TCP, pod, vip), &packet(TCP, pod, to));
    node.translated(At::Out, &reply(TCP, to, pod), &reply(TCP, vip, pod));
}

fn closed_flows_give_way_before_openings_and_confirmed_never<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    let (pod, vip, to) = node.pod_to_cluster_ip(TCP);
    let pod = |port| at(pod.ip(), port);
    for number in 0..PLACES {
        let pod = pod(41_000 + number);
        match number {
            0..20 => node.connected(At::Pod, pod, vip, to),
            _ => {
                node.sent(At::Pod, &first(TCP, pod, vip));
            }
        }
        if (16..20).contains(&number) {
            node.sent(At::Pod, &CONVERSATION.rst(pod, vip));
        }
    }
    assert_eq!(counts(node), (16, 8, 4));
    node.counted(Counter::FlowEvicted, 0);
    for number in 0..4 {
        node.sent(At::Pod, &first(TCP, pod(42_000 + number), vip));
    }
    assert_eq!(counts(node), (16, 12, 0));
    node.counted(Counter::FlowEvicted, 4);
    // As many as a sender likes.
    for number in 0..500 {
        node.sent(At::Pod, &first(TCP, pod(43_000 + number), vip));
    }
    assert_eq!(counts(node), (16, 12, 0));
    node.counted(Counter::FlowEvicted, 504);
    node.counted(Counter::NewFlow, 532);
    for number in 0..16 {
        goes_on(node, (pod(41_000 + number), vip, to));
    }
}

fn full_table_refuses_new_flows_and_keeps_the_others<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    let (pod, vip, to) = node.pod_to_cluster_ip(TCP);
    let pod = |port| at(pod.ip(), port);
    for number in 0..PLACES {
        node.connected(At::Pod, pod(41_000 + number), vip, to);
    }
    assert_eq!(counts(node), (PLACES.into(), 0, 0));
    let newcomer = first(TCP, pod(42_000), vip);
    node.dropped(At::Pod, &newcomer, DropReason::FlowInsert);
    for number in 0..PLACES {
        goes_on(node, (pod(41_000 + number), vip, to));
    }
    node.counted(Counter::FlowEvicted, 0);
    node.sent(At::Out, &CONVERSATION.reply_rst(to, pod(41_005)));
    node.sent(At::Pod, &newcomer);
    node.counted(Counter::FlowEvicted, 1);
}
