//! The scheduler without a model: what a load costs it, and what becomes of the load.

use std::time::{Duration, Instant};

use super::load::SplitMix64;
use super::{LogitsRow, RequestOptions, Scheduler, SchedulerConfig, SchedulerStats, SimulatedRequest};
use crate::{Error, Result};

/// How often a simulation says how far it is.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// How a simulation runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SimulationConfig {
    /// The scheduler's limits.
    pub scheduler: SchedulerConfig,
    /// Seconds that a step takes on the simulated clock, whatever it computes.
    pub step_s: f64,
    /// Seconds more for each of its tokens.
    pub token_s: f64,
}

/// What a simulation found.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SimulationReport {
    /// Requests that ran to their end.
    pub num_finished: usize,
    /// Requests that could never fit.
    pub num_refused: usize,
    /// Tokens generated.
    pub output_tokens: usize,
    /// Real seconds, everything included.
    pub wall_s: f64,
    /// Seconds on the simulated clock.
    pub simulated_s: f64,
    /// Microseconds of a step (plan, record, append, forget who is done): half of all take less.
    pub step_us_p50: f64,
    /// 99 of 100 take less.
    pub step_us_p99: f64,
    /// The slowest.
    pub step_us_max: f64,
    /// On average.
    pub step_us_mean: f64,
    /// Microseconds to queue a request, on average.
    pub add_us_mean: f64,
    /// Requests in a step, on average.
    pub mean_batch: f64,
    /// Most requests that waited.
    pub peak_waiting: usize,
    /// Most blocks held.
    pub peak_blocks: usize,
    /// The scheduler's own counters at the end.
    pub stats: SchedulerStats,
}

/// Runs all requests to their end, in order of arrival; one that finds the queue full tries again after each step.
///
/// `progress` is told about ten times a second how many have finished, and says whether to go on.
///
/// # Errors
///
/// [`Error::InvalidArgument`] for limits, times or sizes outside their range, or where `progress` says no.
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
    /// Tokens each request has still to generate, by its id.
    left: Vec<usize>,
    report: SimulationReport,
    step_ns: Vec<u32>,
    /// Requests in all steps together.
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
            Err(Error::Capacity(_)) => self.report.num_refused += 1,
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
                // Any token will do, if the answers to one prompt differ.
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

/// Tokens of a prompt: those of its shared beginning, then its own.
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

/// The time that this share of steps doesn't exceed.
fn percentile_us(step_ns: &mut [u32], share: f64) -> f64 {
    if step_ns.is_empty() {
        return 0.0;
    }
    let index = ((step_ns.len() as f64 * share).ceil() as usize).clamp(1, step_ns.len()) - 1;
    f64::from(*step_ns.select_nth_unstable(index).1) / 1e3
}
