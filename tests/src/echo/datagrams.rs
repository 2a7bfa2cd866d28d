//! A dial → a UDP socket that asks more than once.

use std::{io, mem::MaybeUninit, net::SocketAddr, time::Duration};

use anyhow::Result;
use socket2::{Socket, Type};

use super::{Answer, DATAGRAM, Dial, Failure, Outcome};

/// A UDP socket that is used more than once.
#[derive(Debug)]
pub struct Datagrams {
    socket: Socket,
    to: SocketAddr,
    connected: bool,
    sent: u32,
}

impl Datagrams {
    /// Makes the socket and connects it unless the dial says otherwise.
    pub fn open(dial: Dial<'_>) -> Result<Datagrams, Failure> {
        let socket = dial.socket(Type::DGRAM)?;
        if dial.connected {
            socket
                .connect(&dial.to.into())
                .map_err(|error| Failure::of(&error))?;
        }
        Ok(Datagrams {
            socket,
            to: dial.to,
            connected: dial.connected,
            sent: 0,
        })
    }

    /// One short datagram and its answer.
    pub fn ask(&mut self, timeout: Duration) -> Outcome {
        self.ask_with(0, timeout)
    }

    /// One datagram of `size` bytes (at least a short one) and its answer.
    pub fn ask_with(&mut self, size: usize, timeout: Duration) -> Outcome {
        self.ask_to(self.to, size, timeout)
    }

    /// The same to another address; only for an unconnected socket.
    pub fn ask_to(&mut self, to: SocketAddr, size: usize, timeout: Duration) -> Outcome {
        self.sent += 1;
        let mut request = format!("who {}\n", self.sent).into_bytes();
        request.resize(request.len().max(size), b'.');
        let mut buffer = vec![MaybeUninit::uninit(); DATAGRAM];
        let mut talk = || -> io::Result<(String, SocketAddr, SocketAddr)> {
            self.socket.set_read_timeout(Some(timeout))?;
            if self.connected {
                self.socket.send(&request)?;
            } else {
                self.socket.send_to(&request, &to.into())?;
            }
            let (len, source) = self.socket.recv_from(&mut buffer)?;
            // SAFETY: the kernel has written the first `len` bytes.
            let bytes: Vec<u8> = buffer[..len]
                .iter()
                .map(|byte| unsafe { byte.assume_init() })
                .collect();
            if len < request.len() {
                return Err(io::Error::other(format!(
                    "answer of {len} bytes to {}",
                    request.len()
                )));
            }
            let peer = if self.connected {
                self.socket.peer_addr()?
            } else {
                source
            };
            let local = self.socket.local_addr()?;
            let (Some(peer), Some(local)) = (peer.as_socket(), local.as_socket()) else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            Ok((String::from_utf8_lossy(&bytes).into_owned(), peer, local))
        };
        let (text, peer, local) = talk().map_err(|error| Failure::of(&error))?;
        Answer::parse(&text, peer, local).map_err(|error| Failure::Other(error.to_string()))
    }
}
