//! Packets that XDP forwards by itself, and those that it leaves to tc.

use lb_common::abi::{Counter, FrontendKind};

use super::{
    At, CaseNode, DataplaneOf, EXTERNAL, Net, PROTOCOLS, Verdict, at, first, of_others, packet,
    parsed, remote, transmitted,
};
use crate::packet::{DESTINATION, UDP};

cases! {
    outside_to_remote_backend_by_xdp_is_what_tc_makes_of_it,
    packet_that_xdp_cannot_finish_is_left_to_tc,
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
        let answer = packet(proto, to, snat);
        for _ in 0..2 {
            node.check(
                At::Xdp,
                &answer,
                sent,
                &transmitted(packet(proto, front, client)),
            );
            let next = packet(proto, client, front);
            node.check(At::Xdp, &next, sent, &transmitted(packet(proto, snat, to)));
        }
        // The same packets by tc, whose egress entries are made only now.
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
        node.translated(At::External, &answer, &packet(proto, to, between));
        node.translated(
            At::Out,
            &packet(proto, to, between),
            &packet(proto, front, client),
        );
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
