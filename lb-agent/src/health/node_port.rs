//! Servers of `healthCheckNodePort`: one for each Service and family, on the addresses of NodePorts (semantics 15).

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use serde_json::json;
use socket2::{Domain, Socket, Type};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet, time::sleep};

use super::{
    http::{Answer, accept},
    lock::lock,
    shared::Shared,
};
use crate::{kube::objects::Key, net::IpFamily};

/// Between two tries to open what could not be opened.
const RETRY: Duration = Duration::from_secs(5);
/// Most connections of one port served at a time.
const CONNECTIONS: usize = 8;
/// Connections that the kernel keeps until they are taken.
const BACKLOG: i32 = 128;

impl Shared {
    fn answer_check(&self, key: &Key, family: IpFamily) -> Answer {
        let count = lock(&self.health_checks.plan).count(key, family);
        // The node does not matter, the data path of both families does (semantics 15.5).
        let (_, health) = self.health(Instant::now(), SystemTime::now(), false);
        let healthy = health["healthy"] == true;
        let body = json!({
            "service": {"namespace": &*key.namespace, "name": &*key.name},
            "localEndpoints": count,
            "serviceProxyHealthy": healthy,
        });
        Answer {
            code: if count > 0 && healthy { 200 } else { 503 },
            kind: "application/json",
            body: body.to_string(),
            weight: Some(count),
        }
    }
}

/// An open server. Dropping it closes its listeners.
struct Server {
    at: Vec<SocketAddr>,
    tasks: JoinSet<()>,
}

/// Keeps the servers as the plan wants them for as long as it is polled.
pub(super) async fn serve(shared: Arc<Shared>) {
    let mut servers = Servers::default();
    loop {
        let is_whole = servers.reconcile(&shared).await;
        tokio::select! {
            () = shared.health_checks.changed.notified() => {}
            () = sleep(RETRY), if !is_whole => {}
        }
    }
}

#[derive(Default)]
struct Servers {
    open: BTreeMap<(Key, IpFamily), Server>,
    /// Failures that were told and still stand.
    failed: BTreeMap<(Key, IpFamily), String>,
}

impl Servers {
    /// Whether everything wanted is open now.
    async fn reconcile(&mut self, shared: &Arc<Shared>) -> bool {
        let plan = lock(&shared.health_checks.plan).clone();
        let wanted: BTreeMap<_, Vec<SocketAddr>> = plan
            .servers()
            .map(|((key, family), port)| {
                let addrs = plan.addresses[family.index()].iter();
                let at = addrs.map(|addr| SocketAddr::new(*addr, port)).collect();
                ((key, family), at)
            })
            .collect();
        let unwanted: Vec<_> = self
            .open
            .iter()
            .filter(|(id, server)| wanted.get(*id) != Some(&server.at))
            .map(|(id, _)| id.clone())
            .collect();
        for id in unwanted {
            if let Some(mut server) = self.open.remove(&id) {
                // Another Service may be waiting for the port.
                server.tasks.shutdown().await;
            }
        }
        self.failed.retain(|id, _| wanted.contains_key(id));
        for (id, at) in wanted {
            if self.open.contains_key(&id) {
                continue;
            }
            match open(shared, &id, at) {
                Ok(server) => {
                    self.failed.remove(&id);
                    self.open.insert(id, server);
                }
                Err((addr, error)) => self.tell(shared, id, addr, &error),
            }
        }
        self.failed.is_empty()
    }

    /// Says once, as long as it lasts, that a port cannot be served (semantics 15.8).
    fn tell(&mut self, shared: &Shared, id: (Key, IpFamily), addr: SocketAddr, error: &io::Error) {
        let (node, events) = lock(&shared.health_checks.node).clone();
        let text = format!(
            "node {node} cannot answer health checks of Service {} on {addr}: {error}; free the port",
            id.0
        );
        if self.failed.get(&id) != Some(&text) {
            tracing::error!("{text}");
            let reason = "FailedToStartServiceHealthcheck";
            events.warn(&id.0, reason, "Listen", text.clone());
            self.failed.insert(id, text);
        }
    }
}

/// Opens all listeners of a server or none.
fn open(
    shared: &Arc<Shared>,
    (key, family): &(Key, IpFamily),
    at: Vec<SocketAddr>,
) -> Result<Server, (SocketAddr, io::Error)> {
    let listeners: Vec<TcpListener> = at
        .iter()
        .map(|addr| listen(*addr).map_err(|error| (*addr, error)))
        .collect::<Result<_, _>>()?;
    let room = Arc::new(Semaphore::new(CONNECTIONS * listeners.len().max(1)));
    let mut tasks = JoinSet::new();
    for listener in listeners {
        let (shared, key, family) = (shared.clone(), key.clone(), *family);
        // Any path is answered (semantics 15.3).
        let answer = move |_: &str| shared.answer_check(&key, family);
        tasks.spawn(accept(listener, room.clone(), answer));
    }
    Ok(Server { at, tasks })
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    if addr.is_ipv6() {
        // Each family answers for itself.
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    use super::{
        super::{plan::Plan, shared::STALE},
        *,
    };
    use crate::{desired::health::HealthCheck, kube::api::events::EventWriter};

    fn plan(port: u16, count: usize) -> Plan {
        let check = HealthCheck {
            port,
            local: [Some(count), None],
        };
        Plan {
            addresses: [vec!["127.0.0.1".parse().unwrap()], Vec::new()],
            checks: BTreeMap::from([(Key::new("shop", "web"), check)]),
        }
    }

    fn free_port() -> u16 {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    }

    async fn ask(port: u16) -> io::Result<String> {
        let mut client = TcpStream::connect(("127.0.0.1", port)).await?;
        client.write_all(b"POST /any HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        client.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    fn body(answer: &str) -> serde_json::Value {
        serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn an_answer_carries_the_count_whatever_its_status() {
        // semantics 15.3, 15.6, 15.11
        let (shared, mut servers, port) =
            (Arc::<Shared>::default(), Servers::default(), free_port());
        shared.health_checks.set(plan(port, 2));
        assert!(servers.reconcile(&shared).await);
        let answer = ask(port).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        for header in [
            "Content-Type: application/json\r\n",
            "X-Content-Type-Options: nosniff\r\n",
            "X-Load-Balancing-Endpoint-Weight: 2\r\n",
        ] {
            assert!(answer.contains(header), "{header} in {answer}");
        }
        let expected = json!({"service": {"namespace": "shop", "name": "web"}, "localEndpoints": 2, "serviceProxyHealthy": true});
        assert_eq!(body(&answer), expected);
        // The listener stays, the count changes.
        shared.health_checks.set(plan(port, 0));
        let answer = ask(port).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert_eq!(body(&answer)["localEndpoints"], 0);
    }

    #[test]
    fn a_stuck_data_path_fails_the_check_and_a_draining_node_does_not() {
        // semantics 15.5, 28.41
        let shared = Shared::default();
        let key = Key::new("shop", "web");
        shared.health_checks.set(plan(1, 1));
        shared.set_eligible(false);
        assert_eq!(shared.answer_check(&key, IpFamily::V4).code, 200);
        let long_ago = Instant::now().checked_sub(STALE).unwrap();
        lock(&shared.syncs)[IpFamily::V6.index()].queued = Some(long_ago);
        let answer = shared.answer_check(&key, IpFamily::V4);
        assert_eq!((answer.code, answer.weight), (503, Some(1)));
        assert!(answer.body.contains("\"serviceProxyHealthy\":false"));
    }

    #[tokio::test]
    async fn servers_follow_the_plan() {
        // semantics 15.7
        let (shared, mut servers) = (Arc::<Shared>::default(), Servers::default());
        let (one, two) = (free_port(), free_port());
        shared.health_checks.set(plan(one, 1));
        servers.reconcile(&shared).await;
        shared.health_checks.set(plan(two, 1));
        servers.reconcile(&shared).await;
        assert!(ask(one).await.is_err(), "the old port is closed");
        assert!(ask(two).await.is_ok());
        shared.health_checks.set(Plan::default());
        servers.reconcile(&shared).await;
        assert!(ask(two).await.is_err(), "the Service is gone");
    }

    #[tokio::test]
    async fn a_taken_port_is_told_once_and_opened_when_it_is_free() {
        // semantics 15.8
        let (shared, mut servers) = (Arc::<Shared>::default(), Servers::default());
        let (events, mut queue) = EventWriter::new(Arc::default());
        shared.health_checks.tell("node-a", events);
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        shared.health_checks.set(plan(port, 1));
        assert!(!servers.reconcile(&shared).await);
        assert!(!servers.reconcile(&shared).await);
        let note = queue.try_recv().unwrap();
        assert_eq!(
            (note.reason, note.action),
            ("FailedToStartServiceHealthcheck", "Listen")
        );
        for word in ["node-a", "shop/web", &port.to_string()] {
            assert!(note.text.contains(word), "{word} in {}", note.text);
        }
        assert!(queue.try_recv().is_err(), "told once");
        drop(taken);
        assert!(servers.reconcile(&shared).await);
        assert!(ask(port).await.is_ok());
    }
}
