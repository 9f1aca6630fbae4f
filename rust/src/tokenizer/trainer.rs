//! Learns a vocabulary from text.

use std::collections::BinaryHeap;

use rayon::prelude::*;
use rustc_hash::{FxHashMap, FxHashSet};

use super::Tokenizer;
use super::pretokenize::Pattern;
use super::special::{Segment, SpecialMatcher};
use super::vocab::{MAX_IDS, NUM_BYTES, Vocab};
use crate::{Error, Result};

/// Text is counted in parts of about this many bytes, so that one long text keeps all cores busy.
const CHUNK_BYTES: usize = 1 << 18;

/// Merges between two calls of the progress callback: often enough for Ctrl-C, too seldom to cost anything.
const MERGES_PER_REPORT: usize = 64;

type Pair = (u32, u32);
type WordCounts<'a> = FxHashMap<&'a [u8], u64>;

/// Counts pieces of text, then learns merges from the counts.
///
/// The result depends on the text alone, not on its order, on how it was split into calls or on the number of threads.
///
/// ```
/// use llm_core::tokenizer::{pretokenize::Pattern, trainer::Trainer, vocab::Merge};
///
/// let mut trainer = Trainer::new(258, Pattern::Gpt4, &["<|end|>".to_owned()])?;
/// trainer.add(&["abc ab", "ab"])?;
/// let tokenizer = trainer.train(&mut |_done, _total| true)?;
/// assert_eq!(tokenizer.vocab().merges(), [Merge { left: 97, right: 98, id: 256 }]);
/// # Ok::<(), llm_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Trainer {
    vocab_size: usize,
    pattern: Pattern,
    special_tokens: Vec<String>,
    special: SpecialMatcher,
    counts: FxHashMap<Box<[u8]>, u64>,
}

impl Trainer {
    /// A trainer that has seen no text. `vocab_size` counts bytes, merges and special tokens.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if the bytes and special tokens don't fit `vocab_size`; `Tokenizer` if a special token is
    /// empty, repeated or a single byte.
    pub fn new(vocab_size: usize, pattern: Pattern, special_tokens: &[String]) -> Result<Self> {
        let minimum = NUM_BYTES + special_tokens.len();
        if !(minimum..=MAX_IDS).contains(&vocab_size) {
            return Err(Error::InvalidArgument(format!(
                "`vocab_size` must be at least {minimum} (256 bytes and {} special tokens) and at most {MAX_IDS}, got {vocab_size}",
                special_tokens.len()
            )));
        }
        build_vocab(vec![], special_tokens)?;
        let indexed: Vec<(String, u32)> = special_tokens.iter().cloned().zip(0..).collect();
        let special = SpecialMatcher::new(&indexed);
        Ok(Self { vocab_size, pattern, special_tokens: special_tokens.to_vec(), special, counts: FxHashMap::default() })
    }

    /// Counts the pieces of `texts` on all cores. Special tokens in them are left out: they are never merged.
    ///
    /// # Errors
    ///
    /// `Tokenizer` if a custom pattern backtracks too much on a text; then none of `texts` is counted.
    pub fn add(&mut self, texts: &[&str]) -> Result<()> {
        // A custom pattern may join what is around any border.
        let target_bytes = if self.pattern.is_custom() { usize::MAX } else { CHUNK_BYTES };
        let parts: Vec<&str> = texts
            .iter()
            .flat_map(|text| self.special.segments(text))
            .filter_map(|segment| match segment {
                Segment::Text(text) => Some(text),
                Segment::Special(_) => None,
            })
            .flat_map(|text| Chunks { rest: text, target_bytes })
            .collect();
        let counts = count_pieces(&parts, &self.pattern)?;
        for (piece, count) in counts {
            match self.counts.get_mut(piece) {
                Some(total) => *total += count,
                None => drop(self.counts.insert(piece.into(), count)),
            }
        }
        Ok(())
    }

    /// Learns merges until the vocabulary is full or no pair is left.
    ///
    /// The most frequent pair is merged first; of equal ones the one with the smaller left id, then right id.
    /// `progress` gets the merges done and wanted, and stops the training by returning false.
    ///
    /// Source: Sennrich, Haddow, Birch, "Neural Machine Translation of Rare Words with Subword Units", ACL 2016, §3.2.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if there was no text, or if `progress` stopped it.
    pub fn train(&self, progress: &mut dyn FnMut(usize, usize) -> bool) -> Result<Tokenizer> {
        if self.counts.is_empty() {
            return Err(Error::InvalidArgument("there must be text to train on, got an empty corpus".to_owned()));
        }
        let num_merges = self.vocab_size - NUM_BYTES - self.special_tokens.len();
        let mut merger = Merger::new(&self.counts);
        let mut merges = Vec::with_capacity(num_merges);
        while merges.len() < num_merges {
            if merges.len() % MERGES_PER_REPORT == 0 && !progress(merges.len(), num_merges) {
                return Err(Error::InvalidArgument("training was stopped by its progress callback".to_owned()));
            }
            let Some(pair) = merger.pop_most_frequent() else { break };
            merger.merge(pair, (NUM_BYTES + merges.len()) as u32);
            merges.push(pair);
        }
        progress(merges.len(), merges.len());
        Ok(Tokenizer::new(build_vocab(merges, &self.special_tokens)?, self.pattern.clone()))
    }
}

fn build_vocab(merges: Vec<Pair>, special_tokens: &[String]) -> Result<Vocab> {
    let bytes: Vec<u8> = (0..=u8::MAX).collect();
    let first_special = (NUM_BYTES + merges.len()) as u32;
    let special = special_tokens.iter().cloned().zip(first_special..).collect();
    Vocab::new(&bytes, merges, special)
}

fn count_pieces<'a>(parts: &[&'a str], pattern: &Pattern) -> Result<WordCounts<'a>> {
    let count_part = |mut counts: WordCounts<'a>, part: &&'a str| {
        pattern.for_each_piece(part, |piece| *counts.entry(piece.as_bytes()).or_default() += 1)?;
        Ok(counts)
    };
    parts
        .par_iter()
        .try_fold(WordCounts::default, count_part)
        .try_reduce(WordCounts::default, |one, other| Ok(add_counts(one, other)))
}

fn add_counts<'a>(one: WordCounts<'a>, other: WordCounts<'a>) -> WordCounts<'a> {
    let (mut larger, smaller) = if one.len() < other.len() { (other, one) } else { (one, other) };
    for (piece, count) in smaller {
        *larger.entry(piece).or_default() += count;
    }
    larger
}

/// Cuts a text into parts that have the same pieces as the whole.
///
/// Every built-in pattern ends a piece between a letter and white space, and none looks from that letter further ahead.
struct Chunks<'a> {
    rest: &'a str,
    target_bytes: usize,
}

impl<'a> Iterator for Chunks<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.rest.is_empty() {
            return None;
        }
        let bytes = self.rest.as_bytes();
        let is_border = |&at: &usize| bytes[at - 1].is_ascii_alphabetic() && matches!(bytes[at], b' ' | b'\n');
        let end = (self.target_bytes.max(1)..bytes.len()).find(is_border).unwrap_or(bytes.len());
        let (chunk, rest) = self.rest.split_at(end);
        self.rest = rest;
        Some(chunk)
    }
}

/// How often a pair occurs, and in which words it may.
#[derive(Default)]
struct PairCount {
    count: i64,
    words: Vec<u32>,
}

/// Words as tokens so far, and the count of every pair of neighbours in them.
struct Merger {
    /// All words' tokens, one word after the other; a word shrinks in place.
    ids: Vec<u32>,
    words: Vec<Word>,
    pairs: FxHashMap<Pair, PairCount>,
    /// Counts when pushed. A pair's count only falls later, so the top is the maximum once it is up to date.
    heap: BinaryHeap<(i64, std::cmp::Reverse<Pair>)>,
}

#[derive(Clone, Copy)]
struct Word {
    start: usize,
    len: usize,
    count: i64,
}

impl Merger {
    fn new(counts: &FxHashMap<Box<[u8]>, u64>) -> Self {
        let mut merger = Self { ids: vec![], words: vec![], pairs: FxHashMap::default(), heap: BinaryHeap::new() };
        for (piece, &count) in counts {
            let (start, count) = (merger.ids.len(), count as i64);
            merger.ids.extend(piece.iter().map(|&byte| u32::from(byte)));
            for pair in piece.windows(2) {
                merger.change((pair[0].into(), pair[1].into()), count, merger.words.len() as u32);
            }
            merger.words.push(Word { start, len: piece.len(), count });
        }
        merger.heap = merger.pairs.iter().map(|(&pair, entry)| (entry.count, std::cmp::Reverse(pair))).collect();
        merger
    }

    /// The pair to merge next.
    fn pop_most_frequent(&mut self) -> Option<Pair> {
        while let Some((count, std::cmp::Reverse(pair))) = self.heap.pop() {
            let Some(entry) = self.pairs.get(&pair) else { continue };
            if entry.count == count {
                return Some(pair);
            }
            self.heap.push((entry.count, std::cmp::Reverse(pair)));
        }
        None
    }

    /// Replaces `pair` by `id` in all words and counts the pairs that come and go.
    fn merge(&mut self, pair: Pair, id: u32) {
        let Some(entry) = self.pairs.remove(&pair) else { return };
        let mut changes = Vec::new();
        let mut grown = FxHashSet::default();
        for index in entry.words {
            changes.clear();
            self.merge_word(index as usize, pair, id, &mut changes);
            for &(changed, delta) in changes.iter().filter(|(changed, _)| *changed != pair) {
                self.change(changed, delta, index);
                if delta > 0 {
                    grown.insert(changed);
                }
            }
        }
        for pair in grown {
            if let Some(entry) = self.pairs.get(&pair) {
                self.heap.push((entry.count, std::cmp::Reverse(pair)));
            }
        }
    }

    /// Replaces `pair` by `id` from left to right in one word and lists how pair counts change.
    fn merge_word(&mut self, index: usize, pair: Pair, id: u32, changes: &mut Vec<(Pair, i64)>) {
        let word = &mut self.words[index];
        let ids = &mut self.ids[word.start..word.start + word.len];
        let (mut read, mut write) = (0, 0);
        while read < ids.len() {
            if ids[read] != pair.0 || ids.get(read + 1) != Some(&pair.1) {
                ids[write] = ids[read];
                (read, write) = (read + 1, write + 1);
                continue;
            }
            if write > 0 {
                changes.push(((ids[write - 1], pair.0), -word.count));
                changes.push(((ids[write - 1], id), word.count));
            }
            if let Some(&next) = ids.get(read + 2) {
                changes.push(((pair.1, next), -word.count));
                changes.push(((id, next), word.count));
            }
            ids[write] = id;
            (read, write) = (read + 2, write + 1);
        }
        word.len = write;
    }

    /// Counts a pair of word `index` up or down; forgets it at zero.
    fn change(&mut self, pair: Pair, delta: i64, index: u32) {
        let entry = self.pairs.entry(pair).or_default();
        entry.count += delta;
        if entry.count == 0 {
            self.pairs.remove(&pair);
        } else if delta > 0 && entry.words.last() != Some(&index) {
            entry.words.push(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn chunks_have_the_pieces_of_the_whole(text in "[abA' \n\t1./é\u{301}\u{3000}]{0,60}", target_bytes in 1usize..9) {
            let chunks: Vec<&str> = Chunks { rest: &text, target_bytes }.collect();
            prop_assert_eq!(chunks.concat(), text.as_str());
            for pattern in Pattern::ALL {
                let cut: Vec<&str> = chunks.iter().flat_map(|chunk| pattern.pieces(chunk).unwrap()).collect();
                prop_assert_eq!(cut, pattern.pieces(&text).unwrap());
            }
        }
    }
}
