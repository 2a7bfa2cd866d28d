//! Words and changes to them → the incremental checksum is the recomputed one.

use arbitrary::{Arbitrary, Unstructured};
use lb_common::abi::Be16;
use lb_common::wire::checksum::{Diff, fold};

#[derive(Arbitrary, Debug)]
struct Input {
    words: Vec<u32>,
    /// Index and new value.
    changes: Vec<(u8, u32)>,
    /// Index of a half-word and its new value, a change of its own.
    half: Option<(u8, u16)>,
}

/// The sum of half-words one after the other with end-around carry, as RFC 1071 describes it.
fn reference(words: &[u32]) -> u16 {
    let mut sum = 0u16;
    for word in words {
        for half in halves(*word) {
            let (more, carry) = sum.overflowing_add(half);
            sum = more + u16::from(carry);
        }
    }
    !sum
}

fn halves(word: u32) -> [u16; 2] {
    let [a, b, c, d] = word.to_ne_bytes();
    [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])]
}

/// Runs one input.
pub fn run(bytes: &[u8]) {
    let Ok(mut input) = Input::arbitrary(&mut Unstructured::new(bytes)) else {
        return;
    };
    // An area of nothing but zeros has no checksum of its own: 0 and 0xffff are both right.
    if input.words.iter().all(|word| *word == 0) {
        return;
    }
    let before = Be16 {
        be: reference(&input.words),
    };
    let mut diff = Diff::NONE;
    for (index, new) in &input.changes {
        let i = usize::from(*index) % input.words.len();
        diff = diff.word(input.words[i], *new);
        input.words[i] = *new;
    }
    if let Some((index, new)) = input.half {
        let i = usize::from(index) % input.words.len();
        let [old, rest] = halves(input.words[i]);
        diff = diff.and(Diff::NONE.half(Be16 { be: old }, Be16 { be: new }));
        let ([a, b], [c, d]) = (new.to_ne_bytes(), rest.to_ne_bytes());
        input.words[i] = u32::from_ne_bytes([a, b, c, d]);
    }
    if input.words.iter().all(|word| *word == 0) {
        return;
    }
    let expected = reference(&input.words);
    assert_eq!(diff.apply(before).be, expected, "applied at once");
    // Folded first, as a helper of the kernel takes it.
    let folded = !fold(u64::from(diff.to_u32()) + u64::from(!before.be));
    assert_eq!(folded, expected, "folded first");
}
