//! The requests whose method and path the firewall does not know, for the status page: who sees no
//! request judged looks there for the setting that is missing.

use std::collections::BTreeMap;

/// How often each was asked for.
#[derive(Debug, Default)]
pub(super) struct Unrecognised(BTreeMap<String, u64>);

/// Most that are counted. Clients make paths up, so the rarest one goes for a new one, which takes
/// its count over (the space-saving algorithm): what is frequent stays, and no count is too small.
const COUNTED: usize = 64;

/// Most characters of a path that are kept.
const LONGEST: usize = 128;

// === impl Unrecognised ===

impl Unrecognised {
    pub(super) fn note(&mut self, method: &str, path: &str) {
        let path: String = path.chars().take(LONGEST).collect();
        let request = format!("{method} {path}");
        if let Some(count) = self.0.get_mut(&request) {
            *count += 1;
            return;
        }
        let mut count = 1;
        if self.0.len() == COUNTED
            && let Some(rarest) = self.0.iter().min_by_key(|(_, count)| **count)
        {
            let rarest = rarest.0.clone();
            count += self.0.remove(&rarest).unwrap_or(0);
        }
        self.0.insert(request, count);
    }

    /// The most frequent ones, those first.
    pub(super) fn top(&self, most: usize) -> Vec<(String, u64)> {
        let mut all: Vec<_> = self.0.iter().map(|(path, count)| (path.clone(), *count)).collect();
        all.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        all.truncate(most);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequent_paths_survive_those_that_are_made_up() {
        let mut paths = Unrecognised::default();
        for number in 0..10_000 {
            paths.note("GET", &format!("/{number}"));
            paths.note("POST", "/predict");
        }
        assert_eq!(paths.0.len(), COUNTED);
        assert_eq!(paths.top(1), [("POST /predict".to_owned(), 10_000)]);
        paths.note("POST", &"/".repeat(10_000));
        assert!(paths.0.keys().all(|path| path.len() <= LONGEST + 5));
    }
}
