//! Normalizes text and tracks the bytes of the original that each character comes from.

use unicode_normalization::char::{canonical_combining_class, compose, decompose_canonical, decompose_compatible};

use super::normalizer::{Normalizer, NormalizerStep};

/// Start and end byte of a range in the original text.
pub type Origin = [usize; 2];

/// Text with the origin of each character, like `NormalizedString` in Hugging Face's `tokenizers`.
#[derive(Debug, Clone)]
pub struct AlignedText {
    characters: Vec<(char, Origin)>,
}

/// A character of a changed text, and its alignment: 0 replaces the next character, 1 is inserted after the last
/// replaced one, and `-n` replaces the next character and removes `n` more.
type Change = (char, isize);

impl AlignedText {
    /// Wraps a part of the original text that begins at byte `start`.
    pub fn new(text: &str, start: usize) -> Self {
        let origin = |(at, character): (usize, char)| (character, [start + at, start + at + character.len_utf8()]);
        Self { characters: text.char_indices().map(origin).collect() }
    }

    /// Applies all steps of `normalizer` to the text.
    #[must_use]
    pub fn normalized(mut self, normalizer: &Normalizer) -> Self {
        normalizer.steps().iter().for_each(|step| self.apply(step));
        self
    }

    /// Returns the text and the origin of each of its bytes. A character that is unchanged from `original` has one
    /// origin per byte; the bytes of a changed character share one origin.
    pub fn into_parts(self, original: &str) -> (String, Vec<Origin>) {
        let (mut text, mut origins) = (String::new(), Vec::new());
        for (character, origin) in self.characters {
            let is_kept = original.get(origin[0]..origin[1]).is_some_and(|part| part.chars().eq([character]));
            let byte = |at: usize| if is_kept { [origin[0] + at, origin[0] + at + 1] } else { origin };
            origins.extend((0..character.len_utf8()).map(byte));
            text.push(character);
        }
        (text, origins)
    }

    fn text(&self) -> String {
        self.characters.iter().map(|&(character, _)| character).collect()
    }

    fn change(&mut self, changes: impl IntoIterator<Item = Change>) {
        let (old, mut next) = (std::mem::take(&mut self.characters), 0_usize);
        for (character, change) in changes {
            let from = if change > 0 { next.checked_sub(1) } else { Some(next) };
            let origin = from.and_then(|from| old.get(from)).map_or([0, 0], |&(_, origin)| origin);
            next += if change > 0 { 0 } else { 1 + change.unsigned_abs() };
            self.characters.push((character, origin));
        }
    }

    fn apply(&mut self, step: &NormalizerStep) {
        match step {
            NormalizerStep::Nfc => self.change(composed(self.decomposed(false))),
            NormalizerStep::Nfd => self.change(plain(self.decomposed(false))),
            NormalizerStep::Nfkc => self.change(composed(self.decomposed(true))),
            NormalizerStep::Nfkd => self.change(plain(self.decomposed(true))),
            NormalizerStep::Lowercase => {
                let lower = |(character, _): (char, Origin)| {
                    character.to_lowercase().enumerate().map(|(index, lower)| (lower, isize::from(index > 0)))
                };
                let changes: Vec<Change> = self.characters.iter().copied().flat_map(lower).collect();
                self.change(changes);
            }
            NormalizerStep::Strip { left, right } => self.strip(*left, *right),
            NormalizerStep::Prepend(start) => self.prepend(start),
            NormalizerStep::Replace { from, to } => self.replace(from, to),
        }
    }

    fn strip(&mut self, left: bool, right: bool) {
        let is_text = |&(character, _): &(char, Origin)| !character.is_whitespace();
        let start = if left { self.characters.iter().position(is_text).unwrap_or(self.characters.len()) } else { 0 };
        self.characters.drain(..start);
        if right {
            self.characters.truncate(self.characters.iter().rposition(is_text).map_or(0, |last| last + 1));
        }
    }

    /// Inserts `start` before the text; its characters get the origin of the first character.
    fn prepend(&mut self, start: &str) {
        if let Some(&(_, origin)) = self.characters.first() {
            self.characters.splice(0..0, start.chars().map(|character| (character, origin)));
        }
    }

    /// Replaces each match of `from`; the replacement gets the origin of the match's last character.
    fn replace(&mut self, from: &str, to: &str) {
        let text = self.text();
        let (num_from, mut characters, mut done, mut done_bytes) = (from.chars().count(), Vec::new(), 0, 0);
        for (at, _) in text.match_indices(from) {
            let start = done + text[done_bytes..at].chars().count();
            characters.extend_from_slice(&self.characters[done..start]);
            (done, done_bytes) = (start + num_from, at + from.len());
            let origin = self.characters[done - 1].1;
            characters.extend(to.chars().map(|character| (character, origin)));
        }
        characters.extend_from_slice(&self.characters[done..]);
        self.characters = characters;
    }

    /// Returns the combining class and change of each character in the decomposed form.
    fn decomposed(&self, compatible: bool) -> Vec<(u8, Change)> {
        let mut decomposed: Vec<(u8, Change)> = Vec::new();
        for &(character, _) in &self.characters {
            let mut change = 0;
            let push = |part| {
                decomposed.push((canonical_combining_class(part), (part, change)));
                change = 1;
            };
            if compatible { decompose_compatible(character, push) } else { decompose_canonical(character, push) }
        }
        decomposed
            .chunk_by_mut(|one, other| (one.0 == 0) == (other.0 == 0))
            .for_each(|run| run.sort_by_key(|part| part.0));
        decomposed
    }
}

fn plain(decomposed: Vec<(u8, Change)>) -> Vec<Change> {
    decomposed.into_iter().map(|(_, change)| change).collect()
}

/// Returns the composed form: a composed character replaces all characters that it is composed of.
///
/// Source: Unicode Standard Annex #15, "Unicode Normalization Forms", canonical composition algorithm.
fn composed(decomposed: Vec<(u8, Change)>) -> Vec<Change> {
    let (mut out, mut marks) = (Vec::new(), Vec::new());
    let (mut starter, mut last_class): (Option<Change>, Option<u8>) = (None, None);
    for (class, (character, change)) in decomposed {
        let Some(first) = starter else {
            if class == 0 {
                starter = Some((character, change))
            } else {
                out.push((character, change))
            }
            continue;
        };
        let is_blocked = last_class.is_some_and(|last| last >= class);
        if let Some(both) = compose(first.0, character).filter(|_| !is_blocked) {
            starter = Some((both, first.1 + change - 1));
        } else if class == 0 {
            out.push(first);
            out.append(&mut marks);
            (starter, last_class) = (Some((character, change)), None);
        } else {
            marks.push((character, change));
            last_class = Some(class);
        }
    }
    out.extend(starter);
    out.append(&mut marks);
    out
}
