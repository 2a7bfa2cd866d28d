//! Nanoseconds a connect(), through the socket hook of a cgroup of the benchmark's own.
//!
//! The process joins the cgroup while it measures, and everything happens on the loopback of a
//! namespace of its own. Maps are filled by hand; what a mode claims is seen (who answers, what
//! getpeername says, what the program counted) before it is timed.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::{
    Ebpf, EbpfLoader,
    programs::{CgroupAttachMode, CgroupSockAddr, Program, cgroup_sock_addr::CgroupSockAddrLink},
};
use lb_agent::bpf::features::Features;
use lb_common::{
    V4,
    abi::{
        Backend, BackendFlags, BackendState, Be16, Config, Counter, FrontendKind,
        PORT_FILTER_WORDS, PortFilter, PortRange, SELECTION_BLOCK_ROWS, SelectionList, Service,
        ServiceFlags, ServiceKey, Transport, port_filter_slot, proto,
    },
    names,
};
use socket2::{Domain, Socket, Type};

use super::{Effort, Report, Row, median, progress, sys};
use crate::{
    cgroup::{Cgroup, cgroup2_mount},
    echo::Proto,
    netns::NetNs,
    prog_run::{Programs, TableSize},
};

/// What is attached, and what is dialled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    /// No program; the server itself.
    Bare,
    /// The empty program; the server itself.
    Empty,
    /// Our program; the server itself, which is no Service.
    NotOurs,
    /// Our program; a ClusterIP with the server behind it.
    Service,
}

const MODES: [Mode; 4] = [Mode::Bare, Mode::Empty, Mode::NotOurs, Mode::Service];
const PROTOS: [Proto; 2] = [Proto::Tcp, Proto::Udp];

/// No loopback address: a socket bound to one is not led elsewhere.
const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 12);
const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const PORT: u16 = 80;
/// Backends of every Service, all of them the one server.
const BACKENDS: u32 = 10;
/// Connections that are made before the first is closed: fewer than the listener keeps waiting.
const BATCH: u32 = 64;
const PATIENCE: Duration = Duration::from_secs(5);

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Mode::Bare => "none",
            Mode::Empty => "empty",
            Mode::NotOurs => "not_ours",
            Mode::Service => "service",
        }
    }
}

fn name(proto: Proto) -> &'static str {
    match proto {
        Proto::Tcp => "tcp",
        Proto::Udp => "udp",
    }
}

/// Measures all connect rows.
pub fn measure(report: &mut Report, effort: &Effort) -> Result<()> {
    let ns = NetNs::new("bench-connect")?;
    ns.ip(&format!("link set lo up\naddr add {SERVER}/32 dev lo\n"))?;
    ns.run(|| {
        sys::pin();
        measure_here(report, effort)
    })?
}

fn measure_here(report: &mut Report, effort: &Effort) -> Result<()> {
    progress(&format!(
        "connect: filling maps with {} Services",
        effort.services
    ));
    let servers = Servers::start()?;
    let mut hooks = Hooks::load(effort.services, servers.addr)?;
    let cgroup = Cgroup::new("bench")?;
    let dir = File::open(cgroup.path())?;
    let _member = Member::enter(&cgroup)?;
    for mode in MODES {
        hooks.check(mode, &dir, &servers)?;
    }
    progress(&format!(
        "connect: {} rows, {} rounds",
        MODES.len() * PROTOS.len(),
        effort.rounds
    ));
    // Of each protocol and mode, one time a round.
    let mut times = [const { [const { Vec::new() }; MODES.len()] }; PROTOS.len()];
    for _ in 0..effort.rounds {
        for (at, mode) in MODES.into_iter().enumerate() {
            let _link = hooks.attach(mode, &dir)?;
            let dialled = servers.dialled(mode);
            times[0][at].push(servers.time_tcp(dialled, effort.packets / 50)?);
            times[1][at].push(time_udp(dialled, effort.packets / 3)?);
        }
    }
    for (proto, times) in PROTOS.into_iter().zip(&times) {
        let empty = &times[1];
        for (mode, times) in MODES.into_iter().zip(times) {
            let is_ours = matches!(mode, Mode::NotOurs | Mode::Service);
            let paired: Vec<f64> = times
                .iter()
                .zip(empty)
                .map(|(time, floor)| time - floor)
                .collect();
            report.rows.push(Row {
                id: format!("connect.{}.{}", name(proto), mode.name()),
                value: median(times),
                unit: "ns",
                floor: is_ours.then(|| median(empty)),
                own: is_ours.then(|| median(&paired)),
                runs: times.len(),
            });
        }
    }
    Ok(())
}

/// This process in a cgroup. It goes back where it came from on drop.
struct Member {
    home: PathBuf,
}

impl Member {
    fn enter(cgroup: &Cgroup) -> Result<Member> {
        let mount = cgroup2_mount()?;
        let own =
            fs::read_to_string("/proc/self/cgroup").context("cannot read /proc/self/cgroup")?;
        let own = own
            .lines()
            .find_map(|line| line.strip_prefix("0::/"))
            .ok_or_else(|| anyhow!("this process is in no cgroup of version 2"))?;
        join(&cgroup.path().join("cgroup.procs"))?;
        Ok(Member {
            home: mount.join(own).join("cgroup.procs"),
        })
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Err(error) = join(&self.home) {
            eprintln!("the benchmark stays in its cgroup: {error:#}");
        }
    }
}

fn join(procs: &std::path::Path) -> Result<()> {
    fs::write(procs, "0").with_context(|| format!("cannot write to {}", procs.display()))
}

/// Both programs, loaded.
struct Hooks {
    front: Ebpf,
    programs: Programs,
}

impl Hooks {
    fn load(services: u32, server: SocketAddr) -> Result<Hooks> {
        let path = crate::agent::target_dir().join("bpf/front.o");
        let object = fs::read(&path)
            .with_context(|| format!("cannot read {}; run `cargo xtask bench`", path.display()))?;
        let mut front = EbpfLoader::new()
            .load(&object)
            .context("cannot load the front object")?;
        let empty = front
            .program_mut("empty_connect4")
            .ok_or_else(|| anyhow!("no program `empty_connect4` in the front object"))?;
        sock_addr(empty)?
            .load()
            .context("the verifier rejects `empty_connect4`")?;
        let mut programs = Programs::load_with(
            &[
                (names::maps::SERVICES[0], services + 1024),
                (names::maps::SERVICES[1], 1024),
                (names::maps::BACKENDS[0], 1024),
                (names::maps::BACKENDS[1], 1024),
                (names::maps::SELECTION, 1),
            ],
            TableSize::SMALL,
            &Features::probe(),
        )?;
        for name in ["connect4", "getpeername4"] {
            programs.verify(name)?;
        }
        fill(&mut programs, services, server)?;
        Ok(Hooks { front, programs })
    }

    /// Attaches a mode's connect program, until the link is dropped.
    fn attach(&mut self, mode: Mode, cgroup: &File) -> Result<Option<CgroupSockAddrLink>> {
        let program = match mode {
            Mode::Bare => return Ok(None),
            Mode::Empty => self
                .front
                .program_mut("empty_connect4")
                .ok_or_else(|| anyhow!("no program `empty_connect4` in the front object"))?,
            Mode::NotOurs | Mode::Service => self.programs.verify("connect4")?,
        };
        attach(program, cgroup).map(Some)
    }

    /// Sees one connection of each protocol arrive, and that the program did what the mode says.
    fn check(&mut self, mode: Mode, cgroup: &File, servers: &Servers) -> Result<()> {
        let connects = Counter::SocketConnect as u32;
        let before = self.programs.counter(connects)?;
        let _connect = self.attach(mode, cgroup)?;
        let _name = attach(self.programs.verify("getpeername4")?, cgroup)?;
        let dialled = servers.dialled(mode);
        for (proto, shown) in [
            (Proto::Tcp, servers.answer_tcp(dialled)),
            (Proto::Udp, servers.answer_udp(dialled)),
        ] {
            let shown =
                shown.with_context(|| format!("connect.{}.{}", name(proto), mode.name()))?;
            ensure!(
                shown == dialled,
                "connect.{}.{}: getpeername says {shown}, dialled was {dialled}",
                name(proto),
                mode.name()
            );
        }
        let translated = self.programs.counter(connects)? - before;
        let wanted = if mode == Mode::Service { 2 } else { 0 };
        ensure!(
            translated == wanted,
            "connect.*.{}: {translated} of 2 connections were translated, wanted {wanted}",
            mode.name()
        );
        Ok(())
    }
}

fn sock_addr(program: &mut Program) -> Result<&mut CgroupSockAddr> {
    program.try_into().context("a socket hook of another type")
}

fn attach(program: &mut Program, cgroup: &File) -> Result<CgroupSockAddrLink> {
    let program = sock_addr(program)?;
    let id = program
        .attach(cgroup, CgroupAttachMode::Single)
        .context("cannot attach to the benchmark's cgroup")?;
    Ok(program.take_link(id)?)
}

/// What the agent would write: the measured ClusterIP for both protocols, and many others.
fn fill(programs: &mut Programs, services: u32, server: SocketAddr) -> Result<()> {
    let SocketAddr::V4(server) = server else {
        anyhow::bail!("the server has no IPv4 address");
    };
    programs.set(
        names::maps::CONFIG,
        0,
        Config {
            node_v4: SERVER.into(),
            cluster_net_v4: Ipv4Addr::new(10, 96, 0, 0).into(),
            cluster_mask_v4: Ipv4Addr::new(255, 240, 0, 0).into(),
            snat_ports: PortRange {
                first: 20_000,
                last: 29_999,
            },
            netns_cookie: netns_cookie()?,
            ..Config::default()
        },
    )?;
    let state = BackendState::new(
        BackendState::GENERATION_STEP,
        BackendFlags::USABLE | BackendFlags::IN_CLUSTER,
    );
    for id in 1..=BACKENDS {
        let port = Be16::from_host(server.port());
        programs.set(
            names::maps::BACKENDS[0],
            id,
            Backend::<V4>::new((*server.ip()).into(), port, 0, state, 1),
        )?;
    }
    let mut rows = [0u32; SELECTION_BLOCK_ROWS];
    for (row, number) in rows.iter_mut().zip(0u32..) {
        *row = 1 + number % BACKENDS;
    }
    programs.set(names::maps::SELECTION, 0, rows)?;
    let mut filter = PortFilter {
        words: [0; PORT_FILTER_WORDS],
    };
    filter.words[usize::from(PORT / 32)] |= 1 << (PORT % 32);
    let mut service = Service::default();
    service.id = 1;
    service.cluster = SelectionList {
        offset: 0,
        len: 1021,
    };
    service.local = service.cluster;
    service.kind = FrontendKind::ClusterIp as u8;
    service.flags = ServiceFlags::HAS_ENDPOINTS;
    for number in 0..services.div_ceil(2) {
        let addr = Ipv4Addr::from(u32::from(CLUSTER_IP) + number);
        for proto in [proto::TCP, proto::UDP] {
            let key = ServiceKey::<V4>::new(addr.into(), Be16::from_host(PORT), proto);
            programs.insert(names::maps::SERVICES[0], key, service.sealed(&key))?;
        }
    }
    for transport in [Transport::Tcp, Transport::Udp] {
        programs.set(
            names::maps::PORT_FILTER,
            port_filter_slot(transport),
            filter,
        )?;
    }
    Ok(())
}

/// The number of this thread's network namespace, as the hooks see it (`SO_NETNS_COOKIE`, since 5.14).
fn netns_cookie() -> Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    let mut cookie = 0u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>())?;
    // SAFETY: the option writes eight bytes, which `cookie` has.
    let code = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    ensure!(
        code == 0,
        "cannot tell the namespace's cookie (kernel 5.14): {}",
        std::io::Error::last_os_error()
    );
    Ok(cookie)
}

/// One address with a server of each protocol.
struct Servers {
    addr: SocketAddr,
    tcp: TcpListener,
    udp: UdpSocket,
}

impl Servers {
    fn start() -> Result<Servers> {
        let tcp = TcpListener::bind((SERVER, 0))?;
        let addr = tcp.local_addr()?;
        let udp = UdpSocket::bind(addr)?;
        udp.set_read_timeout(Some(PATIENCE))?;
        Ok(Servers { addr, tcp, udp })
    }

    fn dialled(&self, mode: Mode) -> SocketAddr {
        if mode == Mode::Service {
            (CLUSTER_IP, PORT).into()
        } else {
            self.addr
        }
    }

    /// The peer that a connection shows, once a byte has arrived.
    fn answer_tcp(&self, to: SocketAddr) -> Result<SocketAddr> {
        let mut client = TcpStream::connect_timeout(&to, PATIENCE)?;
        client.write_all(b"?")?;
        let (mut accepted, _) = self.tcp.accept()?;
        accepted.set_read_timeout(Some(PATIENCE))?;
        let mut byte = [0u8];
        accepted.read_exact(&mut byte)?;
        Ok(client.peer_addr()?)
    }

    /// The peer that a connected datagram socket shows, once a datagram has gone there and back.
    fn answer_udp(&self, to: SocketAddr) -> Result<SocketAddr> {
        let client = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        client.set_read_timeout(Some(PATIENCE))?;
        client.connect(to)?;
        client.send(b"?")?;
        let mut bytes = [0u8; 8];
        let (_, from) = self.udp.recv_from(&mut bytes)?;
        self.udp.send_to(b"!", from)?;
        client.recv(&mut bytes)?;
        Ok(client.peer_addr()?)
    }

    /// Nanoseconds a connect() of `count` TCP sockets. They are reset, so that no port waits.
    fn time_tcp(&self, to: SocketAddr, count: u32) -> Result<f64> {
        let batches = (count / BATCH).max(1);
        let mut spent = Duration::ZERO;
        // The first batch warms up.
        for batch in 0..=batches {
            let sockets: Vec<Socket> = (0..BATCH)
                .map(|_| {
                    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
                    socket.set_linger(Some(Duration::ZERO))?;
                    Ok(socket)
                })
                .collect::<Result<_>>()?;
            let before = sys::cpu_time();
            for socket in &sockets {
                socket
                    .connect(&to.into())
                    .with_context(|| format!("cannot connect to {to}"))?;
            }
            if batch > 0 {
                spent += sys::cpu_time().saturating_sub(before);
            }
            let accepted: Vec<_> = sockets
                .iter()
                .map(|_| self.tcp.accept())
                .collect::<Result<_, _>>()?;
            drop(sockets);
            drop(accepted);
        }
        Ok(spent.as_secs_f64() * 1e9 / f64::from(batches * BATCH))
    }
}

/// Nanoseconds a connect() of one UDP socket, `count` times.
fn time_udp(to: SocketAddr, count: u32) -> Result<f64> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    let to = to.into();
    for _ in 0..1000 {
        socket.connect(&to)?;
    }
    let before = sys::cpu_time();
    for _ in 0..count {
        socket.connect(&to)?;
    }
    let spent = sys::cpu_time().saturating_sub(before);
    Ok(spent.as_secs_f64() * 1e9 / f64::from(count))
}
