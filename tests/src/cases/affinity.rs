//! sessionAffinity ClientIP → the backend that a client keeps.

use std::net::SocketAddr;

use lb_common::abi::{BackendFlags, Counter, FrontendKind, ServiceFlags};

use super::{At, BackendAt, CaseNode, DataplaneOf, Net, answer, at, first, local, packet, remote};
use crate::packet::TCP;

cases! {
    client_with_affinity_keeps_its_backend_when_the_list_changes,
    client_with_affinity_stays_within_the_list_in_force,
}

/// Semantics 13.2, 13.5.
fn client_with_affinity_keeps_its_backend_when_the_list_changes<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    let (vip, to) = (at(node.h.vip, 80), at(node.h.remote, 8080));
    let placed = node.service_with(
        vip,
        TCP,
        FrontendKind::ClusterIp,
        &[remote(node.h.remote, 8080)],
        |service| service.affinity_secs = 10_800,
    );
    let pod = at(node.h.pod, 40_000);
    node.sent(At::Pod, &first(TCP, pod, vip));
    node.sent(At::Out, &answer(TCP, to, pod));
    node.sent(At::Pod, &packet(TCP, pod, vip));
    let other = remote(node.h.remote2, 8080);
    node.put_backend(100, other, placed.service.id, 0);
    node.dataplane
        .put_rows(placed.service.cluster.offset, &[100]);
    let again = at(node.h.pod, 40_001);
    node.translated(At::Pod, &first(TCP, again, vip), &first(TCP, again, to));
    node.counted(Counter::AffinityHit, 1);
    // Another client has nothing to keep.
    let stranger = at(node.h.pod2, 40_001);
    node.translated(
        At::Pod,
        &first(TCP, stranger, vip),
        &first(TCP, stranger, other.addr),
    );
    // The kept backend is gone: what the list says.
    node.put_backend(
        placed.ids[0],
        remote(node.h.remote, 8080),
        placed.service.id,
        1,
    );
    let later = at(node.h.pod, 40_002);
    node.translated(
        At::Pod,
        &first(TCP, later, vip),
        &first(TCP, later, other.addr),
    );
    node.counted(Counter::AffinityHit, 1);
}

/// Semantics 13.3, 13.6, 28.21: what a client keeps counts where it is in the list in force, and is replaced where it is not.
fn client_with_affinity_stays_within_the_list_in_force<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    let (vip, front) = (at(node.h.vip, 80), at(node.h.node, 30_080));
    let (here, there) = (local(node.h.pod2, 8080), remote(node.h.remote, 8080));
    let placed = node.service_with(
        vip,
        TCP,
        FrontendKind::ClusterIp,
        &[there, here],
        |service| {
            service.affinity_secs = 10_800;
            service.flags |= ServiceFlags::INTERNAL_LOCAL;
        },
    );
    let mut external = placed.service;
    external.kind = FrontendKind::NodePort as u8;
    external.flags = ServiceFlags::HAS_ENDPOINTS;
    node.frontend(front, TCP, external);
    // The Cluster list has just the remote one for now.
    node.dataplane
        .put_rows(placed.service.cluster.offset, &[placed.ids[0]; 2]);
    let mut port = 40_000;
    let mut connected = |node: &mut CaseNode<'_, F, D>, to: SocketAddr| {
        port += 1;
        let pod = at(node.h.pod, port);
        let backend = node.sent(At::Pod, &first(TCP, pod, to)).destination;
        node.sent(At::Out, &answer(TCP, backend, pod));
        node.sent(At::Pod, &packet(TCP, pod, to));
        backend
    };
    assert_eq!(connected(node, front), there.addr);
    // The ClusterIP stays on the node; the client is remembered there from now on.
    assert_eq!(connected(node, vip), here.addr);
    // The local one is in the Cluster list, too, and kept for that.
    assert_eq!(connected(node, front), here.addr);
    node.counted(Counter::AffinityHit, 1);
    // Semantics 13.6: a terminating one that was used for want of others leaves the list, and serves on.
    let leaving = BackendAt {
        flags: BackendFlags::LOCAL | BackendFlags::IN_LOCAL,
        ..here
    };
    node.put_backend(placed.ids[1], leaving, placed.service.id, 0);
    assert_eq!(connected(node, front), there.addr);
    node.counted(Counter::AffinityHit, 1);
}
