//! Packets that XDP forwards by itself, and those that it leaves to tc.

use lb_common::abi::{Counter, FrontendKind};

use super::{
    At, CaseNode, DataplaneOf, EXTERNAL, Net, PROTOCOLS, Verdict, answer, at, first, of_others,
    packet, parsed, remote, reply, transmitted,
};
use crate::packet::{DESTINATION, UDP};

cases! {
    outside_to_remote_backend_by_xdp_is_what_tc_makes_of_it,
    packet_that_xdp_cannot_finish_is_left_to_tc,
    flow_of_xdp_goes_on_by_tc_and_back,
}

/// XDP makes at once of a packet what tc makes at two hooks, and either may take over at any time.
fn outside_to_remote_backend_by_xdp_is_what_tc_makes_of_it<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    node.routes(&[node.h.remote, node.h.client]);
    let sent = Verdict::Transmit(EXTERNAL);
    for proto in PROTOCOLS {
        let (client, front) = (at(node.h.client, 40_000), at(node.h.external, 443));
        let to = at(node.h.remote, 8080);
        node.service_with(
            front,
            proto,
            FrontendKind::LoadBalancer,
            &[remote(node.h.remote, 8080)],
            |_| {},
        );
        let (verdict, bytes) = node.run(At::Xdp, &first(proto, client, front).build());
        assert_eq!(verdict, sent);
        let snat = parsed(&bytes).source;
        assert_eq!(snat.ip(), node.h.node);
        assert!((20_000..30_000).contains(&snat.port()));
        assert_eq!(bytes, transmitted(first(proto, snat, to)).build());
        for back in [answer, reply] {
            node.check(
                At::Xdp,
                &back(proto, to, snat),
                sent,
                &transmitted(back(proto, front, client)),
            );
            let next = packet(proto, client, front);
            node.check(At::Xdp, &next, sent, &transmitted(packet(proto, snat, to)));
        }
        // The same packets by tc, whose entries between its hooks are made only now.
        let between = at(node.h.client, snat.port());
        node.translated(
            At::External,
            &packet(proto, client, front),
            &packet(proto, between, to),
        );
        node.translated(
            At::Out,
            &packet(proto, between, to),
            &packet(proto, snat, to),
        );
        let half = reply(proto, to, between);
        node.translated(At::External, &reply(proto, to, snat), &half);
        node.translated(At::Out, &half, &reply(proto, front, client));
    }
    node.counted(Counter::NewFlow, 2);
    node.counted(Counter::XdpTranslated, 10);
}

/// XDP forwards only when it can do everything (docs/decisions.md, "The stack forwards, XDP is a shortcut").
fn packet_that_xdp_cannot_finish_is_left_to_tc<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    let (client, front) = (at(node.h.client, 40_000), at(node.h.external, 443));
    let endpoint = remote(node.h.remote, 8080);
    node.service_with(front, UDP, FrontendKind::LoadBalancer, &[endpoint], |_| {});
    // No next hop.
    node.untouched(At::Xdp, &packet(UDP, client, front));
    node.routes(&[node.h.remote, node.h.client]);
    node.untouched(At::Xdp, &packet(UDP, client, front).ttl(1));
    node.untouched(At::Xdp, &packet(UDP, client, front).payload(&[7; 1473]));
    node.untouched(At::Xdp, &packet(UDP, client, front).fragment(7, 0, true));
    let odd = packet(UDP, client, front);
    node.untouched(
        At::Xdp,
        &if F::IS_V6 {
            odd.extension(DESTINATION, &[])
        } else {
            odd.ip_options(&[1])
        },
    );
    node.untouched(At::Xdp, &of_others(packet(UDP, client, front)));
    node.counted(Counter::NewFlow, 0);
    // The same on an established flow.
    let (verdict, _) = node.run(At::Xdp, &packet(UDP, client, front).build());
    assert_eq!(verdict, Verdict::Transmit(EXTERNAL));
    node.untouched(At::Xdp, &of_others(packet(UDP, client, front)));
    node.untouched(At::Xdp, &packet(UDP, client, front).ttl(1));
    node.untouched(At::Xdp, &packet(UDP, client, front).payload(&[7; 1473]));
    node.counted(Counter::XdpTranslated, 1);
}

/// Between tc's hooks a flow is found whichever of its packets comes there first; its entries for that are made once.
fn flow_of_xdp_goes_on_by_tc_and_back<F: Net, D: DataplaneOf<F>>(node: &mut CaseNode<'_, F, D>) {
    node.routes(&[node.h.remote, node.h.client]);
    let front = at(node.h.external, 443);
    let to = remote(node.h.remote, 8080);
    for proto in PROTOCOLS {
        node.service_with(front, proto, FrontendKind::LoadBalancer, &[to], |_| {});
        for (port, reply_is_first) in [(40_000, false), (40_001, true)] {
            let client = at(node.h.client, port + u16::from(proto));
            let (_, bytes) = node.run(At::Xdp, &first(proto, client, front).build());
            let snat = at(node.h.node, parsed(&bytes).source.port());
            let between = at(node.h.client, snat.port());
            assert!(!node.is_by_halves(client), "XDP needs no entries");
            // A packet that XDP leaves to tc.
            if reply_is_first {
                let half = answer(proto, to.addr, between);
                node.translated(At::External, &answer(proto, to.addr, snat), &half);
                node.translated(At::Out, &half, &answer(proto, front, client));
                node.translated(At::External, &answer(proto, to.addr, snat), &half);
            } else {
                let half = first(proto, between, to.addr);
                node.translated(At::External, &first(proto, client, front), &half);
                node.translated(At::Out, &half, &first(proto, snat, to.addr));
                let (_, bytes) = node.run(At::Xdp, &answer(proto, to.addr, snat).build());
                let restored = transmitted(answer(proto, front, client)).build();
                assert_eq!(bytes, restored);
            }
            assert!(node.is_by_halves(client));
            let sent = Verdict::Transmit(EXTERNAL);
            let next = packet(proto, client, front);
            let translated = transmitted(packet(proto, snat, to.addr));
            node.check(At::Xdp, &next, sent, &translated);
            let half = packet(proto, between, to.addr);
            node.translated(At::External, &next, &half);
            node.translated(At::Out, &half, &packet(proto, snat, to.addr));
        }
    }
    node.counted(Counter::NewFlow, 4);
    node.counted(Counter::FlowConfirmed, 4);
}
