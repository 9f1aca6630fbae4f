//! Turns sources into grammars, within limits of time, threads and memory.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use llguidance::api::{GrammarInit, ParserLimits, TopLevelGrammar};
use llguidance::toktrie::InferenceCapabilities;
use llguidance::{Logger, ParserFactory, TokenParser};

use super::cache::GrammarCache;
use super::expressions;
use super::matcher::Grammar;
use super::parser::{allowed_by, caught, locked};
use super::source::GrammarSource;
use super::vocabulary::{Vocabulary, token_environment};
use crate::{Error, Result};

/// Longest time that a grammar may take to compile.
const MAX_COMPILE_TIME: Duration = Duration::from_millis(900);
/// Number of grammars that are compiled at once, including those given up on that still hold their thread.
const MAX_COMPILING: usize = 4;
/// Stack of a compiling thread: enough for the deepest schema and the longest chain of rules within the limits. Only what
/// is used of it costs memory.
const STACK_BYTES: usize = 64 << 20;
/// Compiles grammars for one vocabulary and keeps those used last.
///
/// The vocabulary's trie is built with the first grammar, so an engine without grammars pays nothing.
pub struct GrammarCompiler {
    vocabulary: Arc<dyn Vocabulary>,
    end_ids: Vec<u32>,
    factory: OnceLock<std::result::Result<Arc<ParserFactory>, String>>,
    cache: Mutex<GrammarCache>,
    permits: Arc<Permits>,
    num_compiled: AtomicUsize,
}

impl fmt::Debug for GrammarCompiler {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let num_grammars = locked(&self.cache).len();
        formatter.debug_struct("GrammarCompiler").field("num_grammars", &num_grammars).finish_non_exhaustive()
    }
}

impl GrammarCompiler {
    /// Creates a compiler. `end_ids` end an answer: they are never part of its text.
    pub fn new(vocabulary: Arc<dyn Vocabulary>, end_ids: Vec<u32>) -> Self {
        let (factory, cache, permits) = (OnceLock::new(), Mutex::default(), Arc::default());
        Self { vocabulary, end_ids, factory, cache, permits, num_compiled: AtomicUsize::new(0) }
    }

    /// Returns the compiled grammar, from the cache if an equal source was compiled before.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] naming the kind of grammar and the place of what is wrong, unsupported or too large,
    /// and if the grammar takes longer than a second. [`Error::QueueFull`] if too many grammars are being compiled.
    pub fn compile(&self, source: &GrammarSource) -> Result<Grammar> {
        if let Some(found) = locked(&self.cache).get(source) {
            return Ok(found);
        }
        self.num_compiled.fetch_add(1, Ordering::Relaxed);
        let grammar = self.within_limits(source)?;
        locked(&self.cache).insert(source.clone(), grammar.clone());
        Ok(grammar)
    }

    /// Number of grammars compiled so far, those that failed included.
    pub fn num_compiled(&self) -> usize {
        self.num_compiled.load(Ordering::Relaxed)
    }

    /// Whether a grammar was compiled for this vocabulary.
    pub fn made(&self, grammar: &Grammar) -> bool {
        let factory = self.factory.get().and_then(|factory| factory.as_ref().ok());
        factory.is_some_and(|factory| grammar.was_made_by(factory))
    }

    fn factory(&self) -> Result<Arc<ParserFactory>> {
        let build = || {
            let environment = token_environment(&self.vocabulary, &self.end_ids).map_err(|error| error.to_string())?;
            let mut factory = caught(|| ParserFactory::new_simple(&environment))?;
            *factory.quiet().limits_mut() = limits();
            Ok(Arc::new(factory))
        };
        self.factory.get_or_init(build).clone().map_err(Error::InvalidArgument)
    }

    /// Compiles on a thread with a stack of its own and gives up on it after a while. The thread keeps its permit until
    /// it ends, so that hostile grammars can't take more threads than there are permits.
    fn within_limits(&self, source: &GrammarSource) -> Result<Grammar> {
        let factory = self.factory()?;
        let num_ids = self.vocabulary.num_ids();
        let permit = self.permits.take()?;
        let (sender, receiver) = mpsc::sync_channel(1);
        let own = source.clone();
        let work = move || {
            let result = built(&factory, &own, num_ids);
            drop(permit);
            // The caller may have given up.
            let _ = sender.send(result);
        };
        let spawned = thread::Builder::new().name("llm-grammar".to_owned()).stack_size(STACK_BYTES).spawn(work);
        spawned.map_err(|error| Error::Internal(format!("a thread can't be started: {error}")))?;
        match receiver.recv_timeout(MAX_COMPILE_TIME) {
            Ok(result) => result,
            Err(mpsc::RecvTimeoutError::Timeout) => Err(source.error(format!(
                "takes longer than {} ms to compile\nhint: make it smaller",
                MAX_COMPILE_TIME.as_millis()
            ))),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(source.error("is beyond what the compiler can do")),
        }
    }
}

/// Items of one step that every grammar may make. Common schemas make fewer than 1,000.
const STEP_ITEMS: usize = 3_000;
/// Further items of one step for each symbol of the grammar. Large unions of objects make 17, ambiguous rules thousands.
const STEP_ITEMS_PER_SYMBOL: usize = 20;
/// Largest number of items of one step.
const MAX_STEP_ITEMS: usize = 50_000;

/// Items that fit at once which every grammar may have.
const ROW_ITEMS: usize = 2_000;
/// The same for each symbol of the grammar. Optional properties in a row make 4 items each.
const ROW_ITEMS_PER_SYMBOL: usize = 2;
/// Largest number of items that fit at once: an object of as many optional properties as a schema may have.
const MAX_ROW_ITEMS: usize = 10_000;

/// Limits of `llguidance`, chosen so that a grammar stays within 64 MB. A step's fuel lasts for about 10 ms; unions of a
/// hundred objects take a quarter of it.
fn limits() -> ParserLimits {
    ParserLimits {
        initial_lexer_fuel: 500_000,
        step_lexer_fuel: 100_000,
        max_lexer_states: 30_000,
        max_grammar_size: 100_000,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// The limits of a grammar with so many symbols. An item of an ambiguous grammar takes far longer than others, since each
/// is compared with all others of its row, so small grammars get few.
fn limits_for(num_symbols: usize, limits: &ParserLimits) -> ParserLimits {
    let step_max_items = STEP_ITEMS.saturating_add(num_symbols.saturating_mul(STEP_ITEMS_PER_SYMBOL));
    let max_items_in_row = num_symbols.saturating_mul(ROW_ITEMS_PER_SYMBOL).clamp(ROW_ITEMS, MAX_ROW_ITEMS);
    ParserLimits { step_max_items: step_max_items.min(MAX_STEP_ITEMS), max_items_in_row, ..limits.clone() }
}

fn built(factory: &Arc<ParserFactory>, source: &GrammarSource, num_ids: usize) -> Result<Grammar> {
    let grammar = source.to_grammar()?;
    let seed = parser_of(factory, grammar).map_err(|problem| source.error(problem))?;
    let first =
        allowed_by(&mut seed.deep_clone(), num_ids).map_err(|problem| source.error(format!("fails: {problem}")))?;
    Ok(Grammar::new(Arc::clone(factory), seed, first, num_ids).naming_tokens(source.names_tokens()))
}

fn parser_of(factory: &ParserFactory, grammar: TopLevelGrammar) -> std::result::Result<TokenParser, String> {
    let environment = Some(factory.tok_env().clone());
    let (rules, lexer) = caught(|| GrammarInit::Serialized(grammar).to_internal(environment, factory.limits().clone()))
        .map_err(invalid)?;
    caught(|| Ok(expressions::check(&lexer, factory.limits()))).map_err(invalid)??;
    let limits = limits_for(rules.num_symbols(), factory.limits());
    let (logger, abilities) = (Logger::new(0, 0), InferenceCapabilities::default());
    caught(|| {
        let init = GrammarInit::Internal(rules, lexer);
        let mut parser = factory.create_parser_from_init_ext(init, logger, abilities, limits)?;
        parser.start_without_prompt();
        Ok(parser)
    })
    .map_err(invalid)
}

/// What is wrong with a grammar that `llguidance` refuses.
fn invalid(problem: String) -> String {
    let is_about = |parts: &[&str]| parts.iter().any(|part| problem.contains(part));
    match () {
        () if is_about(&["coerce_one_of"]) => {
            "has a `oneOf` whose branches may overlap\nhint: use `anyOf`, or give the branches a \
             required property with a `const` of its own in each"
                .to_owned()
        }
        () if is_about(&["lexer_fuel", "fuel exhausted", "initial lexer configuration"]) => {
            "has regular expressions that are too complex\nhint: make them smaller".to_owned()
        }
        () => format!("is invalid: {problem}"),
    }
}

/// Counts the threads that compile.
#[derive(Debug, Default)]
struct Permits {
    num_taken: Mutex<usize>,
    returned: Condvar,
}

struct Permit(Arc<Permits>);

impl Permits {
    fn take(self: &Arc<Self>) -> Result<Permit> {
        let is_full = |num_taken: &mut usize| *num_taken >= MAX_COMPILING;
        let waited = self.returned.wait_timeout_while(locked(&self.num_taken), MAX_COMPILE_TIME, is_full);
        let (mut num_taken, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return Err(Error::QueueFull(format!("{MAX_COMPILING} grammars are being compiled; try again")));
        }
        *num_taken += 1;
        Ok(Permit(Arc::clone(self)))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *locked(&self.0.num_taken) -= 1;
        self.0.returned.notify_one();
    }
}
