//! The scheduler's simulation without a model.

use llm_core::scheduler::{
    SchedulerConfig, SimulatedRequest, SimulationConfig, SimulationReport, SyntheticLoad, simulate,
};

const LOAD: SyntheticLoad = SyntheticLoad {
    num_requests: 500,
    mean_prompt_tokens: 40.0,
    mean_output_tokens: 20.0,
    max_tokens: 200,
    rate_per_s: None,
    num_prefixes: 0,
    prefix_tokens: 0,
    seed: 3,
};

fn limits(num_blocks: usize) -> SimulationConfig {
    let scheduler = SchedulerConfig {
        num_blocks,
        block_size: 4,
        max_batch_tokens: 256,
        max_running_requests: 16,
        max_waiting_requests: 8,
        max_model_len: 500,
        ..SchedulerConfig::default()
    };
    SimulationConfig { scheduler, step_s: 0.5, token_s: 0.0 }
}

fn run(config: SimulationConfig, load: SyntheticLoad) -> SimulationReport {
    simulate(config, load.requests().unwrap(), |_| true).unwrap()
}

#[test]
fn every_request_of_a_load_gets_its_tokens() {
    let requests: Vec<SimulatedRequest> = LOAD.requests().unwrap().collect();
    let num_output: usize = requests.iter().map(|request| request.output_tokens).sum();
    let num_prompt: usize = requests.iter().map(|request| request.prompt_tokens).sum();
    assert!((35.0..45.0).contains(&(num_prompt as f64 / 500.0)) && (17.0..23.0).contains(&(num_output as f64 / 500.0)));
    for num_blocks in [2_000, 130] {
        let report = run(limits(num_blocks), LOAD);
        assert_eq!((report.num_finished, report.num_refused, report.output_tokens), (500, 0, num_output));
        assert_eq!(report.simulated_s, 0.5 * report.stats.num_steps as f64);
        assert!(report.peak_waiting == 8 && report.peak_blocks <= num_blocks);
        // The last token of each answer is never computed; what was preempted is computed again.
        let once = num_prompt + num_output - 500;
        assert_eq!(report.stats.num_preemptions > 0, num_blocks == 130);
        assert!(report.stats.tokens_scheduled == once || num_blocks == 130 && report.stats.tokens_scheduled > once);
        assert!(report.step_us_p50 <= report.step_us_p99 && report.step_us_p99 <= report.step_us_max);
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let counters = |seed: u64| {
        let report = run(limits(130), SyntheticLoad { seed, rate_per_s: Some(1.5), ..LOAD });
        (report.stats, report.output_tokens, report.simulated_s)
    };
    assert_eq!(counters(1), counters(1));
    assert_ne!(counters(1), counters(2));
}

#[test]
fn a_slow_poisson_process_leaves_the_scheduler_idle_between_requests() {
    let report = run(limits(2_000), SyntheticLoad { rate_per_s: Some(0.02), num_requests: 100, ..LOAD });
    assert!((3_500.0..6_500.0).contains(&report.simulated_s), "{report:?}");
    assert!(report.mean_batch < 2.0);
}

#[test]
fn shared_beginnings_are_found() {
    let load = SyntheticLoad { num_prefixes: 2, prefix_tokens: 100, ..LOAD };
    let report = run(limits(2_000), load);
    let share = report.stats.prefix_hit_tokens as f64 / report.stats.prefix_query_tokens as f64;
    assert!((0.55..0.72).contains(&share), "{share}");
}

#[test]
fn a_trace_runs_in_its_order_and_what_never_fits_is_refused() {
    let request = |arrival_s: f64, prompt_tokens: usize| SimulatedRequest {
        arrival_s,
        prompt_tokens,
        output_tokens: 2,
        prefix: Some((7, 12)),
    };
    let trace = [request(0.0, 20), request(0.0, 499), request(100.0, 20), request(200.0, 8)];
    let report = simulate(limits(100), trace.into_iter(), |_| true).unwrap();
    assert_eq!((report.num_finished, report.num_refused), (3, 1));
    assert_eq!(report.simulated_s, 201.0);
    // Twelve tokens of the second's 20, and of the third's 8 all but the block of the last.
    assert_eq!(report.stats.prefix_hit_tokens, 12 + 4);
}

#[test]
fn bad_loads_and_clocks_are_refused_and_a_run_can_be_stopped() {
    let problem = |load: SyntheticLoad| load.requests().map(drop).unwrap_err().to_string();
    assert!(problem(SyntheticLoad { mean_prompt_tokens: 0.5, ..LOAD }).contains("`mean_prompt_tokens`"));
    assert!(problem(SyntheticLoad { rate_per_s: Some(f64::NAN), ..LOAD }).contains("`rate_per_s`"));
    let clock = SimulationConfig { step_s: -1.0, ..limits(100) };
    assert!(simulate(clock, std::iter::empty(), |_| true).unwrap_err().to_string().contains("`step_s`"));
    let endless = SyntheticLoad { num_requests: 10_000_000, ..LOAD };
    let stopped = simulate(limits(2_000), endless.requests().unwrap(), |_| false).unwrap_err();
    assert!(stopped.to_string().contains("stopped"));
}
