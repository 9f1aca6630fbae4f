//! Compiled grammars, the most recently used ones first to stay.

use super::matcher::Grammar;
use super::source::GrammarSource;

/// Largest number of grammars kept.
const MAX_GRAMMARS: usize = 128;
/// Largest estimated size of all kept grammars together.
const MAX_BYTES: usize = 128 << 20;

/// Grammars by their source, bounded by number and bytes. A grammar that is dropped lives on in the requests that use it.
#[derive(Debug, Default)]
pub(super) struct GrammarCache {
    /// The least recently used grammar comes first. A hundred entries are searched faster than a prompt is encoded.
    entries: Vec<(GrammarSource, Grammar)>,
}

impl GrammarCache {
    pub fn get(&mut self, source: &GrammarSource) -> Option<Grammar> {
        let index = self.entries.iter().position(|(kept, _)| kept == source)?;
        let entry = self.entries.remove(index);
        let grammar = entry.1.clone();
        self.entries.push(entry);
        Some(grammar)
    }

    /// Adds a grammar, which replaces an equal one, and drops the oldest ones past the bounds.
    pub fn insert(&mut self, source: GrammarSource, grammar: Grammar) {
        self.entries.retain(|(kept, _)| *kept != source);
        self.entries.push((source, grammar));
        while self.entries.len() > MAX_GRAMMARS || self.num_bytes() > MAX_BYTES && self.entries.len() > 1 {
            self.entries.remove(0);
        }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    fn num_bytes(&self) -> usize {
        self.entries.iter().map(|(source, grammar)| source.num_bytes() + grammar.num_bytes()).sum()
    }
}
