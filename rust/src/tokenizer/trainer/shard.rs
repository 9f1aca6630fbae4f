//! A share of the words as tokens, merged by one thread at a time.

use super::pairs::{Pair, PairFilter, PairTable, Sketch};
use super::words::Word;
use crate::{Error, Result};

/// Marks the places before, between and after words.
const BORDER: u32 = u32::MAX;
/// Marks a place where no token starts or ends.
const HOLE: u32 = u32::MAX - 1;

/// A merge to apply.
#[derive(Debug, Clone, Copy)]
pub struct Merge {
    /// Pair to replace.
    pub pair: Pair,
    /// Id that replaces the pair.
    pub id: u32,
    /// Index of the pair's list of places.
    pub list: u32,
}

/// A neighbour that a merge met: the merge replaced `count` occurrences of a pair with this neighbour by a new pair.
#[derive(Debug, Clone, Copy)]
pub struct Met {
    /// Token next to the merged token.
    pub neighbour: u32,
    /// Number of places with this neighbour.
    pub num_places: u32,
    /// Number of occurrences in the text.
    pub count: u64,
}

/// A pair created in the last round that is frequent enough to be tracked.
#[derive(Debug, Clone, Copy)]
pub struct NewPair {
    /// Index of the merge in its round.
    pub merge: u32,
    /// Whether the neighbour is on the left.
    pub is_left: bool,
    /// Token next to the merged token.
    pub neighbour: u32,
    /// Index of the pair's list of places.
    pub list: u32,
}

/// The neighbours that the merges of a round met on one side.
#[derive(Debug, Default)]
struct Side {
    /// Neighbours of the first merge, then of the second, and so on.
    met: Vec<Met>,
    /// Neighbour and place of each pair of a neighbour and the merged token, by merge and then by place.
    places: Vec<(u32, u32)>,
    /// End of each merge's entries in `met` and in `places`.
    ends: Vec<(usize, usize)>,
}

impl Side {
    fn clear(&mut self) {
        self.met.clear();
        self.places.clear();
        self.ends.clear();
    }

    /// Counts a neighbour of the current merge; `place` is where the pair of the neighbour and the merged token starts.
    fn meet(&mut self, marks: &mut [u32], neighbour: u32, place: u32, count: u64) {
        self.places.push((neighbour, place));
        let mark = &mut marks[neighbour as usize];
        if *mark == 0 {
            self.met.push(Met { neighbour, num_places: 1, count });
            *mark = self.met.len() as u32;
            return;
        }
        let known = &mut self.met[*mark as usize - 1];
        known.num_places += 1;
        known.count += count;
    }

    fn end_merge(&mut self, marks: &mut [u32]) {
        let start = self.ends.last().map_or(0, |&(met, _)| met);
        self.met[start..].iter().for_each(|met| marks[met.neighbour as usize] = 0);
        self.ends.push((self.met.len(), self.places.len()));
    }

    /// Returns the neighbours that merge number `merge` met, and their places.
    fn of(&self, merge: usize) -> (&[Met], &[(u32, u32)]) {
        let (met_start, places_start) = merge.checked_sub(1).map_or((0, 0), |before| self.ends[before]);
        let (met_end, places_end) = self.ends[merge];
        (&self.met[met_start..met_end], &self.places[places_start..places_end])
    }
}

/// Words laid out one after another. A token is as wide as the two tokens it was merged from, or one place wide after
/// [`Shard::compact`]; all occurrences of an id have the same width, since one round creates them all. The first and
/// last places of a token hold its id and the places between are holes, so widths lead to both neighbours.
#[derive(Debug)]
pub struct Shard {
    ids: Vec<u32>,
    /// End and count of each group of words with the same count. Words are sorted by count, so a group starts where the
    /// previous one ends.
    groups: Vec<(u32, u64)>,
    /// Places of each tracked pair, in ascending order; some places no longer hold the pair.
    lists: Vec<Vec<u32>>,
    /// Neighbours that the last round met on the left and on the right.
    sides: [Side; 2],
    /// For each id on the left and on the right: its index in the current list plus one, or 0.
    marks: [Vec<u32>; 2],
}

impl Shard {
    /// Creates a shard from words sorted by count, most frequent first. Ids will stay below `max_ids`.
    ///
    /// # Errors
    ///
    /// `Capacity` if the words exceed 4 GiB.
    pub fn new<'a>(words: impl Iterator<Item = &'a Word<'a>> + Clone, max_ids: usize) -> Result<Self> {
        let num_places = words.clone().map(|word| word.len() + 1).sum::<usize>() + 1;
        if num_places >= HOLE as usize {
            return Err(Error::Capacity(format!(
                "the distinct pieces of the text must have less than 4 GiB for each thread, got {num_places} bytes\n\
                 hint: train on less text, or raise `num_threads`"
            )));
        }
        let mut ids = Vec::with_capacity(num_places);
        let mut groups: Vec<(u32, u64)> = Vec::new();
        ids.push(BORDER);
        for word in words {
            word.with_bytes(|bytes| ids.extend(bytes.iter().map(|&byte| u32::from(byte))));
            ids.push(BORDER);
            match groups.last_mut() {
                Some((end, count)) if *count == word.count => *end = ids.len() as u32,
                _ => groups.push((ids.len() as u32, word.count)),
            }
        }
        Ok(Self { ids, groups, lists: vec![], sides: Default::default(), marks: [vec![0; max_ids], vec![0; max_ids]] })
    }

    /// Returns the number of places, including those between words.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Gives every token one place and drops words of a single token, so that later rounds have less to read.
    pub fn compact(&mut self, widths: &[u32]) {
        // The places in the lists are no longer valid.
        self.lists.clear();
        let (mut read, mut write) = (1, 1);
        let mut word = write;
        for (end, _) in &mut self.groups {
            while read < *end as usize {
                let id = self.ids[read];
                if id != BORDER {
                    read += widths[id as usize] as usize;
                } else if write - word > 1 {
                    (read, word) = (read + 1, write + 1);
                } else {
                    (read, write) = (read + 1, word);
                    continue;
                }
                self.ids[write] = id;
                write += 1;
            }
            *end = write as u32;
        }
        self.ids.truncate(write);
    }

    /// Calls `visit` with the place, pair and count of every two neighbours with at most `max_len` bytes together. The
    /// words must be compact, so that neighbours are one place apart.
    fn for_each_pair(&self, lens: &[u32], max_len: u32, mut visit: impl FnMut(usize, Pair, u64)) {
        let mut start = 1;
        for &(end, count) in &self.groups {
            for (index, pair) in self.ids[start..end as usize].windows(2).enumerate() {
                let (left, right) = (pair[0], pair[1]);
                if left == BORDER || right == BORDER {
                    continue;
                }
                if max_len == u32::MAX || lens[left as usize] + lens[right as usize] <= max_len {
                    visit(start + index, (left, right), count);
                }
            }
            start = end as usize;
        }
    }

    /// Sums the counts of all pairs in a sketch.
    pub fn sketch(&self, lens: &[u32], max_len: u32, num_pairs: usize) -> Sketch {
        let mut sketch = Sketch::new(num_pairs);
        self.for_each_pair(lens, max_len, |_, pair, count| sketch.add(pair, count));
        sketch
    }

    /// Counts the pairs that `filter` contains, or all pairs without a filter, and lists their places.
    pub fn list(&mut self, lens: &[u32], max_len: u32, filter: Option<&PairFilter>) -> PairTable {
        let (mut table, mut lists) = (PairTable::default(), Vec::new());
        self.for_each_pair(lens, max_len, |place, pair, count| {
            if filter.is_some_and(|filter| !filter.may_have(pair)) {
                return;
            }
            let entry = table.get_or_insert(pair);
            if entry.count == 0 {
                entry.list = lists.len() as u32;
                lists.push(Vec::new());
            }
            entry.count += count;
            lists[entry.list as usize].push(place as u32);
        });
        self.lists = lists;
        table
    }

    /// Keeps the lists of the pairs in `table`, under the numbers of that table; `here` is the result of
    /// [`Shard::list`].
    pub fn keep(&mut self, here: &PairTable, table: &PairTable, num_lists: usize) {
        let mut listed = std::mem::take(&mut self.lists);
        self.lists.resize_with(num_lists, Vec::new);
        for entry in here.iter() {
            if let Some(kept) = table.get(entry.pair()) {
                let mut list = std::mem::take(&mut listed[entry.list as usize]);
                list.shrink_to_fit();
                self.lists[kept.list as usize] = list;
            }
        }
    }

    /// Returns about how many places [`Shard::apply`] will read.
    pub fn num_places(&self, merges: &[Merge]) -> usize {
        merges.iter().map(|merge| self.lists.get(merge.list as usize).map_or(0, Vec::len)).sum()
    }

    /// Applies one round of merges, which share no token in a way that makes their order matter, after listing the
    /// places of the previous round's `new_pairs`. `widths` includes the widths of the new ids.
    pub fn apply(&mut self, new_pairs: &[NewPair], num_lists: usize, merges: &[Merge], widths: &[u32]) {
        self.lists.resize_with(num_lists, Vec::new);
        for same_side in new_pairs.chunk_by(|one, other| (one.merge, one.is_left) == (other.merge, other.is_left)) {
            self.list_new(same_side);
        }
        self.sides.iter_mut().for_each(Side::clear);
        for merge in merges {
            self.apply_one(*merge, widths);
        }
    }

    /// Returns the neighbours that merge number `merge` of the last round met on one side.
    pub fn met(&self, merge: usize, is_left: bool) -> &[Met] {
        self.sides[usize::from(!is_left)].of(merge).0
    }

    fn list_new(&mut self, new_pairs: &[NewPair]) {
        let Some(first) = new_pairs.first() else { return };
        let (met, places) = self.sides[usize::from(!first.is_left)].of(first.merge as usize);
        let marks = &mut self.marks[0];
        for pair in new_pairs {
            marks[pair.neighbour as usize] = pair.list + 1;
        }
        for met in met {
            if let Some(list) = marks[met.neighbour as usize].checked_sub(1) {
                self.lists[list as usize].reserve_exact(met.num_places as usize);
            }
        }
        for &(neighbour, place) in places {
            if let Some(list) = marks[neighbour as usize].checked_sub(1) {
                self.lists[list as usize].push(place);
            }
        }
        for pair in new_pairs {
            marks[pair.neighbour as usize] = 0;
        }
    }

    fn apply_one(&mut self, merge: Merge, widths: &[u32]) {
        let places = std::mem::take(&mut self.lists[merge.list as usize]);
        let (left, right) = merge.pair;
        let (left_len, right_len) = (widths[left as usize] as usize, widths[right as usize] as usize);
        let mut group = 0;
        let [before, after] = &mut self.sides;
        let [before_marks, after_marks] = &mut self.marks;
        for place in places {
            let start = place as usize;
            let middle = start + left_len;
            if self.ids[start] != left || self.ids[middle] != right {
                continue;
            }
            if self.groups[group].0 <= place {
                group += self.groups[group..].partition_point(|&(end, _)| end <= place);
            }
            let count = self.groups[group].1;
            let end = middle + right_len;
            self.ids[middle - 1] = HOLE;
            self.ids[middle] = HOLE;
            self.ids[start] = merge.id;
            self.ids[end - 1] = merge.id;
            let (previous, next) = (self.ids[start - 1], self.ids[end]);
            if previous != BORDER {
                before.meet(before_marks, previous, place - widths[previous as usize], count);
            }
            if next != BORDER {
                after.meet(after_marks, next, place, count);
            }
        }
        before.end_merge(before_marks);
        after.end_merge(after_marks);
    }
}
