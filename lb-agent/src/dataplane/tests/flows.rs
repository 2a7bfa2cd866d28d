//! Flows that are there: which bits of `port_filter` they keep, and which of them go with a frontend.

use lb_common::{
    abi::{FlowFlags, SNAT_PORTS_SLOT, Side, proto},
    flow_table::{Insert, Record, Tuple, insert},
};

use super::*;

/// A flow of a client to 10.96.0.1 by the service port of that id.
fn flow(dataplane: &Dataplane<FakeStore>, port: u16, proto: u8, service: u32, flags: FlowFlags) {
    let addr = |text: &str| model::to_addr::<V4>(text.parse().unwrap()).unwrap();
    let client = (addr("192.0.2.1"), Be16::from_host(4_000 + port));
    let side = Side::ExternalIn;
    let dport = Be16::from_host(port);
    let original = Tuple::<V4>::new(&client.0, &addr("10.96.0.1"), client.1, dport, proto, side);
    let backend = (&addr("10.0.0.1"), Be16::from_host(8080));
    let source = (&addr("192.0.2.2"), Be16::from_host(20_420 + port));
    let mut record = Record::new(original, backend, source, flags);
    record.service = service;
    record.stamp = 1;
    let table = &*dataplane.store().v4.flows;
    let record = record.checked();
    assert_eq!(insert(&table, &record, 1).result, Insert::Done);
}

fn flows(dataplane: &Dataplane<FakeStore>) -> usize {
    let maps = dataplane.store().v4();
    let mut count = 0;
    maps.each_flow(0..maps.flow_buckets(), &mut |_, _, _| count += 1);
    count
}

/// As if they had ended.
fn end_flows(dataplane: &Dataplane<FakeStore>) {
    let maps = dataplane.store().v4();
    let mut all = Vec::new();
    maps.each_flow(0..maps.flow_buckets(), &mut |_, _, record| {
        all.push(record.original);
    });
    for original in all {
        assert!(lb_common::flow_table::delete::<V4, _>(
            &&*maps.flows,
            &original
        ));
    }
}

/// Semantics 18.1, 18.2: the filter is asked before the flow is looked for.
#[test]
fn a_port_stays_open_for_the_flows_through_a_frontend_that_is_gone() {
    let mut dataplane = start(FakeStore::small());
    let a = service_port("a", "10.96.0.1", &["10.0.0.1"]);
    dataplane.apply(&[set(&a)]);
    let id = dataplane.service_id(&a.key).unwrap();
    flow(&dataplane, 80, proto::TCP, id, FlowFlags::NONE);
    dataplane.apply(&[Change::Remove(a.key.clone())]);
    let mut gc = FlowGc::default();
    for _ in 0..5 {
        assert!(dataplane.store().port_bit(0, 80));
        look_at_flows(&mut dataplane, &mut gc);
    }
    end_flows(&dataplane);
    // The round that met the flow last has to be over, and a whole one after it.
    look_at_flows(&mut dataplane, &mut gc);
    assert!(!dataplane.store().port_bit(0, 80));
}

#[test]
fn a_port_stays_open_for_a_whole_round_after_its_frontend_went() {
    let mut dataplane = start(FakeStore::small());
    let a = service_port("a", "10.96.0.1", &["10.0.0.1"]);
    dataplane.apply(&[set(&a)]);
    let mut gc = FlowGc::default();
    look_at_flows(&mut dataplane, &mut gc);
    dataplane.apply(&[Change::Remove(a.key.clone())]);
    // This round may have passed by a flow that was made after it.
    look_at_flows(&mut dataplane, &mut gc);
    assert!(dataplane.store().port_bit(0, 80));
    look_at_flows(&mut dataplane, &mut gc);
    assert!(!dataplane.store().port_bit(0, 80));
}

#[test]
fn a_port_that_is_wanted_again_is_not_closed() {
    let mut dataplane = start(FakeStore::small());
    let a = service_port("a", "10.96.0.1", &["10.0.0.1"]);
    let mut gc = FlowGc::default();
    dataplane.apply(&[set(&a)]);
    dataplane.apply(&[Change::Remove(a.key.clone())]);
    look_at_flows(&mut dataplane, &mut gc);
    dataplane.apply(&[set(&a)]);
    for _ in 0..3 {
        look_at_flows(&mut dataplane, &mut gc);
    }
    assert!(dataplane.store().port_bit(0, 80));
}

#[test]
fn a_restart_keeps_the_ports_that_flows_need() {
    let mut dataplane = start(FakeStore::small());
    let a = service_port("a", "10.96.0.1", &["10.0.0.1"]);
    let mut b = service_port("b", "10.96.0.2", &["10.0.0.1"]);
    b.frontends[0].port = 81;
    dataplane.apply(&[set(&a), set(&b)]);
    let id = dataplane.service_id(&a.key).unwrap();
    flow(&dataplane, 80, proto::TCP, id, FlowFlags::NONE);
    let mut dataplane = restart(&dataplane);
    dataplane.apply(&[]);
    let open =
        |dataplane: &Dataplane<FakeStore>| [80, 81].map(|port| dataplane.store().port_bit(0, port));
    assert_eq!(open(&dataplane), [true, true]);
    look_at_all_flows(&mut dataplane);
    assert_eq!(open(&dataplane), [true, false]);
    end_flows(&dataplane);
    look_at_all_flows(&mut dataplane);
    assert_eq!(open(&dataplane), [false, false]);
}

#[test]
fn other_ports_for_source_translation_leave_those_that_flows_have() {
    let old = DataplaneConfig {
        snat_ports: "20500-20501".parse().unwrap(),
    };
    let mut dataplane = Dataplane::new(FakeStore::small(), old).unwrap();
    dataplane.apply(&[]);
    flow(&dataplane, 80, proto::TCP, 0, FlowFlags::SNAT);
    let mut dataplane = restart(&dataplane);
    dataplane.apply(&[]);
    look_at_all_flows(&mut dataplane);
    let slot = SNAT_PORTS_SLOT as usize;
    let may_take = |port| dataplane.store().port_bit(slot, port);
    assert_eq!([20_500, 20_501].map(may_take), [true, false]);
    assert_eq!([20_000, 20_001].map(may_take), [true, true]);
    let range = dataplane.store().config.snat_ports;
    assert_eq!((range.first, range.last), (20_000, 20_001));
}

/// A service port of UDP with a frontend at each of these ports of 10.96.0.1.
fn udp(name: &str, ports: &[u16]) -> ServicePort {
    let mut port = service_port(name, "10.96.0.1", &["10.0.0.1"]);
    port.key.name.protocol = Protocol::Udp;
    let kind = FrontendKindOrd::LoadBalancer;
    port.frontends = ports
        .iter()
        .map(|p| frontend("10.96.0.1", *p, kind))
        .collect();
    port
}

/// Semantics 17.3, 17.6; 17.7: a restart keeps what is as it was.
#[test]
fn udp_follows_a_frontend_that_changes_hands_while_its_old_owner_lives() {
    let mut dataplane = start(FakeStore::small());
    let (blue, green) = (udp("blue", &[53, 54]), udp("green", &[55]));
    dataplane.apply(&[set(&blue), set(&green)]);
    let id = dataplane.service_id(&blue.key).unwrap();
    for (port, proto) in [(53, proto::UDP), (54, proto::UDP), (54, proto::TCP)] {
        flow(&dataplane, port, proto, id, FlowFlags::NONE);
    }
    let mut gc = FlowGc::default();
    look_at_flows(&mut dataplane, &mut gc);
    assert_eq!(flows(&dataplane), 3);
    dataplane.apply(&[set(&udp("blue", &[53])), set(&udp("green", &[54, 55]))]);
    assert!(gc.is_behind(dataplane.frontend_moves()));
    look_at_flows(&mut dataplane, &mut gc);
    assert_eq!(flows(&dataplane), 2);
    let mut dataplane = restart(&dataplane);
    let mut gc = FlowGc::default();
    dataplane.apply(&[set(&udp("blue", &[53])), set(&udp("green", &[54, 55]))]);
    look_at_flows(&mut dataplane, &mut gc);
    assert_eq!(flows(&dataplane), 2);
    dataplane.apply(&[set(&udp("blue", &[])), set(&udp("green", &[]))]);
    look_at_flows(&mut dataplane, &mut gc);
    assert_eq!(flows(&dataplane), 1, "TCP stays");
}

#[test]
fn before_the_first_complete_state_nobody_is_left_behind() {
    let mut dataplane = start(FakeStore::small());
    dataplane.apply(&[set(&udp("blue", &[53]))]);
    flow(&dataplane, 53, proto::UDP, 99, FlowFlags::NONE);
    let mut dataplane = restart(&dataplane);
    let mut gc = FlowGc::default();
    look_at_flows(&mut dataplane, &mut gc);
    assert_eq!(flows(&dataplane), 1);
    dataplane.apply(&[set(&udp("blue", &[53]))]);
    look_at_flows(&mut dataplane, &mut gc);
    assert_eq!(flows(&dataplane), 0);
}
