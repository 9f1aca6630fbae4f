//! Masks: the ids that may be drawn at all.

/// Masks the columns that never correspond to a token.
#[derive(Debug, Clone, Copy)]
pub struct VocabMask {
    /// Number of ids in the tokenizer; a model's output matrix is often padded beyond.
    pub vocab_size: usize,
    /// The padding id, unless that id also ends generation and must therefore stay possible.
    pub pad_id: Option<u32>,
}

impl VocabMask {
    /// Sets the padding id and every id past the vocabulary to -inf.
    pub fn apply(&self, row: &mut [f32]) {
        let end = self.vocab_size.min(row.len());
        row[end..].fill(f32::NEG_INFINITY);
        if let Some(logit) = self.pad_id.and_then(|id| row.get_mut(id as usize)) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// The set of ids that may be drawn, one bit per id.
///
/// ```
/// use llm_core::sampling::TokenMask;
///
/// let mask: TokenMask = [1, 70].into_iter().collect();
/// assert!(mask.contains(70) && !mask.contains(0) && !mask.contains(9_999));
/// let mut row = [0.5, 1.5, 2.5];
/// mask.apply(&mut row);
/// assert_eq!(row, [f32::NEG_INFINITY, 1.5, f32::NEG_INFINITY]);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenMask {
    words: Vec<u64>,
}

impl TokenMask {
    /// Creates a mask from words: bit `id % 64` of word `id / 64` allows `id`; ids past the words are not allowed.
    pub fn from_words(words: Vec<u64>) -> Self {
        Self { words }
    }

    /// Allows `id` too.
    pub fn insert(&mut self, id: u32) {
        let index = id as usize / 64;
        if index >= self.words.len() {
            self.words.resize(index + 1, 0);
        }
        self.words[index] |= 1 << (id % 64);
    }

    /// Keeps only the ids that `other` allows too.
    pub fn intersect(&mut self, other: &Self) {
        self.words.truncate(other.words.len());
        self.words.iter_mut().zip(&other.words).for_each(|(word, other)| *word &= other);
    }

    /// Returns whether `id` may be drawn.
    pub fn contains(&self, id: u32) -> bool {
        self.words.get(id as usize / 64).is_some_and(|word| word >> (id % 64) & 1 == 1)
    }

    /// Returns whether no id may be drawn.
    pub fn is_empty(&self) -> bool {
        self.highest().is_none()
    }

    /// Returns the highest id that may be drawn.
    pub fn highest(&self) -> Option<u32> {
        let index = self.words.iter().rposition(|&word| word != 0)?;
        Some(index as u32 * 64 + self.words[index].ilog2())
    }

    /// Sets the logits of all other ids to -inf.
    pub fn apply(&self, row: &mut [f32]) {
        let words = self.words.iter().copied().chain(std::iter::repeat(0));
        for (logits, word) in row.chunks_mut(64).zip(words) {
            match word {
                0 => logits.fill(f32::NEG_INFINITY),
                u64::MAX => {}
                _ => apply_word(logits, word),
            }
        }
    }
}

fn apply_word(logits: &mut [f32], word: u64) {
    for (bit, logit) in logits.iter_mut().enumerate() {
        *logit = if word >> bit & 1 == 1 { *logit } else { f32::NEG_INFINITY };
    }
}

impl FromIterator<u32> for TokenMask {
    fn from_iter<T: IntoIterator<Item = u32>>(ids: T) -> Self {
        let mut mask = Self::default();
        ids.into_iter().for_each(|id| mask.insert(id));
        mask
    }
}
