//! Patterns over interface names, and whether a name is among them.

/// Patterns over interface names: `*` any text, `?` one character.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Globs(Vec<String>);

impl Globs {
    /// Spaces around a pattern are trimmed.
    pub(crate) fn new(patterns: &[String]) -> Result<Globs, EmptyPattern> {
        let patterns: Vec<String> = patterns
            .iter()
            .map(|pattern| pattern.trim().to_owned())
            .collect();
        if patterns.iter().any(String::is_empty) {
            return Err(EmptyPattern);
        }
        Ok(Globs(patterns))
    }
    /// Whether some pattern matches.
    pub(crate) fn matches(&self, name: &str) -> bool {
        self.0
            .iter()
            .any(|pattern| glob(pattern.as_bytes(), name.as_bytes()))
    }
}

/// A pattern without a character.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("an empty pattern matches nothing; write names or patterns such as eth*")]
pub(crate) struct EmptyPattern;

/// Whether `pattern` matches all of `name`. Remembers the last `*` and goes back to it on a mismatch.
fn glob(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    p = at + 1;
                    n = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_whole_names() {
        let globs = Globs::new(&["eth*".into(), "v?-*-x".into(), "lo".into()]).unwrap();
        for name in ["eth0", "eth", "v1-a-b-x", "lo"] {
            assert!(globs.matches(name), "{name}");
        }
        for name in ["xeth0", "v1-x", "lo0", "", "v12-a-x"] {
            assert!(!globs.matches(name), "{name}");
        }
        assert!(!Globs::default().matches("eth0"));
    }

    #[test]
    fn an_empty_pattern_is_refused() {
        assert_eq!(Globs::new(&[" ".into()]), Err(EmptyPattern));
    }
}
