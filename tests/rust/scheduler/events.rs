//! The record of the prefix cache's changes, replayed beside the cache itself.

use std::collections::{BTreeSet, HashMap};

use llm_core::scheduler::{BlockEvent, BlockHash, RequestOptions, SchedulerConfig, StoredBlocks};
use proptest::prelude::*;

use super::simulation::{Simulation, prompt};
use super::{config, options};

/// What a router elsewhere knows: the whole text up to each findable block, under its adapter.
#[derive(Default)]
struct Router {
    texts: HashMap<BlockHash, (u16, Vec<u32>)>,
    block_size: usize,
}

impl Router {
    fn follow(&mut self, simulation: &mut Simulation) {
        for event in simulation.scheduler.take_block_events() {
            match event {
                BlockEvent::Stored(blocks) => self.store(&blocks),
                BlockEvent::Removed(hashes) => {
                    hashes.iter().for_each(|hash| assert!(self.texts.remove(hash).is_some(), "removed, never stored"));
                }
            }
        }
        assert_eq!(self.texts.len(), simulation.scheduler.stats().blocks_cached);
    }

    fn store(&mut self, blocks: &StoredBlocks) {
        assert_eq!(blocks.token_ids.len(), blocks.hashes.len() * self.block_size);
        // The block before may have been removed meanwhile; then nobody finds this one either, until it is back.
        let before = blocks.parent.and_then(|parent| self.texts.get(&parent));
        if blocks.parent.is_some() && before.is_none() {
            blocks.hashes.iter().for_each(|hash| assert!(self.texts.insert(*hash, (u16::MAX, vec![])).is_none()));
            return;
        }
        let mut text = before.map_or_else(Vec::new, |(_, text)| text.clone());
        for (hash, tokens) in blocks.hashes.iter().zip(blocks.token_ids.chunks(self.block_size)) {
            text.extend(tokens);
            assert!(self.texts.insert(*hash, (blocks.adapter, text.clone())).is_none(), "stored twice");
        }
    }

    /// Number of a prompt's tokens that the cache holds; its last token is always computed.
    fn predict(&self, prompt: &[u32], adapter: u16) -> usize {
        let holds = |num_tokens: usize| self.texts.values().any(|own| *own == (adapter, prompt[..num_tokens].to_vec()));
        let last = (prompt.len() - 1) / self.block_size;
        self.block_size * (1..=last).take_while(|count| holds(count * self.block_size)).count()
    }
}

fn following(config: SchedulerConfig) -> (Simulation, Router) {
    let mut simulation = Simulation::new(config);
    assert!(simulation.scheduler.take_block_events().is_empty());
    (simulation, Router { block_size: config.block_size, ..Router::default() })
}

#[test]
fn a_prompt_s_blocks_are_one_event_and_an_answer_s_come_as_they_fill() {
    let (mut simulation, _) = following(config(8, 64));
    simulation.add(1, prompt(1, 9), 5).unwrap();
    simulation.step();
    let events = simulation.scheduler.take_block_events();
    let [BlockEvent::Stored(first)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((first.hashes.len(), first.parent, first.adapter), (2, None, 0));
    assert_eq!(first.token_ids, prompt(1, 8));
    simulation.run_out();
    let text = [prompt(1, 9), simulation.finished[&1].clone()].concat();
    let events = simulation.scheduler.take_block_events();
    let [BlockEvent::Stored(next)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((next.parent, next.token_ids.as_slice()), (first.hashes.last().copied(), &text[8..12]));
    assert!(simulation.scheduler.take_block_events().is_empty());
}

#[test]
fn blocks_given_to_other_content_are_removed_before_that_is_stored() {
    let (mut simulation, mut router) = following(config(4, 64));
    simulation.add(1, prompt(1, 9), 1).unwrap();
    simulation.run_out();
    router.follow(&mut simulation);
    assert_eq!(router.predict(&prompt(1, 9), 0), 8);
    simulation.add(2, prompt(2, 13), 1).unwrap();
    simulation.run_out();
    router.follow(&mut simulation);
    assert_eq!((router.predict(&prompt(1, 9), 0), router.predict(&prompt(2, 13), 0)), (0, 12));
}

#[test]
fn blocks_removed_one_after_the_other_are_one_event_as_are_those_stored() {
    let (mut simulation, _) = following(config(4, 64));
    for id in 1..=2 {
        simulation.add(id, prompt(id, 13), 1).unwrap();
        simulation.run_out();
    }
    let events = simulation.scheduler.take_block_events();
    let [BlockEvent::Stored(first), BlockEvent::Removed(removed), BlockEvent::Stored(_)] = events.as_slice() else {
        panic!("{events:?}")
    };
    let set = |hashes: &[BlockHash]| hashes.iter().copied().collect::<BTreeSet<_>>();
    assert_eq!((removed.len(), set(removed)), (3, set(&first.hashes)));
}

#[test]
fn the_same_text_under_two_adapters_is_stored_for_each() {
    let (mut simulation, mut router) = following(config(16, 64));
    for (id, adapter) in [(1, 0), (2, 3)] {
        simulation.add_with(id, prompt(1, 9), RequestOptions { adapter, ..options(1) }).unwrap();
        simulation.run_out();
    }
    router.follow(&mut simulation);
    let predicted = [0, 3, 4].map(|adapter| router.predict(&prompt(1, 9), adapter));
    assert_eq!((predicted, router.texts.len()), ([8, 8, 0], 4));
}

#[test]
fn nothing_is_kept_before_somebody_asks_or_without_prefix_caching() {
    let mut simulation = Simulation::new(config(8, 64));
    simulation.add(1, prompt(1, 9), 1).unwrap();
    simulation.run_out();
    assert!(simulation.scheduler.take_block_events().is_empty());
    let (mut simulation, _) = following(SchedulerConfig { enable_prefix_caching: false, ..config(8, 64) });
    simulation.add(1, prompt(1, 9), 1).unwrap();
    simulation.run_out();
    assert!(simulation.scheduler.take_block_events().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Requests in a cache that is too small for them: the record tells exactly what the next request will find.
    #[test]
    fn whoever_follows_the_record_predicts_every_hit(
        requests in prop::collection::vec((0..4u64, 1..24usize, 1..9usize, 0..3u16), 1..24),
        num_blocks in 8..20usize,
        steps_between in 0..6usize,
    ) {
        let (mut simulation, mut router) = following(config(num_blocks, 16));
        for (id, (family, prompt_len, max_tokens, adapter)) in (1..).zip(requests) {
            let text = prompt(family, prompt_len);
            let predicted = (id % 3 == 0).then(|| {
                simulation.run_out();
                router.follow(&mut simulation);
                router.predict(&text, adapter)
            });
            simulation.add_with(id, text, RequestOptions { adapter, ..options(max_tokens) }).unwrap();
            if let Some(predicted) = predicted {
                simulation.schedule();
                prop_assert_eq!(simulation.scheduler.request(id).unwrap().num_cached_tokens(), predicted);
            }
            for _ in 0..steps_between {
                simulation.step();
                router.follow(&mut simulation);
            }
        }
    }
}
