//! Planning a step under the token budget: which requests run, wait, or are preempted.

use super::plan::Scheduled;
use super::request::{Rank, Traits};
use super::scheduler::{insert_sorted, release_blocks};
use super::{BlockId, Request, Scheduler, StepPlan};
use crate::{Error, Result};

impl Scheduler {
    /// Plans the next step; returns `None` if there is nothing to run.
    ///
    /// Progress counts only once [`Self::complete_step`] records it. Planning again drops the last plan and plans the
    /// same work anew, so a failed step can be retried, or its requests removed.
    ///
    /// # Errors
    ///
    /// [`Error::Internal`] if an invariant is broken.
    pub fn schedule(&mut self) -> Result<Option<&StepPlan>> {
        self.drop_step();
        let mut budget = self.config.max_batch_tokens;
        self.schedule_decodes(&mut budget)?;
        self.num_decodes = self.scheduled.len();
        self.schedule_prefills(&mut budget)?;
        if self.scheduled.is_empty() {
            return Ok(None);
        }
        let Self { buffers, slots, scheduled, num_decodes, decodes_are_plain, config, .. } = self;
        buffers.fill(scheduled, *num_decodes, *decodes_are_plain, slots, config.block_size)?;
        self.in_flight = true;
        self.stats.num_steps += 1;
        self.stats.tokens_scheduled += self.buffers.plan.token_ids.len();
        Ok(Some(&self.buffers.plan))
    }

    fn drop_step(&mut self) {
        self.in_flight = false;
        for Scheduled { rank, .. } in self.scheduled.drain(..) {
            if let Some(request) = self.slots.find_mut(rank) {
                request.drop_step();
            }
        }
    }

    /// Schedules requests with one token to compute first, so that no prompt delays running answers. Out of blocks, the
    /// last request in scheduling order is preempted.
    ///
    /// The very first request must not be delayed either: if it is still in its prefill, one token of the budget is kept
    /// for it.
    fn schedule_decodes(&mut self, budget: &mut usize) -> Result<()> {
        self.prefills.clear();
        self.decodes_are_plain = true;
        self.scheduled.reserve(self.running.len());
        let mut place = 0;
        let mut num_kept = 0;
        while place < self.running.len() && *budget > num_kept {
            let rank = self.running[place];
            let request = self.slots.get_mut(rank.slot)?;
            if request.is_plain_decoder(self.config.block_size) {
                // The common case: one access to the request's state.
                request.take(1);
                self.scheduled.push(Scheduled::new(request, self.config.block_size));
                *budget -= 1;
                place += 1;
                continue;
            }
            if request.num_pending_tokens() > 1 && request.has_room(self.config.block_size) {
                num_kept += usize::from(place == 0);
                self.prefills.push(rank);
                place += 1;
                continue;
            }
            while !self.grow(rank)? {
                self.preempt_last(budget)?;
                if place == self.running.len() {
                    return Ok(());
                }
            }
            // Every later request gets its token before any request gets draft tokens.
            let num_others = num_kept + self.running.len() - place - 1;
            self.take_budget(rank, budget)?;
            self.take_drafts(rank, budget, num_others)?;
            let request = self.slots.get_mut(rank.slot)?;
            self.decodes_are_plain &= request.is_plain_decoder(self.config.block_size);
            place += 1;
        }
        Ok(())
    }

    /// Adds as many of a decoding request's draft tokens as budget and blocks allow; no request is preempted for a draft.
    fn take_drafts(&mut self, rank: Rank, budget: &mut usize, num_others: usize) -> Result<()> {
        let block_size = self.config.block_size;
        let request = self.slots.get_mut(rank.slot)?;
        if !request.has(Traits::HAS_DRAFTS) {
            return Ok(());
        }
        let wanted = request.drafts().len().min(budget.saturating_sub(num_others));
        let needed = (request.num_tokens() + wanted).div_ceil(block_size);
        while request.num_blocks() < needed && self.pool.can_allocate(1 + self.running.len()) {
            self.pool.allocate().into_iter().for_each(|block| request.push_block(block));
        }
        let num_drafts = wanted.min(request.num_blocks() * block_size - request.num_tokens());
        request.take_drafts(num_drafts);
        *budget -= num_drafts;
        if let Some(entry) = self.scheduled.last_mut() {
            entry.num_blocks = request.num_blocks_in_step(block_size) as u32;
        }
        Ok(())
    }

    /// Gives the rest of the budget to prefills, running and waiting, in scheduling order.
    ///
    /// If the head of the queue does not fit, no waiting request overtakes it.
    fn schedule_prefills(&mut self, budget: &mut usize) -> Result<()> {
        let mut place = 0;
        let mut is_open = true;
        while *budget > 0 {
            let running = self.prefills.get(place).copied();
            let waiting = self.waiting.first().copied().filter(|_| is_open);
            match (running, waiting) {
                (None, None) => break,
                (Some(rank), None) => {
                    self.take_budget(rank, budget)?;
                    place += 1;
                }
                (Some(rank), Some(first)) if rank < first => {
                    self.take_budget(rank, budget)?;
                    place += 1;
                }
                (_, Some(first)) => {
                    is_open = self.admit(first, budget)?;
                    if is_open {
                        self.take_budget(first, budget)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Admits the head of the queue if it fits, preempting requests of a worse priority if that makes it fit.
    fn admit(&mut self, rank: Rank, budget: &mut usize) -> Result<bool> {
        let request = self.slots.get_mut(rank.slot)?;
        // A request preempted in this step would only take back its own blocks.
        if request.preempted_in_step == self.stats.num_steps + 1 {
            return Ok(false);
        }
        loop {
            let has_place = self.running.len() < self.config.max_running_requests;
            if has_place && self.allocate_known(rank)? {
                break;
            }
            if !self.could_displace(rank)? {
                return Ok(false);
            }
            self.preempt_last(budget)?;
        }
        self.waiting.remove(&rank);
        insert_sorted(&mut self.running, rank);
        let request = self.slots.get_mut(rank.slot)?;
        request.is_running = true;
        self.waiting_tokens -= request.num_tokens();
        Ok(true)
    }

    /// Whether a waiting request would fit if all requests of a worse priority were preempted.
    fn could_displace(&self, rank: Rank) -> Result<bool> {
        let is_worse = |other: &&Rank| other.priority > rank.priority;
        if !self.running.last().as_ref().is_some_and(is_worse) {
            return Ok(false);
        }
        let blocks_of = |other: &Rank| self.state(*other).map_or(0, Request::num_blocks);
        let num_theirs: usize = self.running.iter().rev().take_while(is_worse).map(blocks_of).sum();
        let num_tokens = self.state(rank).map_or(0, Request::num_tokens);
        Ok(num_tokens.div_ceil(self.config.block_size) <= self.pool.num_free() + num_theirs)
    }

    /// Gives a waiting request blocks for all its known tokens: those in the prefix cache, and free blocks for the rest.
    /// Returns `false` and takes none if too few are free. At least one token stays uncomputed, to yield logits.
    ///
    /// All chunks of a prompt get their blocks at once: a prompt admitted in part would lose its first chunks to
    /// preemption.
    fn allocate_known(&mut self, rank: Rank) -> Result<bool> {
        let block_size = self.config.block_size;
        let request = self.slots.get_mut(rank.slot)?;
        let num_needed = request.num_tokens().div_ceil(block_size);
        request.reserve_blocks(num_needed);
        if self.config.enable_prefix_caching {
            find_prefix(request, &self.hasher, &self.pool, block_size);
        }
        let num_found = request.num_blocks();
        let num_free_found = request.blocks().iter().filter(|&&block| self.pool.ref_count(block) == 0).count();
        if !self.pool.can_allocate(num_needed - num_found + num_free_found) {
            request.clear_blocks();
            return Ok(false);
        }
        // Acquire the found blocks first: otherwise they might be allocated as free ones.
        request.blocks().iter().try_for_each(|&block| self.pool.acquire(block))?;
        (num_found..num_needed).map_while(|_| self.pool.allocate()).for_each(|block| request.push_block(block));
        request.set_found(num_found, block_size);
        if self.config.enable_prefix_caching && request.preempted_in_step == 0 {
            self.stats.prefix_query_tokens += request.num_tokens();
            self.stats.prefix_hit_tokens += request.num_computed_tokens();
            request.keep_num_cached_tokens();
        }
        Ok(true)
    }

    /// Gives a running request the block that its next token needs, and a copy of a shared last block. Returns `false` if
    /// too few blocks are free.
    fn grow(&mut self, rank: Rank) -> Result<bool> {
        let block_size = self.config.block_size;
        let request = self.slots.get_mut(rank.slot)?;
        while !request.has_room(block_size) {
            let Some(block) = self.pool.allocate() else { return Ok(false) };
            request.push_block(block);
        }
        if request.has(Traits::SHARES_LAST_BLOCK) && !request.has(Traits::HAS_COPY) {
            return own_last_block(request, &mut self.pool, block_size);
        }
        Ok(true)
    }

    fn take_budget(&mut self, rank: Rank, budget: &mut usize) -> Result<()> {
        let longest = self.config.max_prefill_chunk.unwrap_or(usize::MAX).min(*budget);
        let request = self.slots.get_mut(rank.slot)?;
        let num_tokens = request.num_pending_tokens().min(longest);
        request.take(num_tokens);
        *budget -= num_tokens;
        self.scheduled.push(Scheduled::new(request, self.config.block_size));
        Ok(())
    }

    /// Preempts the last running request: releases its blocks and returns it to the queue.
    ///
    /// Tokens it already has in this step return to the budget; only a request of a better priority preempts that late.
    fn preempt_last(&mut self, budget: &mut usize) -> Result<()> {
        let rank = self.running.pop().ok_or_else(|| Error::Internal("nobody to preempt".to_owned()))?;
        if self.running.is_empty() && self.waiting.first().is_none_or(|first| *first > rank) {
            return Err(Error::Internal("a request was admitted but does not fit the cache alone".to_owned()));
        }
        if self.prefills.last() == Some(&rank) {
            self.prefills.pop();
        }
        let request = self.slots.get_mut(rank.slot)?;
        let num_scheduled = request.drop_step();
        if num_scheduled > 0 {
            let place = self.scheduled.iter().position(|other| other.rank == rank).ok_or_else(|| lost(rank))?;
            self.scheduled.remove(place);
            self.num_decodes -= usize::from(place < self.num_decodes);
            *budget += num_scheduled;
        }
        request.set_drafts(&[]);
        release_blocks(&mut self.pool, request)?;
        request.reset();
        request.preempted_in_step = self.stats.num_steps + 1;
        self.waiting_tokens += request.num_tokens();
        self.waiting.insert(rank);
        self.stats.num_preemptions += 1;
        Ok(())
    }
}

fn lost(rank: Rank) -> Error {
    Error::Internal(format!("slot {} is scheduled but not in the step", rank.slot))
}

/// Lists the cached blocks of a request's prefix without acquiring them.
fn find_prefix(request: &mut Request, hasher: &super::BlockHasher, pool: &super::BlockPool, block_size: usize) {
    for index in 0..request.num_cacheable_tokens() / block_size {
        let hash = request.block_hash(index, hasher, block_size);
        let Some(block) = pool.find(hash) else { return };
        request.push_block(block);
    }
}

/// Gives a request a copy of a block that other choices hold before it writes there; the last holder needs no copy.
fn own_last_block(request: &mut Request, pool: &mut super::BlockPool, block_size: usize) -> Result<bool> {
    let index = request.num_computed_tokens() / block_size;
    let source: BlockId = request.blocks()[index];
    let is_shared = !request.num_computed_tokens().is_multiple_of(block_size) && pool.ref_count(source) > 1;
    if is_shared {
        let Some(target) = pool.allocate() else { return Ok(false) };
        request.copy_block(index, target);
    }
    request.set_shares_last_block(false);
    Ok(true)
}
