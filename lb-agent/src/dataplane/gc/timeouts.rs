//! State and last uses of a flow's entries → whether it is dead. Nothing but age and state decides.

use std::time::Duration;

use lb_common::{
    abi::{Clock, Flow, FlowFlags, proto},
    family::Family,
};

/// How long a flow may idle, by its state. Defaults are the kernel's and kube-proxy's (semantics 17.9, 18.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Timeouts {
    /// TCP past its handshake.
    pub(crate) tcp_established: Duration,
    /// TCP, one side has sent FIN (CLOSE_WAIT).
    pub(crate) tcp_close_wait: Duration,
    /// TCP, both sides have sent FIN (TIME_WAIT).
    pub(crate) tcp_time_wait: Duration,
    /// TCP, a side has sent RST.
    pub(crate) tcp_reset: Duration,
    /// TCP whose handshake is not complete.
    pub(crate) tcp_opening: Duration,
    /// UDP without an answer.
    pub(crate) udp_unreplied: Duration,
    /// UDP that was answered.
    pub(crate) udp_stream: Duration,
    /// SCTP that was answered and confirmed.
    pub(crate) sctp_established: Duration,
    /// SCTP before that.
    pub(crate) sctp_opening: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            tcp_established: Duration::from_hours(24),
            tcp_close_wait: Duration::from_hours(1),
            tcp_time_wait: Duration::from_secs(120),
            tcp_reset: Duration::from_secs(120),
            tcp_opening: Duration::from_secs(60),
            udp_unreplied: Duration::from_secs(30),
            udp_stream: Duration::from_secs(120),
            sctp_established: Duration::from_hours(24),
            sctp_opening: Duration::from_secs(60),
        }
    }
}

/// This moment in the unit of [`Flow::stamp`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Now {
    /// [`Clock::stamp`].
    pub(crate) stamp: u32,
    /// Jiffies a second.
    pub(crate) hz: u32,
}

impl Now {
    /// Time since a stamp. One from the future, written while we look, is no time at all.
    pub(crate) fn since(&self, stamp: u32) -> Duration {
        let idle = self.stamp.wrapping_sub(stamp);
        if idle > u32::MAX / 2 {
            return Duration::ZERO;
        }
        let jiffies = u64::from(idle) << Clock::STAMP_SHIFT;
        Duration::from_millis(jiffies * 1_000 / u64::from(self.hz.max(1)))
    }
}

/// What of a flow's entry decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LastUse {
    /// [`Flow::stamp`].
    pub(super) stamp: u32,
    /// [`Flow::flags`].
    pub(super) flags: FlowFlags,
}

impl<F: Family> From<&Flow<F>> for LastUse {
    fn from(flow: &Flow<F>) -> Self {
        LastUse {
            stamp: flow.stamp,
            flags: flow.flags,
        }
    }
}

impl Timeouts {
    /// How long a flow of these entries may idle.
    pub(super) fn of(&self, proto: u8, entries: &[LastUse]) -> Duration {
        let any = |flags| entries.iter().any(|e| e.flags.contains(flags));
        let has_fin = |reply: bool| {
            entries.iter().any(|e| {
                e.flags.contains(FlowFlags::FIN) && e.flags.contains(FlowFlags::REPLY) == reply
            })
        };
        match proto {
            proto::TCP if any(FlowFlags::RST) => self.tcp_reset,
            proto::TCP if !any(FlowFlags::CONFIRMED) => self.tcp_opening,
            proto::TCP => match (has_fin(false), has_fin(true)) {
                (true, true) => self.tcp_time_wait,
                (false, false) => self.tcp_established,
                _ => self.tcp_close_wait,
            },
            proto::SCTP if any(FlowFlags::CONFIRMED) => self.sctp_established,
            proto::SCTP => self.sctp_opening,
            _ if any(FlowFlags::REPLY | FlowFlags::SEEN) || any(FlowFlags::CONFIRMED) => {
                self.udp_stream
            }
            _ => self.udp_unreplied,
        }
    }

    /// Whether a flow of these entries is dead: the newest of their uses counts.
    pub(super) fn have_passed(&self, proto: u8, entries: &[LastUse], now: Now) -> bool {
        let idle = entries.iter().map(|e| now.since(e.stamp)).min();
        idle.is_some_and(|idle| idle >= self.of(proto, entries))
    }

    /// A first look that needs no other entry: the entry alone, taken for the longest-lived flow it can
    /// belong to. An entry that has seen FIN or RST is worth a look at its partner.
    pub(super) fn may_have_passed(&self, proto: u8, entry: LastUse, now: Now) -> bool {
        let least = if entry.flags.intersects(FlowFlags::CLOSING) {
            self.tcp_reset.min(self.tcp_time_wait)
        } else {
            self.of(proto, &[entry])
        };
        now.since(entry.stamp) >= least
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now(stamp: u32) -> Now {
        // One stamp a second.
        Now { stamp, hz: 256 }
    }

    fn last_use(stamp: u32, flags: FlowFlags) -> LastUse {
        LastUse { stamp, flags }
    }

    // semantics 17.9, 18.4
    #[test]
    fn each_state_has_its_timeout() {
        let t = Timeouts::default();
        let confirmed = FlowFlags::SEEN | FlowFlags::CONFIRMED;
        let reply = confirmed | FlowFlags::REPLY;
        let (fin, rst) = (FlowFlags::FIN, FlowFlags::RST);
        let opening_reply = FlowFlags::REPLY | FlowFlags::SEEN;
        for (proto, original, other, secs) in [
            (proto::TCP, confirmed, reply, 86_400),
            (proto::TCP, confirmed | fin, reply, 3_600),
            (proto::TCP, confirmed, reply | fin, 3_600),
            (proto::TCP, confirmed | fin, reply | fin, 120),
            (proto::TCP, confirmed, reply | rst, 120),
            (proto::TCP, FlowFlags::SEEN, FlowFlags::REPLY, 60),
            (proto::TCP, FlowFlags::SEEN, opening_reply, 60),
            (proto::UDP, FlowFlags::SEEN, FlowFlags::REPLY, 30),
            (proto::UDP, FlowFlags::SEEN, opening_reply, 120),
            (proto::UDP, confirmed, reply, 120),
            (proto::SCTP, confirmed, reply, 86_400),
            (proto::SCTP, FlowFlags::SEEN, FlowFlags::REPLY, 60),
        ] {
            // The newest use counts, whichever side it was.
            for stamps in [[1_000, 900], [900, 1_000]] {
                let entries = [last_use(stamps[0], original), last_use(stamps[1], other)];
                assert!(
                    !t.have_passed(proto, &entries, now(1_000 + secs - 1)),
                    "{proto} {original:?} {other:?}"
                );
                assert!(
                    t.have_passed(proto, &entries, now(1_000 + secs)),
                    "{proto} {original:?} {other:?}"
                );
            }
        }
    }

    #[test]
    fn stamps_count_jiffies_and_wrap() {
        assert_eq!(
            Now {
                stamp: 250,
                hz: 1_000
            }
            .since(0),
            Duration::from_secs(64)
        );
        assert_eq!(now(4).since(u32::MAX - 5), Duration::from_secs(10));
        assert_eq!(now(4).since(5), Duration::ZERO);
    }
}
