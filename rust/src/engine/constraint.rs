//! The grammar of one request: which tokens it may draw next, made while the model runs.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::Result;
use crate::grammar::{Allowed, Grammar, Matcher, Vocabulary};
use crate::sampling::{TokenMask, has_pool};
use crate::tokenizer::Tokenizer;
use crate::tokenizer::options;
use crate::tokenizer::tokens::TokenTable;

/// Largest number of forced tokens that are found at once; more than a key has.
const MAX_FORCED: usize = 16;

/// The model's tokens as grammars see them.
pub(super) struct EngineVocabulary {
    pub table: Arc<TokenTable>,
    pub tokenizer: Option<Tokenizer>,
}

impl Vocabulary for EngineVocabulary {
    fn num_ids(&self) -> usize {
        self.table.len()
    }

    fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.table.bytes(id)
    }

    fn is_special_token(&self, id: u32) -> bool {
        self.table.is_special(id)
    }

    fn encode(&self, text: &str) -> Option<Vec<u32>> {
        self.tokenizer.as_ref()?.encode(text, &options::Allowed::None).ok()
    }
}

/// A request's place in its grammar, and the mask of its next token.
#[derive(Debug)]
pub(super) struct Constraint {
    progress: Arc<Mutex<Progress>>,
    mask: Option<TokenMask>,
}

/// The part that another thread works on ahead.
#[derive(Debug)]
struct Progress {
    matcher: Matcher,
    /// The tokens allowed next, once they are known; the error of a token that the grammar couldn't take.
    allowed: Option<Result<Allowed>>,
    /// The next tokens of the text that must come next, cut as the tokenizer cuts it. Found again only once they are
    /// used up, so that an answer doesn't depend on how many of them a step computes.
    forced: VecDeque<u32>,
}

impl Progress {
    /// The tokens of the text that must come next; none after a token that the grammar couldn't take.
    fn forced(&mut self) -> &VecDeque<u32> {
        if self.forced.is_empty() && !matches!(self.allowed, Some(Err(_))) {
            self.forced = self.matcher.forced(MAX_FORCED).into();
        }
        &self.forced
    }

    fn prepare(&mut self) {
        if self.forced().is_empty() && self.allowed.is_none() {
            self.allowed = Some(self.matcher.allowed());
        }
    }

    fn consume(&mut self, id: u32) {
        if self.forced.pop_front() != Some(id) {
            self.forced.clear();
        }
        self.allowed = self.matcher.consume(id).err().map(Err);
    }
}

impl Constraint {
    pub fn new(grammar: &Grammar) -> Self {
        let progress = Progress { matcher: grammar.start(), allowed: None, forced: VecDeque::new() };
        Self { progress: Arc::new(Mutex::new(progress)), mask: None }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts to compute the next mask on another thread. Without one, [`Self::make_mask`] does it.
    pub fn prepare(&self) {
        if !has_pool() {
            return;
        }
        let progress = Arc::clone(&self.progress);
        rayon::spawn(move || {
            progress.lock().unwrap_or_else(PoisonError::into_inner).prepare();
        });
    }

    /// Makes the mask of the next token, unless it is there. End ids are allowed where the grammar may end. Where the text
    /// is forced, only its next token is allowed, since a model has learnt texts as its tokenizer cuts them; a token that
    /// the request rules out or weighs is left to the draw among all cuts.
    ///
    /// # Errors
    ///
    /// [`crate::Error::Grammar`] if no token fits or the grammar can't be matched within its limits.
    pub fn make_mask(
        &mut self,
        end_ids: &[u32],
        among: Option<&TokenMask>,
        is_biased: &dyn Fn(u32) -> bool,
    ) -> Result<()> {
        if self.mask.is_some() {
            return Ok(());
        }
        let mut progress = self.progress();
        let is_free =
            |id: u32| !end_ids.contains(&id) && among.is_none_or(|among| among.contains(id)) && !is_biased(id);
        let mask = if let Some(id) = progress.forced().front().copied().filter(|&id| is_free(id)) {
            TokenMask::from_iter([id])
        } else {
            let allowed = progress.allowed.take().unwrap_or_else(|| progress.matcher.allowed())?;
            let mut mask = TokenMask::from_words(allowed.words);
            if allowed.may_end {
                end_ids.iter().for_each(|&id| mask.insert(id));
            }
            among.into_iter().for_each(|among| mask.intersect(among));
            mask
        };
        drop(progress);
        self.mask = Some(mask);
        Ok(())
    }

    pub fn mask(&self) -> Option<&TokenMask> {
        self.mask.as_ref()
    }

    /// Takes the token that was drawn. Returns whether the text is complete, so that nothing may follow. An error shows
    /// when the next mask is made.
    pub fn consume(&mut self, id: u32) -> bool {
        self.mask = None;
        let mut progress = self.progress();
        progress.consume(id);
        progress.allowed.is_none() && progress.matcher.is_complete()
    }

    /// Tokens of the text that must come next, at most `limit`.
    pub fn forced(&self, limit: usize) -> Vec<u32> {
        self.progress().forced().iter().take(limit).copied().collect()
    }

    /// The tokens of a guess that the grammar allows, from the first one on.
    pub fn allowed_part<'a>(&self, drafts: &'a [u32]) -> &'a [u32] {
        &drafts[..self.progress().matcher.num_valid(drafts)]
    }
}
