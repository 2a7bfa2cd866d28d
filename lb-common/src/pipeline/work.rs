//! What one stage leaves to the next: the record that it looked at, and what is to become of it.
//!
//! Changes of the table are made by small stages of their own, [`write`](super::write()) and
//! [`commit`](super::commit()), behind everything that reads and rewrites the packet: beside a parsed IPv6 packet a
//! program's stack has no room for them.

use super::ip::Ip;
use super::verdict::Step;
use crate::abi::flags::flags;
use crate::abi::{Be16, Event, FlowFlags};
use crate::flow_table::{Change, Record, TableFamily, Tuple};

/// A flow in work, per CPU.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct Work<F: TableFamily> {
    /// The words of the record.
    pub words: F::Words,
    /// See [`Todo::CHANGE`].
    pub change: Change,
    /// What is to be done.
    pub todo: Todo,
    /// What becomes of the packet then: a [`Then`] as a number.
    pub then: u32,
    /// Interface by which it is transmitted, or by which it came.
    pub ifindex: u32,
    /// Of a new flow, what is told of it.
    pub event: Event,
    /// The record's [`RecordNumber`](crate::flow_table::RecordNumber).
    pub number: u32,
}

flags! {
    /// What [`commit`](super::commit()) is to do.
    Todo: u32 {
        /// Change the record.
        CHANGE = 1 << 0,
        /// Without the change the packet must not go on.
        MUST = 1 << 1,
        /// Delete the record.
        DELETE = 1 << 2,
        /// Let the record be found between tc's hooks.
        HALVE = 1 << 3,
        /// Keep the original tuple from every flow.
        RESERVE = 1 << 4,
    }
}

/// What becomes of a packet after the table was changed.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Then {
    Pass = 0,
    Translated = 1,
    Transmit = 2,
    Reflect = 3,
    Open = 4,
}

impl<F: Ip> Work<F> {
    /// The record.
    #[inline(always)]
    pub fn record(&self) -> Record<F> {
        Record::from_words(|i| self.word(i))
    }
    /// Writes the record's words.
    #[inline(always)]
    pub fn set_record(&mut self, record: &Record<F>) {
        let mut i = 0;
        while i < F::RECORD {
            self.set_word(record, i);
            i += 1;
        }
    }
    /// The flags of the record.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "part of a word")]
    pub fn flags(&self) -> FlowFlags {
        FlowFlags::from_bits((self.word(Record::<F>::STATE) >> 32) as u16)
    }
    /// The record's time of use.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "part of a word")]
    pub fn stamp(&self) -> u32 {
        self.word(Record::<F>::STATE) as u32
    }
    /// The record's source port after translation.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "part of a word")]
    pub fn source_port(&self) -> Be16 {
        Be16 {
            be: (self.word(Record::<F>::PORTS) >> 16) as u16,
        }
    }
    /// Gives the record another one; whoever inserts it computes the check.
    #[inline(always)]
    pub fn set_source_port(&mut self, port: Be16) {
        let at = Record::<F>::PORTS;
        let word = self.word(at) & !(0xffff << 16) | ((port.be as u64) << 16);
        if let Some(place) = self.words.as_mut().get_mut(at) {
            *place = word;
        }
    }
    #[inline(always)]
    fn word(&self, i: usize) -> u64 {
        match self.words.as_ref().get(i) {
            Some(word) => *word,
            None => 0,
        }
    }
    #[inline(always)]
    fn set_word(&mut self, record: &Record<F>, i: usize) {
        if let Some(word) = self.words.as_mut().get_mut(i) {
            *word = record.word(i);
        }
    }
    /// The record's original tuple.
    #[inline(always)]
    pub fn original(&self) -> Tuple<F> {
        self.record().original
    }
    /// Leaves a step for after [`commit`](super::commit()).
    #[inline(always)]
    pub fn then(&mut self, step: Step) {
        self.then = match step {
            Step::Translated => Then::Translated,
            Step::Transmit(ifindex) => {
                self.ifindex = ifindex;
                Then::Transmit
            }
            Step::Reflect => Then::Reflect,
            Step::Open => Then::Open,
            _ => Then::Pass,
        } as u32;
    }
    /// The step that was left.
    #[inline(always)]
    pub fn step(&self) -> Step {
        const TRANSLATED: u32 = Then::Translated as u32;
        const TRANSMIT: u32 = Then::Transmit as u32;
        const REFLECT: u32 = Then::Reflect as u32;
        const OPEN: u32 = Then::Open as u32;
        match self.then {
            TRANSLATED => Step::Translated,
            TRANSMIT => Step::Transmit(self.ifindex),
            REFLECT => Step::Reflect,
            OPEN => Step::Open,
            _ => Step::Pass,
        }
    }
}

/// What a stage wants done, as it goes along.
#[derive(Clone, Copy, Default, Debug)]
pub struct Wanted {
    /// What.
    pub todo: Todo,
    /// See [`Todo::CHANGE`].
    pub change: Change,
}

impl Wanted {
    /// A change.
    #[inline(always)]
    pub fn change(&mut self, change: Change) {
        self.todo |= Todo::CHANGE;
        self.change = change;
    }
    /// A change without which the packet must not go on.
    #[inline(always)]
    pub fn must_change(&mut self, change: Change) {
        self.todo |= Todo::MUST;
        self.change(change);
    }
}
