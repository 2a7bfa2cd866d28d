//! Connections → answers: HTTP/1.1, one request a connection.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};

/// A client has this long to send its request and to take the answer.
pub(super) const REQUEST: Duration = Duration::from_secs(5);

/// What a client gets.
pub(super) struct Answer {
    pub(super) code: u16,
    pub(super) kind: &'static str,
    pub(super) body: String,
    /// Endpoints behind this node, where load balancers ask for them.
    pub(super) weight: Option<usize>,
}

impl Answer {
    pub(super) fn text(code: u16, body: &str) -> Answer {
        Answer {
            code,
            kind: "text/plain; charset=utf-8",
            body: body.to_owned(),
            weight: None,
        }
    }
    pub(super) fn json(code: u16, body: String) -> Answer {
        Answer {
            code,
            kind: "application/json",
            body,
            weight: None,
        }
    }
    pub(super) fn metrics(body: String) -> Answer {
        Answer {
            code: 200,
            kind: "text/plain; version=0.0.4; charset=utf-8",
            body,
            weight: None,
        }
    }
    pub(super) fn bytes(&self, head_only: bool) -> Vec<u8> {
        let reason = match self.code {
            200 => "OK",
            400 => "Bad Request",
            404 => "Not Found",
            503 => "Service Unavailable",
            _ => "Internal Server Error",
        };
        let body = if head_only { "" } else { &self.body };
        let weight = self.weight.map_or_else(String::new, |weight| {
            format!("X-Load-Balancing-Endpoint-Weight: {weight}\r\n")
        });
        format!("HTTP/1.1 {} {reason}\r\nContent-Type: {}\r\nX-Content-Type-Options: nosniff\r\n{weight}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.code, self.kind, self.body.len()).into_bytes()
    }
}

/// Answers whoever connects, as many at a time as there is room.
pub(super) async fn accept(
    listener: TcpListener,
    room: Arc<Semaphore>,
    answer: impl Fn(&str) -> Answer + Clone + Send + 'static,
) {
    while let Ok(permit) = room.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let answer = answer.clone();
                tokio::spawn(async move {
                    let _permit = permit;
                    match timeout(REQUEST, one(stream, answer)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => tracing::debug!(%error, "health request failed"),
                        Err(_) => tracing::debug!("health request took too long"),
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection of the health server");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn one(mut stream: TcpStream, answer: impl Fn(&str) -> Answer) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut chunk = [0; 1024];
        let count = stream.read(&mut chunk).await?;
        if count == 0 || head.len() > 8192 {
            break;
        }
        head.extend_from_slice(&chunk[..count]);
    }
    let line = String::from_utf8_lossy(&head);
    let mut words = line.lines().next().unwrap_or_default().split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next());
    let reply = match target {
        Some(target) => answer(target.split('?').next().unwrap_or_default()),
        None => Answer::text(400, "this is no HTTP request"),
    };
    stream.write_all(&reply.bytes(method == "HEAD")).await?;
    stream.shutdown().await
}
