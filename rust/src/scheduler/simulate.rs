//! Simulation of the scheduler without a model: its cost under a load, and how the load is served.

use std::time::{Duration, Instant};

use super::load::SplitMix64;
use super::{LogitsRow, RequestOptions, Scheduler, SchedulerConfig, SchedulerStats, SimulatedRequest};
use crate::{Error, Result};

/// Interval between progress reports.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// Settings of a simulation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SimulationConfig {
    /// Limits of the scheduler.
    pub scheduler: SchedulerConfig,
    /// Fixed duration of a step on the simulated clock, in seconds.
    pub step_s: f64,
    /// Additional seconds per token of a step.
    pub token_s: f64,
}

/// Results of a simulation.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SimulationReport {
    /// Number of requests that finished.
    pub num_finished: usize,
    /// Number of requests that could never fit the cache or the context.
    pub num_refused: usize,
    /// Number of tokens generated.
    pub output_tokens: usize,
    /// Elapsed real time in seconds.
    pub wall_s: f64,
    /// Elapsed time on the simulated clock, in seconds.
    pub simulated_s: f64,
    /// Median cost of a step (plan, record, append, remove finished requests) in microseconds.
    pub step_us_p50: f64,
    /// 99th percentile of a step's cost in microseconds.
    pub step_us_p99: f64,
    /// Cost of the slowest step in microseconds.
    pub step_us_max: f64,
    /// Mean cost of a step in microseconds.
    pub step_us_mean: f64,
    /// Mean cost of queueing a request in microseconds.
    pub add_us_mean: f64,
    /// Mean number of requests in a step.
    pub mean_batch: f64,
    /// Largest number of waiting requests.
    pub peak_waiting: usize,
    /// Largest number of blocks in use.
    pub peak_blocks: usize,
    /// The scheduler's counters at the end.
    pub stats: SchedulerStats,
}

/// Runs all requests to completion in order of arrival. A request that finds the queue full retries after each step.
///
/// `progress` receives the number of finished requests about ten times a second and returns whether to continue.
///
/// # Errors
///
/// [`Error::InvalidArgument`] for limits, times or sizes outside their range, or if `progress` returns `false`.
/// [`Error::Internal`] if an invariant is broken.
pub fn simulate(
    config: SimulationConfig,
    requests: impl Iterator<Item = SimulatedRequest>,
    progress: impl FnMut(usize) -> bool,
) -> Result<SimulationReport> {
    for (name, value) in [("step_s", config.step_s), ("token_s", config.token_s)] {
        if !value.is_finite() || value < 0.0 {
            return Err(Error::InvalidArgument(format!("`{name}` must be at least 0, got {value}")));
        }
    }
    let began = Instant::now();
    let mut simulation = Simulation {
        scheduler: Scheduler::new(config.scheduler)?,
        config,
        left: Vec::new(),
        report: SimulationReport::default(),
        step_ns: Vec::new(),
        num_scheduled: 0,
        add_time: Duration::ZERO,
    };
    simulation.run(requests, progress)?;
    Ok(simulation.report(began.elapsed()))
}

struct Simulation {
    scheduler: Scheduler,
    config: SimulationConfig,
    /// Number of tokens left to generate, by request id.
    left: Vec<usize>,
    report: SimulationReport,
    step_ns: Vec<u32>,
    /// Sum over all steps of the requests in a step.
    num_scheduled: usize,
    add_time: Duration,
}

impl Simulation {
    fn run(
        &mut self,
        mut requests: impl Iterator<Item = SimulatedRequest>,
        mut progress: impl FnMut(usize) -> bool,
    ) -> Result<()> {
        let mut told = Instant::now();
        let mut next = requests.next();
        loop {
            while let Some(request) = next.filter(|request| request.arrival_s <= self.report.simulated_s)
                && self.scheduler.stats().num_waiting < self.config.scheduler.max_waiting_requests
            {
                self.add(request)?;
                next = requests.next();
            }
            match next {
                _ if self.scheduler.has_unfinished() => self.step()?,
                Some(request) => self.report.simulated_s = request.arrival_s.max(self.report.simulated_s),
                None => return Ok(()),
            }
            if told.elapsed() >= PROGRESS_EVERY {
                told = Instant::now();
                if !progress(self.report.num_finished) {
                    return Err(Error::InvalidArgument("the simulation was stopped".to_owned()));
                }
            }
        }
    }

    fn add(&mut self, request: SimulatedRequest) -> Result<()> {
        let id = self.left.len() as u64;
        self.left.push(request.output_tokens);
        let prompt_ids = prompt_ids(id, request);
        let options = RequestOptions { max_tokens: request.output_tokens, ..RequestOptions::default() };
        let began = Instant::now();
        let added = self.scheduler.add(id, prompt_ids, options);
        self.add_time += began.elapsed();
        match added {
            Err(Error::ContextLength(_) | Error::Capacity(_)) => self.report.num_refused += 1,
            other => other?,
        }
        self.report.peak_waiting = self.report.peak_waiting.max(self.scheduler.stats().num_waiting);
        Ok(())
    }

    fn step(&mut self) -> Result<()> {
        let began = Instant::now();
        let plan =
            self.scheduler.schedule()?.ok_or_else(|| Error::Internal("requests are left, none runs".to_owned()))?;
        let (num_tokens, num_requests) = (plan.token_ids.len(), plan.request_ids.len());
        for LogitsRow { id, .. } in self.scheduler.complete_step()?.into_iter().flatten() {
            let left = &mut self.left[id as usize];
            *left -= 1;
            if *left == 0 {
                self.scheduler.remove(id)?;
                self.report.num_finished += 1;
            } else {
                // Any token works as long as the answers to one prompt differ.
                self.scheduler.append_token(id, (id as u32).wrapping_mul(0x9E37_79B9) ^ *left as u32)?;
            }
            self.report.output_tokens += 1;
        }
        self.step_ns.push(u32::try_from(began.elapsed().as_nanos()).unwrap_or(u32::MAX));
        self.num_scheduled += num_requests;
        self.report.simulated_s += self.config.step_s + self.config.token_s * num_tokens as f64;
        let stats = self.scheduler.stats();
        self.report.peak_blocks = self.report.peak_blocks.max(stats.blocks_total - stats.blocks_free);
        Ok(())
    }

    fn report(mut self, wall: Duration) -> SimulationReport {
        let num_steps = self.step_ns.len().max(1);
        let num_added = self.left.len().max(1);
        let total_ns: u64 = self.step_ns.iter().map(|&ns| u64::from(ns)).sum();
        SimulationReport {
            wall_s: wall.as_secs_f64(),
            step_us_p50: percentile_us(&mut self.step_ns, 0.5),
            step_us_p99: percentile_us(&mut self.step_ns, 0.99),
            step_us_max: percentile_us(&mut self.step_ns, 1.0),
            step_us_mean: total_ns as f64 / num_steps as f64 / 1e3,
            add_us_mean: self.add_time.as_secs_f64() * 1e6 / num_added as f64,
            mean_batch: self.num_scheduled as f64 / num_steps as f64,
            stats: self.scheduler.stats(),
            ..self.report
        }
    }
}

/// Tokens of a prompt: the shared prefix, then tokens of its own.
fn prompt_ids(id: u64, request: SimulatedRequest) -> Vec<u32> {
    let (prefix, num_shared) = request.prefix.unwrap_or_default();
    let num_shared = num_shared.min(request.prompt_tokens);
    let shared = SplitMix64(!prefix).next() as u32;
    let own = SplitMix64(id).next() as u32;
    let mut tokens = Vec::with_capacity(request.prompt_tokens);
    tokens.extend((0..num_shared as u32).map(|position| shared.wrapping_add(position)));
    tokens.extend((num_shared as u32..request.prompt_tokens as u32).map(|position| own.wrapping_add(position)));
    tokens
}

/// The duration that this share of the steps does not exceed.
fn percentile_us(step_ns: &mut [u32], share: f64) -> f64 {
    if step_ns.is_empty() {
        return 0.0;
    }
    let index = ((step_ns.len() as f64 * share).ceil() as usize).clamp(1, step_ns.len()) - 1;
    f64::from(*step_ns.select_nth_unstable(index).1) / 1e3
}
