//! Storage for the states of requests.

use super::Request;
use super::request::Rank;
use crate::{Error, Result};

/// Slots for request states. A request keeps its slot for life; freed slots are reused.
///
/// A vacant slot holds a request of rank `NOBODY`. An `Option` would place its tag beside the request's vectors, so
/// every check would touch a second cache line.
#[derive(Debug, Default)]
pub(super) struct Slots {
    requests: Vec<Request>,
    free: Vec<u32>,
}

impl Slots {
    /// Reserves a slot for [`Self::put`].
    pub fn reserve(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.requests.push(vacant());
            self.requests.len() as u32 - 1
        })
    }

    /// Stores a request in the slot that its rank names.
    pub fn put(&mut self, request: Request) {
        let slot = request.rank.slot as usize;
        self.requests[slot] = request;
    }

    /// Removes a request from its slot, which stays reserved.
    pub fn take(&mut self, rank: Rank) -> Result<Request> {
        Ok(std::mem::replace(self.get_mut(rank.slot)?, vacant()))
    }

    /// Frees a slot and drops its content.
    pub fn free(&mut self, slot: u32) {
        self.requests[slot as usize] = vacant();
        self.free.push(slot);
    }

    /// The request with this rank, unless it was removed.
    #[inline]
    pub fn find(&self, rank: Rank) -> Option<&Request> {
        self.requests.get(rank.slot as usize).filter(|request| request.rank.is(rank))
    }

    /// The request with this rank, unless it was removed; mutable.
    #[inline]
    pub fn find_mut(&mut self, rank: Rank) -> Option<&mut Request> {
        self.requests.get_mut(rank.slot as usize).filter(|request| request.rank.is(rank))
    }

    /// The request in this slot.
    ///
    /// # Errors
    ///
    /// [`Error::Internal`] if the slot is vacant.
    #[inline]
    pub fn get_mut(&mut self, slot: u32) -> Result<&mut Request> {
        match self.requests.get_mut(slot as usize) {
            Some(request) if request.rank != Rank::NOBODY => Ok(request),
            _ => Err(missing(slot)),
        }
    }

    /// The request in this slot; `None` for a vacant slot.
    #[inline]
    pub fn get(&self, slot: u32) -> Option<&Request> {
        self.requests.get(slot as usize).filter(|request| request.rank != Rank::NOBODY)
    }

    /// Iterates over all requests.
    pub fn iter(&self) -> impl Iterator<Item = &Request> {
        self.requests.iter().filter(|request| request.rank != Rank::NOBODY)
    }

    /// Whether each slot holds the request that names it or is on the free list once.
    pub fn is_consistent(&self) -> bool {
        let is_home = |(slot, request): (usize, &Request)| {
            request.rank == Rank::NOBODY || (request.rank.slot as usize == slot && !self.free.contains(&(slot as u32)))
        };
        self.requests.iter().enumerate().all(is_home) && self.iter().count() + self.free.len() == self.requests.len()
    }
}

fn vacant() -> Request {
    Request::new(0, Vec::new(), Rank::NOBODY)
}

#[cold]
fn missing(slot: u32) -> Error {
    Error::Internal(format!("slot {slot} holds no request"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vacant_slot_holds_no_request_and_is_given_out_again() {
        let mut slots = Slots::default();
        let rank = |arrival| Rank { priority: 0, arrival, slot: 0 };
        let is_vacant = |slots: &mut Slots, arrival| {
            let message = slots.get_mut(0).err().map(|error| error.to_string());
            let is_found = slots.find(rank(arrival)).is_some() || slots.find_mut(rank(arrival)).is_some();
            message == Some(missing(0).to_string()) && slots.get(0).is_none() && !is_found
        };
        assert!(is_vacant(&mut slots, 1));
        for arrival in [1, 2] {
            assert_eq!(slots.reserve(), 0);
            assert!(is_vacant(&mut slots, arrival) && !slots.is_consistent());
            slots.put(Request::new(7, vec![1], rank(arrival)));
            assert!(slots.find(rank(arrival)).is_some() && slots.find(rank(arrival + 1)).is_none());
            assert!(slots.is_consistent() && slots.get_mut(0).is_ok());
            assert!(slots.take(rank(arrival)).is_ok_and(|request| request.rank.is(rank(arrival))));
            assert!(is_vacant(&mut slots, arrival) && slots.take(rank(arrival)).is_err());
            slots.free(0);
            assert!(slots.is_consistent());
        }
        slots.free(0);
        assert!(!slots.is_consistent(), "a slot is free twice");
        slots.free.pop();
        slots.requests[0] = Request::new(7, vec![1], rank(3));
        assert!(!slots.is_consistent(), "a free slot holds a request");
        slots.free.clear();
        slots.requests[0].rank.slot = 1;
        assert!(!slots.is_consistent(), "a request names another slot");
    }
}
