//! Ids of service ports and backends: handed out, freed to rest, reused after a grace period. An id
//! that a running program may still hold never gets another meaning.

use super::rest::Rest;

/// Ids from 1 up to a bound.
#[derive(Debug)]
pub(crate) struct Ids {
    /// First id that does not exist.
    end: u32,
    /// First id that was never handed out.
    next: u32,
    free: Vec<u32>,
    resting: Rest<u32>,
}

impl Ids {
    /// Ids below `end`, of which `used` are taken; the rest is free.
    pub(crate) fn new(end: u32, mut used: Vec<u32>) -> Self {
        used.sort_unstable();
        used.dedup();
        let next = used.last().map_or(1, |last| last + 1);
        let mut free = Vec::new();
        let mut used = used.into_iter().peekable();
        for id in 1..next {
            if used.next_if_eq(&id).is_none() {
                free.push(id);
            }
        }
        free.reverse();
        Ids {
            end,
            next,
            free,
            resting: Rest::default(),
        }
    }

    /// Takes a free id.
    pub(crate) fn take(&mut self) -> Option<u32> {
        if let Some(id) = self.free.pop() {
            return Some(id);
        }
        if self.next >= self.end {
            return None;
        }
        self.next += 1;
        Some(self.next - 1)
    }

    /// Whether no id is free.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.free.is_empty() && self.next >= self.end
    }

    /// Gives back an id that no program has seen.
    pub(crate) fn give_back(&mut self, id: u32) {
        self.free.push(id);
    }

    /// Lays an id to rest until the next grace period has passed.
    pub(crate) fn rest(&mut self, id: u32) {
        self.resting.push(id);
    }

    /// Whether some id rests.
    pub(crate) fn is_resting(&self) -> bool {
        !self.resting.is_empty()
    }

    /// Frees the ids for which `wake` answers `true`; a grace period has passed since they were laid to rest.
    pub(crate) fn release(&mut self, mut wake: impl FnMut(u32) -> bool) {
        for id in self.resting.take() {
            if wake(id) {
                self.free.push(id);
            } else {
                self.resting.push(id);
            }
        }
    }

    /// Ids in use or at rest.
    pub(crate) fn used(&self) -> usize {
        self.next as usize - 1 - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_id_rests_until_released() {
        let mut ids = Ids::new(3, vec![]);
        assert_eq!(
            (ids.take(), ids.take(), ids.take()),
            (Some(1), Some(2), None)
        );
        ids.rest(1);
        assert_eq!(ids.take(), None);
        ids.release(|_| false);
        assert_eq!(ids.take(), None);
        ids.release(|_| true);
        assert_eq!((ids.take(), ids.take()), (Some(1), None));
    }

    #[test]
    fn restored_ids_leave_the_gaps_free() {
        let mut ids = Ids::new(6, vec![4, 2, 4]);
        assert_eq!(ids.used(), 2);
        assert_eq!(
            (ids.take(), ids.take(), ids.take(), ids.take()),
            (Some(1), Some(3), Some(5), None)
        );
    }
}
