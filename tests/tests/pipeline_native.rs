//! The cases of `lb_tests::cases` through the native build of the pipeline, and those that only a dataplane made
//! by hand can show: races, time, a table that is full, checksums that the kernel is still to finish.

use std::process::ExitCode;

use lb_common::abi::{Be16, Counter, DropReason, FrontendKind, MacAddr};
use lb_common::flow_table::{Class, Insert, Record};
use lb_common::pipeline::flow::RENEW;
use lb_common::pipeline::packet::NextHop;
use lb_tests::cases::{
    self, At, CaseNode, Dataplane, EXTERNAL, FamilyMaps, NEXT_MAC, Net, OWN_MAC, Verdict, answer,
    at, first, local, packet, parsed, put_record, remote, reply,
};
use lb_tests::native::{Halves, Native};
use lb_tests::packet::{Checksum, DESTINATION, PacketBuilder, Parsed, RST, TCP, UDP};
use lb_tests::trials::{self, trial};

fn main() -> ExitCode {
    let cases = [cases::all(), all()].into_iter().flatten();
    let cases = cases.map(|case| (case, Native::default as fn() -> Native));
    let crowded = [cases::crowded(), crowded()].into_iter().flatten();
    let crowded = crowded.map(|case| (case, crowded_native as fn() -> Native));
    let trials = cases.chain(crowded).map(|(case, native)| {
        trial(case.name, &[], move || {
            (case.run)(&mut native());
            Ok(())
        })
    });
    trials::run(trials.collect())
}

lb_tests::cases! { Native =>
    another_cpu_made_the_same_flow_first,
    another_cpu_chose_another_backend_first,
    busy_table_is_tried_again,
    table_that_stays_busy_drops_what_it_would_misread,
    xdp_asks_for_the_next_hop_again_after_a_while,
    refusals_are_right_when_the_kernel_finishes_the_checksum,
    unfinished_checksums_stay_right_through_translation,
    affinity_ends_with_its_timeout,
    opening_that_is_old_gives_its_port_away,
}

fn crowded_native() -> Native {
    Native::with_table(2, 64)
}

/// Those of [`cases::crowded`] that need a clock of their own.
fn crowded() -> Vec<cases::Case<Native>> {
    lb_tests::cases!(@list oldest_opening_gives_way_first)
}

/// Whoever opens more than the table holds takes places of openings only, the oldest first.
fn oldest_opening_gives_way_first<F: Net + Halves>(node: &mut CaseNode<'_, F, Native>) {
    let (pod, vip, _) = node.pod_to_cluster_ip(TCP);
    let client = |number: u16| at(pod.ip(), 41_000 + number);
    for number in 0..28 {
        node.dataplane.stamp.set(u32::from(number) / 2);
        node.sent(At::Pod, &first(TCP, client(number), vip));
    }
    node.dataplane.stamp.set(100);
    for number in 28..40 {
        node.sent(At::Pod, &first(TCP, client(number), vip));
        // Between the two of one time either may go.
        let records = FamilyMaps::<F>::records(node.dataplane);
        let mut stamps: Vec<u32> = records.iter().map(|(_, record)| record.stamp).collect();
        stamps.sort_unstable();
        let oldest = u32::from(number - 27) / 2;
        assert_eq!((stamps.len(), stamps[0]), (28, oldest), "{stamps:?}");
    }
    node.counted(Counter::FlowEvicted, 12);
}

fn another_cpu_made_the_same_flow_first<F: Net + Halves>(node: &mut CaseNode<'_, F, Native>) {
    let (pod, vip, to) = node.pod_to_cluster_ip(TCP);
    // It stands between our lookup and our insertion.
    *F::half(node.dataplane).race.borrow_mut() = Some(Box::new(|half, record| {
        let result = put_record(&&half.table, &record.checked(), Class::Opening);
        assert_eq!(result, Insert::Done);
    }));
    node.translated(At::Pod, &first(TCP, pod, vip), &first(TCP, pod, to));
    node.counted(Counter::InsertRace, 1);
    node.counted(Counter::PortRewritten, 0);
    assert_eq!(node.flow().0, Class::Opening);
}

fn another_cpu_chose_another_backend_first<F: Net + Halves>(node: &mut CaseNode<'_, F, Native>) {
    let (pod, vip, to) = (
        at(node.h.pod, 40_000),
        at(node.h.vip, 80),
        at(node.h.remote2, 8080),
    );
    node.service(vip, TCP, &[remote(node.h.remote, 8080)]);
    *F::half(node.dataplane).race.borrow_mut() = Some(Box::new(move |half, ours| {
        let backend = (&F::addr(to.ip()), Be16::from_host(to.port()));
        let source = (&ours.source_addr(), ours.source_port);
        let mut theirs = Record::new(ours.original, backend, source, ours.flags);
        theirs.hops = ours.hops;
        let result = put_record(&&half.table, &theirs.checked(), Class::Opening);
        assert_eq!(result, Insert::Done);
    }));
    node.translated(At::Pod, &first(TCP, pod, vip), &first(TCP, pod, to));
    node.counted(Counter::InsertRace, 1);
    node.counted(Counter::NewFlow, 0);
    assert_eq!(node.flow().0, Class::Opening);
    node.translated(At::Out, &answer(TCP, to, pod), &answer(TCP, vip, pod));
}

/// Busy is no failure: the holder of a lock needs less than a microsecond.
fn busy_table_is_tried_again<F: Net + Halves>(node: &mut CaseNode<'_, F, Native>) {
    let (pod, vip, to) = node.pod_to_cluster_ip(TCP);
    node.dataplane.busy.set(3);
    node.translated(At::Pod, &first(TCP, pod, vip), &first(TCP, pod, to));
    node.counted(Counter::InsertBusy, 3);
    node.counted(Counter::NewFlow, 1);
    // A SYN-ACK that goes on untold would leave the flow waiting for ever.
    node.dataplane.busy.set(3);
    node.translated(At::Out, &answer(TCP, to, pod), &answer(TCP, vip, pod));
    // An ACK that confirms nothing leaves it to the next segment.
    node.dataplane.busy.set(4);
    node.translated(At::Pod, &packet(TCP, pod, vip), &packet(TCP, pod, to));
    assert_eq!(node.flow().0, Class::Opening);
    node.translated(At::Pod, &packet(TCP, pod, vip), &packet(TCP, pod, to));
    assert_eq!(node.flow().0, Class::Confirmed);
    node.counted(Counter::FlowConfirmed, 1);
}

fn table_that_stays_busy_drops_what_it_would_misread<F: Net + Halves>(
    node: &mut CaseNode<'_, F, Native>,
) {
    let (pod, vip, to) = node.pod_to_cluster_ip(TCP);
    node.translated(At::Pod, &first(TCP, pod, vip), &first(TCP, pod, to));
    node.dataplane.busy.set(1_000);
    node.dropped(At::Out, &answer(TCP, to, pod), DropReason::FlowBusy);
    node.dropped(
        At::Pod,
        &first(TCP, at(node.h.pod, 40_001), vip),
        DropReason::FlowBusy,
    );
    node.dataplane.busy.set(0);
    node.translated(At::Out, &answer(TCP, to, pod), &answer(TCP, vip, pod));
    node.counted(Counter::NewFlow, 1);
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
    let snat = at(node.h.node, node.flow().1.source_port.to_host());
    node.run(At::Xdp, &reply(UDP, at(node.h.remote, 8080), snat).build());
    assert_eq!(send(node), old);
    node.counted(Counter::FlowConfirmed, 1);
    // Only what is known to come through the stack unchanged goes that way again.
    node.middle(&packet(UDP, client, front));
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
        for (there, back) in [
            (first as fn(_, _, _) -> _, answer as fn(_, _, _) -> _),
            (packet, reply),
        ] {
            let there = |from, to| there(proto, from, to).checksum(Checksum::Partial);
            let back = |from, to| back(proto, from, to).checksum(Checksum::Partial);
            node.run_partial(At::Pod, &there(pod, vip), &there(pod, to));
            node.run_partial(At::Out, &back(to, pod), &back(vip, pod));
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
    node.connected(At::Pod, pod, vip, to);
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

/// A SYN is sent again after 1, 3, 7 and 15 seconds.
fn opening_that_is_old_gives_its_port_away<F: Net + Halves>(node: &mut CaseNode<'_, F, Native>) {
    let (client, front, to) = node.client_to_node_port(TCP, remote(node.h.remote, 8080));
    node.snat_ports(&[20_000], 20_000..=20_000);
    node.sent(At::External, &first(TCP, client, front));
    let next = at(node.h.client, 40_001);
    for stamp in [0, 10, 19] {
        node.dataplane.stamp.set(stamp);
        let reason = DropReason::PortsExhausted;
        node.dropped(At::External, &first(TCP, next, front), reason);
    }
    node.dataplane.stamp.set(20);
    let output = first(TCP, at(node.h.client, 20_000), to);
    node.translated(At::External, &first(TCP, next, front), &output);
    assert_eq!(node.flow().0, Class::Opening);
}
