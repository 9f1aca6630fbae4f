//! A compiled grammar, and where an answer is in it.

use std::fmt;
use std::sync::{Arc, Mutex};

use anyhow::anyhow;
use llguidance::{ParserFactory, TokenParser};

use super::parser::{Allowed, allowed_by, caught, failed, is_limit, locked};
use crate::Result;

/// Lexer states past which a parser is not used again, at 1 to 2 kB each.
const MAX_IDLE_STATES: usize = 10_000;
/// Parsers that wait for their next answer, per grammar.
const MAX_IDLE: usize = 8;

/// A compiled grammar; clones share it.
#[derive(Clone)]
pub struct Grammar(Arc<Compiled>);

struct Compiled {
    factory: Arc<ParserFactory>,
    /// A parser at the start that no answer uses; copied if all others are in use.
    seed: Mutex<TokenParser>,
    idle: Mutex<Vec<Idle>>,
    first: Allowed,
    num_ids: usize,
    num_bytes: usize,
    /// Whether the grammar names special tokens, which have no text to be forced: a parser that was asked for such text
    /// finds no token for it afterwards.
    names_tokens: bool,
}

/// A parser at the start that waits for its next answer.
struct Idle {
    parser: TokenParser,
    /// Estimated size; answers make more of the lexer's states, so it is more than at first.
    num_bytes: usize,
}

impl fmt::Debug for Grammar {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Grammar").field("num_bytes", &self.0.num_bytes).finish_non_exhaustive()
    }
}

impl PartialEq for Grammar {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Grammar {
    /// Wraps a parser at the start of its grammar, and what it allows first.
    pub(super) fn new(factory: Arc<ParserFactory>, seed: TokenParser, first: Allowed, num_ids: usize) -> Self {
        let num_bytes = seed.parser.lexer_stats().num_bytes;
        let (seed, idle) = (Mutex::new(seed), Mutex::default());
        Self(Arc::new(Compiled { factory, seed, idle, first, num_ids, num_bytes, names_tokens: false }))
    }

    /// Sets whether the grammar names special tokens, before any clone is made.
    pub(super) fn naming_tokens(mut self, names_tokens: bool) -> Self {
        if let Some(compiled) = Arc::get_mut(&mut self.0) {
            compiled.names_tokens = names_tokens;
        }
        self
    }

    pub(super) fn was_made_by(&self, factory: &Arc<ParserFactory>) -> bool {
        Arc::ptr_eq(&self.0.factory, factory)
    }

    /// Begins an answer. Answers that run at once share nothing that one of them would wait for.
    pub fn start(&self) -> Matcher {
        let idle = locked(&self.0.idle).pop();
        let home = idle.map_or_else(|| locked(&self.0.seed).deep_clone(), |idle| idle.parser);
        Matcher::new(self.clone(), home)
    }

    /// Returns whether the whole text follows the grammar.
    pub fn accepts(&self, text: &[u8]) -> bool {
        self.start().takes_all(text)
    }

    /// Estimated size, with the parsers that wait.
    pub(super) fn num_bytes(&self) -> usize {
        self.0.num_bytes + locked(&self.0.idle).iter().map(|idle| idle.num_bytes).sum::<usize>()
    }

    /// Takes a parser at the start back, unless its lexer failed or has grown large.
    fn take_back(&self, parser: TokenParser) {
        let Ok(stats) = caught(|| Ok(parser.parser.lexer_stats())) else { return };
        let mut idle = locked(&self.0.idle);
        if !stats.error && stats.num_states <= MAX_IDLE_STATES && idle.len() < MAX_IDLE {
            idle.push(Idle { parser, num_bytes: stats.num_bytes });
        }
    }
}

/// The state of one answer: which tokens of it the grammar has seen.
///
/// ```
/// use std::sync::Arc;
/// use llm_core::grammar::{GrammarCompiler, GrammarSource, Vocabulary};
///
/// struct Bytes(Vec<u8>);
/// impl Vocabulary for Bytes {
///     fn num_ids(&self) -> usize { self.0.len() }
///     fn token_bytes(&self, id: u32) -> Option<&[u8]> { self.0.get(id as usize).map(std::slice::from_ref) }
///     fn is_special_token(&self, _: u32) -> bool { false }
/// }
///
/// let compiler = GrammarCompiler::new(Arc::new(Bytes((0..=255).collect())), vec![]);
/// let grammar = compiler.compile(&GrammarSource::Choice(vec!["ab".to_owned(), "ac".to_owned()]))?;
/// let mut matcher = grammar.start();
/// matcher.consume(u32::from(b'a'))?;
/// let next = matcher.allowed()?;
/// assert!(next.contains(u32::from(b'b')) && next.contains(u32::from(b'c')) && !next.contains(u32::from(b'd')));
/// matcher.consume(u32::from(b'c'))?;
/// assert!(matcher.is_complete());
/// # Ok::<(), llm_core::Error>(())
/// ```
pub struct Matcher {
    parser: TokenParser,
    /// The parser at the start of the grammar that shares its lexer with `parser`; goes back to the grammar at the end,
    /// so that the next answer finds the lexer's states made.
    home: Option<TokenParser>,
    grammar: Grammar,
    num_tokens: usize,
}

impl fmt::Debug for Matcher {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Matcher").field("num_tokens", &self.num_tokens).finish_non_exhaustive()
    }
}

impl Matcher {
    fn new(grammar: Grammar, home: TokenParser) -> Self {
        Self { parser: home.clone(), home: Some(home), grammar, num_tokens: 0 }
    }

    /// Returns the tokens that may come next.
    ///
    /// # Errors
    ///
    /// [`Error::Grammar`] if the vocabulary has no token to go on with, or the grammar is too ambiguous to be
    /// matched within the limits of one step.
    pub fn allowed(&mut self) -> Result<Allowed> {
        if self.num_tokens == 0 {
            return Ok(self.grammar.0.first.clone());
        }
        allowed_by(&mut self.parser, self.grammar.0.num_ids)
    }

    /// Takes the answer's next token; end tokens are not part of the text and stay outside.
    ///
    /// # Errors
    ///
    /// [`Error::Grammar`] if the grammar does not allow the token, or is too ambiguous to be matched within the limits.
    pub fn consume(&mut self, id: u32) -> Result<()> {
        self.num_tokens += 1;
        let num_tokens = self.num_tokens;
        let parser = &mut self.parser;
        let result = caught(|| {
            if parser.consume_token(id)? > 0 {
                return Err(anyhow!("it would take back text"));
            }
            parser.check_stop()
        });
        result.map(drop).map_err(|problem| match is_limit(&problem) {
            true => failed(format!("can't be matched: {problem}")),
            false => failed(format!("does not allow token {id} at place {num_tokens}: {problem}")),
        })
    }

    /// Whether the text is complete and nothing may follow.
    pub fn is_complete(&self) -> bool {
        self.parser.stopped() && self.parser.stop_reason().is_ok()
    }

    /// Returns tokens for the text that must come next, at most `limit`, as the tokenizer cuts it; the grammar allows other
    /// cuts as well. Ends before the first token that a longer one past the end of that text could replace.
    pub fn forced(&mut self, limit: usize) -> Vec<u32> {
        if limit == 0 || self.grammar.0.names_tokens || self.parser.stopped() {
            return Vec::new();
        }
        let parser = &mut self.parser;
        let tokens = caught(|| {
            let text = parser.force_bytes();
            let trie = parser.token_env.tok_trie();
            let mut rest = text.as_slice();
            let mut tokens = parser.token_env.tokenize_bytes(&text);
            let num_certain = tokens.iter().take_while(|&&id| {
                let may_grow = trie.has_extensions(rest);
                rest = rest.get(trie.token_len(id)..).unwrap_or_default();
                !may_grow
            });
            let num_certain = num_certain.count();
            tokens.truncate(num_certain);
            Ok(tokens)
        });
        let mut tokens = tokens.unwrap_or_default();
        tokens.truncate(limit);
        tokens.truncate(self.num_valid(&tokens));
        tokens
    }

    /// Takes a whole text, cut into any tokens. Returns whether the grammar allows it and may end after it.
    pub(super) fn takes_all(&mut self, text: &[u8]) -> bool {
        let trie = self.parser.token_env.tok_trie();
        let tokens = trie.greedy_tokenize(text);
        if trie.decode_raw(&tokens) != text {
            return false;
        }
        let takes = tokens.iter().all(|&id| !self.parser.stopped() && self.consume(id).is_ok());
        takes && (self.is_complete() || self.parser.is_accepting())
    }

    /// Returns how many of these tokens may come next, one after the other.
    pub fn num_valid(&mut self, ids: &[u32]) -> usize {
        let parser = &mut self.parser;
        caught(|| parser.validate_tokens_raw(ids)).unwrap_or(0)
    }
}

impl Drop for Matcher {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            self.grammar.take_back(home);
        }
    }
}
