//! Changes text before it is cut into pieces.

use std::borrow::Cow;

use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NormalizerStep {
    /// Unicode's composed form; other forms make most texts longer.
    Nfc,
    /// Unicode's decomposed form.
    Nfd,
    /// Unicode's composed form for compatibility.
    Nfkc,
    /// Unicode's decomposed form for compatibility.
    Nfkd,
    /// Small letters, each character by itself.
    Lowercase,
    /// White space goes at the start, at the end.
    Strip {
        /// At the start.
        left: bool,
        /// At the end.
        right: bool,
    },
    /// Begins text that is not empty with this.
    Prepend(String),
    /// Puts one string for another.
    Replace {
        /// What is replaced, not empty.
        from: String,
        /// By what.
        to: String,
    },
}

/// Changes in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Normalizer {
    steps: Vec<NormalizerStep>,
}

impl Normalizer {
    /// Makes these changes, in this order.
    pub fn new(steps: Vec<NormalizerStep>) -> Self {
        Self { steps }
    }

    /// The changes it makes.
    pub fn steps(&self) -> &[NormalizerStep] {
        &self.steps
    }

    /// The text after all changes; the same text, uncopied, where there is nothing to change.
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
    /// The changed text; None if it stays as it is.
    fn apply(&self, text: &str) -> Option<String> {
        match self {
            Self::Nfc => (is_nfc_quick(text.chars()) != IsNormalized::Yes).then(|| text.nfc().collect()),
            Self::Nfd => (!text.is_ascii()).then(|| text.nfd().collect()),
            Self::Nfkc => (!text.is_ascii()).then(|| text.nfkc().collect()),
            Self::Nfkd => (!text.is_ascii()).then(|| text.nfkd().collect()),
            // `str::to_lowercase` would look at what is around a sigma.
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
