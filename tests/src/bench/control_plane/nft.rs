//! kube-proxy's table as the kernel tells it, over netlink. `nft` would read the whole table for every question; these
//! take microseconds and no lock, so that asking does not slow down whoever writes.

use std::{
    io::{ErrorKind, Read as _},
    net::Ipv4Addr,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::NetNs;

/// Name of the table, the same in both families.
const TABLE: &str = "kube-proxy";
/// Its map from address, protocol and port to the chain of a Service.
const SERVICE_IPS: &str = "service-ips";
const TCP: u8 = 6;

const NETLINK_NETFILTER: i32 = 12;
const SUBSYSTEM: u16 = 10;
const NFPROTO_IPV4: u8 = 2;
const GET_RULE: u16 = 7;
const GET_ELEMENT: u16 = 13;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NESTED: u16 = 0x8000;
/// Bytes of `nlmsghdr`, and of `nfgenmsg` behind it.
const HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;
/// More than any message of the kernel.
const BUFFER: usize = 256 << 10;
/// A table that somebody writes all the time is read anew this often.
const TRIES: usize = 100;

// Attributes, by the names of linux/netfilter/nf_tables.h.
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const LIST_ELEM: u16 = 1;
const ELEM_KEY: u16 = 1;
const ELEM_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CHAIN: u16 = 2;

/// The IPv4 table in a namespace.
#[derive(Debug)]
pub(super) struct Table {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
}

impl Table {
    /// Opens a socket to the namespace's nftables; the table need not exist yet.
    pub(super) fn open(ns: &NetNs) -> Result<Table> {
        let protocol = Some(Protocol::from(NETLINK_NETFILTER));
        let socket = ns.socket(Domain::from(libc::AF_NETLINK), Type::RAW, protocol)?;
        socket.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Table {
            socket,
            buffer: vec![0; BUFFER],
            sequence: 0,
        })
    }

    /// The chain of a Service's address and TCP port, once it has one.
    pub(super) fn service_chain(&mut self, addr: Ipv4Addr, port: u16) -> Result<Option<String>> {
        // Every part of a concatenated key takes whole words of four bytes.
        let [high, low] = port.to_be_bytes();
        let mut key = addr.octets().to_vec();
        key.extend([TCP, 0, 0, 0, high, low, 0, 0]);
        let element = attribute(ELEM_KEY | NESTED, &attribute(DATA_VALUE, &key));
        let elements = attribute(LIST_ELEM | NESTED, &element);
        let mut body = set(SERVICE_IPS);
        body.extend(attribute(LIST_ELEMENTS | NESTED, &elements));
        let Some(answers) = self.ask(GET_ELEMENT, 0, &body)? else {
            return Ok(None);
        };
        let mut data = answers.iter().flat_map(|answer| data(answer));
        Ok(data.find_map(chain))
    }

    /// How many addresses and ports of Services there are.
    pub(super) fn services(&mut self) -> Result<usize> {
        let answers = self.elements(SERVICE_IPS)?;
        Ok(answers.iter().flat_map(|answer| data(answer)).count())
    }

    /// The rules of a chain as the kernel shows them: other bytes when a rule was replaced.
    pub(super) fn rules(&mut self, chain: &str) -> Result<Vec<Vec<u8>>> {
        let mut body = attribute(RULE_TABLE, &text(TABLE));
        body.extend(attribute(RULE_CHAIN, &text(chain)));
        Ok(self.ask(GET_RULE, NLM_F_DUMP, &body)?.unwrap_or_default())
    }

    /// What the unnamed map in a Service's rules chooses among: addresses and ports of endpoints.
    pub(super) fn targets(&mut self, rules: &[Vec<u8>]) -> Result<Vec<(Ipv4Addr, u16)>> {
        let name = rules.iter().find_map(|rule| {
            let at = rule.windows(5).position(|window| window == b"__map")?;
            let name: Vec<u8> = rule[at..].iter().copied().take_while(|c| *c != 0).collect();
            String::from_utf8(name).ok()
        });
        let name = name.context("no rule of the Service chooses among endpoints")?;
        let answers = self.elements(&name)?;
        let data = answers.iter().flat_map(|answer| data(answer));
        Ok(data.filter_map(target).collect())
    }

    fn elements(&mut self, name: &str) -> Result<Vec<Vec<u8>>> {
        let answers = self.ask(GET_ELEMENT, NLM_F_DUMP, &set(name))?;
        Ok(answers.unwrap_or_default())
    }

    /// The bodies of all answers; `None`: there is no such object.
    fn ask(&mut self, kind: u16, flags: u16, body: &[u8]) -> Result<Option<Vec<Vec<u8>>>> {
        for _ in 0..TRIES {
            self.send(kind, flags, body)?;
            match self.answers(flags == NLM_F_DUMP)? {
                Answers::Whole(answers) => return Ok(Some(answers)),
                Answers::Missing => return Ok(None),
                Answers::Torn => {}
            }
        }
        bail!("the table changes faster than it can be read")
    }

    fn send(&mut self, kind: u16, flags: u16, body: &[u8]) -> Result<()> {
        self.sequence += 1;
        let len = u32::try_from(HEADER + FAMILY_HEADER + body.len())?;
        let mut message = len.to_ne_bytes().to_vec();
        message.extend(((SUBSYSTEM << 8) | kind).to_ne_bytes());
        message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0u32.to_ne_bytes());
        message.extend([NFPROTO_IPV4, 0, 0, 0]);
        message.extend(body);
        self.socket
            .send(&message)
            .context("cannot ask for nftables")?;
        Ok(())
    }

    fn answers(&mut self, is_dump: bool) -> Result<Answers> {
        let mut answers = Vec::new();
        let mut is_torn = false;
        loop {
            let len = match self.socket.read(&mut self.buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                read => read.context("nftables do not answer")?,
            };
            let mut rest = &self.buffer[..len];
            while rest.len() >= HEADER {
                let word = |at: usize| u32::from_ne_bytes(std::array::from_fn(|i| rest[at + i]));
                let half = |at: usize| u16::from_ne_bytes([rest[at], rest[at + 1]]);
                let (size, kind, flags) = (word(0) as usize, half(4), half(6));
                ensure!(
                    (HEADER..=rest.len()).contains(&size),
                    "a message of nftables is cut"
                );
                let (body, sequence) = (&rest[HEADER..size], word(8));
                rest = &rest[size.next_multiple_of(4).min(rest.len())..];
                if sequence != self.sequence {
                    continue;
                }
                is_torn |= flags & NLM_F_DUMP_INTR != 0;
                match kind {
                    NLMSG_DONE if is_torn => return Ok(Answers::Torn),
                    NLMSG_DONE => return Ok(Answers::Whole(answers)),
                    NLMSG_ERROR => {
                        let code = body
                            .first_chunk()
                            .map_or(0, |code| i32::from_ne_bytes(*code));
                        if -code == libc::ENOENT {
                            return Ok(Answers::Missing);
                        }
                        return Err(std::io::Error::from_raw_os_error(-code))
                            .context("nftables refuse to answer");
                    }
                    _ => answers.extend(body.get(FAMILY_HEADER..).map(<[u8]>::to_vec)),
                }
                if !is_dump {
                    return Ok(Answers::Whole(answers));
                }
            }
        }
    }
}

enum Answers {
    Whole(Vec<Vec<u8>>),
    /// There is no such object.
    Missing,
    /// Somebody wrote while it was read.
    Torn,
}

/// The start of a question about a set of the table.
fn set(name: &str) -> Vec<u8> {
    let mut body = attribute(LIST_TABLE, &text(TABLE));
    body.extend(attribute(LIST_SET, &text(name)));
    body
}

fn text(value: &str) -> Vec<u8> {
    let mut bytes = value.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = len.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The attributes that lie behind each other.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [a, b, c, d] = *rest.first_chunk()?;
        let len = usize::from(u16::from_ne_bytes([a, b]));
        let value = rest.get(4..len)?;
        rest = &rest[len.next_multiple_of(4).min(rest.len())..];
        Some((u16::from_ne_bytes([c, d]) & !NESTED, value))
    })
}

fn inside(bytes: &[u8], wanted: u16) -> impl Iterator<Item = &[u8]> {
    attributes(bytes).filter_map(move |(kind, value)| (kind == wanted).then_some(value))
}

/// What the elements of an answer lead to.
fn data(answer: &[u8]) -> impl Iterator<Item = &[u8]> {
    inside(answer, LIST_ELEMENTS)
        .flat_map(|elements| inside(elements, LIST_ELEM))
        .flat_map(|element| inside(element, ELEM_DATA))
}

/// The chain of a verdict.
fn chain(data: &[u8]) -> Option<String> {
    let verdict = inside(data, DATA_VERDICT).next()?;
    let name = inside(verdict, VERDICT_CHAIN).next()?;
    let name = name.strip_suffix(&[0]).unwrap_or(name);
    String::from_utf8(name.to_vec()).ok()
}

/// An address and a port.
fn target(data: &[u8]) -> Option<(Ipv4Addr, u16)> {
    let value = inside(data, DATA_VALUE).next()?;
    let [a, b, c, d, high, low] = *value.first_chunk()?;
    Some((Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([high, low])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(data: &[u8]) -> Vec<u8> {
        let key = attribute(ELEM_KEY | NESTED, &attribute(DATA_VALUE, &[1, 2, 3]));
        let element = [key, attribute(ELEM_DATA | NESTED, data)].concat();
        let elements = attribute(LIST_ELEM | NESTED, &element).repeat(2);
        [
            set(SERVICE_IPS),
            attribute(LIST_ELEMENTS | NESTED, &elements),
        ]
        .concat()
    }

    #[test]
    fn elements_tell_where_they_lead() {
        let name = "service-X-test/a/tcp/http";
        let verdict = attribute(VERDICT_CHAIN, &text(name));
        let to_chain = answer(&attribute(DATA_VERDICT | NESTED, &verdict));
        let chains: Vec<_> = data(&to_chain).map(chain).collect();
        assert_eq!(chains, [Some(name.to_owned()), Some(name.to_owned())]);

        let to_endpoint = answer(&attribute(DATA_VALUE, &[10, 0, 0, 9, 0x1f, 0x90, 0, 0]));
        let expected = (Ipv4Addr::new(10, 0, 0, 9), 8080);
        let targets: Vec<_> = data(&to_endpoint).filter_map(target).collect();
        assert_eq!(targets, [expected; 2]);
    }

    #[test]
    fn cut_attributes_end_the_list() {
        assert_eq!(attributes(&[9, 0, 1, 0, 5]).count(), 0);
        assert_eq!(attributes(&[0, 0, 0, 0]).count(), 0);
    }
}
