//! The cases of `lb_tests::cases` through the native build of the pipeline, and those that only a dataplane made
//! by hand can show: races, time, a table that is full, checksums that the kernel is still to finish.

use std::net::SocketAddr;
use std::process::ExitCode;

use lb_common::abi::{
    Be16, Counter, DropReason, Flow, FlowKey, FrontendKind, MacAddr, Side, Translation,
};
use lb_common::pipeline::flow::RENEW;
use lb_common::pipeline::packet::NextHop;
use lb_tests::cases::{
    self, At, CaseNode, Dataplane, EXTERNAL, FamilyMaps, NEXT_MAC, Net, OWN_MAC, Verdict, at,
    first, local, packet, parsed, remote,
};
use lb_tests::native::{Halves, Native};
use lb_tests::packet::{ACK, Checksum, DESTINATION, PacketBuilder, Parsed, RST, TCP, UDP};
use lb_tests::trials::{self, trial};

fn main() -> ExitCode {
    let cases = [cases::all(), all()].into_iter().flatten();
    let trials = cases.map(|case| {
        trial(case.name, &[], move || {
            (case.run)(&mut Native::default());
            Ok(())
        })
    });
    trials::run(trials.collect())
}

lb_tests::cases! { Native =>
    another_cpu_made_the_same_flow_first,
    another_cpu_chose_another_backend_first,
    full_flow_table_leaves_flows_in_openings,
    xdp_asks_for_the_next_hop_again_after_a_while,
    refusals_are_right_when_the_kernel_finishes_the_checksum,
    unfinished_checksums_stay_right_through_translation,
    affinity_ends_with_its_timeout,
}

fn key<F: Net>(source: SocketAddr, destination: SocketAddr, side: Side) -> FlowKey<F> {
    FlowKey::new(
        F::addr(source.ip()),
        F::addr(destination.ip()),
        Be16::from_host(source.port()),
        Be16::from_host(destination.port()),
        TCP,
        side,
    )
}

fn another_cpu_made_the_same_flow_first<F: Net + Halves>(node: &mut CaseNode<'_, F, Native>) {
    let (pod, vip, to) = node.pod_to_cluster_ip(TCP);
    // Its reply entry stands between our lookup and our insertion.
    *F::half(node.dataplane).race.borrow_mut() = Some(Box::new(|half, key, reply| {
        half.insert_opening(key, reply);
    }));
    node.translated(At::Pod, &first(TCP, pod, vip), &first(TCP, pod, to));
    node.counted(Counter::InsertRace, 1);
    node.counted(Counter::PortRewritten, 0);
    assert_eq!(node.openings(), 2);
}

fn another_cpu_chose_another_backend_first<F: Net + Halves>(node: &mut CaseNode<'_, F, Native>) {
    let (pod, vip, to) = (
        at(node.h.pod, 40_000),
        at(node.h.vip, 80),
        at(node.h.remote2, 8080),
    );
    node.service(vip, TCP, &[remote(node.h.remote, 8080)]);
    let original = key::<F>(pod, vip, Side::PodIn);
    *F::half(node.dataplane).race.borrow_mut() = Some(Box::new(move |half, _, _| {
        let flow = Flow {
            check: lb_common::abi::flow_check(&original),
            to: Translation {
                saddr: original.saddr,
                daddr: F::addr(to.ip()),
                sport: original.sport,
                dport: Be16::from_host(to.port()),
            },
            ..Flow::default()
        };
        half.insert_opening(&original, &flow);
    }));
    node.translated(At::Pod, &first(TCP, pod, vip), &first(TCP, pod, to));
    node.counted(Counter::InsertRace, 1);
    node.counted(Counter::NewFlow, 0);
    assert_eq!(node.openings(), 1, "our own reply entry is gone again");
}

/// Semantics 28.19.
fn full_flow_table_leaves_flows_in_openings<F: Net + Halves>(node: &mut CaseNode<'_, F, Native>) {
    let (pod, vip, to) = node.pod_to_cluster_ip(TCP);
    node.dataplane.full.set(true);
    node.sent(At::Pod, &first(TCP, pod, vip));
    node.sent(At::Out, &packet(TCP, to, pod));
    for _ in 0..2 {
        node.translated(At::Pod, &packet(TCP, pod, vip), &packet(TCP, pod, to));
        node.translated(At::Out, &packet(TCP, to, pod), &packet(TCP, vip, pod));
    }
    node.counted(Counter::FlowsFull, 2);
    assert_eq!((node.flows(), node.openings()), (0, 2));
    node.dataplane.full.set(false);
    node.sent(At::Pod, &packet(TCP, pod, vip));
    assert_eq!((node.flows(), node.openings()), (2, 0));
}

fn xdp_asks_for_the_next_hop_again_after_a_while<F: Net + Halves>(
    node: &mut CaseNode<'_, F, Native>,
) {
    let (client, front) = (at(node.h.client, 40_000), at(node.h.external, 443));
    let to = [remote(node.h.remote, 8080)];
    node.service_with(front, UDP, FrontendKind::LoadBalancer, &to, |_| {});
    node.routes(&[node.h.remote, node.h.client]);
    let send = |node: &mut CaseNode<'_, F, Native>| {
        let (verdict, bytes) = node.run(At::Xdp, &packet(UDP, client, front).build());
        (verdict, bytes[..12].to_vec())
    };
    let sent = Verdict::Transmit(EXTERNAL);
    let old = (sent, [NEXT_MAC, OWN_MAC].concat());
    assert_eq!(send(node), old);
    let openings = FamilyMaps::<F>::openings(node.dataplane);
    let original = openings
        .iter()
        .find(|(key, _)| key.daddr == F::addr(front.ip()));
    let Some((_, flow)) = original else {
        panic!("no opening of a client's packet: {openings:?}");
    };
    let snat = at(node.h.node, flow.to.sport.to_host());
    node.run(At::Xdp, &packet(UDP, at(node.h.remote, 8080), snat).build());
    assert_eq!(send(node), old);
    node.counted(Counter::FlowConfirmed, 1);
    let moved = MacAddr::new([2, 0, 0, 0, 0, 77]);
    let hop = NextHop {
        ifindex: EXTERNAL,
        dmac: moved,
        ready: true,
    };
    FamilyMaps::<F>::put_route(node.dataplane, F::addr(node.h.remote), hop);
    // Once within every renewal time; now and then the packet goes by the stack instead.
    let before = node.dataplane.counter_of(Counter::NextHop);
    assert_eq!(send(node), old);
    assert_eq!(node.dataplane.counter_of(Counter::NextHop), before);
    let (mut passed, mut renewed) = (0, 0);
    for stamp in (10..1000).step_by(RENEW as usize) {
        node.dataplane.stamp.set(stamp);
        match send(node) {
            (Verdict::Pass, _) => passed += 1,
            other => {
                assert_eq!(other, (sent, [moved.octets(), OWN_MAC].concat()));
                renewed += 1;
            }
        }
    }
    assert!(passed > 0 && renewed > 8 * passed, "{passed} of {renewed}");
}

/// What the kernel or a device does last to a packet with CHECKSUM_PARTIAL.
fn finish(bytes: &mut [u8], start: usize, at: usize) {
    let sum: u32 = bytes[start..]
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let [.., high, low] = (!sum).to_be_bytes();
    let check = match u16::from_be_bytes([high, low]) {
        0 => 0xffff,
        check => check,
    };
    bytes[start + at..start + at + 2].copy_from_slice(&check.to_be_bytes());
}

fn refusals_are_right_when_the_kernel_finishes_the_checksum<F: Net + Halves>(
    node: &mut CaseNode<'_, F, Native>,
) {
    node.dataplane.partial = true;
    let (pod, vip) = (at(node.h.pod, 40_000), at(node.h.vip, 80));
    let l4 = if F::IS_V6 { 54 } else { 34 };
    node.service(vip, TCP, &[]);
    node.service(vip, UDP, &[]);
    let unfinished = |proto| packet(proto, pod, vip).checksum(Checksum::Partial);
    let (verdict, mut bytes) = node.run(At::Pod, &unfinished(TCP).build());
    assert_eq!(verdict, Verdict::Reflect);
    assert_eq!(
        Parsed::frame_with_partial_checksum(&bytes).map(|parsed| parsed.flags),
        Ok(RST)
    );
    finish(&mut bytes, l4, 16);
    parsed(&bytes);

    let (verdict, mut bytes) = node.run(At::Pod, &unfinished(UDP).build());
    assert_eq!(verdict, Verdict::Reflect);
    // A veth peer takes it as it is, a device finishes it: right both times.
    parsed(&bytes);
    finish(&mut bytes, l4, 6);
    let quoted = parsed(&bytes).quoted;
    assert_eq!(quoted.map(|quoted| quoted.destination), Some(vip));

    // The place of the checksum does not fit the answer.
    for proto in [TCP, UDP] {
        let odd = unfinished(proto);
        let odd = if F::IS_V6 {
            odd.extension(DESTINATION, &[])
        } else {
            odd.ip_options(&[1])
        };
        node.dropped(At::Pod, &odd, DropReason::RefusalFailed);
    }
}

fn unfinished_checksums_stay_right_through_translation<F: Net + Halves>(
    node: &mut CaseNode<'_, F, Native>,
) {
    node.dataplane.partial = true;
    for proto in [TCP, UDP] {
        let (pod, vip, to) = (
            at(node.h.pod, 40_000),
            at(node.h.vip, 80),
            at(node.h.pod2, 8080),
        );
        node.service(vip, proto, &[local(node.h.pod2, 8080)]);
        let unfinished = |from, to| packet(proto, from, to).checksum(Checksum::Partial);
        for _ in 0..2 {
            node.run_partial(At::Pod, &unfinished(pod, vip), &unfinished(pod, to));
            node.run_partial(At::Out, &unfinished(to, pod), &unfinished(vip, pod));
        }
    }
}

/// What the node offers besides, for this file.
trait Extra {
    fn run_partial(&mut self, at: At, input: &PacketBuilder, output: &PacketBuilder);
}

impl<F: Net + Halves> Extra for CaseNode<'_, F, Native> {
    #[track_caller]
    fn run_partial(&mut self, at: At, input: &PacketBuilder, output: &PacketBuilder) {
        let (verdict, bytes) = self.run(at, &input.build());
        assert_eq!(verdict, Verdict::Pass);
        assert!(Parsed::frame_with_partial_checksum(&bytes).is_ok());
        assert_eq!(bytes, output.build());
    }
}

trait Count {
    fn counter_of(&mut self, counter: Counter) -> u64;
}

impl Count for Native {
    fn counter_of(&mut self, counter: Counter) -> u64 {
        Dataplane::counter(self, counter as u32)
    }
}

fn affinity_ends_with_its_timeout<F: Net + Halves>(node: &mut CaseNode<'_, F, Native>) {
    let (vip, to) = (at(node.h.vip, 80), at(node.h.remote, 8080));
    let kind = FrontendKind::ClusterIp;
    let placed = node.service_with(vip, TCP, kind, &[remote(node.h.remote, 8080)], |service| {
        service.affinity_secs = 60;
    });
    let pod = at(node.h.pod, 40_000);
    node.sent(At::Pod, &first(TCP, pod, vip));
    node.sent(At::Out, &packet(TCP, to, pod).flags(ACK));
    node.sent(At::Pod, &packet(TCP, pod, vip));
    let other = remote(node.h.remote2, 8080);
    node.put_backend(100, other, placed.service.id, 0);
    node.dataplane
        .put_rows(placed.service.cluster.offset, &[100]);
    // Semantics 13.2: every new connection starts the time anew.
    for (seconds, port, expected) in [(50, 1, to), (100, 2, to), (161, 3, other.addr)] {
        node.dataplane.now_ns.set(seconds * 1_000_000_000);
        let pod = at(node.h.pod, 41_000 + port);
        node.translated(At::Pod, &first(TCP, pod, vip), &first(TCP, pod, expected));
    }
}
