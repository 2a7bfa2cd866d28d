//! The ring buffer `events` → the log, at debug level. Programs write it only while the log wants it
//! ([`super::log::wants_events`]); a reader that falls behind loses events, nobody waits for it.

use std::{
    fmt, io,
    mem::{offset_of, size_of},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd as _, RawFd},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use aya::maps::{Map, MapData, RingBuf};
use lb_common::{
    abi::{DropReason, Event, EventKind, Side, proto},
    names::maps,
};

use super::log::EVENTS;
use crate::error::chain;

/// Most events logged a second; the others are counted.
const PER_SECOND: u32 = 1_000;

/// Why events cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EventsError {
    /// The map cannot be used.
    #[error("cannot read the ring buffer `events`")]
    Map(#[from] aya::maps::MapError),
    #[error("cannot start the thread that reads events")]
    Thread(#[source] io::Error),
}

/// Logs the events of a pin directory from now on, on a thread of its own that ends with the process.
pub(crate) fn follow(dir: &Path) -> Result<(), EventsError> {
    let data = MapData::from_pin(dir.join(maps::EVENTS))?;
    let mut ring = RingBuf::try_from(Map::RingBuf(data))?;
    thread::Builder::new()
        .name("events".to_owned())
        .spawn(move || {
            let mut pace = Pace::new(Instant::now());
            loop {
                if let Err(error) = wait(ring.as_raw_fd()) {
                    return tracing::warn!("events are not followed any more: {}", chain(&error));
                }
                while let Some(bytes) = ring.next() {
                    if let Some(record) = Record::decode(&bytes)
                        && pace.admits(Instant::now())
                    {
                        tracing::debug!(target: EVENTS, ifindex = record.ifindex, side = record.side, "{record}");
                    }
                }
            }
        })
        .map_err(EventsError::Thread)?;
    Ok(())
}

/// Waits until the ring buffer has something. A second at most: a wake-up can be missed by an event that was
/// written while the last ones were taken.
fn wait(fd: RawFd) -> io::Result<()> {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one live pollfd, and its count.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 1000) };
    let error = io::Error::last_os_error();
    if ready < 0 && error.kind() != io::ErrorKind::Interrupted {
        return Err(error);
    }
    Ok(())
}

/// Lets [`PER_SECOND`] events a second through and says how many it held back.
#[derive(Debug)]
struct Pace {
    since: Instant,
    count: u32,
}

impl Pace {
    fn new(now: Instant) -> Pace {
        Pace {
            since: now,
            count: 0,
        }
    }
    fn admits(&mut self, now: Instant) -> bool {
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            if self.count > PER_SECOND {
                let held_back = self.count - PER_SECOND;
                tracing::debug!(target: EVENTS, held_back, "too many events to log");
            }
            *self = Pace::new(now);
        }
        self.count += 1;
        self.count <= PER_SECOND
    }
}

/// An event, for people.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Record {
    kind: EventKind,
    reason: Option<DropReason>,
    proto: u8,
    ifindex: u32,
    side: &'static str,
    source: SocketAddr,
    destination: SocketAddr,
    backend: Option<SocketAddr>,
}

impl Record {
    /// From the bytes of an [`Event`]; `None`: of another build, or a kind that this one does not know.
    fn decode(bytes: &[u8]) -> Option<Record> {
        let bytes: &[u8; size_of::<Event>()] = bytes.try_into().ok()?;
        let is_v6 = bytes[offset_of!(Event, family)] == 6;
        let socket = |addr: usize, port: usize| {
            let octets: [u8; 16] = std::array::from_fn(|i| bytes[addr + i]);
            let ip = if is_v6 {
                IpAddr::V6(Ipv6Addr::from(octets))
            } else {
                IpAddr::V4(Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]))
            };
            SocketAddr::new(ip, u16::from_be_bytes([bytes[port], bytes[port + 1]]))
        };
        let ifindex = std::array::from_fn(|i| bytes[offset_of!(Event, ifindex) + i]);
        let backend = socket(
            offset_of!(Event, backend_addr),
            offset_of!(Event, backend_port),
        );
        Some(Record {
            kind: kind(bytes[offset_of!(Event, kind)])?,
            reason: DropReason::from_number(u32::from(bytes[offset_of!(Event, reason)])),
            proto: bytes[offset_of!(Event, proto)],
            ifindex: u32::from_ne_bytes(ifindex),
            side: side(bytes[offset_of!(Event, side)]),
            source: socket(offset_of!(Event, saddr), offset_of!(Event, sport)),
            destination: socket(offset_of!(Event, daddr), offset_of!(Event, dport)),
            backend: (!backend.ip().is_unspecified()).then_some(backend),
        })
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            EventKind::Drop => "dropped",
            EventKind::NewFlow => "new flow",
            EventKind::Refused => "refused",
        })?;
        if let Some(reason) = self.reason {
            write!(f, " ({})", reason.label())?;
        }
        let proto = match self.proto {
            proto::TCP => "TCP",
            proto::UDP => "UDP",
            proto::SCTP => "SCTP",
            _ => "IP",
        };
        write!(f, " {proto} {} → {}", self.source, self.destination)?;
        self.backend
            .map_or(Ok(()), |backend| write!(f, " → {backend}"))
    }
}

const fn kind(number: u8) -> Option<EventKind> {
    match number {
        1 => Some(EventKind::Drop),
        2 => Some(EventKind::NewFlow),
        3 => Some(EventKind::Refused),
        _ => None,
    }
}

const fn side(number: u8) -> &'static str {
    match Side::from_u8(number) {
        Some(Side::ExternalIn) => "external",
        Some(Side::PodIn) => "pod",
        Some(Side::Out) => "out",
        None => "socket",
    }
}

#[cfg(test)]
mod tests {
    use lb_common::abi::{Addr4, Addr6, Be16};

    use super::*;

    fn bytes(event: &Event) -> Vec<u8> {
        // SAFETY: a live `Event`, `repr(C)` without hidden padding.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(event).cast(), size_of::<Event>()) }
            .to_vec()
    }

    #[test]
    fn an_event_reads_as_a_sentence() {
        let wide = |addr: [u8; 4]| {
            let word = Addr4::from(Ipv4Addr::from(addr)).be;
            Addr6 {
                be: [word, 0, 0, 0],
            }
        };
        let mut event = Event::new(EventKind::NewFlow);
        (event.family, event.proto, event.ifindex, event.side) =
            (4, proto::UDP, 7, Side::PodIn as u8);
        (event.saddr, event.sport) = (wide([10, 0, 0, 1]), Be16::from_host(4000));
        (event.daddr, event.dport) = (wide([10, 96, 0, 10]), Be16::from_host(53));
        (event.backend_addr, event.backend_port) = (wide([10, 0, 0, 2]), Be16::from_host(5353));
        let record = Record::decode(&bytes(&event)).unwrap();
        assert_eq!((record.ifindex, record.side), (7, "pod"));
        assert_eq!(
            record.to_string(),
            "new flow UDP 10.0.0.1:4000 → 10.96.0.10:53 → 10.0.0.2:5353"
        );
        assert_eq!(Record::decode(&bytes(&event)[1..]), None);
    }

    #[test]
    fn a_drop_names_its_reason() {
        let mut event = Event::new(EventKind::Drop);
        (event.family, event.proto, event.reason) = (6, proto::TCP, DropReason::SourceRange as u8);
        let record = Record::decode(&bytes(&event)).unwrap();
        assert_eq!(
            record.to_string(),
            "dropped (source_range) TCP [::]:0 → [::]:0"
        );
    }

    #[test]
    fn a_flood_of_events_is_held_back_a_second() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert_eq!(
            (0..2 * PER_SECOND).filter(|_| pace.admits(start)).count(),
            PER_SECOND as usize
        );
        assert!(pace.admits(start + Duration::from_secs(1)));
    }
}
