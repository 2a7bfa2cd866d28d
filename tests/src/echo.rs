//! Servers that answer with their name, the peer they saw and the address they were reached at; and
//! clients that say what became of a dial.

use std::{
    fmt,
    io::{self, Read, Write},
    mem::MaybeUninit,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use socket2::{SockAddr, SockRef, Socket, Type};

use crate::topology::{Ip, Place};

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
const CHUNK: usize = 65536;

/// Bytes of a stream from an offset, up to [`CHUNK`]: a lost, doubled or swapped piece shows.
fn pattern(offset: usize, len: usize) -> &'static [u8] {
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

/// What a server said, and what the client saw.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// Name of the server.
    pub server: String,
    /// The client as the server saw it.
    pub seen_peer: SocketAddr,
    /// Where the server was reached.
    pub seen_local: SocketAddr,
    /// Bytes that the server took.
    pub length: usize,
    /// The server as the client sees it: `getpeername`, or the source of the datagram.
    pub peer: SocketAddr,
    /// The client's own address.
    pub local: SocketAddr,
}

impl Answer {
    fn parse(text: &str, peer: SocketAddr, local: SocketAddr) -> Result<Answer> {
        let line = text.lines().next().unwrap_or_default();
        let words: Vec<&str> = line.split(' ').collect();
        let [server, seen_peer, seen_local, length] = words[..] else {
            bail!("not an answer: `{line}`")
        };
        Ok(Answer {
            server: server.to_owned(),
            seen_peer: seen_peer.parse()?,
            seen_local: seen_local.parse()?,
            length: length.parse()?,
            peer,
            local,
        })
    }
}

/// What became of a dial.
pub type Outcome = Result<Answer, Failure>;

/// Why nobody answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failure {
    /// ECONNREFUSED: RST or ICMP port unreachable.
    Refused,
    /// Nothing within the time given.
    TimedOut,
    /// EHOSTUNREACH or ENETUNREACH.
    Unreachable,
    /// EPERM: a socket hook denied it.
    NotPermitted,
    /// The connection was closed or reset after it had been made.
    Broken,
    /// Something else.
    Other(String),
}

impl Failure {
    fn of(error: &io::Error) -> Failure {
        match error.raw_os_error() {
            Some(libc::ECONNREFUSED) => Failure::Refused,
            Some(libc::EHOSTUNREACH | libc::ENETUNREACH) => Failure::Unreachable,
            Some(libc::EPERM) => Failure::NotPermitted,
            Some(libc::ECONNRESET | libc::EPIPE) => Failure::Broken,
            Some(libc::ETIMEDOUT | libc::EAGAIN | libc::EINPROGRESS) => Failure::TimedOut,
            _ if is_timeout(error) => Failure::TimedOut,
            _ if error.kind() == io::ErrorKind::UnexpectedEof => Failure::Broken,
            _ => Failure::Other(error.to_string()),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no answer: {self:?}")
    }
}

impl std::error::Error for Failure {}

/// One request to a server, to be described and then made.
#[derive(Clone, Copy)]
pub struct Dial<'a> {
    from: &'a Place,
    to: SocketAddr,
    proto: Proto,
    source: Option<SocketAddr>,
    timeout: Duration,
    size: usize,
    connected: bool,
    reset: bool,
}

impl<'a> Dial<'a> {
    /// From a place to an address.
    pub fn new(from: &'a Place, proto: Proto, to: SocketAddr) -> Dial<'a> {
        Dial {
            from,
            to,
            proto,
            source: None,
            timeout: PATIENCE,
            size: 0,
            connected: true,
            reset: false,
        }
    }
    /// With TCP.
    pub fn tcp(from: &'a Place, to: SocketAddr) -> Dial<'a> {
        Dial::new(from, Proto::Tcp, to)
    }
    /// With UDP, from a connected socket.
    pub fn udp(from: &'a Place, to: SocketAddr) -> Dial<'a> {
        Dial::new(from, Proto::Udp, to)
    }
    /// From this port of any address.
    pub fn source_port(mut self, port: u16) -> Self {
        let any: IpAddr = match self.to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        self.source = Some((any, port).into());
        self
    }
    /// From this address and port.
    pub fn source(mut self, addr: SocketAddr) -> Self {
        self.source = Some(addr);
        self
    }
    /// Waits this long.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
    /// Sends this many bytes (UDP: in one datagram, answered by one as long).
    pub fn size(mut self, size: usize) -> Self {
        self.size = size;
        self
    }
    /// UDP by `sendto` and `recvfrom`, which tells who really answered.
    pub fn unconnected(mut self) -> Self {
        self.connected = false;
        self
    }
    /// Ends a TCP connection by RST, so that the port is free at once.
    pub fn reset(mut self) -> Self {
        self.reset = true;
        self
    }

    /// Where it goes.
    pub fn destination(&self) -> SocketAddr {
        self.to
    }
    /// Where it comes from.
    pub fn origin(&self) -> &'a Place {
        self.from
    }

    /// Makes the request.
    pub fn ask(self) -> Outcome {
        match self.proto {
            Proto::Tcp => Stream::open(self)?.ask_with(self.size, self.timeout),
            Proto::Udp => Datagrams::open(self)?.ask_with(self.size, self.timeout),
        }
    }

    fn socket(&self, kind: Type) -> Result<Socket, Failure> {
        let socket = self
            .from
            .socket(Ip::of(self.to.ip()), kind)
            .map_err(|error| Failure::Other(format!("{error:#}")))?;
        let ready = || -> io::Result<()> {
            socket.set_reuse_address(true)?;
            match self.source {
                Some(source) => socket.bind(&source.into()),
                None => choose_port(&socket),
            }
        };
        ready().map_err(|error| Failure::Other(format!("bind to {:?}: {error}", self.source)))?;
        Ok(socket)
    }
}

/// Has the kernel choose a port that no socket of this process chose before, at the usual time (connect or the
/// first datagram). Left to itself it takes one at random, and of 120 dials two share a port in every fourth run;
/// what the older flow left behind then changes what becomes of the newer one.
///
/// By `IP_LOCAL_PORT_RANGE` (Linux 6.3); older kernels choose at random.
fn choose_port(socket: &Socket) -> io::Result<()> {
    /// `net.ipv4.ip_local_port_range` as Linux starts with: outside it the option has no effect.
    const EPHEMERAL: std::ops::Range<u32> = 32768..60999;
    const IP_LOCAL_PORT_RANGE: libc::c_int = 51;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let port = EPHEMERAL.start + NEXT.fetch_add(1, Ordering::Relaxed);
    if !EPHEMERAL.contains(&port) {
        return Ok(()); // all were had once
    }
    let range: u32 = port << 16 | port;
    const LEN: libc::socklen_t = 4;
    const _: () = assert!(size_of::<u32>() == LEN as usize);
    // SAFETY: the option's value is the four bytes of `range`, which lives until the call returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            IP_LOCAL_PORT_RANGE,
            (&raw const range).cast(),
            LEN,
        )
    };
    if result == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(()),
        error => Err(error),
    }
}

impl fmt::Display for Dial<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} → {} by {}",
            self.from.name,
            self.to,
            self.proto.name()
        )
    }
}

/// A TCP connection that is used more than once.
#[derive(Debug)]
pub struct Stream {
    stream: TcpStream,
    peer: SocketAddr,
    local: SocketAddr,
}

impl Stream {
    /// Connects.
    pub fn open(dial: Dial<'_>) -> Result<Stream, Failure> {
        let socket = dial.socket(Type::STREAM)?;
        let connected = || -> io::Result<Stream> {
            if dial.reset {
                socket.set_linger(Some(Duration::ZERO))?;
            }
            socket.connect_timeout(&dial.to.into(), dial.timeout)?;
            socket.set_tcp_nodelay(true)?;
            let stream = TcpStream::from(socket);
            Ok(Stream {
                peer: stream.peer_addr()?,
                local: stream.local_addr()?,
                stream,
            })
        };
        connected().map_err(|error| Failure::of(&error))
    }

    /// Asks who answers.
    pub fn ask(&mut self, timeout: Duration) -> Outcome {
        self.ask_with(0, timeout)
    }

    /// Sends `size` bytes and asks who took them.
    pub fn ask_with(&mut self, size: usize, timeout: Duration) -> Outcome {
        let mut talk = || -> io::Result<String> {
            self.stream.set_read_timeout(Some(timeout))?;
            self.stream.set_write_timeout(Some(timeout))?;
            if size == 0 {
                self.stream.write_all(b"who\n")?;
            } else {
                self.stream.write_all(format!("sink {size}\n").as_bytes())?;
                let mut sent = 0;
                while sent < size {
                    let chunk = pattern(sent, (size - sent).min(CHUNK));
                    self.stream.write_all(chunk)?;
                    sent += chunk.len();
                }
            }
            let mut line = Vec::new();
            let mut byte = [0u8; 1];
            loop {
                self.stream.read_exact(&mut byte)?;
                if byte[0] == b'\n' {
                    return Ok(String::from_utf8_lossy(&line).into_owned());
                }
                line.push(byte[0]);
            }
        };
        let line = talk().map_err(|error| Failure::of(&error))?;
        Answer::parse(&line, self.peer, self.local)
            .map_err(|error| Failure::Other(error.to_string()))
    }

    /// Takes `size` bytes from the server and checks each.
    pub fn fetch(&mut self, size: usize, timeout: Duration) -> Result<(), Failure> {
        let mut talk = || -> io::Result<()> {
            self.stream.set_read_timeout(Some(timeout))?;
            self.stream
                .write_all(format!("source {size}\n").as_bytes())?;
            let mut buffer = vec![0u8; CHUNK];
            let mut received = 0;
            while received < size {
                let want = (size - received).min(buffer.len());
                let n = self.stream.read(&mut buffer[..want])?;
                if n == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                if buffer[..n] != *pattern(received, n) {
                    return Err(io::Error::other(format!("wrong bytes after {received}")));
                }
                received += n;
            }
            Ok(())
        };
        talk().map_err(|error| Failure::of(&error))
    }

    /// The server as the client sees it.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The client's own address.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Largest segment that the connection uses now, as path-MTU discovery left it.
    pub fn mss(&self) -> Result<u32> {
        Ok(SockRef::from(&self.stream).tcp_mss()?)
    }
}

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

/// What became of continuous traffic.
#[derive(Clone, Default, Debug)]
pub struct Report {
    /// Requests answered.
    pub answered: usize,
    /// Requests that failed, each with the server that used to answer.
    pub failed: Vec<String>,
    /// Longest time between two answers of one connection.
    pub longest_gap: Duration,
    /// Requests that another server answered than the first time.
    pub moved: Vec<String>,
}

/// Connections that ask without pause on a thread until stopped.
#[derive(Debug)]
pub struct Traffic {
    stop: Arc<AtomicBool>,
    report: Arc<Mutex<Report>>,
    thread: Option<JoinHandle<()>>,
}

impl Traffic {
    /// Starts asking over these connections, one after the other; a connection that fails once is
    /// counted and not used again.
    pub fn start(mut streams: Vec<Stream>, timeout: Duration) -> Traffic {
        let stop = Arc::new(AtomicBool::new(false));
        let report = Arc::new(Mutex::new(Report::default()));
        let (stopping, shared) = (Arc::clone(&stop), Arc::clone(&report));
        let thread = thread::spawn(move || {
            let mut servers: Vec<Option<String>> = vec![None; streams.len()];
            let mut last: Vec<Instant> = vec![Instant::now(); streams.len()];
            let mut alive = vec![true; streams.len()];
            while !stopping.load(Ordering::Relaxed) && alive.contains(&true) {
                for (i, stream) in streams.iter_mut().enumerate() {
                    if !alive[i] {
                        continue;
                    }
                    let result = stream.ask(timeout);
                    let mut report = shared.lock().unwrap_or_else(PoisonError::into_inner);
                    match result {
                        Ok(answer) => {
                            report.answered += 1;
                            report.longest_gap = report.longest_gap.max(last[i].elapsed());
                            last[i] = Instant::now();
                            match &servers[i] {
                                Some(first) if *first != answer.server => {
                                    report.moved.push(format!("{first} → {}", answer.server));
                                }
                                Some(_) => {}
                                None => servers[i] = Some(answer.server),
                            }
                        }
                        Err(outcome) => {
                            alive[i] = false;
                            let server = servers[i].clone().unwrap_or_default();
                            report
                                .failed
                                .push(format!("{} of {server}: {outcome:?}", stream.peer()));
                        }
                    }
                }
            }
        });
        Traffic {
            stop,
            report,
            thread: Some(thread),
        }
    }

    /// What happened so far.
    pub fn report(&self) -> Report {
        self.report
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits until this many more requests have been answered, or one has failed.
    pub fn wait_more(&self, requests: usize) -> Result<()> {
        let start = self.report().answered;
        crate::wait::until("traffic flows", Duration::from_secs(20), || {
            let report = self.report();
            match report.answered >= start + requests || !report.failed.is_empty() {
                true => Ok(()),
                false => Err(anyhow!("{} requests answered", report.answered - start)),
            }
        })
    }

    /// Ends the traffic.
    pub fn stop(mut self) -> Report {
        self.join();
        self.report()
    }

    fn join(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("traffic panicked");
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.join();
    }
}
