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

/// Approximate number of merges between two calls of the progress callback: often enough to notice Ctrl-C, too seldom
/// to cost time.
const MERGES_PER_REPORT: usize = 64;

/// Number of pairs to track at first; later epochs track twice as many pairs as there are merges. More pairs make the
/// rounds of an epoch slower and take memory; fewer pairs make more epochs. A vocabulary of 32,768 entries from 22 MB
/// of text takes four epochs.
const NUM_TRACKED: usize = 1 << 11;

/// What the vocabulary should contain, and how to learn it.
#[derive(Debug, Clone)]
pub struct TrainerOptions {
    /// Number of bytes, merges and special tokens together.
    pub vocab_size: usize,
    /// Pattern that splits text into pieces.
    pub pattern: Pattern,
    /// Special tokens, which are never merged.
    pub special_tokens: Vec<String>,
    /// Minimum count of a pair to be merged.
    pub min_frequency: u64,
    /// Maximum number of bytes in a token; `None` sets no limit.
    pub max_token_length: Option<usize>,
    /// Number of threads for counting and merging; `None` uses one per core, or `RAYON_NUM_THREADS` if that is set.
    pub num_threads: Option<usize>,
}

impl TrainerOptions {
    /// Creates options that allow every pair to be merged and use all cores.
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

/// Maximum number of threads; each thread holds a share of the words.
const MAX_THREADS: usize = 1024;

/// Counts pieces of text, then learns merges from the counts.
///
/// The result depends only on the text: not on the order of texts, the way they are divided into calls, or the number
/// of threads.
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
    /// Counts of each thread.
    locals: Vec<LocalCounts>,
    /// Whether counting failed after part of a text was counted.
    failed: bool,
}

impl Trainer {
    /// Creates a trainer that has seen no text. `vocab_size` includes bytes, merges and special tokens.
    ///
    /// # Errors
    ///
    /// Same as [`Trainer::with_options`].
    pub fn new(vocab_size: usize, pattern: Pattern, special_tokens: &[String]) -> Result<Self> {
        Self::with_options(TrainerOptions::new(vocab_size, pattern, special_tokens))
    }

    /// Creates a trainer that has seen no text.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if the bytes and special tokens don't fit in `vocab_size`, or if a number that must be
    /// positive is 0; `Tokenizer` if a special token is empty, repeated or a single byte; `Internal` if threads can't
    /// be started.
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

    /// Counts the pieces of `texts` on all threads. Special tokens in the texts are skipped, since they are never
    /// merged.
    ///
    /// # Errors
    ///
    /// Same as [`Trainer::add_with_progress`].
    pub fn add(&mut self, texts: &[&str]) -> Result<()> {
        self.add_with_progress(texts, &mut |_| true)
    }

    /// Does the same as [`Trainer::add`]. `progress` receives the number of bytes counted and stops counting by
    /// returning false.
    ///
    /// # Errors
    ///
    /// `Tokenizer` if a custom pattern backtracks too much on a text; `InvalidArgument` if `progress` stopped counting.
    /// Either way only part of `texts` is counted, so the trainer accepts no further calls.
    pub fn add_with_progress(&mut self, texts: &[&str], progress: &mut dyn FnMut(u64) -> bool) -> Result<()> {
        let parts: Vec<&str> = texts.iter().flat_map(|text| self.cutter.chunks(text)).collect();
        if let [part] = parts[..] {
            // Waking a thread would cost more than counting most single parts.
            return self.guarded(|counter, locals, _| match locals.first_mut() {
                Some(local) => local.count(part, counter.pattern, counter.special, counter.counts),
                None => Ok(()),
            });
        }
        let source = Source::Texts(parts, AtomicUsize::new(0));
        self.guarded(|counter, locals, pool| counter.run(&source, locals, pool, progress))
    }

    /// Counts the pieces of a UTF-8 file as one text. Each thread holds only one part of the file in memory; with a
    /// custom pattern, the part is the whole file. `progress` works as in [`Trainer::add_with_progress`].
    ///
    /// # Errors
    ///
    /// `Data` if the file can't be read, or is not UTF-8 (with the offset of the first invalid byte); also the errors
    /// of [`Trainer::add_with_progress`].
    pub fn add_file(&mut self, path: &Path, progress: &mut dyn FnMut(u64) -> bool) -> Result<()> {
        let cutter = self.cutter.clone();
        let source = Source::File(path, Mutex::new(FileChunks::open(path, &cutter)?));
        self.guarded(|counter, locals, pool| counter.run(&source, locals, pool, progress))
    }

    /// Runs `count`, and remembers whether it failed.
    fn guarded(
        &mut self,
        count: impl FnOnce(Counter<'_>, &mut [LocalCounts], &ThreadPool) -> Result<()>,
    ) -> Result<()> {
        self.check_whole()?;
        // Marked as failed until `count` returns, so that a panic also counts as a failure.
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
    /// Each step merges the most frequent pair; ties go to the smaller left id, then to the smaller right id.
    /// `progress` receives the number of merges done and wanted, and stops the training by returning false.
    ///
    /// Source: Sennrich, Haddow, Birch, "Neural Machine Translation of Rare Words with Subword Units", ACL 2016, §3.2.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if there was no text, if counting a text failed, or if `progress` stopped the training;
    /// `Capacity` if the distinct pieces exceed 4 GiB per thread.
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

        /// Many epochs and several shards produce the same merges as one epoch and one shard, which the public tests
        /// compare with the slow reference implementation.
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
        // The highest size class starts at 960. It exceeds the wanted number of pairs, but is taken anyway.
        assert_eq!(sketch.count_of_top(1), 960);
        assert_eq!(sketch.count_of_top(1000), 1);
    }
}
