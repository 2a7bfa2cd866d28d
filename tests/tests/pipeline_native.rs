//! The cases of `lb_tests::cases` through the native build of the pipeline, and what only a world made
//! by hand can show: races, time, a table that is full, checksums that the kernel is still to finish.

use std::net::SocketAddr;

use lb_common::abi::{
    Be16, Counter, DropReason, Flow, FlowKey, FrontendKind, MacAddr, Side, Translation,
};
use lb_common::pipeline::flow::RENEW;
use lb_common::pipeline::packet::NextHop;
use lb_common::{V4, V6};
use lb_tests::cases::{
    self, At, EXTERNAL, NEXT_MAC, Net, OWN_MAC, Scene, Store, Verdict, at, first, local, packet,
    remote,
};
use lb_tests::native::{Halves, Native};
use lb_tests::packet::{ACK, Checksum, DESTINATION, PacketBuilder, Parsed, RST, TCP, UDP};

#[test]
fn every_case_holds_natively() {
    let mut failed = Vec::new();
    for (name, case) in cases::all::<Native>() {
        let run = std::panic::AssertUnwindSafe(|| case(&mut Native::default()));
        if std::panic::catch_unwind(run).is_err() {
            failed.push(name);
        }
    }
    assert!(
        failed.is_empty(),
        "{} cases failed: {failed:#?}",
        failed.len()
    );
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

#[test]
fn another_cpu_made_the_same_flow_first() {
    fn case<F: Net + Halves>() {
        let world = &mut Native::default();
        let mut s = Scene::<F, _>::new(world);
        let (pod, vip, to) = (at(s.h.pod, 40_000), at(s.h.vip, 80), at(s.h.remote, 8080));
        s.service(vip, TCP, &[remote(s.h.remote, 8080)]);
        // Its reply entry stands between our lookup and our insertion.
        *F::half(s.world).race.borrow_mut() = Some(Box::new(|half, key, reply| {
            half.insert_opening(key, reply);
        }));
        s.check(
            At::Pod,
            &first(TCP, pod, vip),
            Verdict::Pass,
            &first(TCP, pod, to),
        );
        s.counted(Counter::InsertRace, 1);
        s.counted(Counter::PortRewritten, 0);
        assert_eq!(s.openings(), 2);
    }
    case::<V4>();
    case::<V6>();
}

#[test]
fn another_cpu_chose_another_backend_first() {
    fn case<F: Net + Halves>() {
        let world = &mut Native::default();
        let mut s = Scene::<F, _>::new(world);
        let (pod, vip, to) = (at(s.h.pod, 40_000), at(s.h.vip, 80), at(s.h.remote2, 8080));
        s.service(vip, TCP, &[remote(s.h.remote, 8080)]);
        let original = key::<F>(pod, vip, Side::PodIn);
        *F::half(s.world).race.borrow_mut() = Some(Box::new(move |half, _, _| {
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
        s.check(
            At::Pod,
            &first(TCP, pod, vip),
            Verdict::Pass,
            &first(TCP, pod, to),
        );
        s.counted(Counter::InsertRace, 1);
        s.counted(Counter::NewFlow, 0);
        assert_eq!(s.openings(), 1, "our own reply entry is gone again");
    }
    case::<V4>();
    case::<V6>();
}

/// Semantics 28.19.
#[test]
fn full_flow_table_leaves_flows_in_openings() {
    fn case<F: Net + Halves>() {
        let world = &mut Native::default();
        let mut s = Scene::<F, _>::new(world);
        let (pod, vip, to) = (at(s.h.pod, 40_000), at(s.h.vip, 80), at(s.h.remote, 8080));
        s.service(vip, TCP, &[remote(s.h.remote, 8080)]);
        s.world.full.set(true);
        s.sent(At::Pod, &first(TCP, pod, vip));
        s.sent(At::Out, &packet(TCP, to, pod));
        for _ in 0..2 {
            s.check(
                At::Pod,
                &packet(TCP, pod, vip),
                Verdict::Pass,
                &packet(TCP, pod, to),
            );
            s.check(
                At::Out,
                &packet(TCP, to, pod),
                Verdict::Pass,
                &packet(TCP, vip, pod),
            );
        }
        s.counted(Counter::FlowsFull, 2);
        assert_eq!((s.flows(), s.openings()), (0, 2));
        s.world.full.set(false);
        s.sent(At::Pod, &packet(TCP, pod, vip));
        assert_eq!((s.flows(), s.openings()), (2, 0));
    }
    case::<V4>();
    case::<V6>();
}

#[test]
fn xdp_asks_for_the_next_hop_again_after_a_while() {
    fn case<F: Net + Halves>() {
        let world = &mut Native::default();
        let mut s = Scene::<F, _>::new(world);
        let (client, front) = (at(s.h.client, 40_000), at(s.h.external, 443));
        let to = [remote(s.h.remote, 8080)];
        s.service_with(front, UDP, FrontendKind::LoadBalancer, &to, |_| {});
        s.routes(&[s.h.remote, s.h.client]);
        let send = |s: &mut Scene<'_, F, Native>| {
            let (verdict, bytes) = s.run(At::Xdp, &packet(UDP, client, front).build());
            (verdict, bytes[..12].to_vec())
        };
        let sent = Verdict::Transmit(EXTERNAL);
        let old = (sent, [NEXT_MAC, OWN_MAC].concat());
        assert_eq!(send(&mut s), old);
        let snat = Store::<F>::openings(s.world)
            .into_iter()
            .find(|(key, _)| key.daddr == F::addr(front.ip()))
            .map(|(_, flow)| at(s.h.node, flow.to.sport.to_host()))
            .unwrap();
        s.run(At::Xdp, &packet(UDP, at(s.h.remote, 8080), snat).build());
        assert_eq!(send(&mut s), old);
        s.counted(Counter::FlowConfirmed, 1);
        let moved = MacAddr::new([2, 0, 0, 0, 0, 77]);
        let hop = NextHop {
            ifindex: EXTERNAL,
            dmac: moved,
            ready: true,
        };
        Store::<F>::put_route(s.world, F::addr(s.h.remote), hop);
        // Once within every renewal time; now and then the packet goes by the stack instead.
        let before = s.world.counter_of(Counter::NextHop);
        assert_eq!(send(&mut s), old);
        assert_eq!(s.world.counter_of(Counter::NextHop), before);
        let (mut passed, mut renewed) = (0, 0);
        for stamp in (10..1000).step_by(RENEW as usize) {
            s.world.stamp.set(stamp);
            match send(&mut s) {
                (Verdict::Pass, _) => passed += 1,
                other => {
                    assert_eq!(other, (sent, [moved.octets(), OWN_MAC].concat()));
                    renewed += 1;
                }
            }
        }
        assert!(passed > 0 && renewed > 8 * passed, "{passed} of {renewed}");
    }
    case::<V4>();
    case::<V6>();
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

#[test]
fn refusals_are_right_when_the_kernel_finishes_the_checksum() {
    fn case<F: Net + Halves>() {
        let world = &mut Native::default();
        world.partial = true;
        let mut s = Scene::<F, _>::new(world);
        let (pod, vip) = (at(s.h.pod, 40_000), at(s.h.vip, 80));
        let l4 = if F::IS_V6 { 54 } else { 34 };
        s.service(vip, TCP, &[]);
        s.service(vip, UDP, &[]);
        let unfinished = |proto| packet(proto, pod, vip).checksum(Checksum::Partial);
        let (verdict, mut bytes) = s.run(At::Pod, &unfinished(TCP).build());
        assert_eq!(verdict, Verdict::Reflect);
        assert_eq!(
            Parsed::frame_with_partial_checksum(&bytes).unwrap().flags,
            RST
        );
        finish(&mut bytes, l4, 16);
        Parsed::frame(&bytes).unwrap();

        let (verdict, mut bytes) = s.run(At::Pod, &unfinished(UDP).build());
        assert_eq!(verdict, Verdict::Reflect);
        // A veth peer takes it as it is, a device finishes it: right both times.
        Parsed::frame(&bytes).unwrap();
        finish(&mut bytes, l4, 6);
        let parsed = Parsed::frame(&bytes).unwrap();
        assert_eq!(parsed.quoted.unwrap().destination, vip);

        // The place of the checksum does not fit the answer.
        for proto in [TCP, UDP] {
            let odd = unfinished(proto);
            let odd = if F::IS_V6 {
                odd.extension(DESTINATION, &[])
            } else {
                odd.ip_options(&[1])
            };
            s.dropped(At::Pod, &odd, DropReason::RefusalFailed);
        }
    }
    case::<V4>();
    case::<V6>();
}

#[test]
fn unfinished_checksums_stay_right_through_translation() {
    fn case<F: Net + Halves>() {
        let world = &mut Native::default();
        world.partial = true;
        let mut s = Scene::<F, _>::new(world);
        for proto in [TCP, UDP] {
            let (pod, vip, to) = (at(s.h.pod, 40_000), at(s.h.vip, 80), at(s.h.pod2, 8080));
            s.service(vip, proto, &[local(s.h.pod2, 8080)]);
            let unfinished = |from, to| packet(proto, from, to).checksum(Checksum::Partial);
            for _ in 0..2 {
                s.run_partial(At::Pod, &unfinished(pod, vip), &unfinished(pod, to));
                s.run_partial(At::Out, &unfinished(to, pod), &unfinished(vip, pod));
            }
        }
    }
    case::<V4>();
    case::<V6>();
}

/// What the scene offers besides, for this file.
trait Extra {
    fn run_partial(&mut self, at: At, input: &PacketBuilder, output: &PacketBuilder);
}

impl<F: Net + Halves> Extra for Scene<'_, F, Native> {
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
        cases::World::counter(self, counter as u32)
    }
}

#[test]
fn affinity_ends_with_its_timeout() {
    fn case<F: Net + Halves>() {
        let world = &mut Native::default();
        let mut s = Scene::<F, _>::new(world);
        let (vip, to) = (at(s.h.vip, 80), at(s.h.remote, 8080));
        let kind = FrontendKind::ClusterIp;
        let placed = s.service_with(vip, TCP, kind, &[remote(s.h.remote, 8080)], |service| {
            service.affinity_secs = 60;
        });
        let pod = at(s.h.pod, 40_000);
        s.sent(At::Pod, &first(TCP, pod, vip));
        s.sent(At::Out, &packet(TCP, to, pod).flags(ACK));
        s.sent(At::Pod, &packet(TCP, pod, vip));
        let other = remote(s.h.remote2, 8080);
        s.put_backend(100, other, placed.service.id, 0);
        cases::World::put_rows(s.world, placed.service.cluster.offset, &[100]);
        // Semantics 13.2: every new connection starts the time anew.
        for (seconds, port, expected) in [(50, 1, to), (100, 2, to), (161, 3, other.addr)] {
            s.world.now_ns.set(seconds * 1_000_000_000);
            let pod = at(s.h.pod, 41_000 + port);
            s.check(
                At::Pod,
                &first(TCP, pod, vip),
                Verdict::Pass,
                &first(TCP, pod, expected),
            );
        }
    }
    case::<V4>();
    case::<V6>();
}
