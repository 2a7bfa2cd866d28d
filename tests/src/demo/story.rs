//! The chapters.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_common::abi::{Counter, DropReason};

use super::{
    screen::{Screen, check_stopped, is_stopped},
    stage::{Counters, SOON, Stage, with_endpoint_after, without_endpoint},
    tables,
    tally::{Tally, brief_line, udp, word},
};
use crate::{
    echo::{Answer, Datagrams, Dial, Failure, Stream, Traffic},
    scene::{SILENCE, cluster_ip, external_ip},
    topology::{Ip, Place},
    wait,
};

/// Backends of the example `web`.
const WEB: [&str; 4] = ["a2", "a3", "b2", "b3"];
/// Backends of the example `dns`.
const DNS: [&str; 2] = ["a4", "b4"];
/// Dials of a chart: four backends miss one of them in one round of ten million.
const MANY: usize = 60;
/// Dials of a line about two backends.
const SOME: usize = 32;
/// How long one request may take.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// The example `web` at its ClusterIP.
pub fn web(ip: Ip) -> SocketAddr {
    (cluster_ip(ip, digits(ip, 10)), 80).into()
}

fn dns(ip: Ip) -> SocketAddr {
    (cluster_ip(ip, digits(ip, 53)), 53).into()
}

fn session(ip: Ip) -> SocketAddr {
    (cluster_ip(ip, digits(ip, 30)), 80).into()
}

/// The last part of an example's address: written the same in both families, `.53` and `::53`.
fn digits(ip: Ip, number: u8) -> u8 {
    match ip {
        Ip::V4 => number,
        Ip::V6 => number / 10 * 16 + number % 10,
    }
}

/// What this is, and where it plays.
pub fn introduce(screen: &mut Screen) {
    let title = screen.bold("lb-ebpf: Kubernetes Services, translated in the kernel by eBPF");
    screen.line(&title);
    screen.line(
        "
              client 192.0.2.100                                no kube-proxy,
                 |                                              no iptables rules
        =========+==========+=======================+========
                            |                       |
                   node-a 192.0.2.11        node-b 192.0.2.12
                    |      |      |          |      |      |
                   a2     a3     a4         b2     b3     b4     pods 10.244.1.2 … 10.244.2.4
",
    );
}

/// All chapters.
pub fn tell(screen: &mut Screen, stage: &mut Stage) -> Result<()> {
    from_a_pod(screen, stage)?;
    from_outside(screen, stage)?;
    from_the_host(screen, stage)?;
    sticky_clients(screen, stage)?;
    endpoints_change(screen, stage)?;
    nobody_serves(screen, stage)?;
    without_the_agent(screen, stage)?;
    tables::show(screen, stage)
}

/// How it went.
pub fn summary(screen: &mut Screen, elapsed: Duration) {
    let seconds = elapsed.as_secs_f32();
    let broken = screen.broken().to_vec();
    screen.line("");
    let verdict = if broken.is_empty() {
        format!(
            "all {} promises seen kept, in {seconds:.0} s",
            screen.kept()
        )
    } else {
        format!(
            "{} promises seen kept, {} NOT: {}",
            screen.kept(),
            broken.len(),
            broken.join("; ")
        )
    };
    let verdict = screen.bold(&verdict);
    screen.line(&verdict);
}

fn from_a_pod(screen: &mut Screen, stage: &Stage) -> Result<()> {
    screen.chapter("A pod dials a ClusterIP")?;
    let (pod, node) = (stage.pod(), &stage.world.a().host);
    let before = Counters::read(&stage.a)?;
    screen.doing(&format!(
        "{} → {} by TCP, {MANY} times: Service web",
        pod.name,
        web(Ip::V4)
    ));
    let v4 = Tally::drawn(screen, stage, Dial::tcp(pod, web(Ip::V4)), MANY, &WEB)?;
    let v6 = Tally::of(Dial::tcp(pod, web(Ip::V6)), MANY)?;
    brief_line(screen, "IPv6", web(Ip::V6), &v6);
    let dns4 = Tally::of(udp(pod, dns(Ip::V4)), SOME)?;
    brief_line(screen, "UDP ", dns(Ip::V4), &dns4);
    let dns6 = Tally::of(udp(pod, dns(Ip::V6)), SOME)?;
    brief_line(screen, "UDP ", dns(Ip::V6), &dns6);
    let hooks = Counters::read(&stage.a)?.since(&before);

    screen.promise(
        "every backend on both nodes gets its share, IPv4 and IPv6",
        v4.is_by(&WEB) && v6.is_by(&WEB),
        &Tally::evidence(&[&v4, &v6], ""),
    );
    screen.promise(
        "backends see the pod's own address",
        v4.is_seen_as(&WEB, pod.v4.into()) && v6.is_seen_as(&WEB, pod.v6.into()),
        &format!("{}, {}", pod.v4, pod.v6),
    );
    screen.promise(
        "UDP answers come from the address that was dialled",
        dns4.is_by(&DNS) && dns6.is_by(&DNS),
        &Tally::evidence(
            &[&dns4, &dns6],
            &format!("{}, {}", dns(Ip::V4), dns(Ip::V6)),
        ),
    );
    screen.promise(
        "a pod reaches even itself through a Service",
        dns4.is_seen_as(&["a4"], node.v4.into()) && dns6.is_seen_as(&["a4"], node.v6.into()),
        &format!("a4 sees {}", stage.whose(node.v4.into())),
    );
    screen.promise(
        "translated by tc at the pods' interfaces",
        hooks.of(Counter::TcPodTranslated) > 0
            && hooks.of(Counter::TcOutTranslated) > 0
            && hooks.of(Counter::SocketConnect) == 0,
        &hooks.hooks(),
    );
    Ok(())
}

fn from_outside(screen: &mut Screen, stage: &Stage) -> Result<()> {
    screen.chapter("A client outside dials a NodePort and a load balancer's address")?;
    let (client, node) = (&stage.world.client, &stage.world.a().host);
    let node_port = |ip| SocketAddr::from((node.addr(ip), 30080));
    let balancer = |ip: Ip| SocketAddr::from((external_ip(ip, digits(ip, 20)), 80));
    let before = Counters::read(&stage.a)?;
    screen.doing(&format!(
        "client → {} by TCP, {MANY} times: node-a's NodePort of web",
        node_port(Ip::V4)
    ));
    let v4 = Tally::drawn(
        screen,
        stage,
        Dial::tcp(client, node_port(Ip::V4)),
        MANY,
        &WEB,
    )?;
    let v6 = Tally::of(Dial::tcp(client, node_port(Ip::V6)), MANY)?;
    brief_line(screen, "IPv6", node_port(Ip::V6), &v6);
    let lb4 = Tally::of(Dial::tcp(client, balancer(Ip::V4)), MANY)?;
    brief_line(screen, "LB  ", balancer(Ip::V4), &lb4);
    let lb6 = Tally::of(Dial::tcp(client, balancer(Ip::V6)), MANY)?;
    brief_line(screen, "LB  ", balancer(Ip::V6), &lb6);
    let dns4 = Tally::of(udp(client, dns(Ip::V4)), SOME)?;
    brief_line(screen, "UDP ", dns(Ip::V4), &dns4);
    let dns6 = Tally::of(udp(client, dns(Ip::V6)), SOME)?;
    brief_line(screen, "UDP ", dns(Ip::V6), &dns6);
    let hooks = Counters::read(&stage.a)?.since(&before);

    let by_web = [&v4, &v6, &lb4, &lb6];
    screen.promise(
        "all backends answer, at both addresses, IPv4 and IPv6",
        by_web.iter().all(|tally| tally.is_by(&WEB)),
        &Tally::evidence(&by_web, ""),
    );
    screen.promise(
        "UDP, too",
        dns4.is_by(&DNS) && dns6.is_by(&DNS),
        &Tally::evidence(&[&dns4, &dns6], ""),
    );
    let (local, remote) = WEB.split_at(2);
    screen.promise(
        "local backends see the client itself",
        v4.is_seen_as(local, client.v4.into()) && v6.is_seen_as(local, client.v6.into()),
        &format!("{}, {}", client.v4, client.v6),
    );
    screen.promise(
        "remote backends see node-a: replies come back by it",
        v4.is_seen_as(remote, node.v4.into()) && v6.is_seen_as(remote, node.v6.into()),
        &format!("{}, {}", node.v4, node.v6),
    );
    screen.promise(
        "XDP carried remote backends, tc local ones",
        hooks.of(Counter::XdpTranslated) > 0 && hooks.of(Counter::TcExternalTranslated) > 0,
        &hooks.hooks(),
    );
    Ok(())
}

fn from_the_host(screen: &mut Screen, stage: &Stage) -> Result<()> {
    screen.chapter("A process of node-a itself dials ClusterIPs")?;
    let host = &stage.world.a().host;
    let before = Counters::read(&stage.a)?;
    screen.doing(&format!("node-a → {} by TCP, {MANY} times", web(Ip::V4)));
    let v4 = Tally::drawn(screen, stage, Dial::tcp(host, web(Ip::V4)), MANY, &WEB)?;
    let v6 = Tally::of(Dial::tcp(host, web(Ip::V6)), MANY)?;
    brief_line(screen, "IPv6", web(Ip::V6), &v6);
    let dns4 = Tally::of(udp(host, dns(Ip::V4)), SOME)?;
    brief_line(screen, "UDP ", dns(Ip::V4), &dns4);
    let dns6 = Tally::of(udp(host, dns(Ip::V6)), SOME)?;
    brief_line(screen, "UDP ", dns(Ip::V6), &dns6);
    let hooks = Counters::read(&stage.a)?.since(&before);

    screen.promise(
        "all backends answer, TCP and UDP, IPv4 and IPv6",
        v4.is_by(&WEB) && v6.is_by(&WEB) && dns4.is_by(&DNS) && dns6.is_by(&DNS),
        &Tally::evidence(&[&v4, &v6, &dns4, &dns6], ""),
    );
    screen.promise(
        "the process still sees the address that it dialled",
        v4.failures.is_empty() && hooks.of(Counter::SocketReceive) > 0,
        &format!("getpeername: {}", web(Ip::V4)),
    );
    screen.promise(
        "translated once, at the socket; no packet is rewritten",
        hooks.of(Counter::SocketConnect) > 0
            && hooks.of(Counter::SocketSend) > 0
            && hooks.packets() == 0,
        &format!("sockets {}, packets {}", hooks.sockets(), hooks.packets()),
    );
    Ok(())
}

fn sticky_clients(screen: &mut Screen, stage: &Stage) -> Result<()> {
    screen.chapter("Session affinity: a client keeps its backend")?;
    let (world, node) = (&stage.world, &stage.world.a().host);
    screen.doing("Service session, sessionAffinity: ClientIP; 20 connections of each client");
    let dials = [
        Dial::tcp(&world.client, (node.v4, 30081).into()),
        Dial::tcp(&world.client, (node.v6, 30081).into()),
        Dial::tcp(stage.pod(), session(Ip::V4)),
        Dial::tcp(world.b().pod(2), session(Ip::V4)),
        Dial::tcp(host_of(stage), session(Ip::V6)),
    ];
    let mut is_kept = true;
    for dial in dials {
        let tally = Tally::of(dial, 20)?;
        brief_line(
            screen,
            &format!("{:<6} →", dial.origin().name),
            dial.destination(),
            &tally,
        );
        is_kept &= tally.servers.len() == 1 && tally.failures.is_empty();
    }
    screen.promise("each client stayed with one backend", is_kept, "");
    Ok(())
}

fn host_of(stage: &Stage) -> &Place {
    &stage.world.a().host
}

fn endpoints_change(screen: &mut Screen, stage: &Stage) -> Result<()> {
    screen.chapter("Endpoints come and go")?;
    let (pod, world) = (stage.pod(), &stage.world);
    let (a4, b3, b4) = (pod, world.b().pod(1), world.b().pod(2));
    let dial = Dial::tcp(pod, web(Ip::V4));
    let mut kept = connected_to(dial, &b3.name)?;

    screen.doing("web.yaml: endpoint b3 taken out, while a connection to it is open");
    stage.edit("web.yaml", |text| without_endpoint(text, b3.v4.into()))?;
    wait::until("no new connection reaches b3", SOON, || {
        let tally = Tally::of(dial, SOME)?;
        ensure!(tally.is_by(&["a2", "a3", "b2"]), "{}", tally.brief());
        Ok(())
    })
    .or_else(unless_stopped)?;
    let fewer = Tally::drawn(screen, stage, dial, MANY, &["a2", "a3", "b2"])?;
    screen.promise(
        "new connections go to the other three",
        fewer.is_by(&["a2", "a3", "b2"]),
        &Tally::evidence(&[&fewer], ""),
    );
    let outcome = kept.ask(PATIENCE);
    let is_kept = matches!(&outcome, Ok(answer) if answer.server == "b3");
    screen.promise("the open connection goes on", is_kept, &word(&outcome));

    screen.doing("web.yaml: b3 put back, and a4 as a fifth");
    stage.edit("web.yaml", |text| {
        with_endpoint_after(text, b3.v4.into(), a4.v4.into(), "node-a")
    })?;
    let changed = Instant::now();
    let first = until_answered_by(dial, "a4")?.map(|()| changed.elapsed());
    let five = ["a2", "a3", "a4", "b2", "b3"];
    let more = Tally::drawn(screen, stage, dial, MANY * 2, &five)?;
    screen.promise(
        "all five share new connections",
        more.is_by(&five),
        &match first {
            Some(time) => format!("a4 first answered after {}", millis(time)),
            None => format!("a4 did not answer within {} s", SOON.as_secs()),
        },
    );

    let target = dns(Ip::V4);
    let mut socket = Datagrams::open(Dial::udp(world.a().pod(0), target))?;
    let answer = socket.ask(PATIENCE).context("dns does not answer")?;
    let (gone, other) = if answer.server == "a4" {
        (a4, b4)
    } else {
        (b4, a4)
    };
    screen.doing(&format!(
        "dns.yaml: {} taken out, while a UDP socket of a2 talks to it",
        gone.name
    ));
    stage.edit("dns.yaml", |text| without_endpoint(text, gone.v4.into()))?;
    let changed = Instant::now();
    let moved = wait::until("the socket's datagrams reach the other pod", SOON, || {
        let answer = socket.ask(PATIENCE)?;
        ensure!(answer.server == other.name, "{} answered", answer.server);
        Ok((changed.elapsed(), answer))
    });
    screen.promise(
        &format!("the same socket's datagrams now reach {}", other.name),
        matches!(&moved, Ok((_, answer)) if answer.peer == target),
        &match &moved {
            Ok((time, _)) => format!("{} after the edit", millis(*time)),
            Err(error) => error.to_string(),
        },
    );
    stage.restore("dns.yaml")?;
    stage.restore("web.yaml")
}

/// What did not come is a broken promise, told where it is checked; only a signal ends the chapter.
fn unless_stopped(error: anyhow::Error) -> Result<()> {
    if is_stopped() { Err(error) } else { Ok(()) }
}

/// Dials without pause until a certain server answers; `None` where it does not in time.
fn until_answered_by(dial: Dial<'_>, server: &str) -> Result<Option<()>> {
    let end = Instant::now() + SOON;
    while Instant::now() < end {
        check_stopped()?;
        if dial
            .timeout(PATIENCE)
            .ask()
            .is_ok_and(|answer| answer.server == server)
        {
            return Ok(Some(()));
        }
    }
    Ok(None)
}

/// A connection that a certain server answers.
fn connected_to(dial: Dial<'_>, server: &str) -> Result<Stream> {
    for _ in 0..200 {
        let mut stream = Stream::open(dial)?;
        let Answer { server: found, .. } = stream.ask(PATIENCE)?;
        if found == server {
            return Ok(stream);
        }
        check_stopped()?;
    }
    bail!("{server} answered none of 200 connections")
}

fn millis(time: Duration) -> String {
    if time >= Duration::from_secs(1) {
        format!("{:.1} s", time.as_secs_f64())
    } else {
        format!("{:.1} ms", time.as_secs_f64() * 1e3)
    }
}

fn nobody_serves(screen: &mut Screen, stage: &Stage) -> Result<()> {
    screen.chapter("Nobody serves: refused at once, or dropped as the policy says")?;
    let world = &stage.world;
    let before = Counters::read(&stage.b)?;
    screen.doing("dns.yaml: all endpoints taken out");
    let pods = [world.a().pod(2), world.b().pod(2)];
    stage.edit("dns.yaml", |text| {
        pods.iter().fold(text.to_owned(), |text, pod| {
            let text = without_endpoint(&text, pod.v4.into());
            without_endpoint(&text, pod.v6.into())
        })
    })?;
    let pod = world.a().pod(0);
    let dials = [
        ("pod, TCP", Dial::tcp(pod, dns(Ip::V4)), "RST"),
        (
            "pod, UDP",
            Dial::udp(pod, dns(Ip::V6)),
            "ICMP port unreachable",
        ),
        ("outside, TCP", Dial::tcp(&world.client, dns(Ip::V6)), "RST"),
        (
            "host, TCP",
            Dial::tcp(host_of(stage), dns(Ip::V4)),
            "ECONNREFUSED from connect()",
        ),
        (
            "host, UDP",
            udp(host_of(stage), dns(Ip::V6)),
            "ECONNREFUSED from sendto()",
        ),
    ];
    for (who, dial, how) in dials {
        let refused = wait::until("refused", SOON, || {
            let start = Instant::now();
            let outcome = dial.timeout(PATIENCE).ask();
            ensure!(outcome == Err(Failure::Refused), "{}", word(&outcome));
            // To make a socket in another cgroup takes longer than to be refused.
            let is_timed = dial.origin().name != "node-a";
            Ok(is_timed.then(|| start.elapsed()))
        });
        check_stopped()?;
        screen.promise(
            &format!("{who:<12} → {}: {how}", dial.destination()),
            refused.is_ok(),
            &match refused {
                Ok(time) => time.map_or_else(String::new, |time| format!("in {}", millis(time))),
                Err(error) => error.to_string(),
            },
        );
    }
    stage.restore("dns.yaml")?;

    screen.doing("Service local, externalTrafficPolicy: Local, has endpoints on node-a only");
    let [on_a, on_b] = [world.a(), world.b()].map(|node| {
        Dial::tcp(&world.client, (node.host.v4, 30082).into())
            .timeout(SILENCE)
            .ask()
    });
    let dropped = Counters::read(&stage.b)?
        .since(&before)
        .dropped(DropReason::NoLocalEndpoint);
    let is_seen =
        matches!(&on_a, Ok(answer) if answer.seen_peer.ip() == IpAddr::from(world.client.v4));
    screen.promise(
        "its NodePort answers at node-a, which sees the client",
        is_seen,
        &word(&on_a),
    );
    screen.promise(
        "and is silent at node-b, which counts the drop",
        on_b == Err(Failure::TimedOut) && dropped > 0,
        &format!("no_local_endpoint {dropped}"),
    );
    Ok(())
}

fn without_the_agent(screen: &mut Screen, stage: &mut Stage) -> Result<()> {
    screen.chapter("The agent of node-a is killed; traffic does not notice")?;
    let Stage { a, world, .. } = stage;
    let node_port = |ip| SocketAddr::from((world.a().host.addr(ip), 30080));
    let mut streams = Vec::new();
    for dial in Ip::BOTH
        .map(|ip| Dial::tcp(&world.client, node_port(ip)))
        .into_iter()
        .chain(Ip::BOTH.map(|ip| Dial::tcp(world.a().pod(2), web(ip))))
    {
        for _ in 0..4 {
            streams.push(Stream::open(dial)?);
        }
    }
    let open = streams.len();
    let traffic = Traffic::start(streams, PATIENCE);
    traffic.wait_more(100)?;
    screen.doing(&format!(
        "kill -9 {}, with requests on {open} open connections",
        a.pid().unwrap_or_default()
    ));
    a.kill()?;
    let without = traffic.report().answered;
    let new = Tally::of(Dial::tcp(&world.client, node_port(Ip::V4)), SOME)?;
    traffic.wait_more(1000)?;
    let meanwhile = traffic.report().answered - without;
    let start = Instant::now();
    a.start_again()?;
    let ready = start.elapsed();
    traffic.wait_more(500)?;
    let report = traffic.stop();
    screen.promise(
        &format!("without agent: {meanwhile} requests answered, {SOME} new connections made"),
        new.failures.is_empty(),
        &Tally::evidence(&[&new], ""),
    );
    screen.promise(
        &format!(
            "started again in {}: no connection lost, none moved",
            millis(ready)
        ),
        report.failed.is_empty() && report.moved.is_empty(),
        &match report.failed.first().or(report.moved.first()) {
            Some(problem) => problem.clone(),
            None => format!("{} requests in all", report.answered),
        },
    );
    Ok(())
}
