//! An API server that says what a test scripts: HTTP/1.1 over loopback, chunked bodies that may end
//! in the middle.

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

/// A piece of an answer.
#[derive(Clone)]
pub(super) enum Part {
    Text(String),
    /// The connection breaks.
    Cut,
    /// Nothing more, but the connection stays.
    Hold,
    /// Wait until the test opens the gate.
    Gate(Arc<Semaphore>),
}

#[derive(Clone)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) parts: Vec<Part>,
}

impl Reply {
    pub(super) fn text(status: u16, text: impl Into<String>) -> Reply {
        Reply {
            status,
            parts: vec![Part::Text(text.into())],
        }
    }
    /// Lines of a watch.
    pub(super) fn lines<S: Into<String>>(lines: impl IntoIterator<Item = S>) -> Reply {
        let parts = lines
            .into_iter()
            .map(|line| Part::Text(line.into() + "\n"))
            .collect();
        Reply { status: 200, parts }
    }
    pub(super) fn then(mut self, part: Part) -> Reply {
        self.parts.push(part);
        self
    }
}

#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) query: HashMap<String, String>,
    pub(super) body: String,
}

#[derive(Default)]
struct Script {
    /// By the last word of the path.
    replies: HashMap<&'static str, VecDeque<Reply>>,
    asked: Vec<Asked>,
}

/// The server. Its thread ends with the process.
#[derive(Clone)]
pub(super) struct FakeApi {
    script: Arc<Mutex<Script>>,
    pub(super) address: SocketAddr,
}

impl FakeApi {
    pub(super) fn new() -> FakeApi {
        Self::at(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    pub(super) fn at(address: SocketAddr) -> FakeApi {
        let socket = std::net::TcpListener::bind(address).unwrap();
        socket.set_nonblocking(true).unwrap();
        let fake = FakeApi {
            script: Arc::default(),
            address: socket.local_addr().unwrap(),
        };
        let served = fake.clone();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::from_std(socket).unwrap();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    tokio::spawn(served.clone().serve(stream));
                }
            });
        });
        fake
    }

    /// The next answers for a kind of object (`services`, `endpointslices`, `nodes`, `events`). When
    /// none is left, requests wait for ever.
    pub(super) fn script(&self, kind: &'static str, replies: impl IntoIterator<Item = Reply>) {
        let mut script = self.script.lock().unwrap();
        script.replies.entry(kind).or_default().extend(replies);
    }

    pub(super) fn asked(&self, kind: &str) -> Vec<Asked> {
        let script = self.script.lock().unwrap();
        let of_kind = |asked: &&Asked| asked.path.split('/').any(|word| word == kind);
        script.asked.iter().filter(of_kind).cloned().collect()
    }

    async fn serve(self, mut stream: TcpStream) {
        // The client may go at any time.
        self.answers(&mut stream).await.ok();
    }

    async fn answers(&self, stream: &mut TcpStream) -> io::Result<()> {
        let mut buffer = Vec::new();
        loop {
            let Some(asked) = read_request(stream, &mut buffer).await? else {
                return Ok(());
            };
            let kinds = ["services", "endpointslices", "nodes", "events"];
            let kind = kinds
                .into_iter()
                .rev()
                .find(|kind| asked.path.split('/').any(|word| word == *kind));
            let reply = {
                let mut script = self.script.lock().unwrap();
                script.asked.push(asked);
                kind.and_then(|kind| script.replies.get_mut(kind)?.pop_front())
            };
            let Some(reply) = reply else {
                std::future::pending::<()>().await;
                return Ok(());
            };
            let head = format!(
                "HTTP/1.1 {} Scripted\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n",
                reply.status
            );
            stream.write_all(head.as_bytes()).await?;
            for part in reply.parts {
                match part {
                    Part::Text(text) => {
                        let chunk = format!("{:x}\r\n{text}\r\n", text.len());
                        stream.write_all(chunk.as_bytes()).await?;
                    }
                    Part::Cut => return Ok(()),
                    Part::Hold => std::future::pending().await,
                    Part::Gate(gate) => gate.acquire().await.unwrap().forget(),
                }
            }
            stream.write_all(b"0\r\n\r\n").await?;
        }
    }
}

async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<Asked>> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8(buffer[..end].to_vec()).unwrap();
    buffer.drain(..end + 4);
    let length = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(0, |(_, value)| value.trim().parse().unwrap());
    while buffer.len() < length {
        stream.read_buf(buffer).await?;
    }
    let body = String::from_utf8(buffer.drain(..length).collect()).unwrap();
    let mut words = head.split_whitespace();
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), decoded(value)))
        .collect();
    Ok(Some(Asked {
        method: method.to_owned(),
        path: path.to_owned(),
        query,
        body,
    }))
}

/// Resolves `%2F` and the like.
fn decoded(text: &str) -> String {
    let mut parts = text.split('%');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (hex, rest) = part.split_at(2);
        out.push(u8::from_str_radix(hex, 16).unwrap().into());
        out.push_str(rest);
    }
    out
}

/// Waits for a condition.
pub(super) fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "never: {what}");
        thread::park_timeout(Duration::from_millis(2));
    }
}
