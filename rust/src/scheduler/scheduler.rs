//! The life of a request: added, completed step by step, removed. `policy` decides which requests run.

use std::collections::BTreeSet;

use rustc_hash::FxHashMap;

use super::plan::{LogitsRow, PlanBuffers, Scheduled};
use super::request::{BlockCopy, Rank, Traits};
use super::slots::Slots;
use super::{BlockEvent, BlockHasher, BlockPool, Request, RequestOptions, SchedulerConfig, SchedulerStats, StepPlan};
use crate::{Error, Result};

/// Plans steps for all requests, ordered by priority, then by arrival.
///
/// The first request always advances, no request overtakes the head of the queue, and a request is admitted only if
/// it fits the cache alone. Every request of the best priority therefore finishes, whatever arrives after it.
#[derive(Debug)]
pub struct Scheduler {
    pub(super) config: SchedulerConfig,
    pub(super) pool: BlockPool,
    pub(super) hasher: BlockHasher,
    pub(super) slots: Slots,
    /// Slot of each request id; choices that have not started share the slot of their request.
    pub(super) slot_of: FxHashMap<u64, u32>,
    /// Running requests in scheduling order: the last one is preempted first.
    pub(super) running: Vec<Rank>,
    pub(super) waiting: BTreeSet<Rank>,
    pub(super) waiting_tokens: usize,
    pub(super) buffers: PlanBuffers,
    pub(super) in_flight: bool,
    /// Requests with tokens in the plan in flight: decoding requests first, then prefills.
    pub(super) scheduled: Vec<Scheduled>,
    /// Number of decoding requests in `scheduled`.
    pub(super) num_decodes: usize,
    /// Whether each decoding request of the plan has one token and one logits row.
    pub(super) decodes_are_plain: bool,
    /// Running requests with more than one token to compute; kept between steps to reuse its memory.
    pub(super) prefills: Vec<Rank>,
    /// Index into the last step's rows of the request the caller is expected to name next.
    next_row: usize,
    num_arrivals: u64,
    pub(super) stats: SchedulerStats,
}

impl Scheduler {
    /// Creates a scheduler without requests.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if a limit is 0 or too large.
    pub fn new(config: SchedulerConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self {
            config,
            pool: BlockPool::new(config.num_blocks)?,
            hasher: BlockHasher::new(),
            slots: Slots::default(),
            slot_of: FxHashMap::default(),
            running: Vec::new(),
            waiting: BTreeSet::new(),
            waiting_tokens: 0,
            buffers: PlanBuffers::default(),
            in_flight: false,
            scheduled: Vec::new(),
            num_decodes: 0,
            decodes_are_plain: true,
            prefills: Vec::new(),
            next_row: 0,
            num_arrivals: 0,
            stats: SchedulerStats::default(),
        })
    }

    /// Queues a request. Several choices get consecutive ids from `id` on: the prompt is computed once, then each choice
    /// becomes a request of its own.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for an empty prompt, `num_choices` of 0, or an id in use.
    /// [`Error::ContextLength`] or [`Error::Capacity`] if the request can never fit the context or the cache.
    /// [`Error::QueueFull`] if too many wait.
    pub fn add(&mut self, id: u64, prompt_ids: Vec<u32>, options: RequestOptions) -> Result<()> {
        self.check_request_is_valid(id, &prompt_ids, options)?;
        self.check_capacity(id, prompt_ids.len(), options.max_tokens)?;
        self.check_queue(prompt_ids.len())?;
        let arrival = self.num_arrivals;
        self.num_arrivals += options.num_choices as u64;
        let choices = id + 1..id + options.num_choices as u64;
        let slot = self.slots.reserve();
        let rank = Rank { priority: options.priority, arrival, slot };
        let mut request = Request::new(id, prompt_ids, rank);
        self.slot_of.insert(id, slot);
        self.slot_of.extend(choices.clone().map(|choice| (choice, slot)));
        request.set_choices(choices.collect());
        request.set_prompt_rows(options.first_prompt_row);
        request.adapter = options.adapter;
        self.enqueue(request);
        Ok(())
    }

    fn check_request_is_valid(&self, id: u64, prompt_ids: &[u32], options: RequestOptions) -> Result<()> {
        let invalid = |problem: String| Err(Error::InvalidArgument(problem));
        if prompt_ids.is_empty() {
            return invalid(format!("request {id}: the prompt must hold at least one token"));
        }
        if options.num_choices == 0 {
            return invalid(format!("request {id}: `num_choices` must be at least 1, got 0"));
        }
        let Some(end) = id.checked_add(options.num_choices as u64) else {
            return invalid(format!("request {id}: the ids of {} choices must fit 64 bits", options.num_choices));
        };
        match (id..end).find(|id| self.slot_of.contains_key(id)) {
            Some(id) => invalid(format!("request id {id} is in use; ids must be unique")),
            None => Ok(()),
        }
    }

    fn check_capacity(&self, id: u64, num_prompt_tokens: usize, max_tokens: usize) -> Result<()> {
        let SchedulerConfig { num_blocks, block_size, max_model_len, .. } = self.config;
        let num_tokens = num_prompt_tokens.saturating_add(max_tokens);
        if num_tokens > max_model_len {
            return Err(Error::ContextLength(format!(
                "the context is {max_model_len} tokens, got {num_prompt_tokens} in the prompt and {max_tokens} to \
                 generate\nhint: shorten the prompt or lower `max_tokens`"
            )));
        }
        if num_tokens.div_ceil(block_size) > num_blocks {
            return Err(Error::Capacity(format!(
                "request {id} needs {num_tokens} tokens ({num_prompt_tokens} of prompt and `max_tokens` \
                 {max_tokens}), the cache holds {} ({num_blocks} blocks of {block_size})\n\
                 hint: lower `max_tokens` or give the cache more memory",
                num_blocks * block_size
            )));
        }
        Ok(())
    }

    fn check_queue(&self, num_prompt_tokens: usize) -> Result<()> {
        let SchedulerConfig { max_waiting_requests, max_waiting_tokens, .. } = self.config;
        let num_waiting = self.waiting.len();
        if num_waiting >= max_waiting_requests {
            return Err(Error::QueueFull(format!(
                "the queue is full: {num_waiting} requests wait, at most {max_waiting_requests} may\n\
                 hint: try again later"
            )));
        }
        // A prompt longer than the limit still runs if no other request waits.
        match max_waiting_tokens {
            Some(limit) if num_waiting > 0 && self.waiting_tokens + num_prompt_tokens > limit => {
                Err(Error::QueueFull(format!(
                    "the queue is full: {} tokens wait, with {num_prompt_tokens} more they would exceed {limit}\n\
                     hint: try again later",
                    self.waiting_tokens
                )))
            }
            _ => Ok(()),
        }
    }

    /// Inserts a request without blocks into the queue, at its rank.
    pub(super) fn enqueue(&mut self, request: Request) {
        let rank = request.rank;
        self.waiting.insert(rank);
        self.waiting_tokens += request.num_tokens();
        self.slots.put(request);
    }

    /// Removes a finished or aborted request, or one of its choices, and frees its blocks at once. Returns `false` if
    /// the id is unknown.
    ///
    /// Callers may remove a request in any state. If a plan is in flight, the request's logits row is skipped. The freed
    /// blocks are handed out by the next plan at the earliest, so the running step cannot overwrite another request's.
    ///
    /// # Errors
    ///
    /// [`Error::Internal`] if the request's blocks were not in use.
    pub fn remove(&mut self, id: u64) -> Result<bool> {
        self.follow_rows(id);
        let Some(slot) = self.slot_of.remove(&id) else { return Ok(false) };
        let request = self.slots.get_mut(slot)?;
        if request.id != id || request.has(Traits::HAS_CHOICES) {
            let mut choices = request.take_choices();
            if request.id == id {
                // Other choices still need the prompt: the next one takes the removed one's place.
                request.id = choices.remove(0);
            } else {
                choices.retain(|&choice| choice != id);
            }
            request.set_choices(choices);
            return Ok(true);
        }
        let rank = request.rank;
        release_blocks(&mut self.pool, request)?;
        if request.is_running {
            remove_sorted(&mut self.running, rank);
        } else {
            self.waiting_tokens -= request.num_tokens();
            self.waiting.remove(&rank);
        }
        self.slots.free(slot);
        Ok(true)
    }

    /// The plan in flight.
    pub fn plan(&self) -> Option<&StepPlan> {
        self.in_flight.then_some(&self.buffers.plan)
    }

    /// Number of logits rows that the plan in flight needs; `None` without a plan.
    pub fn num_sampled_rows(&self) -> Option<usize> {
        self.in_flight.then_some(self.buffers.rows.len())
    }

    /// Ids of all requests with tokens in the plan in flight, including choices that wait for their prompt.
    pub fn ids_in_flight(&self) -> Vec<u64> {
        let requests = self.scheduled.iter().filter_map(|entry| self.state(entry.rank));
        requests.flat_map(|request| std::iter::once(request.id).chain(request.choices().iter().copied())).collect()
    }

    /// Records that the plan in flight was computed. Returns the owner and purpose of each logits row, or `None` where
    /// the owner was removed since.
    ///
    /// Draft tokens count as computed only once [`Self::append_token`] appends the same tokens.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] without a plan in flight.
    pub fn complete_step(&mut self) -> Result<Vec<Option<LogitsRow>>> {
        if !std::mem::take(&mut self.in_flight) {
            return Err(Error::InvalidArgument("no plan is in flight; call `schedule` first".to_owned()));
        }
        let (rows, scheduled) = (std::mem::take(&mut self.buffers.rows), std::mem::take(&mut self.scheduled));
        let mut owners = Vec::with_capacity(rows.len());
        let mut left = rows.iter().peekable();
        for entry in &scheduled {
            // A new request may reuse the id of a removed one, but never its rank.
            let request = self.slots.find(entry.rank);
            while let Some(row) = left.next_if(|row| row.rank.is(entry.rank)) {
                owners.push(request.filter(|request| request.answers_to(row.row.id)).map(|_| row.row));
            }
            self.complete_request(entry.rank)?;
        }
        (self.buffers.rows, self.scheduled) = (rows, scheduled);
        self.scheduled.clear();
        self.next_row = 0;
        Ok(owners)
    }

    #[inline]
    fn complete_request(&mut self, rank: Rank) -> Result<()> {
        let Some(request) = self.slots.find_mut(rank) else { return Ok(()) };
        self.stats.drafts_computed += request.complete_step();
        let block_size = self.config.block_size;
        if request.has(Traits::HAS_COPY)
            && let Some(BlockCopy { source, .. }) = request.take_copy()
        {
            self.pool.release(source)?;
            self.stats.blocks_copied += 1;
        }
        while self.config.enable_prefix_caching
            && let Some(index) = request.next_findable_block(block_size)
        {
            let hash = request.block_hash(index, &self.hasher, block_size);
            if self.pool.register(request.blocks()[index], hash)? {
                let parent = index.checked_sub(1).map(|before| request.block_hash(before, &self.hasher, block_size));
                let token_ids = &request.tokens()[index * block_size..][..block_size];
                self.pool.log.stored(hash, parent, token_ids, request.adapter);
            }
            request.count_findable_block();
        }
        if request.has(Traits::HAS_CHOICES) && request.num_pending_tokens() == 0 {
            return self.fork(rank);
        }
        Ok(())
    }

    /// Turns each choice of a request into a request of its own that shares the blocks of the computed prompt.
    ///
    /// Choices that exceed the running limit wait in the queue as if preempted; the prefix cache holds most of the
    /// prompt.
    fn fork(&mut self, rank: Rank) -> Result<()> {
        let mut parent = self.slots.take(rank)?;
        for (index, id) in parent.take_choices().into_iter().enumerate() {
            let slot = self.slots.reserve();
            self.slot_of.insert(id, slot);
            let mut choice = parent.clone();
            choice.rank = Rank { arrival: rank.arrival + 1 + index as u64, slot, ..rank };
            choice.id = id;
            if self.running.len() < self.config.max_running_requests {
                choice.blocks().iter().try_for_each(|&block| self.pool.acquire(block))?;
                choice.set_shares_last_block(true);
                parent.set_shares_last_block(true);
                insert_sorted(&mut self.running, choice.rank);
                self.slots.put(choice);
                continue;
            }
            choice.reset();
            self.enqueue(choice);
        }
        self.slots.put(parent);
        Ok(())
    }

    /// Sets the draft tokens of a decoding request; as many as fit join its next step. They replace earlier drafts and
    /// are dropped when the next token is appended.
    ///
    /// With `max_tokens` left to generate, more than `max_tokens - 1` drafts are useless and may exceed the cache.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownRequest`] if the request was never added, was removed, or is a choice that has not started.
    pub fn set_drafts(&mut self, id: u64, drafts: &[u32]) -> Result<()> {
        let request = self.started(id)?;
        request.set_drafts(drafts);
        Ok(())
    }

    #[inline(always)]
    fn started(&mut self, id: u64) -> Result<&mut Request> {
        let slot = match self.follow_rows(id) {
            Some(slot) => slot,
            None => *self.slot_of.get(&id).ok_or_else(|| unknown(id))?,
        };
        match self.slots.get_mut(slot)? {
            request if request.id == id => Ok(request),
            _ => Err(unknown(id)),
        }
    }

    /// Slot of a request if callers name requests in the order of the last step's rows. Skipping the id lookup saves a
    /// third of the scheduler's cost per token; a request named out of order is looked up by its id.
    #[inline]
    fn follow_rows(&mut self, id: u64) -> Option<u32> {
        let rank = self.buffers.rows.get(self.next_row).filter(|row| row.row.id == id)?.rank;
        self.next_row += 1;
        self.slots.find(rank).filter(|request| request.id == id).map(|_| rank.slot)
    }

    /// Appends a generated token to a request.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownRequest`] if the request was never added, was removed, or is a choice that has not started.
    #[inline]
    pub fn append_token(&mut self, id: u64, token: u32) -> Result<()> {
        let request = self.started(id)?;
        let was_guessed = request.append(token);
        let is_waiting = !request.is_running;
        self.waiting_tokens += usize::from(is_waiting);
        self.stats.drafts_accepted += usize::from(was_guessed);
        Ok(())
    }

    /// The request with this id; for a choice that has not started, the request that computes its prompt.
    pub fn request(&self, id: u64) -> Option<&Request> {
        self.slots.get(*self.slot_of.get(&id)?)
    }

    /// Takes what changed in the prefix cache since the last call, in order. The first call starts the record and returns
    /// nothing; before it, changes cost nothing, and from then on somebody must take them.
    pub fn take_block_events(&mut self) -> Vec<BlockEvent> {
        self.pool.log.take()
    }

    /// Whether any request is unfinished.
    pub fn has_unfinished(&self) -> bool {
        !self.slot_of.is_empty()
    }

    /// The limits.
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// Current counters.
    pub fn stats(&self) -> SchedulerStats {
        SchedulerStats {
            num_running: self.running.len(),
            num_waiting: self.waiting.len(),
            waiting_tokens: self.waiting_tokens,
            blocks_total: self.pool.num_blocks(),
            blocks_free: self.pool.num_free(),
            blocks_cached: self.pool.num_findable(),
            ..self.stats
        }
    }

    /// The request with this rank, unless it was removed.
    #[inline]
    pub(super) fn state(&self, rank: Rank) -> Option<&Request> {
        self.slots.find(rank)
    }
}

#[cold]
fn unknown(id: u64) -> Error {
    Error::UnknownRequest(id)
}

pub(super) fn insert_sorted(ranks: &mut Vec<Rank>, rank: Rank) -> usize {
    let place = ranks.partition_point(|other| *other < rank);
    ranks.insert(place, rank);
    place
}

fn remove_sorted(ranks: &mut Vec<Rank>, rank: Rank) {
    if let Ok(place) = ranks.binary_search(&rank) {
        ranks.remove(place);
    }
}

/// Releases a request's blocks, last first: later blocks are the least likely to be shared, so they are reused first.
pub(super) fn release_blocks(pool: &mut BlockPool, request: &mut Request) -> Result<()> {
    if let Some(BlockCopy { source, .. }) = request.take_copy() {
        pool.release(source)?;
    }
    request.blocks().iter().rev().try_for_each(|&block| pool.release(block))?;
    request.clear_blocks();
    Ok(())
}
