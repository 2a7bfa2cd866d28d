//! Addresses → servers of health and metrics, and those of single Services.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{net::TcpListener, sync::Semaphore};

use super::{
    http::accept,
    node_port,
    shared::{BindFailure, Shared},
};

/// Between two tries to bind an address.
const REBIND: Duration = Duration::from_secs(5);
/// Most connections served at a time, over both ports; more of them wait.
const CONNECTIONS: usize = 64;

/// What is to be served where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    /// `/healthz`, `/livez` and `/readyz`; `None`: nowhere.
    pub health: Option<SocketAddr>,
    /// `/metrics`; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// An address that cannot be bound is to end the agent.
    pub hard_fail: bool,
}

/// Serves both addresses and the ports of Services for as long as it is polled.
pub(crate) async fn serve(addresses: Addresses, shared: Arc<Shared>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let (of_health, of_metrics) = (shared.clone(), shared.clone());
    let hard_fail = addresses.hard_fail;
    tokio::join!(
        async {
            let Some(addr) = addresses.health else { return };
            let answer = move |path: &str| of_health.answer_health(path);
            let bound = bind(HEALTHZ, addr, hard_fail, &shared).await;
            accept(bound, room.clone(), answer).await;
        },
        async {
            let Some(addr) = addresses.metrics else {
                return;
            };
            let answer = move |path: &str| of_metrics.answer_metrics(path);
            let bound = bind(METRICS, addr, hard_fail, &shared).await;
            accept(bound, room.clone(), answer).await;
        },
        node_port::serve(shared.clone()),
    );
}

/// Name in the flag, and the word of the Event about one that cannot be bound (16.10).
const HEALTHZ: [&str; 2] = ["healthz", "FailedToStartProxierHealthcheck"];
const METRICS: [&str; 2] = ["metrics", "FailedToStartMetricServer"];

/// Binds an address, however often it takes (16.10).
async fn bind(
    [what, reason]: [&'static str; 2],
    addr: SocketAddr,
    hard_fail: bool,
    shared: &Shared,
) -> TcpListener {
    loop {
        match TcpListener::bind(addr).await {
            Ok(listener) => return listener,
            Err(source) if hard_fail => {
                shared.set_unbound(BindFailure {
                    reason,
                    what,
                    addr,
                    source,
                });
                return std::future::pending().await;
            }
            Err(error) => {
                tracing::error!(%addr, "cannot listen: {error}; trying again in {} s", REBIND.as_secs());
            }
        }
        tokio::time::sleep(REBIND).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
        time::timeout,
    };

    use super::{super::http::REQUEST, *};

    async fn ask(addr: SocketAddr, request: &str) -> String {
        let mut client = TcpStream::connect(addr).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        let read = client.read_to_string(&mut text);
        timeout(REQUEST, read).await.unwrap().unwrap();
        text
    }

    // semantics 16.12
    #[tokio::test]
    async fn any_method_gets_an_answer_and_only_from_the_exact_paths() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shared: Arc<Shared> = Arc::default();
        shared.set_serving();
        let answer = move |path: &str| shared.answer_health(path);
        tokio::spawn(accept(listener, Arc::new(Semaphore::new(1)), answer));
        for (request, code) in [
            ("GET /healthz?x=1", 200),
            ("POST /livez", 200),
            ("DELETE /healthz", 200),
            ("GET /healthz/", 404),
            ("GET /", 404),
            ("GET /metrics", 404),
        ] {
            let text = ask(addr, &format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
            assert!(
                text.starts_with(&format!("HTTP/1.1 {code} ")),
                "{request}: {text}"
            );
        }
    }

    // semantics 16.10, 24.4
    #[tokio::test]
    async fn an_address_that_is_taken_is_tried_again_or_ends_the_agent() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = taken.local_addr().unwrap();
        let serving = |hard_fail, shared: &Arc<Shared>| {
            let addresses = Addresses {
                health: Some(addr),
                metrics: None,
                hard_fail,
            };
            tokio::spawn(serve(addresses, shared.clone()))
        };
        let shared: Arc<Shared> = Arc::default();
        let hard = serving(true, &shared);
        let failure = timeout(REQUEST, shared.unbound()).await.unwrap();
        assert_eq!(failure.reason, "FailedToStartProxierHealthcheck");
        assert!(failure.to_string().contains(&addr.to_string()), "{failure}");
        hard.abort();
        let soft = serving(false, &shared);
        let told = timeout(REBIND / 10, shared.unbound()).await;
        assert!(told.is_err(), "{told:?}");
        drop(taken);
        let answered = async {
            while TcpStream::connect(addr).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(2 * REBIND, answered).await.unwrap();
        assert!(
            ask(addr, "GET /livez HTTP/1.1\r\n\r\n")
                .await
                .contains(" 200 OK")
        );
        soft.abort();
    }

    #[tokio::test]
    async fn a_client_gets_an_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let room = Arc::new(Semaphore::new(1));
        let shared: Arc<Shared> = Arc::default();
        let answer = move |path: &str| shared.answer_metrics(path);
        tokio::spawn(accept(listener, room, answer));
        let mut client = TcpStream::connect(addr).await.unwrap();
        client
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        let mut text = String::new();
        timeout(REQUEST, client.read_to_string(&mut text))
            .await
            .unwrap()
            .unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        assert!(text.contains("\nlb_manifest_errors 0\n"), "{text}");
        assert!(
            text.contains("\nkubeproxy_proxy_healthz_total{code=\"200\"} 0\n"),
            "{text}"
        );
    }
}
