//! Rows of logits besides the next token's: guesses, and the prompt's own tokens.

use llm_core::scheduler::{LogitsRow, RequestOptions, RowKind, SchedulerConfig};

use super::simulation::{Simulation, alone, prompt};
use super::{config, options};

#[test]
fn right_guesses_save_steps_and_wrong_ones_are_overwritten() {
    let mut simulation = Simulation::new(config(16, 64));
    simulation.add(1, prompt(1, 5), 6).unwrap();
    simulation.step();
    let output = alone(&prompt(1, 5), 6, 0);
    simulation.scheduler.set_drafts(1, &[output[1], output[2], output[3] + 1, 7]).unwrap();
    let plan = simulation.schedule().unwrap();
    assert_eq!(plan.token_ids, [output[0], output[1], output[2], output[3] + 1, 7].map(i64::from));
    assert_eq!((&plan.positions[..], &plan.logits_indices[..]), (&[5, 6, 7, 8, 9][..], &[0, 1, 2, 3, 4][..]));
    assert_eq!(plan.seq_lens, [10]);
    simulation.finish_step(&plan);
    // Two were right: with the token drawn after them there are four, of which the last is still to compute.
    let request = simulation.scheduler.request(1).unwrap();
    assert_eq!((request.output_ids(), request.num_computed_tokens()), (&output[..4], 8));
    let stats = simulation.scheduler.stats();
    assert_eq!((stats.drafts_computed, stats.drafts_accepted), (4, 2));
    assert_eq!(simulation.step().unwrap().positions, [8]);
    simulation.run_out();
    simulation.check_answers();
}

#[test]
fn guesses_take_what_budget_and_blocks_are_left() {
    let mut simulation = Simulation::new(config(16, 5));
    for id in 1..=2 {
        simulation.add(id, prompt(id, 1), 9).unwrap();
    }
    simulation.step();
    for id in 1..=2 {
        simulation.scheduler.set_drafts(id, &[1, 2, 3, 4, 5, 6, 7]).unwrap();
    }
    // A token each, and three guesses for the first.
    assert_eq!(simulation.step().unwrap().query_start, [0, 4, 5]);
    let mut full = Simulation::new(SchedulerConfig { num_blocks: 3, ..config(3, 64) });
    full.add(1, prompt(1, 6), 6).unwrap();
    full.step();
    full.scheduler.set_drafts(1, &[1, 2, 3, 4]).unwrap();
    // The third block is kept for whoever needs one next: one guess fits into the second.
    assert_eq!(full.step().unwrap().query_start, [0, 2]);
    for mut simulation in [simulation, full] {
        simulation.run_out();
        simulation.check_answers();
    }
}

#[test]
fn a_failed_step_keeps_its_guesses() {
    let mut simulation = Simulation::new(config(16, 64));
    simulation.add(1, prompt(1, 5), 6).unwrap();
    simulation.step();
    simulation.scheduler.set_drafts(1, &[3, 4]).unwrap();
    let plan = simulation.schedule().unwrap();
    simulation.model.fail(&plan);
    assert_eq!(simulation.schedule().unwrap(), plan);
    simulation.run_out();
    simulation.check_answers();
    assert_eq!(simulation.scheduler.stats().drafts_computed, 2);
}

#[test]
fn prompt_rows_come_once_for_each_token_but_the_first() {
    let mut simulation = Simulation::new(config(16, 4));
    simulation.add(1, prompt(1, 8), 1).unwrap();
    simulation.run_out();
    let wanted = RequestOptions { first_prompt_row: Some(0), ..options(2) };
    simulation.add_with(2, prompt(1, 10), wanted).unwrap();
    let plan = simulation.schedule().unwrap();
    // From the first token on, though the prefix cache has two blocks of it.
    assert_eq!((&plan.positions[..], &plan.logits_indices[..]), (&[0, 1, 2, 3][..], &[0, 1, 2, 3][..]));
    simulation.finish_step(&plan);
    simulation.step();
    let plan = simulation.schedule().unwrap();
    assert_eq!(plan.logits_indices, [0, 1]);
    simulation.model.run(&plan);
    let rows = simulation.scheduler.complete_step().unwrap();
    let kinds = [RowKind::Prompt(prompt(1, 10)[9]), RowKind::Next];
    assert_eq!(rows, kinds.map(|kind| Some(LogitsRow { id: 2, kind })));
}

#[test]
fn prompt_rows_from_a_later_token_on_use_the_prefix_cache_before_it() {
    let mut simulation = Simulation::new(config(16, 16));
    simulation.add(1, prompt(1, 10), 1).unwrap();
    simulation.run_out();
    for (first, start, rows) in [(7, 4, &[3, 4, 5][..]), (8, 8, &[0, 1]), (30, 8, &[1])] {
        let wanted = RequestOptions { first_prompt_row: Some(first), ..options(1) };
        simulation.add_with(2, prompt(1, 10), wanted).unwrap();
        let plan = simulation.schedule().unwrap();
        assert_eq!((plan.positions[0], &plan.logits_indices[..]), (start, rows), "{first}");
        simulation.finish_step(&plan);
        simulation.run_out();
    }
}
