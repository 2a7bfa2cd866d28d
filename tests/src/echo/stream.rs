//! A dial → a TCP connection that stays open for more than one question.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::Result;
use socket2::{SockRef, Type};

use super::server::{CHUNK, pattern};
use super::{Answer, Dial, Failure, Outcome};

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
