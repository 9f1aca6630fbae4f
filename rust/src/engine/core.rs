//! The engine without its model: scheduling, sampling and detokenization.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::constraint::EngineVocabulary;
use super::sequence::Sequence;
use super::{FinishReason, RequestParams, StepOutputs};
use crate::grammar::GrammarCompiler;
use crate::sampling::{Sampled, VocabMask, sample_rows, token_logprobs};
use crate::scheduler::{
    BlockEvent, LogitsRow, Request, RequestOptions, RowKind, Scheduler, SchedulerConfig, SchedulerStats, StepPlan,
};
use crate::speculation::NgramConfig;
use crate::tokenizer::Tokenizer;
use crate::tokenizer::tokens::TokenTable;
use crate::{Error, Result};

/// The parts of an engine: the tokenizer's byte table and the scheduler's limits.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Bytes of each token id.
    pub table: TokenTable,
    /// The tokenizer that the table is from; text that a grammar forces is cut as it does.
    pub tokenizer: Option<Tokenizer>,
    /// Ids that end generation.
    pub eos_ids: Vec<u32>,
    /// The padding id, which is never sampled unless it is also an end id.
    pub pad_id: Option<u32>,
    /// Limits of the scheduler.
    pub scheduler: SchedulerConfig,
    /// Source of draft tokens; `None` turns speculation off.
    pub speculative: Option<NgramConfig>,
}

/// Queueing options of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Submission {
    /// Priority: lower values run first.
    pub priority: i32,
    /// Number of answers to the prompt, at least 1.
    pub num_choices: u32,
    /// The adapter that computes the request; 0 for none.
    pub adapter: u16,
}

impl Default for Submission {
    fn default() -> Self {
        Self { priority: 0, num_choices: 1, adapter: 0 }
    }
}

/// Takes requests from prompt to text, around a model that the caller runs.
///
/// ```
/// use llm_core::engine::{EngineConfig, EngineCore, RequestParams};
/// use llm_core::{scheduler::SchedulerConfig, tokenizer::tokens::TokenTable};
///
/// let table = TokenTable::new(vec![Some(b"a".to_vec()), Some(b"b".to_vec())], &[])?;
/// let scheduler = SchedulerConfig { num_blocks: 4, block_size: 4, ..SchedulerConfig::default() };
/// let mut engine = EngineCore::new(EngineConfig {
///     table,
///     tokenizer: None,
///     eos_ids: vec![],
///     pad_id: None,
///     scheduler,
///     speculative: None,
/// })?;
/// engine.add_request(7, vec![0, 1], RequestParams { max_tokens: Some(1), ..RequestParams::default() })?;
/// let plan = engine.schedule()?.expect("one request waits");
/// assert_eq!((&plan.token_ids[..], &plan.logits_indices[..]), (&[0, 1][..], &[1][..]));
/// let outputs = engine.update(&mut [f32::NEG_INFINITY, 1.0], (1, 2))?;
/// assert_eq!((outputs.texts, outputs.finish_reasons), (vec!["b".to_owned()], vec![2]));
/// # Ok::<(), llm_core::Error>(())
/// ```
#[derive(Debug)]
pub struct EngineCore {
    table: Arc<TokenTable>,
    eos_ids: Vec<u32>,
    compiler: Arc<GrammarCompiler>,
    /// Whether any request had a grammar; others don't pay for it.
    uses_grammars: bool,
    /// Whether any request generated no tokens; others don't pay for it.
    scores_only: bool,
    mask: VocabMask,
    scheduler: Scheduler,
    speculation: Option<NgramConfig>,
    sequences: FxHashMap<u64, Sequence>,
}

/// The logits of a step, row after row.
struct StepLogits<'a> {
    values: &'a mut [f32],
    row_len: usize,
}

impl EngineCore {
    /// Creates an engine without requests.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for an empty table, an end or padding id outside the table, or a limit out of range.
    pub fn new(config: EngineConfig) -> Result<Self> {
        let vocab_size = config.table.len();
        if vocab_size == 0 {
            return Err(Error::InvalidArgument("`token_bytes` must hold at least one id, got none".to_owned()));
        }
        config.speculative.map_or(Ok(()), |speculation| speculation.validate())?;
        check_ids("end and padding ids", config.eos_ids.iter().chain(&config.pad_id), vocab_size)?;
        let pad_id = config.pad_id.filter(|id| !config.eos_ids.contains(id));
        let table = Arc::new(config.table);
        let vocabulary = Arc::new(EngineVocabulary { table: Arc::clone(&table), tokenizer: config.tokenizer });
        Ok(Self {
            table,
            compiler: Arc::new(GrammarCompiler::new(vocabulary, config.eos_ids.clone())),
            uses_grammars: false,
            scores_only: false,
            eos_ids: config.eos_ids,
            mask: VocabMask { vocab_size, pad_id },
            scheduler: Scheduler::new(config.scheduler)?,
            speculation: config.speculative,
            sequences: FxHashMap::default(),
        })
    }

    /// The compiler of grammars for [`RequestParams::grammar`]; any thread may use it while the engine works.
    pub fn grammar_compiler(&self) -> Arc<GrammarCompiler> {
        Arc::clone(&self.compiler)
    }

    /// Queues a request for one answer. The id may be reused once the request has finished.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for an empty prompt, an id outside the vocabulary, a request id in use, or parameters
    /// out of range. [`Error::ContextLength`] or [`Error::Capacity`] if the request can never fit. [`Error::QueueFull`] if
    /// too many requests wait.
    pub fn add_request(&mut self, id: u64, prompt_ids: Vec<u32>, params: RequestParams) -> Result<()> {
        self.add_choices(id, prompt_ids, params, Submission::default())
    }

    /// Queues a request for several answers to one prompt, which is computed once. Their ids count up from `id`, and
    /// each answer equals that of a separate request with the next `choice_index`.
    ///
    /// # Errors
    ///
    /// As [`Self::add_request`]; also [`Error::InvalidArgument`] for zero choices, or more than `choice_index` allows.
    pub fn add_choices(
        &mut self,
        id: u64,
        prompt_ids: Vec<u32>,
        mut params: RequestParams,
        submission: Submission,
    ) -> Result<()> {
        let Submission { priority, num_choices, adapter } = submission;
        params.validate()?;
        check_ids("prompt ids", &prompt_ids, self.table.len())?;
        params.validate_ids(self.table.len())?;
        if params.grammar.as_ref().is_some_and(|grammar| !self.compiler.made(grammar)) {
            let message = "`grammar` must be compiled by this engine's compiler, got one of another vocabulary";
            return Err(Error::InvalidArgument(message.to_owned()));
        }
        self.uses_grammars |= params.grammar.is_some();
        self.scores_only |= params.max_tokens == Some(0);
        let first = params.sampling.choice_index;
        if first.checked_add(num_choices).is_none() {
            return Err(Error::InvalidArgument(format!(
                "`choice_index` {first} has no room for {num_choices} choices"
            )));
        }
        let room = self.scheduler.config().max_model_len.saturating_sub(prompt_ids.len()).max(1);
        let max_tokens = *params.max_tokens.get_or_insert(room);
        let sampling = &params.sampling;
        let first_prompt_row = sampling.prompt_logprobs.map(|_| sampling.prompt_logprobs_start.saturating_sub(1));
        let choices = (first..first + num_choices).map(|choice_index| {
            let mut params = params.clone();
            params.sampling.choice_index = choice_index;
            Sequence::new(&prompt_ids, params, &self.eos_ids)
        });
        let sequences = choices.collect::<Result<Vec<_>>>()?;
        let num_choices = num_choices as usize;
        let options = RequestOptions { max_tokens, priority, num_choices, first_prompt_row, adapter };
        self.scheduler.add(id, prompt_ids, options)?;
        self.sequences.extend((id..).zip(sequences));
        Ok(())
    }

    /// Ends a request in any state and frees its blocks at once; returns `false` if it is unknown or finished.
    ///
    /// # Errors
    ///
    /// [`Error::Internal`] if an invariant is broken.
    pub fn abort(&mut self, id: u64) -> Result<bool> {
        self.sequences.remove(&id);
        self.scheduler.remove(id)
    }

    /// Plans the next step; returns `None` if there is nothing to run.
    ///
    /// Planning again without an [`Self::update`] in between drops the last plan and plans its work anew.
    ///
    /// # Errors
    ///
    /// [`Error::Internal`] if an invariant is broken.
    pub fn schedule(&mut self) -> Result<Option<&StepPlan>> {
        self.scheduler.schedule()?;
        self.check_in_debug()?;
        Ok(self.scheduler.plan())
    }

    /// Ends every request of the plan in flight after a failed step. Returns the ids of the ended requests, including
    /// choices that waited for their prompt.
    ///
    /// # Errors
    ///
    /// [`Error::Internal`] if an invariant is broken.
    pub fn fail_step(&mut self) -> Result<Vec<u64>> {
        let ids = self.scheduler.ids_in_flight();
        ids.iter().try_for_each(|&id| self.abort(id).map(drop))?;
        Ok(ids)
    }

    /// Takes the last plan's logits: samples, detokenizes, and ends finished requests.
    ///
    /// `logits` is (S, V) of `shape` with the rows of the plan's `logits_indices`, V at least the vocabulary's size;
    /// it is modified in place. A plan without rows (S = 0) needs the call too. Rows of aborted requests are skipped.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] without a plan in flight or for another shape; the plan then stays in flight.
    /// A row with non-finite logits ends only its own request, with [`FinishReason::Error`].
    pub fn update(&mut self, logits: &mut [f32], shape: (usize, usize)) -> Result<StepOutputs> {
        self.check_shape(logits.len(), shape)?;
        let rows = self.scheduler.complete_step()?;
        let mut outputs = StepOutputs::default();
        let mut logits = StepLogits { values: logits, row_len: shape.1 };
        self.update_prompts(&rows, &mut logits, &mut outputs)?;
        let mut wave = Vec::new();
        for (index, row) in rows.iter().enumerate() {
            match row {
                Some(LogitsRow { id, kind: RowKind::Next }) if !self.end_scored(*id, &mut outputs)? => wave.push(index),
                _ => {}
            }
        }
        while !wave.is_empty() {
            wave = self.update_rows(&wave, &rows, &mut logits, &mut outputs)?;
        }
        self.check_in_debug()?;
        Ok(outputs)
    }

    /// Takes the rows that score prompt tokens; the rows of a request are adjacent.
    fn update_prompts(
        &mut self,
        rows: &[Option<LogitsRow>],
        logits: &mut StepLogits<'_>,
        outputs: &mut StepOutputs,
    ) -> Result<()> {
        let token_of = |row: &Option<LogitsRow>| match row {
            Some(LogitsRow { id, kind: RowKind::Prompt(token) }) => Some((*id, *token)),
            _ => None,
        };
        let mut start = 0;
        for run in rows.chunk_by(|one, other| token_of(one).map(|row| row.0) == token_of(other).map(|row| row.0)) {
            let range = start * logits.row_len..(start + run.len()) * logits.row_len;
            start += run.len();
            let Some((id, _)) = token_of(&run[0]) else { continue };
            let Some(sequence) = self.sequences.get_mut(&id) else { continue };
            let tokens: Vec<u32> = run.iter().filter_map(token_of).map(|(_, token)| token).collect();
            let num_top = sequence.num_prompt_logprobs().unwrap_or(0);
            let scored = token_logprobs(&mut logits.values[range], logits.row_len, self.mask, &tokens, num_top);
            match scored.into_iter().collect::<Result<Vec<_>>>() {
                Ok(scored) => sequence.push_prompt_logprobs(tokens.into_iter().zip(scored)),
                Err(error) => self.push_failure(id, &error, outputs)?,
            }
        }
        Ok(())
    }

    /// Ends a request that generates no tokens, once its prompt is computed. Returns `false` for other requests.
    fn end_scored(&mut self, id: u64, outputs: &mut StepOutputs) -> Result<bool> {
        if !self.scores_only {
            return Ok(false);
        }
        let Some(sequence) = self.sequences.get_mut(&id).filter(|sequence| sequence.generates_none()) else {
            return Ok(false);
        };
        outputs.prompt_logprobs.extend(sequence.take_prompt_logprobs().map(|logprobs| (id, logprobs)));
        outputs.push_without_token(id, FinishReason::Length);
        self.push_cached(id, outputs);
        self.abort(id)
    }

    /// Samples a wave of rows, at most one per request. Returns the rows that follow accepted draft tokens.
    ///
    /// Waves run one after another because a row's penalties, stops and random numbers depend on the token before it.
    /// Each token therefore equals the one that a step of its own would have sampled.
    fn update_rows(
        &mut self,
        wave: &[usize],
        rows: &[Option<LogitsRow>],
        logits: &mut StepLogits<'_>,
        outputs: &mut StepOutputs,
    ) -> Result<Vec<usize>> {
        self.make_masks(wave, rows, outputs)?;
        let mut specs = vec![None; rows.len()];
        for &index in wave {
            specs[index] = rows[index].and_then(|row| self.sequences.get(&row.id)).map(Sequence::row_spec);
        }
        let sampled = sample_rows(logits.values, logits.row_len, self.mask, &specs);
        let mut next_wave = Vec::new();
        for (index, sampled) in sampled.into_iter().enumerate() {
            let (Some(LogitsRow { id, .. }), Some(sampled)) = (rows[index], sampled) else { continue };
            let token = sampled.as_ref().map(|sampled| sampled.id).ok();
            let goes_on = match sampled {
                Ok(sampled) => self.push_token(id, sampled, outputs)? == FinishReason::Running,
                Err(error) => self.push_failure(id, &error, outputs).map(|()| false)?,
            };
            match rows.get(index + 1).copied().flatten().map(|row| row.kind) {
                Some(RowKind::AfterDraft(draft)) if goes_on && Some(draft) == token => next_wave.push(index + 1),
                _ if goes_on => self.prepare(id)?,
                _ => {}
            }
        }
        Ok(next_wave)
    }

    /// Makes the masks of a wave's rows whose answers follow a grammar; most are ready, made while the model ran. Fails
    /// the requests whose grammar leaves no token.
    fn make_masks(&mut self, wave: &[usize], rows: &[Option<LogitsRow>], outputs: &mut StepOutputs) -> Result<()> {
        if !self.uses_grammars {
            return Ok(());
        }
        for LogitsRow { id, .. } in wave.iter().filter_map(|&index| rows[index]) {
            let made = self.sequences.get_mut(&id).map_or(Ok(()), Sequence::make_mask);
            made.or_else(|error| self.push_failure(id, &error, outputs))?;
        }
        Ok(())
    }

    /// Prepares the next step of a request: proposes draft tokens and starts to make its mask. A request's last allowed
    /// token is always sampled without a draft.
    fn prepare(&mut self, id: u64) -> Result<()> {
        if self.speculation.is_none() && !self.uses_grammars {
            return Ok(());
        }
        let Some(sequence) = self.sequences.get(&id) else { return Ok(()) };
        if self.speculation.is_none() && !sequence.is_constrained() {
            return Ok(());
        }
        let tokens = self.scheduler.request(id).map_or(&[][..], |request| request.tokens());
        let num_drafts = sequence.num_tokens_left().saturating_sub(1);
        let guessed = self.speculation.as_ref().map_or(&[][..], |config| config.propose(tokens, num_drafts));
        let drafts = sequence.drafts(guessed);
        sequence.prepare_mask();
        self.scheduler.set_drafts(id, &drafts)
    }

    /// A request's prompt and output tokens, and the number of tokens it may still generate. Returns `None` if the
    /// request is unknown, finished, or a choice that waits for its prompt.
    pub fn request_tokens(&self, id: u64) -> Option<(&[u32], usize)> {
        let request = self.scheduler.request(id)?;
        Some((request.tokens(), self.sequences.get(&id)?.num_tokens_left()))
    }

    /// Sets draft tokens from outside, for engines without [`EngineConfig::speculation`]. Drafts past the request's limit
    /// are dropped. Drafts change the speed of an answer, never its tokens.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownRequest`] if [`Self::request_tokens`] returns `None`. [`Error::InvalidArgument`] for an id outside
    /// the vocabulary.
    pub fn set_drafts(&mut self, id: u64, drafts: &[u32]) -> Result<()> {
        let num_left = self.request_tokens(id).ok_or(Error::UnknownRequest(id))?.1;
        if let Some(token) = drafts.iter().find(|token| **token as usize >= self.mask.vocab_size) {
            return Err(Error::InvalidArgument(format!(
                "a guess must be in [0, {}), got {token}",
                self.mask.vocab_size
            )));
        }
        let drafts = &drafts[..drafts.len().min(num_left.saturating_sub(1))];
        let drafts = self.sequences.get(&id).map_or_else(Vec::new, |sequence| sequence.drafts(drafts));
        self.scheduler.set_drafts(id, &drafts)
    }

    fn check_shape(&self, num_logits: usize, shape: (usize, usize)) -> Result<()> {
        let Some(num_rows) = self.scheduler.num_sampled_rows() else {
            return Err(Error::InvalidArgument("no plan is in flight; call `schedule` first".to_owned()));
        };
        let vocab_size = self.mask.vocab_size;
        if shape.0 != num_rows || shape.1 < vocab_size || shape.0 * shape.1 != num_logits {
            return Err(Error::InvalidArgument(format!(
                "`logits` must be ({num_rows}, V) for the last plan, V at least the vocabulary's {vocab_size}, \
                 got ({}, {})\nhint: a model with fewer ids than its tokenizer needs `token_bytes` cut to its own",
                shape.0, shape.1
            )));
        }
        Ok(())
    }

    fn push_token(&mut self, id: u64, sampled: Sampled, outputs: &mut StepOutputs) -> Result<FinishReason> {
        let sequence = self.sequences.get_mut(&id).ok_or(Error::UnknownRequest(id))?;
        let (text, finish_reason) = sequence.push(&self.table, sampled.id);
        outputs.request_ids.push(id);
        outputs.token_ids.push(sampled.id);
        outputs.texts.push(text);
        outputs.finish_reasons.push(finish_reason as u8);
        outputs.push_logprobs(sampled.logprobs, sequence.asks_top_logprobs());
        outputs.prompt_logprobs.extend(sequence.take_prompt_logprobs().map(|logprobs| (id, logprobs)));
        outputs.stop_strings.extend(sequence.stop_string().map(|index| (id, index)));
        if sequence.has_begun() {
            self.push_cached(id, outputs);
        }
        if finish_reason == FinishReason::Running {
            self.scheduler.append_token(id, sampled.id)?;
        } else {
            self.abort(id)?;
        }
        Ok(finish_reason)
    }

    fn push_cached(&self, id: u64, outputs: &mut StepOutputs) {
        let num_cached = self.scheduler.request(id).map_or(0, Request::num_cached_tokens);
        outputs.cached_tokens.extend((num_cached > 0).then_some((id, num_cached)));
    }

    fn push_failure(&mut self, id: u64, error: &Error, outputs: &mut StepOutputs) -> Result<()> {
        let (reason, message) = match error {
            Error::Grammar(problem) => (FinishReason::Grammar, problem.clone()),
            other => (FinishReason::Error, format!("request {id}: {other}")),
        };
        outputs.push_without_token(id, reason);
        outputs.errors.push((id, message));
        self.abort(id).map(drop)
    }

    /// Takes what changed in the prefix cache since the last call; see [`Scheduler::take_block_events`].
    pub fn take_block_events(&mut self) -> Vec<BlockEvent> {
        self.scheduler.take_block_events()
    }

    /// Whether any request is unfinished.
    pub fn has_unfinished(&self) -> bool {
        self.scheduler.has_unfinished()
    }

    /// The scheduler's counters.
    pub fn stats(&self) -> SchedulerStats {
        self.scheduler.stats()
    }

    /// Checks every invariant; debug builds call this after each step.
    ///
    /// # Errors
    ///
    /// [`Error::Internal`] naming what disagrees.
    pub fn check_integrity(&self) -> Result<()> {
        if let Some(id) = self.sequences.keys().find(|id| self.scheduler.request(**id).is_none()) {
            return Err(Error::Internal(format!("request {id} has text but no tokens")));
        }
        self.scheduler.check_integrity()
    }

    fn check_in_debug(&self) -> Result<()> {
        if cfg!(debug_assertions) { self.check_integrity() } else { Ok(()) }
    }
}

fn check_ids<'a>(what: &str, ids: impl IntoIterator<Item = &'a u32>, vocab_size: usize) -> Result<()> {
    match ids.into_iter().find(|id| **id as usize >= vocab_size) {
        None => Ok(()),
        Some(id) => {
            Err(Error::InvalidArgument(format!("{what} must be below the vocabulary's size {vocab_size}, got {id}")))
        }
    }
}
