//! A place and a port → a server that tells each client whom it saw.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result};
use socket2::{SockAddr, Socket, Type};

use super::{DATAGRAM, PATIENCE, Proto, TICK, is_pause};
use crate::topology::{Ip, Place};

/// A TCP or UDP server on threads of its own. Dropped, it closes its sockets and connections.
///
/// TCP commands, one a line: `who` → `NAME PEER LOCAL`; `sink N` and N bytes → the same and N;
/// `source N` → N bytes. UDP: any datagram → `NAME PEER LOCAL LENGTH`, padded to the length of the
/// datagram.
#[derive(Debug)]
pub struct Server {
    /// Its name in answers.
    pub name: String,
    /// Where it listens.
    pub addr: SocketAddr,
    stop: Arc<AtomicBool>,
    requests: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Serves on an address of the place; named after the place.
    pub fn start(place: &Place, ip: Ip, proto: Proto, port: u16) -> Result<Server> {
        Server::start_at(place, &place.name, place.at(ip, port), proto)
    }

    /// Serves both protocols of both families on a port.
    pub fn start_all(place: &Place, port: u16) -> Result<Vec<Server>> {
        let mut servers = Vec::new();
        for ip in Ip::BOTH {
            for proto in Proto::BOTH {
                servers.push(Server::start(place, ip, proto, port)?);
            }
        }
        Ok(servers)
    }

    /// Serves on any address, under any name.
    pub fn start_at(place: &Place, name: &str, addr: SocketAddr, proto: Proto) -> Result<Server> {
        let stop = Arc::new(AtomicBool::new(false));
        let requests = Arc::new(AtomicUsize::new(0));
        let kind = match proto {
            Proto::Tcp => Type::STREAM,
            Proto::Udp => Type::DGRAM,
        };
        let socket = place.socket(Ip::of(addr.ip()), kind)?;
        socket.set_reuse_address(true)?;
        if addr.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket
            .bind(&addr.into())
            .with_context(|| format!("{name} cannot serve on {addr}"))?;
        socket.set_read_timeout(Some(TICK))?;
        let shared = Shared {
            name: name.into(),
            stop: Arc::clone(&stop),
            requests: Arc::clone(&requests),
        };
        let thread = match proto {
            Proto::Tcp => {
                socket.listen(1024)?;
                thread::spawn(move || serve_tcp(&socket, &shared))
            }
            Proto::Udp => thread::spawn(move || serve_udp(&UdpSocket::from(socket), &shared)),
        };
        Ok(Server {
            name: name.into(),
            addr,
            stop,
            requests,
            threads: vec![thread],
        })
    }

    /// Requests answered so far.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                eprintln!("server {} panicked", self.name);
            }
        }
    }
}

struct Shared {
    name: Arc<str>,
    stop: Arc<AtomicBool>,
    requests: Arc<AtomicUsize>,
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

fn serve_tcp(listener: &Socket, shared: &Shared) {
    thread::scope(|scope| {
        while !shared.stopped() {
            match listener.accept() {
                Ok((socket, peer)) => {
                    scope.spawn(move || {
                        // A client that goes away is no fault of the server.
                        drop(serve_connection(TcpStream::from(socket), &peer, shared));
                    });
                }
                Err(error) if is_pause(&error) => {}
                Err(error) => {
                    eprintln!("server {}: accept: {error}", shared.name);
                    return;
                }
            }
        }
    });
}

fn serve_connection(mut stream: TcpStream, peer: &SockAddr, shared: &Shared) -> io::Result<()> {
    let peer = peer.as_socket().ok_or(io::ErrorKind::InvalidData)?;
    let local = stream.local_addr()?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TICK))?;
    let mut line = Vec::new();
    let mut byte = [0u8; 1];
    loop {
        match stream.read(&mut byte) {
            Ok(0) => return Ok(()),
            Ok(_) if byte[0] != b'\n' => {
                line.push(byte[0]);
                continue;
            }
            Ok(_) => {}
            Err(error) if is_pause(&error) => {
                if shared.stopped() {
                    return Ok(());
                }
                continue;
            }
            Err(error) => return Err(error),
        }
        let text = String::from_utf8_lossy(&line).into_owned();
        line.clear();
        shared.requests.fetch_add(1, Ordering::Relaxed);
        let mut words = text.split(' ');
        let command = words.next().unwrap_or_default();
        let length = words
            .next()
            .and_then(|n| n.parse::<usize>().ok())
            .unwrap_or(0);
        stream.set_read_timeout(Some(PATIENCE))?;
        match command {
            "source" => {
                let mut sent = 0;
                while sent < length {
                    let chunk = pattern(sent, (length - sent).min(CHUNK));
                    stream.write_all(chunk)?;
                    sent += chunk.len();
                }
            }
            "sink" => {
                let mut buffer = vec![0u8; CHUNK];
                let mut received = 0;
                while received < length {
                    let want = (length - received).min(buffer.len());
                    let n = stream.read(&mut buffer[..want])?;
                    if n == 0 || buffer[..n] != *pattern(received, n) {
                        return Err(io::ErrorKind::InvalidData.into());
                    }
                    received += n;
                }
                stream
                    .write_all(format!("{} {peer} {local} {received}\n", shared.name).as_bytes())?;
            }
            _ => stream.write_all(format!("{} {peer} {local} 0\n", shared.name).as_bytes())?,
        }
        stream.set_read_timeout(Some(TICK))?;
    }
}

/// Most bytes of a stream that are written or compared at once.
pub(super) const CHUNK: usize = 65536;

/// Bytes of a stream from an offset, up to [`CHUNK`]: a lost, doubled or swapped piece shows.
pub(super) fn pattern(offset: usize, len: usize) -> &'static [u8] {
    const PERIOD: usize = 251;
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    let bytes = BYTES.get_or_init(|| {
        (0..CHUNK + PERIOD)
            .map(|at| (at % PERIOD).to_le_bytes()[0])
            .collect()
    });
    let start = offset % PERIOD;
    &bytes[start..start + len.min(CHUNK)]
}

fn serve_udp(socket: &UdpSocket, shared: &Shared) {
    let mut buffer = vec![0u8; DATAGRAM];
    let Ok(local) = socket.local_addr() else {
        return;
    };
    while !shared.stopped() {
        match socket.recv_from(&mut buffer) {
            Ok((len, peer)) => {
                shared.requests.fetch_add(1, Ordering::Relaxed);
                let mut answer = format!("{} {peer} {local} {len}\n", shared.name).into_bytes();
                answer.resize(answer.len().max(len), b'.');
                if let Err(error) = socket.send_to(&answer, peer) {
                    eprintln!("server {}: cannot answer {peer}: {error}", shared.name);
                }
            }
            // An ICMP error of an earlier answer is reported here; the server goes on.
            Err(error) if is_pause(&error) || error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => {
                eprintln!("server {}: receive: {error}", shared.name);
                return;
            }
        }
    }
}
