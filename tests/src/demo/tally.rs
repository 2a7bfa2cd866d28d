//! Many dials to one frontend → who answered how often, and what each server saw.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::Result;

use super::{
    screen::{Bar, Screen, check_stopped},
    stage::Stage,
};
use crate::{
    echo::{Dial, Outcome},
    topology::Place,
};

/// How long one dial may take.
const PATIENCE: Duration = Duration::from_millis(1500);
/// A round ends after this many failures: each costs the whole patience.
const FAILURES: usize = 3;
/// Between two drawings of a chart on a terminal.
const FRAME: Duration = Duration::from_millis(25);

/// What one server saw.
#[derive(Clone, Default, Debug)]
pub struct Heard {
    /// How often it answered.
    pub count: usize,
    /// Addresses that it saw as its client's.
    pub sources: BTreeSet<IpAddr>,
}

/// What came of a round of dials.
#[derive(Clone, Default, Debug)]
pub struct Tally {
    /// By name of the server.
    pub servers: BTreeMap<String, Heard>,
    /// Dials that failed or were answered from another address than the one dialled.
    pub failures: Vec<String>,
}

impl Tally {
    /// Dials `dials` times.
    pub fn of(dial: Dial<'_>, dials: usize) -> Result<Tally> {
        let mut tally = Tally::default();
        for _ in 0..dials {
            check_stopped()?;
            tally.add(dial);
            if tally.failures.len() >= FAILURES {
                break;
            }
        }
        Ok(tally)
    }

    /// The same, with a chart that grows. `expected` servers have a row from the start.
    pub fn drawn(
        screen: &mut Screen,
        stage: &Stage,
        dial: Dial<'_>,
        dials: usize,
        expected: &[&str],
    ) -> Result<Tally> {
        let mut tally = Tally::default();
        for name in expected {
            tally.servers.entry((*name).to_owned()).or_default();
        }
        for round in 1..=dials {
            tally.add(dial);
            let is_last = round == dials || tally.failures.len() >= FAILURES;
            if round % 4 == 0 || is_last {
                screen.bars(&tally.bars(stage), is_last);
                screen.pause(FRAME)?;
            }
            if is_last {
                break;
            }
        }
        Ok(tally)
    }

    fn add(&mut self, dial: Dial<'_>) {
        let dial = dial.timeout(PATIENCE);
        match dial.ask() {
            Ok(answer) if answer.peer == dial.destination() => {
                let heard = self.servers.entry(answer.server).or_default();
                heard.count += 1;
                heard.sources.insert(answer.seen_peer.ip());
            }
            Ok(answer) => self
                .failures
                .push(format!("{dial}: answered from {}", answer.peer)),
            Err(failure) => self.failures.push(format!("{dial}: {failure}")),
        }
    }

    fn bars(&self, stage: &Stage) -> Vec<Bar> {
        let row = |(name, heard): (&String, &Heard)| Bar {
            name: name.clone(),
            count: heard.count,
            remark: match heard.sources.iter().next() {
                Some(_) => format!("sees {}", list(&heard.sources, |addr| stage.whose(*addr))),
                None => String::new(),
            },
        };
        self.servers.iter().map(row).collect()
    }

    /// Whether exactly these servers answered, and nothing failed.
    pub fn is_by(&self, expected: &[&str]) -> bool {
        let answered = self
            .servers
            .iter()
            .filter(|(_, heard)| heard.count > 0)
            .map(|(name, _)| name.as_str());
        self.failures.is_empty() && answered.eq(expected.iter().copied())
    }

    /// Whether each of these servers saw exactly this address.
    pub fn is_seen_as(&self, servers: &[&str], addr: IpAddr) -> bool {
        servers.iter().all(|name| {
            self.servers
                .get(*name)
                .is_some_and(|heard| heard.sources.iter().eq([&addr]))
        })
    }

    /// In one line: `a2 14  a3 16`.
    pub fn brief(&self) -> String {
        let counts = self
            .servers
            .iter()
            .map(|(name, heard)| format!("{name} {}", heard.count));
        let mut text = counts.collect::<Vec<_>>().join("   ");
        if let Some(failure) = self.failures.first() {
            text = format!("{text}   {failure}");
        }
        text
    }

    /// What went wrong first, or `otherwise`.
    pub fn evidence(tallies: &[&Tally], otherwise: &str) -> String {
        let failure = tallies.iter().find_map(|tally| tally.failures.first());
        failure.cloned().unwrap_or_else(|| otherwise.to_owned())
    }
}

/// Prints one line about a round that has no chart.
pub fn brief_line(screen: &mut Screen, what: &str, to: SocketAddr, tally: &Tally) {
    screen.line(&format!(
        "     {:<32}  {}",
        format!("{what} {to}"),
        tally.brief()
    ));
}

/// Items in words.
pub fn list<T>(items: impl IntoIterator<Item = T>, text: impl Fn(T) -> String) -> String {
    items.into_iter().map(text).collect::<Vec<_>>().join(", ")
}

/// An outcome in a word.
pub fn word(outcome: &Outcome) -> String {
    match outcome {
        Ok(answer) => format!("answered by {}", answer.server),
        Err(failure) => format!("{failure:?}"),
    }
}

/// A dial from a place by TCP or UDP.
pub fn udp(from: &Place, to: SocketAddr) -> Dial<'_> {
    Dial::udp(from, to).unconnected()
}
