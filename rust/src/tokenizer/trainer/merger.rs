//! Selects the pairs to merge, round by round.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rayon::ThreadPool;

use super::pairs::{Pair, PairTable, Sketch};
use super::shard::{Merge, Met, NewPair, Shard};
use super::words::Word;
use crate::Result;
use crate::tokenizer::tokens::NUM_BYTES;

/// Maximum number of merges in one round, so that `progress` is called often.
const MAX_ROUND: usize = 64;

/// Minimum number of places in a round that justifies waking other threads.
const MIN_PARALLEL_PLACES: usize = 1024;

/// Conditions for merging a pair.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Maximum number of merges, each of which creates an id.
    pub num_merges: usize,
    /// Minimum count of the pair; 1 or more.
    pub min_count: u64,
    /// Maximum number of bytes in the two tokens together.
    pub max_len: u32,
    /// Approximate number of pairs to track from the start of the first epoch; see [`Merger`].
    pub num_tracked: usize,
}

/// The words as tokens so far, and the pairs to merge next.
///
/// Only pairs that occur at least `threshold` times are tracked. That is enough, because a pair's count never rises
/// after the round that created its newer token: an untracked pair always has a lower count than every tracked pair.
/// When no pair reaches the threshold any more, an *epoch* ends: all pairs are counted again and the threshold falls.
/// Most pairs of a text are so rare that they are never examined one by one, which saves both time and memory.
///
/// A *round* merges several pairs: the first in order, as long as no pair starts with the token that another one ends
/// with; the round stops after a pair of equal tokens. Merging one of the pairs changes neither the count nor the rank
/// of the next. Merging (a, b) into c creates pairs (x, c), whose count is at most that of (x, a), and (c, y), whose
/// count is at most that of (b, y). The pairs (x, a) and (b, y) are not in the round, so they rank below all pairs in
/// it; at equal counts the new pairs do too, because their ids are higher.
#[derive(Debug)]
pub struct Merger<'a> {
    limits: Limits,
    shards: Vec<Shard>,
    pool: &'a ThreadPool,
    /// Number of bytes in each token.
    lens: Vec<u32>,
    /// Number of places that each token takes in the words.
    widths: Vec<u32>,
    merges: Vec<Pair>,
    threshold: u64,
    tracked: Tracked,
    new_pairs: Vec<NewPair>,
    sums: Sums,
    /// For each id, the last round with a pair that starts with it (`[0]`) and the last with a pair that ends with it
    /// (`[1]`).
    in_round: [Vec<u32>; 2],
    round: u32,
}

impl<'a> Merger<'a> {
    /// Creates a merger that divides `words` among `num_shards` threads.
    ///
    /// # Errors
    ///
    /// `Capacity` if there are too many words; see [`Shard::new`].
    pub fn new(mut words: Vec<Word<'_>>, num_shards: usize, limits: Limits, pool: &'a ThreadPool) -> Result<Self> {
        words.retain(|word| word.len() > 1);
        words.sort_unstable_by_key(|word| Reverse(word.count));
        let max_ids = NUM_BYTES + limits.num_merges;
        let mut shards: Vec<(usize, Option<Result<Shard>>)> = (0..num_shards).map(|shard| (shard, None)).collect();
        for_each_shard(pool, &mut shards, |(shard, made)| {
            *made = Some(Shard::new(words.iter().skip(*shard).step_by(num_shards), max_ids));
        });
        Ok(Self {
            limits,
            shards: shards.into_iter().filter_map(|(_, made)| made).collect::<Result<_>>()?,
            pool,
            lens: vec![1; NUM_BYTES],
            widths: vec![1; NUM_BYTES],
            merges: vec![],
            threshold: u64::MAX,
            tracked: Tracked::default(),
            new_pairs: vec![],
            sums: Sums::default(),
            in_round: [vec![0; max_ids], vec![0; max_ids]],
            round: 0,
        })
    }

    /// Returns the merges so far, in order.
    pub fn merges(&self) -> &[Pair] {
        &self.merges
    }

    /// Merges the pairs of one round; returns false if no pair is left.
    pub fn step(&mut self) -> bool {
        let mut merges = self.next_round();
        while merges.is_empty() {
            let at_end = self.threshold <= self.limits.min_count || self.merges.len() >= self.limits.num_merges;
            if at_end {
                return false;
            }
            self.start_epoch();
            merges = self.next_round();
        }
        self.apply(&merges);
        for (index, merge) in merges.iter().enumerate() {
            self.update_pairs(index, *merge);
        }
        true
    }

    /// Takes the pairs of the next round and assigns ids to them.
    fn next_round(&mut self) -> Vec<Merge> {
        let mut merges = Vec::new();
        self.round += 1;
        while merges.len() < MAX_ROUND && self.merges.len() < self.limits.num_merges {
            let Some((pair, list)) = self.tracked.most_frequent(self.threshold) else { break };
            let (left, right) = (pair.0 as usize, pair.1 as usize);
            if self.in_round[0][right] == self.round || self.in_round[1][left] == self.round {
                break;
            }
            self.tracked.heap.pop();
            (self.in_round[0][left], self.in_round[1][right]) = (self.round, self.round);
            merges.push(Merge { pair, id: self.lens.len() as u32, list });
            self.lens.push(self.lens[left] + self.lens[right]);
            self.widths.push(self.widths[left] + self.widths[right]);
            self.merges.push(pair);
            if left == right {
                break;
            }
        }
        merges
    }

    fn apply(&mut self, merges: &[Merge]) {
        let (new_pairs, num_lists, widths) = (&self.new_pairs, self.tracked.num_lists, &self.widths);
        let num_places: usize = self.shards.iter().map(|shard| shard.num_places(merges)).sum();
        let apply = |shard: &mut Shard| shard.apply(new_pairs, num_lists, merges, widths);
        if num_places < MIN_PARALLEL_PLACES {
            self.shards.iter_mut().for_each(apply);
        } else {
            for_each_shard(self.pool, &mut self.shards, apply);
        }
        self.new_pairs.clear();
    }

    /// Lowers the counts of the pairs that merge number `index` of the round broke, and tracks the pairs it created.
    fn update_pairs(&mut self, index: usize, merge: Merge) {
        let (left, right) = merge.pair;
        // Right neighbours first: where two merged tokens are adjacent, the left token's neighbour was counted before
        // that neighbour was merged.
        for is_left in [false, true] {
            for met in self.sums.add_up(&self.shards, index, is_left, self.lens.len()) {
                let neighbour = met.neighbour;
                let pair = |token| if is_left { (neighbour, token) } else { (token, neighbour) };
                self.tracked.count_down(pair(if is_left { left } else { right }), met.count);
                let len = self.lens[neighbour as usize] + self.lens[merge.id as usize];
                if met.count >= self.threshold && len <= self.limits.max_len {
                    let list = self.tracked.insert(pair(merge.id), met.count);
                    self.new_pairs.push(NewPair { merge: index as u32, is_left, neighbour, list });
                }
            }
        }
    }

    /// Counts all pairs and tracks the most frequent ones.
    fn start_epoch(&mut self) {
        let (pool, lens, max_len) = (self.pool, &self.lens, self.limits.max_len);
        for_each_shard(pool, &mut self.shards, |shard| shard.compact(&self.widths));
        self.widths.fill(1);
        let num_tracked = self.limits.num_tracked.max(2 * self.merges.len());
        let num_places: usize = self.shards.iter().map(Shard::len).sum();
        let sketch = if num_places < 4 * num_tracked {
            self.threshold = self.limits.min_count;
            None
        } else {
            let sketches = map_shards(pool, &mut self.shards, |shard| shard.sketch(lens, max_len, num_places));
            sketches.into_iter().reduce(Sketch::merged)
        };
        if let Some(sketch) = &sketch {
            self.threshold = sketch.count_of_top(num_tracked).clamp(self.limits.min_count, self.threshold - 1);
        }
        self.list_pairs(sketch.as_ref());
        while self.tracked.num_lists == 0 && self.threshold > self.limits.min_count {
            // The sketch only bounds counts from above, so no pair may reach the threshold it suggested.
            self.threshold = (self.threshold / 2).max(self.limits.min_count);
            self.list_pairs(sketch.as_ref());
        }
    }

    /// Tracks the pairs that reach the threshold.
    fn list_pairs(&mut self, sketch: Option<&Sketch>) {
        let (pool, lens, max_len, threshold) = (self.pool, &self.lens, self.limits.max_len, self.threshold);
        let filter = sketch.map(|sketch| sketch.reaching(threshold));
        let listed = map_shards(pool, &mut self.shards, |shard| shard.list(lens, max_len, filter.as_ref()));
        let mut total = PairTable::default();
        for entry in listed.iter().flat_map(PairTable::iter) {
            total.get_or_insert(entry.pair()).count += entry.count;
        }
        self.tracked = Tracked::default();
        self.new_pairs.clear();
        for entry in total.iter().filter(|entry| entry.count >= threshold) {
            self.tracked.insert(entry.pair(), entry.count);
        }
        let (table, num_lists) = (&self.tracked.table, self.tracked.num_lists);
        let mut shards: Vec<(&mut Shard, PairTable)> = self.shards.iter_mut().zip(listed).collect();
        for_each_shard(pool, &mut shards, |(shard, listed)| shard.keep(listed, table, num_lists));
    }
}

/// The tracked pairs.
#[derive(Debug, Default)]
struct Tracked {
    table: PairTable,
    /// Pairs with their counts when pushed; a pair's current count may be lower.
    heap: BinaryHeap<(u64, Reverse<Pair>)>,
    num_lists: usize,
}

impl Tracked {
    /// Returns the first pair in order and its list, if its count is at least `threshold`. The pair stays on the heap.
    fn most_frequent(&mut self, threshold: u64) -> Option<(Pair, u32)> {
        while let Some(&(count, Reverse(pair))) = self.heap.peek() {
            let entry = self.table.get(pair)?;
            if entry.count == count {
                return Some((pair, entry.list));
            }
            self.heap.pop();
            if entry.count >= threshold {
                self.heap.push((entry.count, Reverse(pair)));
            }
        }
        None
    }

    fn insert(&mut self, pair: Pair, count: u64) -> u32 {
        let list = self.num_lists as u32;
        self.num_lists += 1;
        let entry = self.table.get_or_insert(pair);
        (entry.count, entry.list) = (count, list);
        self.heap.push((count, Reverse(pair)));
        list
    }

    fn count_down(&mut self, pair: Pair, count: u64) {
        if let Some(entry) = self.table.get_mut(pair) {
            entry.count = entry.count.saturating_sub(count);
        }
    }
}

/// Adds up the neighbours that several shards met.
#[derive(Debug, Default)]
struct Sums {
    met: Vec<Met>,
    /// For each id: its index in `met` plus one, or 0 if `met` lacks the id.
    marks: Vec<u32>,
}

impl Sums {
    fn add_up<'s>(&'s mut self, shards: &'s [Shard], merge: usize, is_left: bool, num_ids: usize) -> &'s [Met] {
        if let [shard] = shards {
            return shard.met(merge, is_left);
        }
        self.met.clear();
        self.marks.resize(num_ids, 0);
        for met in shards.iter().flat_map(|shard| shard.met(merge, is_left)) {
            let mark = &mut self.marks[met.neighbour as usize];
            if *mark == 0 {
                self.met.push(*met);
                *mark = self.met.len() as u32;
            } else {
                self.met[*mark as usize - 1].count += met.count;
            }
        }
        self.met.iter().for_each(|met| self.marks[met.neighbour as usize] = 0);
        &self.met
    }
}

fn for_each_shard<T: Send>(pool: &ThreadPool, shards: &mut [T], work: impl Fn(&mut T) + Sync) {
    let Some((first, others)) = shards.split_first_mut() else { return };
    let work = &work;
    pool.in_place_scope(|scope| {
        others.iter_mut().for_each(|shard| scope.spawn(move |_| work(shard)));
        work(first);
    });
}

fn map_shards<T: Send>(pool: &ThreadPool, shards: &mut [Shard], work: impl Fn(&mut Shard) -> T + Sync) -> Vec<T> {
    let mut results: Vec<(&mut Shard, Option<T>)> = shards.iter_mut().map(|shard| (shard, None)).collect();
    for_each_shard(pool, &mut results, |(shard, result)| *result = Some(work(shard)));
    results.into_iter().filter_map(|(_, result)| result).collect()
}
