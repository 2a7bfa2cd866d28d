//! State and last use of a flow → whether it is dead. Nothing but age and state decides.

use std::time::Duration;

use lb_common::abi::{Clock, FlowFlags, proto};

/// How far a connection has come, by which it may idle for longer or shorter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// TCP whose handshake is not complete.
    TcpOpening,
    /// TCP past its handshake.
    TcpEstablished,
    /// TCP, one side has sent FIN (CLOSE_WAIT).
    TcpCloseWait,
    /// TCP, both sides have sent FIN (TIME_WAIT), or a side has sent RST.
    TcpOver,
    /// UDP without an answer.
    UdpUnreplied,
    /// UDP that was answered.
    UdpStream,
    /// SCTP that was not answered and confirmed yet.
    SctpOpening,
    /// SCTP past that.
    SctpEstablished,
}

impl State {
    const ALL: [State; 8] = [
        State::TcpOpening,
        State::TcpEstablished,
        State::TcpCloseWait,
        State::TcpOver,
        State::UdpUnreplied,
        State::UdpStream,
        State::SctpOpening,
        State::SctpEstablished,
    ];

    /// Of a flow.
    pub(crate) fn of(proto: u8, flags: FlowFlags) -> State {
        let confirmed = flags.contains(FlowFlags::CONFIRMED);
        match proto {
            proto::TCP if flags.is_over() => State::TcpOver,
            proto::TCP if !confirmed => State::TcpOpening,
            proto::TCP if flags.intersects(FlowFlags::CLOSING) => State::TcpCloseWait,
            proto::TCP => State::TcpEstablished,
            proto::SCTP if confirmed => State::SctpEstablished,
            proto::SCTP => State::SctpOpening,
            _ if confirmed || flags.contains(FlowFlags::REPLY_SEEN) => State::UdpStream,
            _ => State::UdpUnreplied,
        }
    }

    /// How long a flow may idle in it. The kernel's times and kube-proxy's (semantics 17.9, 18.4).
    pub(crate) const fn timeout(self) -> Duration {
        match self {
            State::TcpEstablished | State::SctpEstablished => Duration::from_hours(24),
            State::TcpCloseWait => Duration::from_hours(1),
            State::TcpOver | State::UdpStream => Duration::from_secs(120),
            State::TcpOpening | State::SctpOpening => Duration::from_secs(60),
            State::UdpUnreplied => Duration::from_secs(30),
        }
    }
}

/// This moment in the unit of [`lb_common::flow_table::Record::stamp`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Now {
    /// [`Clock::stamp`].
    pub(crate) stamp: u32,
    /// Jiffies a second.
    pub(crate) hz: u32,
}

impl Now {
    /// Units since a stamp. One from the future, written while we look, is no time at all.
    pub(super) const fn units_since(&self, stamp: u32) -> u32 {
        let idle = self.stamp.wrapping_sub(stamp);
        if idle > u32::MAX / 2 { 0 } else { idle }
    }
    /// Time since a stamp.
    pub(crate) fn since(&self, stamp: u32) -> Duration {
        let jiffies = u64::from(self.units_since(stamp)) << Clock::STAMP_SHIFT;
        Duration::from_millis(jiffies * 1_000 / u64::from(self.hz.max(1)))
    }
    /// The least number of units that are so many seconds.
    pub(super) fn units(&self, secs: u64) -> u32 {
        let units = (secs * u64::from(self.hz)).div_ceil(1 << Clock::STAMP_SHIFT);
        u32::try_from(units).unwrap_or(u32::MAX)
    }
}

/// The timeouts in units of stamps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits([u32; State::ALL.len()]);

impl Limits {
    pub(super) fn new(now: &Now) -> Limits {
        Limits(State::ALL.map(|state| now.units(state.timeout().as_secs())))
    }
    /// Units that a flow may idle.
    pub(super) const fn of(&self, state: State) -> u32 {
        self.0[state as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // semantics 17.9, 18.4
    #[test]
    fn each_state_has_its_timeout() {
        let confirmed = FlowFlags::CONFIRMED;
        let (fin, rst, seen) = (FlowFlags::FIN, FlowFlags::RST, FlowFlags::REPLY_SEEN);
        for (proto, flags, secs) in [
            (proto::TCP, confirmed, 86_400),
            (proto::TCP, confirmed | fin, 3_600),
            (proto::TCP, confirmed | FlowFlags::REPLY_FIN, 3_600),
            (proto::TCP, confirmed | fin | FlowFlags::REPLY_FIN, 120),
            (proto::TCP, confirmed | rst, 120),
            (proto::TCP, FlowFlags::REPLY_RST, 120),
            (proto::TCP, FlowFlags::NONE, 60),
            (proto::TCP, seen, 60),
            (proto::TCP, FlowFlags::MIDSTREAM | seen, 60),
            (proto::UDP, FlowFlags::NONE, 30),
            (proto::UDP, seen, 120),
            (proto::UDP, confirmed | seen, 120),
            (proto::SCTP, confirmed, 86_400),
            (proto::SCTP, seen, 60),
        ] {
            let state = State::of(proto, flags);
            assert_eq!(state.timeout().as_secs(), secs, "{proto} {flags:?}");
            // One stamp a second.
            let limit = Limits::new(&Now { stamp: 0, hz: 256 }).of(state);
            assert_eq!(u64::from(limit), secs, "{proto} {flags:?}");
        }
    }

    #[test]
    fn stamps_count_jiffies_and_wrap() {
        let now = |stamp, hz| Now { stamp, hz };
        assert_eq!(now(250, 1_000).since(0), Duration::from_secs(64));
        assert_eq!(now(4, 256).since(u32::MAX - 5), Duration::from_secs(10));
        assert_eq!(now(4, 256).since(5), Duration::ZERO);
        // Never less than asked for.
        assert_eq!(now(0, 250).units(30), 30);
        assert_eq!(now(0, 1_000).units(30), 118);
    }
}
