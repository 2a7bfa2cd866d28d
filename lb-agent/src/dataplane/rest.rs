//! What was freed → what may be used again: things rest until a grace period has passed that began after they were
//! freed.

/// Things that running programs may still hold.
#[derive(Debug)]
pub(crate) struct Rest<T> {
    /// Freed since the last grace period began.
    fresh: Vec<T>,
    /// The grace period under way frees these.
    waiting: Vec<T>,
}

impl<T> Default for Rest<T> {
    fn default() -> Self {
        Rest {
            fresh: Vec::new(),
            waiting: Vec::new(),
        }
    }
}

impl<T> Rest<T> {
    pub(crate) fn push(&mut self, thing: T) {
        self.fresh.push(thing);
    }
    /// Whether something waits for a grace period to begin.
    pub(crate) fn is_fresh(&self) -> bool {
        !self.fresh.is_empty()
    }
    /// A grace period begins.
    pub(crate) fn wait(&mut self) {
        self.waiting.append(&mut self.fresh);
    }
    /// Takes what waited for the grace period that has passed.
    pub(crate) fn take(&mut self) -> Vec<T> {
        std::mem::take(&mut self.waiting)
    }
}
