//! Changes text before it is split into pieces.

use std::borrow::Cow;

use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

/// One change to a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NormalizerStep {
    /// Unicode's composed form (NFC); the other forms make most texts longer.
    Nfc,
    /// Unicode's decomposed form (NFD).
    Nfd,
    /// Unicode's compatibility composed form (NFKC).
    Nfkc,
    /// Unicode's compatibility decomposed form (NFKD).
    Nfkd,
    /// Converts each character to lowercase, independent of its neighbours.
    Lowercase,
    /// Removes white space at the start, at the end or at both.
    Strip {
        /// Whether to strip the start.
        left: bool,
        /// Whether to strip the end.
        right: bool,
    },
    /// Inserts this string at the start of text that is not empty.
    Prepend(String),
    /// Replaces every occurrence of one string with another.
    Replace {
        /// String to replace; not empty.
        from: String,
        /// Replacement.
        to: String,
    },
}

/// A sequence of changes to text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Normalizer {
    steps: Vec<NormalizerStep>,
}

impl Normalizer {
    /// Creates a normalizer that applies `steps` in order.
    pub fn new(steps: Vec<NormalizerStep>) -> Self {
        Self { steps }
    }

    /// Returns the changes in order.
    pub fn steps(&self) -> &[NormalizerStep] {
        &self.steps
    }

    /// Returns the text after all changes; borrows the text if nothing changes.
    ///
    /// ```
    /// use llm_core::tokenizer::split::normalizer::{Normalizer, NormalizerStep};
    ///
    /// let steps = vec![NormalizerStep::Nfc, NormalizerStep::Replace { from: " ".into(), to: "▁".into() }];
    /// assert_eq!(Normalizer::new(steps).normalize("e\u{301} e"), "é▁e");
    /// ```
    pub fn normalize<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut normalized = Cow::Borrowed(text);
        for step in &self.steps {
            if let Some(changed) = step.apply(&normalized) {
                normalized = Cow::Owned(changed);
            }
        }
        normalized
    }
}

impl NormalizerStep {
    /// Returns the changed text, or `None` if the text stays the same.
    fn apply(&self, text: &str) -> Option<String> {
        match self {
            Self::Nfc => (is_nfc_quick(text.chars()) != IsNormalized::Yes).then(|| text.nfc().collect()),
            Self::Nfd => (!text.is_ascii()).then(|| text.nfd().collect()),
            Self::Nfkc => (!text.is_ascii()).then(|| text.nfkc().collect()),
            Self::Nfkd => (!text.is_ascii()).then(|| text.nfkd().collect()),
            // `str::to_lowercase` would make a sigma depend on its neighbours.
            Self::Lowercase => Some(text.chars().flat_map(char::to_lowercase).collect()),
            Self::Strip { left, right } => {
                let text = if *left { text.trim_start() } else { text };
                Some(if *right { text.trim_end() } else { text }.to_owned())
            }
            Self::Prepend(start) => (!text.is_empty()).then(|| format!("{start}{text}")),
            Self::Replace { from, to } => text.contains(from.as_str()).then(|| text.replace(from.as_str(), to)),
        }
    }
}
