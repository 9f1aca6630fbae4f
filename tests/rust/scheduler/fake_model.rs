//! A model whose next token is a pure function of the tokens it finds in its cache.
//!
//! It stores token ids by `slot_mapping` and reads sequences back by `block_tables`, so a wrong slot, a block shared by
//! mistake, a copy left out or a stale length changes what it says.

use llm_core::scheduler::StepPlan;

const EMPTY: i64 = -1;
const GARBAGE: i64 = -2;

pub struct FakeModel {
    cache: Vec<i64>,
    block_size: usize,
}

impl FakeModel {
    pub fn new(num_blocks: usize, block_size: usize) -> Self {
        Self { cache: vec![EMPTY; num_blocks * block_size], block_size }
    }

    /// The tokens each row of logits has seen, in the plan's order.
    pub fn run(&mut self, plan: &StepPlan) -> Vec<Vec<u32>> {
        check_shapes(plan, self.block_size);
        self.copy_blocks(plan);
        for (&slot, &token) in plan.slot_mapping.iter().zip(&plan.token_ids) {
            self.cache[slot as usize] = token;
        }
        plan.logits_indices.iter().map(|&index| self.read(plan, index)).collect()
    }

    /// A pass that breaks off: whatever it was to write is garbage.
    pub fn fail(&mut self, plan: &StepPlan) {
        self.copy_blocks(plan);
        for &slot in &plan.slot_mapping {
            self.cache[slot as usize] = GARBAGE;
        }
    }

    fn copy_blocks(&mut self, plan: &StepPlan) {
        let targets: Vec<i64> = plan.block_copies.iter().map(|copy| copy[1]).collect();
        for &[source, target] in &plan.block_copies {
            assert!(!targets.contains(&source), "block {source} is copied and overwritten in one step");
            let start = source as usize * self.block_size;
            self.cache.copy_within(start..start + self.block_size, target as usize * self.block_size);
        }
    }

    /// What lies in the cache up to the token at `index` of the plan.
    fn read(&self, plan: &StepPlan, index: i64) -> Vec<u32> {
        let request = plan.query_start.partition_point(|&start| i64::from(start) <= index) - 1;
        let table = &plan.block_tables[request * plan.max_blocks..][..plan.max_blocks];
        let token = |position: usize| {
            let block = table[position / self.block_size] as usize;
            self.cache[block * self.block_size + position % self.block_size]
        };
        (0..=plan.positions[index as usize] as usize).map(|position| u32::try_from(token(position)).unwrap()).collect()
    }
}

fn check_shapes(plan: &StepPlan, block_size: usize) {
    let num_requests = plan.request_ids.len();
    assert_eq!(plan.positions.len(), plan.token_ids.len());
    assert_eq!(plan.slot_mapping.len(), plan.token_ids.len());
    assert_eq!(plan.query_start.len(), num_requests + 1);
    assert_eq!(plan.seq_lens.len(), num_requests);
    assert_eq!(plan.block_tables.len(), num_requests * plan.max_blocks);
    let mut slots = plan.slot_mapping.clone();
    slots.sort_unstable();
    slots.dedup();
    assert_eq!(slots.len(), plan.slot_mapping.len(), "two tokens go to one slot");
    for request in 0..num_requests {
        let (start, end) = (plan.query_start[request] as usize, plan.query_start[request + 1] as usize);
        assert!(start < end, "a request without tokens is in the plan");
        let seq_len = i64::from(plan.seq_lens[request]);
        let row = &plan.block_tables[request * plan.max_blocks..][..plan.max_blocks];
        let num_blocks = (seq_len as usize).div_ceil(block_size);
        assert!(row[num_blocks..].iter().all(|&block| block == 0), "a row of the table has remains of another");
        let expected: Vec<i64> = (seq_len - (end - start) as i64..seq_len).collect();
        assert_eq!(&plan.positions[start..end], expected);
    }
}

/// The token that follows these.
pub fn next_token(tokens: &[u32], vocab_size: u32) -> u32 {
    let hash =
        tokens.iter().fold(0x9E37_79B9_u32, |hash, &token| (hash ^ token).wrapping_mul(0x0100_0193).rotate_left(7));
    (hash >> 8) % vocab_size
}
