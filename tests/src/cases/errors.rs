//! ICMP errors that quote a translated packet → the same about the packet that the receiver knows.

use std::net::IpAddr;

use lb_common::abi::{Counter, DropReason, FrontendKind};

use super::{
    At, CONVERSATION, CaseNode, DataplaneOf, Net, PROTOCOLS, Verdict, at, first, least, local,
    packet, parsed, quotes, remote, turned,
};
use crate::packet::{PacketBuilder, TCP, UDP};

cases! {
    error_about_a_pods_connection_names_the_cluster_ip,
    error_about_a_local_backend_names_the_frontend,
    error_about_a_remote_backend_is_translated_at_two_hooks,
    error_takes_no_flow_from_xdp,
    error_of_the_stack_between_two_hooks_names_the_frontend,
    error_about_a_hairpin_goes_back_to_the_pod,
    error_about_others_is_untouched,
    redirect_about_a_translated_packet_is_dropped,
}

/// Semantics 8.14: what pods learn about a ClusterIP's backend.
fn error_about_a_pods_connection_names_the_cluster_ip<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    let (pod, vip, to) = (
        at(node.h.pod, 40_000),
        at(node.h.vip, 80),
        at(node.h.remote, 8080),
    );
    for proto in PROTOCOLS {
        node.service(vip, proto, &[remote(node.h.remote, 8080)]);
        node.sent(At::Pod, &first(proto, pod, vip));
        for len in quotes::<F>() {
            // From a router: its own address stays. From the backend itself: it is the VIP.
            for (from, seen) in [(node.h.router, node.h.router), (node.h.remote, node.h.vip)] {
                let error = node.error(from, node.h.pod, &packet(proto, pod, to), len);
                let translated = node.error(seen, node.h.pod, &packet(proto, pod, vip), len);
                node.untouched(At::External, &error);
                node.translated(At::Out, &error, &translated);
            }
            // The pod about a reply.
            let error = node.error(node.h.pod, node.h.vip, &packet(proto, vip, pod), len);
            let translated = node.error(node.h.pod, node.h.remote, &packet(proto, to, pod), len);
            node.translated(At::Pod, &error, &translated);
            node.untouched(At::Out, &translated);
        }
    }
    node.counted(Counter::IcmpError, 18);
}

fn error_about_a_local_backend_names_the_frontend<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    let (client, front) = (at(node.h.client, 40_000), at(node.h.node, 30_080));
    let to = at(node.h.pod, 8080);
    for proto in PROTOCOLS {
        node.service_with(
            front,
            proto,
            FrontendKind::NodePort,
            &[local(node.h.pod, 8080)],
            |_| {},
        );
        node.sent(At::External, &first(proto, client, front));
        for len in quotes::<F>() {
            let error = node.error(node.h.pod, node.h.client, &packet(proto, client, to), len);
            let translated = node.error(
                node.h.node,
                node.h.client,
                &packet(proto, client, front),
                len,
            );
            node.untouched(At::Pod, &error);
            node.translated(At::Out, &error, &translated);
            let error = node.error(
                node.h.router,
                node.h.node,
                &packet(proto, front, client),
                len,
            );
            let translated = node.error(node.h.router, node.h.pod, &packet(proto, to, client), len);
            node.untouched(At::Xdp, &error);
            node.translated(At::External, &error, &translated);
        }
    }
}

fn error_about_a_remote_backend_is_translated_at_two_hooks<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    node.routes(&[node.h.remote, node.h.client]);
    for (hook, port) in [(At::External, 30_080), (At::Xdp, 30_081)] {
        for proto in PROTOCOLS {
            let (client, front) = (at(node.h.client, 40_000), at(node.h.node, port));
            let to = at(node.h.remote, 8080);
            let here = [remote(node.h.remote, 8080)];
            node.service_with(front, proto, FrontendKind::NodePort, &here, |_| {});
            let (_, bytes) = node.run(hook, &first(proto, client, front).build());
            let snat = at(node.h.node, parsed(&bytes).source.port());
            let between = at(node.h.client, snat.port());
            for len in quotes::<F>() {
                // About the original direction, from a router and from the backend.
                for (from, seen) in [(node.h.router, node.h.router), (node.h.remote, node.h.node)] {
                    let error = node.error(from, node.h.node, &packet(proto, snat, to), len);
                    let half = node.error(from, node.h.client, &packet(proto, between, to), len);
                    let whole = node.error(seen, node.h.client, &packet(proto, client, front), len);
                    node.translated(At::External, &error, &half);
                    node.translated(At::Out, &half, &whole);
                }
                // About a reply, from a router and from the client.
                for (from, seen) in [(node.h.router, node.h.router), (node.h.client, node.h.node)] {
                    let error = node.error(from, node.h.node, &packet(proto, front, client), len);
                    let half = node.error(from, node.h.remote, &packet(proto, to, between), len);
                    let whole = node.error(seen, node.h.remote, &packet(proto, to, snat), len);
                    node.translated(At::External, &error, &half);
                    node.translated(At::Out, &half, &whole);
                }
            }
        }
    }
}

/// tc translates the error, and the flow's packets stay XDP's.
fn error_takes_no_flow_from_xdp<F: Net, D: DataplaneOf<F>>(node: &mut CaseNode<'_, F, D>) {
    node.routes(&[node.h.remote, node.h.client]);
    let (client, front) = (at(node.h.client, 40_000), at(node.h.node, 30_081));
    let to = at(node.h.remote, 8080);
    let here = [remote(node.h.remote, 8080)];
    node.service_with(front, TCP, FrontendKind::NodePort, &here, |_| {});
    let (_, bytes) = node.run(At::Xdp, &first(TCP, client, front).build());
    let snat = at(node.h.node, parsed(&bytes).source.port());
    for packet in [
        CONVERSATION.syn_ack(to, snat),
        CONVERSATION.data(client, front),
        CONVERSATION.reply(to, snat),
    ] {
        node.run(At::Xdp, &packet.build());
    }
    let error = node.error(node.h.router, node.h.node, &packet(TCP, snat, to), 64);
    node.run(At::External, &error.build());
    for packet in [
        CONVERSATION.reply(to, snat),
        CONVERSATION.data(client, front),
    ] {
        let (verdict, _) = node.run(At::Xdp, &packet.build());
        assert!(matches!(verdict, Verdict::Transmit(_)), "{verdict:?}");
    }
}

/// No route, no neighbour, too big: the stack reports what tc ingress has made of a packet, before any
/// reply, to whom its source says.
fn error_of_the_stack_between_two_hooks_names_the_frontend<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    let (client, front, to) = node.client_to_node_port(TCP, remote(node.h.remote, 8080));
    let between = node.middle(&first(TCP, client, front));
    for len in quotes::<F>() {
        let error = node.error(node.h.node, node.h.client, &packet(TCP, between, to), len);
        let whole = node.error(node.h.node, node.h.client, &packet(TCP, client, front), len);
        node.translated(At::Out, &error, &whole);
        let error = node.error(node.h.node, node.h.remote, &packet(TCP, to, between), len);
        let whole = node.error(
            node.h.node,
            node.h.remote,
            &packet(TCP, to, at(node.h.node, between.port())),
            len,
        );
        node.translated(At::Out, &error, &whole);
    }
}

fn error_about_a_hairpin_goes_back_to_the_pod<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    let (pod, vip, own) = (
        at(node.h.pod, 40_000),
        at(node.h.vip, 80),
        at(node.h.pod, 8080),
    );
    node.service(vip, UDP, &[local(node.h.pod, 8080)]);
    let (_, bytes) = node.run(At::Pod, &packet(UDP, pod, vip).build());
    let masked = parsed(&bytes).source;
    // The pod has no such port, and tells itself through the VIP.
    for len in quotes::<F>() {
        let error = node.error(node.h.pod, node.h.node, &packet(UDP, masked, own), len);
        let translated = node.error(node.h.vip, node.h.pod, &packet(UDP, pod, vip), len);
        node.check(At::Pod, &error, Verdict::Reflect, &turned(translated));
    }
}

fn error_about_others_is_untouched<F: Net, D: DataplaneOf<F>>(node: &mut CaseNode<'_, F, D>) {
    let (pod, vip, to) = node.pod_to_cluster_ip(TCP);
    node.sent(At::Pod, &first(TCP, pod, vip));
    for hook in [At::Xdp, At::External, At::Pod, At::Out] {
        for quoted in [
            packet(TCP, at(node.h.pod, 40_001), to),
            packet(UDP, pod, to),
            packet(TCP, to, pod),
            packet(TCP, pod, to).fragment(5, 64, false),
            PacketBuilder::raw(pod.ip(), to.ip(), 47).payload(&[0; 20]),
        ] {
            for len in [10, least::<F>() - 6, least::<F>(), 100] {
                let quoted = &quoted.build_ip();
                let quoted = &quoted[..len.min(quoted.len())];
                let (kind, code) = if F::IS_V6 { (1, 0) } else { (3, 0) };
                let error = PacketBuilder::icmp(node.h.router, node.h.pod, kind, code, [0; 4])
                    .payload(quoted);
                let bytes = error.build();
                assert_eq!(node.run(hook, &bytes), (Verdict::Pass, bytes), "{hook:?}");
            }
        }
    }
    node.counted(Counter::IcmpError, 0);
}

/// A redirect quotes a tuple that the client does not know.
fn redirect_about_a_translated_packet_is_dropped<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    let (client, front, to) = node.client_to_node_port(TCP, remote(node.h.remote, 8080));
    let between = node.middle(&first(TCP, client, front));
    let redirect = |quoted: &PacketBuilder, lladdr: bool| {
        let quoted = quoted.build_ip();
        let h = F::hosts();
        let (IpAddr::V6(router), IpAddr::V6(target)) = (h.router, h.remote) else {
            return PacketBuilder::icmp(h.node, h.client, 5, 1, [198, 51, 100, 1])
                .payload(&quoted[..28]);
        };
        let mut body = [router.octets(), target.octets()].concat();
        if lladdr {
            body.extend([2, 1, 2, 0, 0, 0, 0, 1]);
        }
        body.extend([4, 8, 0, 0, 0, 0, 0, 0]);
        body.extend(&quoted[..56]);
        PacketBuilder::icmp(h.node, h.client, 137, 0, [0; 4]).payload(&body)
    };
    for lladdr in [false, true] {
        let ours = redirect(&packet(TCP, between, to), lladdr);
        node.dropped(At::Out, &ours, DropReason::IcmpRedirect);
        let other = redirect(&packet(TCP, at(node.h.client, 1), to), lladdr).build();
        assert_eq!(node.run(At::Out, &other), (Verdict::Pass, other.clone()));
        // What a router tells this node about its own packets is the stack's business.
        let theirs = redirect(&packet(TCP, at(node.h.node, between.port()), to), lladdr).build();
        assert_eq!(
            node.run(At::External, &theirs),
            (Verdict::Pass, theirs.clone())
        );
    }
}
