//! Learns a vocabulary from text.

mod chunks;
mod count;
mod merger;
mod pairs;
mod shard;
mod words;

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use rayon::ThreadPool;

use self::chunks::{Cutter, FileChunks};
use self::count::{Counter, Source};
use self::merger::{Limits, Merger};
use self::pairs::Pair;
use self::words::{LocalCounts, WordCounts};
use crate::tokenizer::Tokenizer;
use crate::tokenizer::split::pretokenize::Pattern;
use crate::tokenizer::split::special::SpecialMatcher;
use crate::tokenizer::tokens::{MAX_IDS, NUM_BYTES};
use crate::tokenizer::vocab::Vocab;
use crate::{Error, Result};

/// Merges between two calls of the progress callback, about: often enough for Ctrl-C, too seldom to cost anything.
const MERGES_PER_REPORT: usize = 64;

/// Pairs to keep track of at first; later twice as many as there are merges. More make an epoch's rounds slower and
/// take memory, fewer make more epochs. 32,768 entries from 22 MB of text take four of them.
const NUM_TRACKED: usize = 1 << 11;

/// What a vocabulary shall be like, and how it is learned.
#[derive(Debug, Clone)]
pub struct TrainerOptions {
    /// Bytes, merges and special tokens together.
    pub vocab_size: usize,
    /// How text is cut into pieces.
    pub pattern: Pattern,
    /// Tokens that are never merged.
    pub special_tokens: Vec<String>,
    /// Pairs seen less often are not merged.
    pub min_frequency: u64,
    /// Bytes of a token at most; None for any number.
    pub max_token_length: Option<usize>,
    /// Threads to count and merge on; None for one a core, or as many as `RAYON_NUM_THREADS` says.
    pub num_threads: Option<usize>,
}

impl TrainerOptions {
    /// Every pair may be merged, on all cores.
    pub fn new(vocab_size: usize, pattern: Pattern, special_tokens: &[String]) -> Self {
        Self {
            vocab_size,
            pattern,
            special_tokens: special_tokens.to_vec(),
            min_frequency: 1,
            max_token_length: None,
            num_threads: None,
        }
    }

    fn validate(&self) -> Result<()> {
        let minimum = NUM_BYTES + self.special_tokens.len();
        let fault = if !(minimum..=MAX_IDS).contains(&self.vocab_size) {
            format!(
                "`vocab_size` must be at least {minimum} (256 bytes and {} special tokens) and at most {MAX_IDS}, got {}",
                self.special_tokens.len(),
                self.vocab_size
            )
        } else if self.min_frequency == 0 {
            "`min_frequency` must be at least 1, got 0".to_owned()
        } else if self.max_token_length == Some(0) {
            "`max_token_length` must be at least 1 byte, got 0".to_owned()
        } else if self.num_threads.is_some_and(|number| !(1..=MAX_THREADS).contains(&number)) {
            format!("`num_threads` must be from 1 to {MAX_THREADS}, got {}", self.num_threads.unwrap_or_default())
        } else {
            return build_vocab(&[], &self.special_tokens).map(drop);
        };
        Err(Error::InvalidArgument(fault))
    }
}

/// Limit of threads: each is given a share of the words.
const MAX_THREADS: usize = 1024;

/// Counts pieces of text, then learns merges from the counts.
///
/// The result depends on the text alone, not on its order, on how it was split into calls or on the number of threads.
///
/// ```
/// use llm_core::tokenizer::{split::pretokenize::Pattern, tokens::Merge, trainer::Trainer};
///
/// let mut trainer = Trainer::new(258, Pattern::Gpt4, &["<|end|>".to_owned()])?;
/// trainer.add(&["abc ab", "ab"])?;
/// let tokenizer = trainer.train(&mut |_done, _total| true)?;
/// assert_eq!(tokenizer.vocab().merges(), [Merge { left: 97, right: 98, id: 256 }]);
/// # Ok::<(), llm_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Trainer {
    options: TrainerOptions,
    special: SpecialMatcher,
    cutter: Cutter,
    pool: ThreadPool,
    counts: WordCounts,
    /// One a thread.
    locals: Vec<LocalCounts>,
    /// Whether part of a text was counted when counting failed.
    failed: bool,
}

impl Trainer {
    /// A trainer that has seen no text. `vocab_size` counts bytes, merges and special tokens.
    ///
    /// # Errors
    ///
    /// As [`Trainer::with_options`].
    pub fn new(vocab_size: usize, pattern: Pattern, special_tokens: &[String]) -> Result<Self> {
        Self::with_options(TrainerOptions::new(vocab_size, pattern, special_tokens))
    }

    /// A trainer that has seen no text.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if the bytes and special tokens don't fit `vocab_size`, or a number is 0 that must not be;
    /// `Tokenizer` if a special token is empty, repeated or a single byte; `Internal` if threads can't be started.
    pub fn with_options(options: TrainerOptions) -> Result<Self> {
        options.validate()?;
        let indexed: Vec<(String, u32)> = options.special_tokens.iter().cloned().zip(0..).collect();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(options.num_threads.unwrap_or(0)).build();
        let pool = pool.map_err(|error| Error::Internal(format!("threads can't be started: {error}")))?;
        Ok(Self {
            special: SpecialMatcher::new(&indexed),
            cutter: Cutter::new(options.pattern.is_custom(), &options.special_tokens),
            counts: WordCounts::new(),
            locals: (0..pool.current_num_threads()).map(|_| LocalCounts::default()).collect(),
            pool,
            options,
            failed: false,
        })
    }

    /// Counts the pieces of `texts` on all threads. Special tokens in them are left out: they are never merged.
    ///
    /// # Errors
    ///
    /// As [`Trainer::add_with_progress`].
    pub fn add(&mut self, texts: &[&str]) -> Result<()> {
        self.add_with_progress(texts, &mut |_| true)
    }

    /// As [`Trainer::add`]. `progress` gets the bytes counted and stops it by returning false.
    ///
    /// # Errors
    ///
    /// `Tokenizer` if a custom pattern backtracks too much on a text; `InvalidArgument` if `progress` stopped it. Part
    /// of `texts` is counted then, so the trainer refuses to go on.
    pub fn add_with_progress(&mut self, texts: &[&str], progress: &mut dyn FnMut(u64) -> bool) -> Result<()> {
        let parts: Vec<&str> = texts.iter().flat_map(|text| self.cutter.chunks(text)).collect();
        if let [part] = parts[..] {
            // Waking a thread would cost more than most single parts.
            return self.guarded(|counter, locals, _| match locals.first_mut() {
                Some(local) => local.count(part, counter.pattern, counter.special, counter.counts),
                None => Ok(()),
            });
        }
        let source = Source::Texts(parts, AtomicUsize::new(0));
        self.guarded(|counter, locals, pool| counter.run(&source, locals, pool, progress))
    }

    /// Counts the pieces of a UTF-8 file as one text, without holding more than a part of it for each thread; all of it
    /// if the pattern is custom. `progress` as for [`Trainer::add_with_progress`].
    ///
    /// # Errors
    ///
    /// `Data` if the file can't be read, or with the offset of the first byte that is not UTF-8; as for
    /// [`Trainer::add_with_progress`].
    pub fn add_file(&mut self, path: &Path, progress: &mut dyn FnMut(u64) -> bool) -> Result<()> {
        let cutter = self.cutter.clone();
        let source = Source::File(path, Mutex::new(FileChunks::open(path, &cutter)?));
        self.guarded(|counter, locals, pool| counter.run(&source, locals, pool, progress))
    }

    /// Runs `count`, and remembers if it failed.
    fn guarded(
        &mut self,
        count: impl FnOnce(Counter<'_>, &mut [LocalCounts], &ThreadPool) -> Result<()>,
    ) -> Result<()> {
        self.check_whole()?;
        // Until it comes back: a panic fails too.
        self.failed = true;
        let counter = Counter { pattern: &self.options.pattern, special: &self.special, counts: &self.counts };
        count(counter, &mut self.locals, &self.pool)?;
        self.failed = false;
        Ok(())
    }

    fn check_whole(&self) -> Result<()> {
        if !self.failed {
            return Ok(());
        }
        Err(Error::InvalidArgument(
            "a trainer must have counted whole texts, got one whose last text failed\nhint: start with a new trainer"
                .to_owned(),
        ))
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
    /// `InvalidArgument` if there was no text, if counting one failed, or if `progress` stopped it; `Capacity` if there
    /// are more than 4 GiB of distinct pieces a thread.
    pub fn train(&mut self, progress: &mut dyn FnMut(usize, usize) -> bool) -> Result<Tokenizer> {
        self.check_whole()?;
        self.locals.iter_mut().for_each(|local| local.hand_over(&self.counts));
        let (limits, pool) = (self.limits(), &self.pool);
        let merges = self.counts.with_words(|words| {
            if words.is_empty() {
                return Err(Error::InvalidArgument("there must be text to train on, got an empty corpus".to_owned()));
            }
            learn_merges(Merger::new(words, pool.current_num_threads(), limits, pool)?, limits.num_merges, progress)
        })?;
        let vocab = build_vocab(&merges, &self.options.special_tokens)?;
        Ok(Tokenizer::new(vocab, self.options.pattern.clone()))
    }

    fn limits(&self) -> Limits {
        let max_len = self.options.max_token_length.and_then(|len| u32::try_from(len).ok());
        Limits {
            num_merges: self.options.vocab_size - NUM_BYTES - self.options.special_tokens.len(),
            min_count: self.options.min_frequency,
            max_len: max_len.unwrap_or(u32::MAX),
            num_tracked: NUM_TRACKED,
        }
    }
}

fn learn_merges(
    mut merger: Merger<'_>,
    num_merges: usize,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Vec<Pair>> {
    let mut next_report = 0;
    loop {
        let done = merger.merges().len();
        if done >= next_report {
            if !progress(done, num_merges) {
                return Err(Error::InvalidArgument("training was stopped by its progress callback".to_owned()));
            }
            next_report = done + MERGES_PER_REPORT;
        }
        if !merger.step() {
            progress(done, done);
            return Ok(merger.merges().to_vec());
        }
    }
}

fn build_vocab(merges: &[Pair], special_tokens: &[String]) -> Result<Vocab> {
    let bytes: Vec<u8> = (0..=u8::MAX).collect();
    let first_special = (NUM_BYTES + merges.len()) as u32;
    let special = special_tokens.iter().cloned().zip(first_special..).collect();
    Vocab::new(&bytes, merges.to_vec(), special)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;
    use crate::tokenizer::split::special::Segment;

    proptest! {
        #[test]
        fn chunks_have_the_pieces_of_the_whole(text in "[abA' \n\t1./é\u{301}\u{3000}]{0,60}", target_bytes in 1usize..9) {
            let cutter = Cutter { target_bytes, ..Cutter::new(false, &[]) };
            let chunks: Vec<&str> = cutter.chunks(&text).collect();
            prop_assert_eq!(chunks.concat(), text.as_str());
            for pattern in Pattern::ALL {
                let cut: Vec<&str> = chunks.iter().flat_map(|chunk| pattern.pieces(chunk).unwrap()).collect();
                prop_assert_eq!(cut, pattern.pieces(&text).unwrap());
            }
        }

        #[test]
        fn chunks_of_files_and_texts_leave_special_tokens_whole(text in "(a b|b\na b|[ab]{1,3}| |\n|é){0,30}", target_bytes in 1usize..9) {
            let special = ["a b".to_owned(), "b\na b".to_owned(), "aa".to_owned()];
            let cutter = Cutter { target_bytes, ..Cutter::new(false, &special) };
            let indexed: Vec<(String, u32)> = special.iter().cloned().zip(0..).collect();
            let matcher = SpecialMatcher::new(&indexed);
            let pieces = |text: &str| {
                let mut pieces = Vec::new();
                for segment in matcher.segments(text) {
                    match segment {
                        Segment::Text(text) => pieces.extend(Pattern::Gpt2.pieces(text).unwrap().into_iter().map(str::to_owned)),
                        Segment::Special(id) => pieces.push(format!("special {id}")),
                    }
                }
                pieces
            };
            let cut: Vec<String> = cutter.chunks(&text).flat_map(pieces).collect();
            prop_assert_eq!(&cut, &pieces(&text));
            let read = file_chunks(text.as_bytes(), &cutter);
            prop_assert_eq!(read.concat(), text.as_bytes());
            let cut: Vec<String> = read.iter().flat_map(|chunk| pieces(std::str::from_utf8(chunk).unwrap())).collect();
            prop_assert_eq!(cut, pieces(&text));
        }

        #[test]
        fn words_are_counted_by_all_threads_together(words in proptest::collection::vec("[abé]{1,24}", 0..200), every in 1usize..9) {
            let mut expected: HashMap<Vec<u8>, u64> = HashMap::new();
            let (mut counts, special) = (WordCounts::new(), SpecialMatcher::new(&[]));
            let mut locals = [LocalCounts::default(), LocalCounts::default()];
            for (index, word) in words.iter().enumerate() {
                *expected.entry(word.clone().into_bytes()).or_default() += 1;
                locals[index % 2].count(word, &Pattern::Whitespace, &special, &counts).unwrap();
                if index % every == 0 {
                    locals[index % 2].hand_over(&counts);
                }
            }
            locals.iter_mut().for_each(|local| local.hand_over(&counts));
            let counted: HashMap<Vec<u8>, u64> =
                counts.with_words(|words| words.iter().map(|word| (word.with_bytes(<[u8]>::to_vec), word.count)).collect());
            prop_assert_eq!(counted, expected);
        }

        /// Many epochs and several shards give the merges of one epoch and one shard, which the public tests hold to the
        /// slow twin.
        #[test]
        fn merges_do_not_depend_on_epochs_or_shards(
            text in "([ab]{1,9} |[a-e]{1,5} |a{1,20} ){1,60}", num_tracked in 1usize..6, num_shards in 1usize..4,
            min_count in 1u64..4, max_len in 2u32..9,
        ) {
            let (mut counts, special) = (WordCounts::new(), SpecialMatcher::new(&[]));
            let mut local = LocalCounts::default();
            local.count(&text, &Pattern::Whitespace, &special, &counts).unwrap();
            local.hand_over(&counts);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(num_shards).build().unwrap();
            let mut learn = |num_shards, num_tracked| {
                let limits = Limits { num_merges: 60, min_count, max_len, num_tracked };
                counts.with_words(|words| learn_merges(Merger::new(words, num_shards, limits, &pool).unwrap(), 60, &mut |_, _| true).unwrap())
            };
            prop_assert_eq!(learn(num_shards, num_tracked), learn(1, usize::MAX / 8));
        }
    }

    fn file_chunks(content: &[u8], cutter: &Cutter) -> Vec<Vec<u8>> {
        let path = std::env::temp_dir().join(format!(
            "llm_core_chunks_{}_{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        std::fs::File::create(&path).unwrap().write_all(content).unwrap();
        let mut file = FileChunks::open(&path, cutter).unwrap();
        let (mut chunks, mut chunk, mut end) = (vec![], vec![], 0);
        while let Some(offset) = file.next_into(&mut chunk).unwrap() {
            assert_eq!(offset, end);
            end += chunk.len() as u64;
            chunks.push(chunk.clone());
        }
        std::fs::remove_file(&path).unwrap();
        chunks
    }

    #[test]
    fn a_sketch_bounds_counts_from_above() {
        let mut sketch = pairs::Sketch::new(64);
        (0..200u32).for_each(|id| sketch.add((id, id / 7), u64::from(id) + 1));
        assert!((0..200u32).all(|id| sketch.reaching(u64::from(id) + 1).may_have((id, id / 7))));
        sketch.add((1, 1), u64::MAX);
        assert!(sketch.reaching(u64::MAX).may_have((1, 1)));
        let absent = (0..200u32).filter(|&id| sketch.reaching(u64::MAX).may_have((id, id / 7))).count();
        assert!(absent < 100, "{absent}");
        assert_eq!(pairs::Sketch::new(64).count_of_top(3), 1);
    }

    #[test]
    fn the_threshold_is_met_by_no_more_pairs_than_wanted() {
        let mut sketch = pairs::Sketch::new(1 << 20);
        (0..1000u32).for_each(|id| sketch.add((id, 0), u64::from(id) + 1));
        for wanted in [100, 200, 500] {
            let reached = 1001 - sketch.count_of_top(wanted);
            assert!(reached <= wanted as u64 && reached + 70 >= wanted as u64, "{wanted}: {reached}");
        }
        // From 960 on: the highest class is too large, and taken all the same.
        assert_eq!(sketch.count_of_top(1), 960);
        assert_eq!(sketch.count_of_top(1000), 1);
    }
}
