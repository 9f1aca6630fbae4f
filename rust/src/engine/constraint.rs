//! The grammar of one request: which tokens it may draw next, made while the model runs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::grammar::{Allowed, Grammar, Matcher};
use crate::sampling::{TokenMask, has_pool};
use crate::tokenizer::tokens::TokenTable;
use crate::{Result, grammar};

impl grammar::Vocabulary for TokenTable {
    fn num_ids(&self) -> usize {
        self.len()
    }

    fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.bytes(id)
    }

    fn is_special_token(&self, id: u32) -> bool {
        self.is_special(id)
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
}

impl Progress {
    fn prepare(&mut self) -> &mut Option<Result<Allowed>> {
        if self.allowed.is_none() {
            self.allowed = Some(self.matcher.allowed());
        }
        &mut self.allowed
    }
}

impl Constraint {
    pub fn new(grammar: &Grammar) -> Self {
        let progress = Progress { matcher: grammar.start(), allowed: None };
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

    /// Makes the mask of the next token, unless it is there. End ids are allowed where the grammar may end.
    ///
    /// # Errors
    ///
    /// [`crate::Error::Grammar`] if no token fits or the grammar can't be matched within its limits.
    pub fn make_mask(&mut self, end_ids: &[u32], among: Option<&TokenMask>) -> Result<()> {
        if self.mask.is_some() {
            return Ok(());
        }
        let allowed = self.progress().prepare().take().unwrap_or_else(|| Ok(Allowed::default()))?;
        let mut mask = TokenMask::from_words(allowed.words);
        if allowed.may_end {
            end_ids.iter().for_each(|&id| mask.insert(id));
        }
        among.into_iter().for_each(|among| mask.intersect(among));
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
        progress.allowed = progress.matcher.consume(id).err().map(Err);
        progress.allowed.is_none() && progress.matcher.is_complete()
    }

    /// Likely tokens for the text that must come next.
    pub fn forced(&self, limit: usize) -> Vec<u32> {
        self.progress().matcher.forced(limit)
    }

    /// The tokens of a guess that the grammar allows, from the first one on.
    pub fn allowed_part<'a>(&self, drafts: &'a [u32]) -> &'a [u32] {
        &drafts[..self.progress().matcher.num_valid(drafts)]
    }
}
