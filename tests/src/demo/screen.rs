//! What a person sees: headings, lines, bars that grow, promises with a mark. Plain text everywhere;
//! colour, growing bars and pauses to read only on a terminal.

use std::{
    io::{self, IsTerminal as _, Write as _},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Set by the signal handler.
static STOPPED: AtomicBool = AtomicBool::new(false);

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const CYAN: &str = "\x1b[36m";
const PLAIN: &str = "\x1b[0m";

/// Time to read a chapter on a terminal.
const TO_READ: Duration = Duration::from_millis(2800);
/// Cells of the longest bar.
const BAR: usize = 30;
/// Columns of the screen that the demo is made for.
const WIDTH: usize = 100;
/// Columns of a promise before its evidence.
const PROMISE: usize = 54;
/// How often ^C is looked for while waiting.
const TICK: Duration = Duration::from_millis(20);

/// ^C, SIGTERM and SIGHUP end the demo at its next step instead of at once, so that it cleans up.
pub fn catch_signals() -> Result<()> {
    extern "C" fn stop(_signal: i32) {
        STOPPED.store(true, Ordering::Relaxed);
    }
    let action = SigAction::new(
        SigHandler::Handler(stop),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler writes one atomic, which is safe in a signal handler.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}

/// Whether a signal asked for the end.
pub fn is_stopped() -> bool {
    STOPPED.load(Ordering::Relaxed)
}

/// An error once a signal asked for the end.
pub fn check_stopped() -> Result<()> {
    if is_stopped() {
        bail!("stopped by a signal");
    }
    Ok(())
}

/// A row of a bar chart.
#[derive(Clone, Debug)]
pub struct Bar {
    /// Whose row it is.
    pub name: String,
    /// How many.
    pub count: usize,
    /// Said behind the bar.
    pub remark: String,
}

/// The output, and what was promised.
#[derive(Debug)]
pub struct Screen {
    is_terminal: bool,
    has_colour: bool,
    chapters: usize,
    kept: usize,
    broken: Vec<String>,
    drawn: usize,
}

impl Default for Screen {
    fn default() -> Self {
        let is_terminal = io::stdout().is_terminal();
        Screen {
            is_terminal,
            has_colour: is_terminal && std::env::var_os("NO_COLOR").is_none(),
            chapters: 0,
            kept: 0,
            broken: Vec::new(),
            drawn: 0,
        }
    }
}

impl Screen {
    /// A line.
    pub fn line(&mut self, text: &str) {
        self.drawn = 0;
        put(text);
    }

    /// A line that may be skipped in reading.
    pub fn aside(&mut self, text: &str) {
        let text = self.paint(DIM, text);
        self.line(&format!("   {text}"));
    }

    /// A line about what is done now.
    pub fn doing(&mut self, text: &str) {
        let text = self.paint(CYAN, text);
        self.line(&format!("   {text}"));
    }

    /// Lines as a program printed them, at most `most` of them.
    pub fn excerpt(&mut self, text: &str, most: usize) {
        let lines: Vec<&str> = text.lines().collect();
        for line in lines.iter().take(most) {
            let line: String = line.chars().take(WIDTH - 6).collect();
            self.line(&format!("     {line}"));
        }
        if lines.len() > most {
            let rest = self.paint(DIM, &format!("… {} more lines", lines.len() - most));
            self.line(&format!("     {rest}"));
        }
    }

    /// The next chapter.
    pub fn chapter(&mut self, title: &str) -> Result<()> {
        if self.chapters > 0 {
            self.pause(TO_READ)?;
        }
        check_stopped()?;
        self.chapters += 1;
        let heading = self.paint(BOLD, &format!("{}  {title}", self.chapters));
        self.line("");
        self.line(&heading);
        Ok(())
    }

    /// Waits on a terminal, so that a person can read or see a bar grow.
    pub fn pause(&self, time: Duration) -> Result<()> {
        let end = Instant::now()
            + if self.is_terminal {
                time
            } else {
                Duration::ZERO
            };
        loop {
            check_stopped()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(TICK));
        }
    }

    /// Waits for ^C.
    pub fn wait_for_the_end(&self) {
        while !is_stopped() {
            thread::sleep(TICK);
        }
    }

    /// Says whether something promised was seen.
    pub fn promise(&mut self, what: &str, is_seen: bool, evidence: &str) {
        let (mark, colour) = if is_seen {
            self.kept += 1;
            ("✓", GREEN)
        } else {
            self.broken.push(what.to_owned());
            ("✗", RED)
        };
        let mark = self.paint(colour, mark);
        let width = what.chars().count();
        let gap = if width.max(PROMISE) + evidence.chars().count() > WIDTH - 8 {
            format!("\n{:7}", "")
        } else {
            " ".repeat(PROMISE.saturating_sub(width) + 2)
        };
        let evidence = self.paint(DIM, evidence);
        let line = format!("   {mark} {what}{gap}{evidence}");
        self.line(line.trim_end());
    }

    /// Draws a chart; on a terminal over the one drawn last, if nothing came between.
    pub fn bars(&mut self, bars: &[Bar], is_last: bool) {
        if !self.is_terminal && !is_last {
            return;
        }
        if self.drawn > 0 {
            // Back up over the chart before.
            print(&format!("\x1b[{}A", self.drawn));
        }
        let longest = bars.iter().map(|bar| bar.count).max().unwrap_or(0).max(1);
        let width = bars.iter().map(|bar| bar.name.len()).max().unwrap_or(0);
        let clear = if self.is_terminal { "\x1b[K" } else { "" };
        for Bar {
            name,
            count,
            remark,
        } in bars
        {
            let full = "█".repeat((count * BAR).div_ceil(longest));
            let rest = " ".repeat(BAR - (count * BAR).div_ceil(longest));
            let full = self.paint(CYAN, &full);
            let remark = self.paint(DIM, remark);
            put(&format!(
                "     {name:width$}  {full}{rest} {count:>4}  {remark}{clear}"
            ));
        }
        self.drawn = if is_last { 0 } else { bars.len() };
    }

    /// What was promised and not seen.
    pub fn broken(&self) -> &[String] {
        &self.broken
    }

    /// How many promises were seen kept.
    pub fn kept(&self) -> usize {
        self.kept
    }

    /// Bold text.
    pub fn bold(&self, text: &str) -> String {
        self.paint(BOLD, text)
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.has_colour && !text.is_empty() {
            format!("{colour}{text}{PLAIN}")
        } else {
            text.to_owned()
        }
    }
}

fn put(text: &str) {
    print(&format!("{text}\n"));
}

/// Writes at once. Whoever closed the other end has stopped watching: the demo ends and cleans up.
fn print(text: &str) {
    let mut out = io::stdout().lock();
    if out
        .write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .is_err()
    {
        STOPPED.store(true, Ordering::Relaxed);
    }
}
