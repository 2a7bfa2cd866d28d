//! Servers that answer with their name, the peer they saw and the address they were reached at; and
//! clients that say what became of a dial.

use std::{io, time::Duration};

mod answer;
mod datagrams;
mod dial;
mod server;
mod stream;
mod traffic;

pub use self::answer::{Answer, Failure, Outcome};
pub use self::datagrams::Datagrams;
pub use self::dial::Dial;
pub use self::server::Server;
pub use self::stream::Stream;
pub use self::traffic::{Report, Traffic};

/// Transport protocol of a dial.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Proto {
    /// Both.
    pub const BOTH: [Proto; 2] = [Proto::Tcp, Proto::Udp];

    /// Kubernetes' name.
    pub fn name(self) -> &'static str {
        match self {
            Proto::Tcp => "TCP",
            Proto::Udp => "UDP",
        }
    }
}

/// How often servers look whether they are to stop.
const TICK: Duration = Duration::from_millis(25);

/// How long a client waits for an answer unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(5);

/// Largest datagram.
const DATAGRAM: usize = 65536;

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// A server's call that waits ended without a result: it looks whether it is to stop, and goes on. Calls with a
/// time limit are not restarted behind a signal handler.
fn is_pause(error: &io::Error) -> bool {
    is_timeout(error) || error.kind() == io::ErrorKind::Interrupted
}
