//! A node's maps and a sequence of packets → no stage panics; what an independent reader accepts before a hook it accepts
//! after; what is not translated is untouched; and where the maps hold what agent and programs write, the answer to a
//! translated packet comes back as the answer to the packet that was sent.

use arbitrary::{Arbitrary, Unstructured};
use etherparse::checksum::Sum16BitWords;
use lb_common::abi::{Counter, DropReason, FlowFlags};
use lb_common::flow_table::Class;
use lb_common::pipeline::packet::Offset;
use lb_common::pipeline::parse;
use lb_common::pipeline::verdict::{Hook, Outcome, Step};
use lb_common::pipeline::{run_egress, run_ingress};
use lb_common::{V4, V6};
use lb_tests::cases::{At, CONVERSATION, Dataplane, FamilyMaps, Net};
use lb_tests::native::{Halves, Native, Packet};
use lb_tests::packet::{Checksum, PacketBuilder, TCP};

use crate::reader;
use crate::world::{self, EXTERNAL, NodeShape, POD, PacketShape, Place};

#[derive(Arbitrary, Debug)]
struct Input {
    is_v6: bool,
    node: NodeShape,
    events: Vec<Event>,
}

#[derive(Arbitrary, Debug)]
enum Event {
    /// A packet arrives where its source is; an answer follows at once where the bits say so.
    Send(PacketShape, u8),
    /// A packet at any hook and interface.
    Stray(PacketShape, u8),
    /// Any bytes at any hook.
    Bytes(Vec<u8>, u8),
    /// An ICMP error about the packet that left last, from a host, at a hook.
    Error(u8, u8),
    /// Units of the stamp and seconds pass.
    Time(u8),
    /// Another CPU works in the table for a while, or longer.
    Busy(bool),
}

/// Runs one input.
pub fn run(bytes: &[u8]) {
    let Ok(input) = Input::arbitrary(&mut Unstructured::new(bytes)) else {
        return;
    };
    if input.is_v6 {
        Run::<V6>::new(&input).events(&input.events);
    } else {
        Run::<V4>::new(&input).events(&input.events);
    }
}

/// A node at work.
struct Run<F: Net + Halves> {
    world: Native,
    is_honest: bool,
    /// Checksums are left to the device, where a packet lets them.
    is_partial: bool,
    /// The frame that left a hook last.
    last: Vec<u8>,
    family: std::marker::PhantomData<F>,
}

/// Where a packet is when it has passed the node.
enum Left {
    /// On its way, translated: by XDP or not.
    Translated { is_xdp: bool },
    /// Gone, answered, or untouched.
    Otherwise,
}

impl<F: Net + Halves> Run<F> {
    fn new(input: &Input) -> Self {
        Run {
            world: input.node.world::<F>(),
            is_honest: input.node.is_honest(),
            is_partial: input.node.is_partial,
            last: Vec::new(),
            family: std::marker::PhantomData,
        }
    }

    fn events(&mut self, events: &[Event]) {
        for event in events.iter().take(16) {
            match event {
                Event::Send(packet, how) => self.send(packet, *how),
                Event::Stray(packet, at) => {
                    let bytes = self.built(packet);
                    let (at, ifindex) = hook(*at);
                    self.last = self.through(at, ifindex, &bytes).1;
                }
                Event::Bytes(bytes, at) => {
                    let (at, ifindex) = hook(*at);
                    let frame = world::frame(F::IS_V6, bytes);
                    self.world.partial = false;
                    self.last = self.through(at, ifindex, &frame).1;
                }
                Event::Error(from, at) => self.error(*from, *at),
                Event::Time(units) => {
                    let stamp = self.world.stamp.get().wrapping_add((*units).into());
                    self.world.stamp.set(stamp);
                    let now = self.world.now_ns.get() + u64::from(*units) * 1_000_000_000;
                    self.world.now_ns.set(now);
                }
                Event::Busy(is_long) => {
                    self.world.busy.set(if *is_long { 1_000 } else { 3 });
                }
            }
        }
    }

    /// An ICMP error about the last packet. It is sent to whom that packet names as its source.
    fn error(&mut self, from: u8, at: u8) {
        let Some(quoted) = self.last.get(14..) else {
            return;
        };
        let Ok(frame) = reader::read(&self.last) else {
            return;
        };
        if frame.source.is_ipv6() != F::IS_V6 {
            return;
        }
        let quoted = &quoted[..quoted.len().min(48 + usize::from(from))];
        let router = world::host(from, F::IS_V6).0;
        let error = PacketBuilder::too_big(router, frame.source.ip(), 1280, quoted);
        let (at, ifindex) = hook(at);
        self.world.partial = false;
        self.last = self.through(at, ifindex, &error.build()).1;
    }

    /// The bytes of a packet; the hooks are told whether its checksum is finished.
    fn built(&mut self, packet: &PacketShape) -> Vec<u8> {
        self.world.partial = self.is_partial && packet.is_plain();
        packet.builder(F::IS_V6, self.world.partial).build()
    }

    /// A packet from where its source is, and its answer.
    fn send(&mut self, shape: &PacketShape, how: u8) {
        let (source, _) = shape.ends(F::IS_V6);
        let from = world::place(source.ip());
        let sent = self.built(shape);
        let refused = self.world.counter(Counter::Refused as u32);
        let (left, there) = self.pass(from, how & 1 != 0, &sent);
        self.last.clone_from(&there);
        let Left::Translated { is_xdp } = left else {
            return;
        };
        let is_answer = self.world.counter(Counter::Refused as u32) != refused;
        if !self.is_honest || !shape.is_plain() || is_answer || how & 2 != 0 {
            return;
        }
        self.world.busy.set(0);
        self.answer(shape, &there, is_xdp);
    }

    /// The receiver of a translated packet answers; the sender gets what answers its own packet.
    fn answer(&mut self, shape: &PacketShape, there: &[u8], is_xdp: bool) {
        let Ok(there) = reader::read(&finished::<F>(there, self.world.partial)) else {
            return;
        };
        let build = |source, destination| {
            let builder = if shape.is_syn() {
                CONVERSATION.syn_ack(source, destination)
            } else if shape.protocol() == TCP {
                CONVERSATION.reply(source, destination)
            } else {
                PacketBuilder::udp(source, destination)
            };
            builder.payload(b"an answer")
        };
        let answer = build(there.destination, there.source);
        let answer = if self.world.partial {
            answer.checksum(Checksum::Partial)
        } else {
            answer
        };
        let from = world::place(there.destination.ip());
        let (left, back) = self.pass(from, is_xdp, &answer.build());
        let (source, destination) = shape.ends(F::IS_V6);
        let Left::Translated { .. } = left else {
            if shape.protocol() == TCP && !shape.is_syn() && self.is_waiting() {
                // Nobody has answered the SYN yet.
                return;
            }
            panic!(
                "{source} → {destination} became {} → {}, whose answer is not translated",
                there.source, there.destination
            );
        };
        let back = finished::<F>(&back, self.world.partial);
        let expected = build(destination, source).build();
        // Link-layer addresses, TTL and with it the header's checksum are the way's.
        let read = reader::read(&back);
        assert_eq!(
            read.as_ref().map(|frame| (frame.source, frame.destination)),
            Ok((destination, source)),
            "{source} → {destination} became {} → {}",
            there.source,
            there.destination
        );
        let behind = if F::IS_V6 { 54 } else { 34 };
        assert_eq!(
            back.get(behind..),
            expected.get(behind..),
            "ports, checksum and payload of the answer"
        );
    }

    /// Whether a flow waits for a SYN-ACK.
    fn is_waiting(&mut self) -> bool {
        let records = FamilyMaps::<F>::records(&mut self.world);
        records.iter().any(|(class, record)| {
            let answered = FlowFlags::REPLY_SEEN | FlowFlags::MIDSTREAM;
            *class == Class::Opening && !record.flags.intersects(answered)
        })
    }

    /// A packet from a place through every hook on its way, the node's routing between them.
    fn pass(&mut self, from: Place, by_xdp: bool, sent: &[u8]) -> (Left, Vec<u8>) {
        let (at, ifindex) = match from {
            Place::Pod => (Some(At::Pod), POD),
            Place::Outside if by_xdp => (Some(At::Xdp), EXTERNAL),
            Place::Outside => (Some(At::External), EXTERNAL),
            Place::Node => (None, 0),
        };
        let mut bytes = sent.to_vec();
        let mut is_translated = false;
        if let Some(mut at) = at {
            let mut outcome;
            loop {
                (outcome, bytes) = self.through(at, ifindex, &bytes);
                // What XDP leaves alone comes to tc.
                if at != At::Xdp || outcome != Ok(Step::Pass) {
                    break;
                }
                at = At::External;
            }
            match outcome {
                Ok(Step::Transmit(_)) => return (Left::Translated { is_xdp: true }, bytes),
                Ok(Step::Reflect) => return (Left::Translated { is_xdp: false }, bytes),
                Ok(Step::Translated) => is_translated = true,
                Ok(_) => {}
                Err(_) => return (Left::Otherwise, bytes),
            }
        }
        let to = reader::read(&finished::<F>(&bytes, self.world.partial));
        let to = to.map_or(Place::Outside, |frame| world::place(frame.destination.ip()));
        let ifindex = match to {
            Place::Pod => POD,
            Place::Outside => EXTERNAL,
            // It ends on the node.
            Place::Node => 0,
        };
        if ifindex != 0 {
            let outcome;
            (outcome, bytes) = self.through(At::Out, ifindex, &bytes);
            is_translated |= outcome == Ok(Step::Translated);
        }
        if is_translated {
            (Left::Translated { is_xdp: false }, bytes)
        } else {
            (Left::Otherwise, bytes)
        }
    }

    /// A packet through one hook; checks what holds of every packet.
    fn through(&mut self, at: At, ifindex: u32, sent: &[u8]) -> (Outcome, Vec<u8>) {
        let mut packet = Packet::new(sent, at, ifindex, &self.world);
        let place = checksum_place::<F>(sent);
        let (packet_ref, tables) = (&mut packet, &&self.world);
        let l3 = Offset::ETH;
        let outcome = match at {
            At::Xdp => run_ingress::<F, _, _>(packet_ref, tables, l3, Hook::Xdp),
            At::External => run_ingress::<F, _, _>(packet_ref, tables, l3, Hook::External),
            At::Pod => run_ingress::<F, _, _>(packet_ref, tables, l3, Hook::Pod),
            At::Out => run_egress::<F, _, _>(packet_ref, tables, l3),
        };
        match outcome {
            Ok(Step::Pass) => assert_eq!(packet.bytes, sent, "a packet that passes is untouched"),
            Ok(Step::Translated | Step::Transmit(_) | Step::Reflect) => {
                let before = reader::read(&device(sent, place, packet.partial));
                let after = reader::read(&device(&packet.bytes, place, packet.partial));
                if let (Ok(before), Err(problem)) = (&before, &after) {
                    panic!("{at:?} {outcome:?}: {before:?} became unreadable: {problem}");
                }
            }
            Ok(unfinished) => panic!("the stages end with {unfinished:?}"),
            Err(reason) => assert!(
                DropReason::ALL.contains(&reason),
                "a drop has its counter: {reason:?}"
            ),
        }
        (outcome, packet.bytes)
    }
}

/// A hook and an interface by number.
fn hook(number: u8) -> (At, u32) {
    match number & 7 {
        0 => (At::Xdp, EXTERNAL),
        1 | 2 => (At::External, EXTERNAL),
        3 | 4 => (At::Pod, POD),
        5 => (At::Out, POD),
        6 => (At::Out, EXTERNAL),
        _ => (At::Out, u32::from(number)),
    }
}

/// Where the device will sum a packet from, and where it will write: as the packet was when it was made.
fn checksum_place<F: Net + Halves>(bytes: &[u8]) -> Option<(usize, usize)> {
    let packet = Packet::new(bytes, At::Xdp, EXTERNAL, &Native::default());
    let parsed = parse::any::<F, _>(&packet, Offset::ETH)?;
    let start = parsed.ip.l4.get() as usize;
    Some((start, start + if parsed.is_tcp() { 16 } else { 6 }))
}

/// A packet as a device finishes it that was left its checksum.
fn device(bytes: &[u8], place: Option<(usize, usize)>, partial: bool) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if let (true, Some((start, at))) = (partial, place)
        && let Some(covered) = bytes.get(start..)
        && at + 2 <= bytes.len()
    {
        let sum = Sum16BitWords::new().add_slice(covered);
        let check = sum.to_ones_complement_with_no_zero();
        // The words were added as they lie in memory.
        bytes[at..at + 2].copy_from_slice(&check.to_ne_bytes());
    }
    bytes
}

fn finished<F: Net + Halves>(bytes: &[u8], partial: bool) -> Vec<u8> {
    device(bytes, checksum_place::<F>(bytes), partial)
}
