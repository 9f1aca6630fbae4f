//! The token budget's rule: who runs, who waits, who gives way.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::{BlockPool, Request, StepPlan};
use crate::{Error, Result};

/// Limits of a scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Blocks of the cache.
    pub num_blocks: usize,
    /// Tokens a block holds.
    pub block_size: usize,
    /// Tokens a step computes at most.
    pub max_batch_tokens: usize,
    /// Requests that hold blocks at a time.
    pub max_running_requests: usize,
    /// Requests that may wait; one more is refused.
    pub max_waiting_requests: usize,
    /// Tokens a request may have, prompt and output.
    pub max_model_len: usize,
}

impl SchedulerConfig {
    /// Checks that no limit is 0 and that slots and batch fit the plan's integers.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] naming the first field outside its range.
    pub fn validate(&self) -> Result<()> {
        let fields = [
            ("num_blocks", self.num_blocks),
            ("block_size", self.block_size),
            ("max_batch_tokens", self.max_batch_tokens),
            ("max_running_requests", self.max_running_requests),
            ("max_waiting_requests", self.max_waiting_requests),
            ("max_model_len", self.max_model_len),
        ];
        match fields.into_iter().find(|(_, value)| *value == 0 || *value > i32::MAX as usize) {
            None => Ok(()),
            Some((name, value)) => {
                Err(Error::InvalidArgument(format!("`{name}` must be in [1, {}], got {value}", i32::MAX)))
            }
        }
    }
}

/// A scheduler's counters, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedulerStats {
    /// Requests that hold blocks.
    pub num_running: usize,
    /// Requests in the queue, preempted ones among them.
    pub num_waiting: usize,
    /// Blocks of the cache.
    pub blocks_total: usize,
    /// Blocks nobody holds.
    pub blocks_free: usize,
    /// Times a request lost its blocks to an older one.
    pub num_preemptions: usize,
    /// Plans made.
    pub num_steps: usize,
    /// Tokens planned, recomputed ones among them.
    pub tokens_scheduled: usize,
}

/// Plans steps for all requests, first come first served.
///
/// Every running request is older than every waiting one. The oldest always advances, and a request is only
/// admitted if it fits alone, so each one finishes.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    pool: BlockPool,
    requests: FxHashMap<u64, Request>,
    running: Vec<u64>,
    waiting: VecDeque<u64>,
    in_flight: Option<InFlight>,
    num_arrivals: u64,
    stats: SchedulerStats,
}

/// The plan that waits for its logits.
#[derive(Debug)]
struct InFlight {
    request_ids: Vec<u64>,
    sampled_ids: Vec<u64>,
}

impl Scheduler {
    /// A scheduler without requests.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if a limit is 0 or too large.
    pub fn new(config: SchedulerConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self {
            config,
            pool: BlockPool::new(config.num_blocks)?,
            requests: FxHashMap::default(),
            running: Vec::new(),
            waiting: VecDeque::new(),
            in_flight: None,
            num_arrivals: 0,
            stats: SchedulerStats::default(),
        })
    }

    /// Queues a request.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`]: an empty prompt, `max_tokens` 0, or an id in use.
    /// [`Error::Capacity`]: it could never fit the context or the cache. [`Error::QueueFull`]: too many wait.
    pub fn add(&mut self, id: u64, prompt_ids: Vec<u32>, max_tokens: usize) -> Result<()> {
        if prompt_ids.is_empty() {
            return Err(Error::InvalidArgument(format!("request {id}: the prompt must hold at least one token")));
        }
        if max_tokens == 0 {
            return Err(Error::InvalidArgument(format!("request {id}: `max_tokens` must be at least 1, got 0")));
        }
        if self.requests.contains_key(&id) {
            return Err(Error::InvalidArgument(format!("request id {id} is in use; ids must be unique")));
        }
        self.check_capacity(id, prompt_ids.len(), max_tokens)?;
        self.requests.insert(id, Request::new(id, prompt_ids, self.num_arrivals));
        self.num_arrivals += 1;
        self.waiting.push_back(id);
        Ok(())
    }

    fn check_capacity(&self, id: u64, num_prompt_tokens: usize, max_tokens: usize) -> Result<()> {
        let SchedulerConfig { num_blocks, block_size, max_waiting_requests, max_model_len, .. } = self.config;
        let num_tokens = num_prompt_tokens.saturating_add(max_tokens);
        let sizes = format!(
            "request {id} needs {num_tokens} tokens ({num_prompt_tokens} of prompt and `max_tokens` {max_tokens})"
        );
        if num_tokens > max_model_len {
            return Err(Error::Capacity(format!(
                "{sizes}, the context holds {max_model_len}\nhint: shorten the prompt or lower `max_tokens`"
            )));
        }
        if num_tokens.div_ceil(block_size) > num_blocks {
            return Err(Error::Capacity(format!(
                "{sizes}, the cache holds {} ({num_blocks} blocks of {block_size})\n\
                 hint: lower `max_tokens` or give the cache more memory",
                num_blocks * block_size
            )));
        }
        if self.waiting.len() >= max_waiting_requests {
            return Err(Error::QueueFull(format!(
                "the queue is full: {} requests wait, at most {max_waiting_requests} may\nhint: try again later",
                self.waiting.len()
            )));
        }
        Ok(())
    }

    /// Forgets a request, finished or aborted, and frees its blocks at once; `false` if it is unknown.
    ///
    /// Allowed in any state, also while a plan is in flight: its row of logits is then skipped. The blocks it leaves
    /// are first handed out by the next plan, so the step that runs can't overwrite another request's.
    ///
    /// # Errors
    ///
    /// [`Error::Internal`] if its blocks were not in use.
    pub fn remove(&mut self, id: u64) -> Result<bool> {
        let Some(mut request) = self.requests.remove(&id) else { return Ok(false) };
        self.running.retain(|&other| other != id);
        self.waiting.retain(|&other| other != id);
        release_blocks(&mut self.pool, &mut request)?;
        Ok(true)
    }

    /// Plans the next step; `None` if there is nothing to run.
    ///
    /// Progress counts only once [`Self::complete_step`] records it, so planning again drops the last plan and plans
    /// the same work anew: a step that failed can be retried, or its requests removed.
    ///
    /// # Errors
    ///
    /// [`Error::Internal`] if an invariant is broken.
    pub fn schedule(&mut self) -> Result<Option<StepPlan>> {
        self.drop_step();
        let mut budget = self.config.max_batch_tokens;
        let mut scheduled = Vec::with_capacity(self.running.len());
        self.schedule_running(&mut budget, &mut scheduled)?;
        self.schedule_waiting(&mut budget, &mut scheduled)?;
        if scheduled.is_empty() {
            return Ok(None);
        }
        let requests: Vec<&Request> = scheduled.iter().filter_map(|id| self.requests.get(id)).collect();
        let plan = StepPlan::build(&requests, self.config.block_size);
        let sampled_ids = requests.iter().filter(|request| request.samples_in_step()).map(|r| r.id).collect();
        self.in_flight = Some(InFlight { request_ids: scheduled, sampled_ids });
        self.stats.num_steps += 1;
        self.stats.tokens_scheduled += plan.token_ids.len();
        Ok(Some(plan))
    }

    /// Oldest first; out of blocks, the newest running request gives way.
    fn schedule_running(&mut self, budget: &mut usize, scheduled: &mut Vec<u64>) -> Result<()> {
        let mut place = 0;
        while place < self.running.len() && *budget > 0 {
            let id = self.running[place];
            while !self.allocate_known(id)? {
                self.preempt_newest()?;
                if place == self.running.len() {
                    return Ok(());
                }
            }
            scheduled.push(id);
            self.take_budget(id, budget)?;
            place += 1;
        }
        Ok(())
    }

    /// First come first served: where the first doesn't fit, nobody overtakes it.
    ///
    /// So a step that preempts admits nobody: the first in the queue is then who was preempted last, when no block
    /// was free, and an older request has taken at least one of those it gave up.
    fn schedule_waiting(&mut self, budget: &mut usize, scheduled: &mut Vec<u64>) -> Result<()> {
        while let Some(&id) = self.waiting.front() {
            if *budget == 0 || self.running.len() >= self.config.max_running_requests || !self.allocate_known(id)? {
                break;
            }
            self.waiting.pop_front();
            self.running.push(id);
            scheduled.push(id);
            self.take_budget(id, budget)?;
        }
        Ok(())
    }

    /// Gives a request the blocks of all its known tokens, or none if they aren't all free.
    ///
    /// Not only of the next chunk: a long prompt admitted by halves would lose its first chunks to preemption.
    fn allocate_known(&mut self, id: u64) -> Result<bool> {
        let block_size = self.config.block_size;
        let request = get_mut(&mut self.requests, id)?;
        let num_missing = request.tokens.len().div_ceil(block_size).saturating_sub(request.blocks.len());
        if !self.pool.can_allocate(num_missing) {
            return Ok(false);
        }
        request.blocks.extend((0..num_missing).filter_map(|_| self.pool.allocate()));
        Ok(true)
    }

    fn take_budget(&mut self, id: u64, budget: &mut usize) -> Result<()> {
        let request = get_mut(&mut self.requests, id)?;
        request.num_scheduled_tokens = request.num_pending_tokens().min(*budget);
        *budget -= request.num_scheduled_tokens;
        Ok(())
    }

    /// Sends the newest running request back to the front of the queue, without blocks.
    fn preempt_newest(&mut self) -> Result<()> {
        let id = self.running.pop().ok_or_else(|| Error::Internal("nobody to preempt".to_owned()))?;
        if self.running.is_empty() {
            return Err(Error::Internal(format!("request {id} was admitted but does not fit the cache alone")));
        }
        let request = get_mut(&mut self.requests, id)?;
        request.num_computed_tokens = 0;
        release_blocks(&mut self.pool, request)?;
        self.waiting.push_front(id);
        self.stats.num_preemptions += 1;
        Ok(())
    }

    fn drop_step(&mut self) {
        for id in self.in_flight.take().into_iter().flat_map(|step| step.request_ids) {
            if let Some(request) = self.requests.get_mut(&id) {
                request.num_scheduled_tokens = 0;
            }
        }
    }

    /// Rows of logits the plan in flight asks for; `None` without one.
    pub fn num_sampled_rows(&self) -> Option<usize> {
        self.in_flight.as_ref().map(|step| step.sampled_ids.len())
    }

    /// Records that the plan in flight was computed. Returns whose each row of logits is; `None`: it was removed since.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] without a plan in flight.
    pub fn complete_step(&mut self) -> Result<Vec<Option<u64>>> {
        let Some(step) = self.in_flight.take() else {
            return Err(Error::InvalidArgument("no plan is in flight; call `schedule` first".to_owned()));
        };
        // A new request may have taken a removed one's id meanwhile: only those scheduled in the plan count.
        let is_scheduled = |id: &u64| self.requests.get(id).is_some_and(|request| request.num_scheduled_tokens > 0);
        let rows = step.sampled_ids.iter().map(|id| is_scheduled(id).then_some(*id)).collect();
        for id in &step.request_ids {
            if let Some(request) = self.requests.get_mut(id) {
                request.num_computed_tokens += std::mem::take(&mut request.num_scheduled_tokens);
            }
        }
        Ok(rows)
    }

    /// Adds a generated token to a request.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownRequest`] if it was never added or is removed.
    pub fn append_token(&mut self, id: u64, token: u32) -> Result<()> {
        self.requests.get_mut(&id).ok_or(Error::UnknownRequest(id))?.tokens.push(token);
        Ok(())
    }

    /// What is known of a request.
    pub fn request(&self, id: u64) -> Option<&Request> {
        self.requests.get(&id)
    }

    /// Whether any request is left.
    pub fn has_unfinished(&self) -> bool {
        !self.requests.is_empty()
    }

    /// Counters as of now.
    pub fn stats(&self) -> SchedulerStats {
        SchedulerStats {
            num_running: self.running.len(),
            num_waiting: self.waiting.len(),
            blocks_total: self.pool.num_blocks(),
            blocks_free: self.pool.num_free(),
            ..self.stats
        }
    }

    /// Checks every invariant of the queues, the requests and the pool; costs O(requests + blocks).
    ///
    /// # Errors
    ///
    /// [`Error::Internal`] naming what disagrees.
    pub fn check_integrity(&self) -> Result<()> {
        let queued = self.running.iter().chain(&self.waiting);
        let mut arrivals = Vec::with_capacity(self.requests.len());
        for &id in queued {
            let request =
                self.requests.get(&id).ok_or_else(|| Error::Internal(format!("request {id} has no state")))?;
            arrivals.push(request.arrival);
        }
        if arrivals.len() != self.requests.len() || !arrivals.is_sorted_by(|a, b| a < b) {
            return Err(Error::Internal("the queues don't hold each request once, in order of arrival".to_owned()));
        }
        for &id in &self.waiting {
            let request = &self.requests[&id];
            if !request.blocks.is_empty() || request.num_computed_tokens > 0 || request.num_scheduled_tokens > 0 {
                return Err(Error::Internal(format!("request {id} waits but holds blocks or computed tokens")));
            }
        }
        for request in self.requests.values() {
            self.check_request(request)?;
        }
        self.pool.check_integrity(self.requests.values().flat_map(|request| request.blocks.iter().copied()))
    }

    fn check_request(&self, request: &Request) -> Result<()> {
        let num_known = request.tokens.len();
        let num_seen = request.num_computed_tokens + request.num_scheduled_tokens;
        let num_slots = request.blocks.len() * self.config.block_size;
        if num_seen > num_known || num_seen > num_slots {
            return Err(Error::Internal(format!(
                "request {} computes {num_seen} of {num_known} tokens in {num_slots} slots",
                request.id
            )));
        }
        Ok(())
    }
}

fn get_mut(requests: &mut FxHashMap<u64, Request>, id: u64) -> Result<&mut Request> {
    requests.get_mut(&id).ok_or_else(|| Error::Internal(format!("queued request {id} has no state")))
}

fn release_blocks(pool: &mut BlockPool, request: &mut Request) -> Result<()> {
    request.blocks.drain(..).try_for_each(|block| pool.release(block))
}
