//! Traffic policies and source ranges → which backends a client may reach, and who is dropped.

use lb_common::abi::{DropReason, FrontendKind, ServiceFlags};

use super::{At, CaseNode, DataplaneOf, FamilyMaps, Net, at, first, local, remote};
use crate::packet::TCP;

cases! {
    local_policies_choose_local_or_drop,
    client_outside_the_source_ranges_is_dropped,
}

/// Semantics 8.2, 8.6, 10.2, 10.3.
fn local_policies_choose_local_or_drop<F: Net, D: DataplaneOf<F>>(node: &mut CaseNode<'_, F, D>) {
    let (pod, client) = (at(node.h.pod, 40_000), at(node.h.client, 40_000));
    let (here, there) = (local(node.h.pod2, 8080), remote(node.h.remote, 8080));
    let external = ServiceFlags::EXTERNAL_LOCAL;
    let internal = ServiceFlags::INTERNAL_LOCAL;
    let lb = FrontendKind::LoadBalancer;
    // Both lists have something.
    let both = at(node.h.external, 80);
    node.service_with(both, TCP, lb, &[there, here], |service| {
        service.flags |= external
    });
    for port in 0..8 {
        let client = at(node.h.client, 41_000 + port);
        let output = first(TCP, client, here.addr);
        node.translated(At::External, &first(TCP, client, both), &output);
    }
    // Only remote endpoints: outsiders are dropped, pods get what the load balancer would give them.
    let far = at(node.h.external, 81);
    node.service_with(far, TCP, lb, &[there], |service| service.flags |= external);
    node.untouched(At::Xdp, &first(TCP, client, far));
    node.dropped(
        At::External,
        &first(TCP, client, far),
        DropReason::NoLocalEndpoint,
    );
    node.translated(At::Pod, &first(TCP, pod, far), &first(TCP, pod, there.addr));
    // Internal policy: the same for the ClusterIP.
    let vip = at(node.h.vip, 80);
    node.service_with(
        vip,
        TCP,
        FrontendKind::ClusterIp,
        &[there, here],
        |service| {
            service.flags |= internal;
        },
    );
    for port in 0..8 {
        let pod = at(node.h.pod, 41_000 + port);
        node.translated(At::Pod, &first(TCP, pod, vip), &first(TCP, pod, here.addr));
    }
    let vip = at(node.h.vip, 81);
    node.service_with(vip, TCP, FrontendKind::ClusterIp, &[there], |service| {
        service.flags |= internal
    });
    node.dropped(At::Pod, &first(TCP, pod, vip), DropReason::NoLocalEndpoint);
}

/// Semantics 12.1, 12.3, 12.9: pods are not exempt.
fn client_outside_the_source_ranges_is_dropped<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    let front = at(node.h.external, 80);
    let here = local(node.h.pod2, 8080);
    let placed = node.service_with(front, TCP, FrontendKind::LoadBalancer, &[here], |service| {
        service.flags |= ServiceFlags::SOURCE_RANGES;
    });
    FamilyMaps::<F>::allow_source(node.dataplane, placed.service.id, F::addr(node.h.client));
    let client = at(node.h.client, 40_000);
    node.translated(
        At::External,
        &first(TCP, client, front),
        &first(TCP, client, here.addr),
    );
    node.dropped(
        At::External,
        &first(TCP, at(node.h.router, 1), front),
        DropReason::SourceRange,
    );
    node.dropped(
        At::Pod,
        &first(TCP, at(node.h.pod, 1), front),
        DropReason::SourceRange,
    );
}
