//! Invariants that hold between any two calls.

use super::request::Traits;
use super::{Request, Scheduler};
use crate::{Error, Result};

impl Scheduler {
    /// Checks every invariant of queues, requests and pool; costs O(requests + blocks).
    ///
    /// # Errors
    ///
    /// [`Error::Internal`] naming what disagrees.
    pub fn check_integrity(&self) -> Result<()> {
        self.check_queues()?;
        self.check_ids()?;
        for request in self.slots.iter() {
            self.check_request(request)?;
        }
        let blocks = self.slots.iter().flat_map(|request| {
            let source = request.copy().map(|copy| copy.source);
            request.blocks().iter().copied().chain(source)
        });
        self.pool.check_integrity(blocks)
    }

    fn check_queues(&self) -> Result<()> {
        let num_requests = self.slots.iter().count();
        if !self.running.is_sorted_by(|a, b| a < b) || self.running.len() + self.waiting.len() != num_requests {
            return broken("the queues don't hold each request once, in order".to_owned());
        }
        for (&rank, is_running) in
            self.running.iter().map(|rank| (rank, true)).chain(self.waiting.iter().map(|rank| (rank, false)))
        {
            if self.state(rank).is_none_or(|request| request.is_running != is_running) {
                return broken(format!("slot {} is queued where it doesn't belong", rank.slot));
            }
        }
        if self.running.len() > self.config.max_running_requests {
            return broken(format!("{} requests run, too many", self.running.len()));
        }
        let waiting_tokens: usize =
            self.waiting.iter().filter_map(|rank| self.state(*rank)).map(Request::num_tokens).sum();
        if waiting_tokens != self.waiting_tokens {
            return broken(format!("{waiting_tokens} tokens wait, counted are {}", self.waiting_tokens));
        }
        Ok(())
    }

    fn check_ids(&self) -> Result<()> {
        let mut num_ids = 0;
        for request in self.slots.iter() {
            for id in std::iter::once(request.id).chain(request.choices().iter().copied()) {
                num_ids += 1;
                if self.slot_of.get(&id) != Some(&request.rank.slot) {
                    return broken(format!("request {id} can't be found by its id"));
                }
            }
        }
        if num_ids != self.slot_of.len() || !self.slots.is_consistent() {
            return broken("an id or a free slot is left over".to_owned());
        }
        Ok(())
    }

    fn check_request(&self, request: &Request) -> Result<()> {
        let block_size = self.config.block_size;
        let num_seen = request.num_seen_in_step();
        let num_slots = request.num_blocks() * block_size;
        if request.num_known_in_step() > request.num_tokens() || num_seen > num_slots {
            return broken(format!(
                "request {} computes {num_seen} of {} tokens in {num_slots} slots",
                request.id,
                request.num_tokens()
            ));
        }
        if !request.is_running && (request.num_blocks() > 0 || num_seen > 0 || request.copy().is_some()) {
            return broken(format!("request {} waits but holds blocks or computed tokens", request.id));
        }
        if !request.is_consistent() {
            return broken(format!("request {} knows something twice, and differently", request.id));
        }
        if request.num_findable_blocks() * block_size > request.num_computed_tokens() {
            return broken(format!("request {} has a findable block that is not computed", request.id));
        }
        self.check_last_block(request)
    }

    /// Checks that the request's next write goes to a block of its own.
    fn check_last_block(&self, request: &Request) -> Result<()> {
        let index = request.num_computed_tokens() / self.config.block_size;
        let Some(&block) = request.blocks().get(index) else { return Ok(()) };
        if !request.has(Traits::SHARES_LAST_BLOCK)
            && self.pool.ref_count(block) > 1
            && self.is_written_by_others(request, block)
        {
            return broken(format!("request {} would write to block {block}, which others hold", request.id));
        }
        Ok(())
    }

    /// Whether another request that holds `block` relies on the content that this one would overwrite.
    fn is_written_by_others(&self, request: &Request, block: super::BlockId) -> bool {
        let others = self.slots.iter().filter(|other| other.rank != request.rank);
        others.filter(|other| other.copy().is_none()).any(|other| other.blocks().contains(&block))
    }
}

fn broken(problem: String) -> Result<()> {
    Err(Error::Internal(problem))
}
