//! Where both ends of a TCP connection began to count → its segments, with the numbers that they then have.

use super::{ACK, FIN, PacketBuilder, RST, SYN};
use std::net::SocketAddr;

/// The first sequence numbers of both ends. Addresses come with each segment: a translation changes them, and the
/// numbers stay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Conversation {
    /// Of the client's SYN.
    pub client: u32,
    /// Of the server's SYN-ACK.
    pub server: u32,
}

impl Conversation {
    /// The client dials.
    pub fn syn(self, from: SocketAddr, to: SocketAddr) -> PacketBuilder {
        PacketBuilder::tcp(from, to)
            .flags(SYN)
            .numbers(self.client, 0)
    }
    /// The server accepts.
    pub fn syn_ack(self, from: SocketAddr, to: SocketAddr) -> PacketBuilder {
        PacketBuilder::tcp(from, to)
            .flags(SYN | ACK)
            .numbers(self.server, self.client.wrapping_add(1))
    }
    /// The server refuses.
    pub fn refusal(self, from: SocketAddr, to: SocketAddr) -> PacketBuilder {
        PacketBuilder::tcp(from, to)
            .flags(RST | ACK)
            .numbers(0, self.client.wrapping_add(1))
    }
    /// The client's next segment: an ACK, or what is made of it.
    pub fn data(self, from: SocketAddr, to: SocketAddr) -> PacketBuilder {
        PacketBuilder::tcp(from, to)
            .numbers(self.client.wrapping_add(1), self.server.wrapping_add(1))
    }
    /// The server's next segment.
    pub fn reply(self, from: SocketAddr, to: SocketAddr) -> PacketBuilder {
        PacketBuilder::tcp(from, to)
            .numbers(self.server.wrapping_add(1), self.client.wrapping_add(1))
    }
    /// The client has said everything.
    pub fn fin(self, from: SocketAddr, to: SocketAddr) -> PacketBuilder {
        self.data(from, to).flags(FIN | ACK)
    }
    /// The server has said everything.
    pub fn reply_fin(self, from: SocketAddr, to: SocketAddr) -> PacketBuilder {
        self.reply(from, to).flags(FIN | ACK)
    }
    /// The client gives up.
    pub fn rst(self, from: SocketAddr, to: SocketAddr) -> PacketBuilder {
        self.data(from, to).flags(RST)
    }
    /// The server gives up.
    pub fn reply_rst(self, from: SocketAddr, to: SocketAddr) -> PacketBuilder {
        self.reply(from, to).flags(RST)
    }
    /// So many bytes later in both directions.
    #[must_use]
    pub fn after(self, bytes: u32) -> Conversation {
        Conversation {
            client: self.client.wrapping_add(bytes),
            server: self.server.wrapping_add(bytes),
        }
    }
}
