//! What was freed → what may be used again: things rest until a grace period has passed.

/// Things that running programs may still hold.
#[derive(Debug)]
pub(crate) struct Rest<T>(Vec<T>);

impl<T> Default for Rest<T> {
    fn default() -> Self {
        Rest(Vec::new())
    }
}

impl<T> Rest<T> {
    pub(crate) fn push(&mut self, thing: T) {
        self.0.push(thing);
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// Takes all; a grace period has passed.
    pub(crate) fn take(&mut self) -> Vec<T> {
        std::mem::take(&mut self.0)
    }
}
