//! Persistent threads: a decode step has hundreds of phases of some microseconds, too short to start or wake a thread.

use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::prefetch::Ahead;
use crate::{Error, Result};

/// Iterations of a spinning wait before the thread offers its core to others.
const SPINS: usize = 4096;
/// Cache lines that a waiting thread prefetches before it looks again.
const LINES_PER_SPIN: usize = 4;
/// Time that an idle thread spins before it sleeps: about the time between two decode steps.
const AWAKE: Duration = Duration::from_micros(300);

type Job<'a> = &'a (dyn Fn(&Worker<'_>) + Sync);

/// The calling thread and `num_threads - 1` threads of its own, which run one closure together.
///
/// Workers meet at barriers. Each claims work from its own share first, then from the others', so a late worker takes less.
/// If a worker panics, all workers leave the job, and [`ThreadTeam::run`] panics on the calling thread.
#[derive(Debug)]
pub struct ThreadTeam {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// A value with cache lines of its own, so that writes to it delay nobody who waits for another value. Two lines, for
/// processors fetch pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Apart<T>(T);

#[derive(Debug)]
struct Shared {
    job: UnsafeCell<Option<Job<'static>>>,
    /// Number of jobs started.
    epoch: Apart<AtomicUsize>,
    /// Workers that have reached the current barrier.
    arrived: Apart<AtomicUsize>,
    /// Barriers that all workers have passed.
    generation: Apart<AtomicUsize>,
    /// Workers that have finished the job.
    done: Apart<AtomicUsize>,
    /// For each worker, how much of its share of this phase's work is claimed.
    claimed: Box<[Apart<AtomicUsize>]>,
    has_panicked: AtomicBool,
    is_over: AtomicBool,
    sleepers: Mutex<usize>,
    wake: Condvar,
}

// SAFETY: only the owner writes `job`, while every other thread waits for the epoch that announces the job.
unsafe impl Sync for Shared {}
// SAFETY: `job` refers to a `Sync` closure, which any thread may call; all other fields are `Send`.
unsafe impl Send for Shared {}

/// One thread of a team during a job.
#[derive(Debug)]
pub struct Worker<'a> {
    shared: &'a Shared,
    ahead: Cell<Ahead>,
    /// The worker's number in the team; the calling thread is worker 0.
    pub index: usize,
}

impl ThreadTeam {
    /// Starts the threads.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for no thread or more than 1,024; [`Error::Internal`] if the system refuses one.
    pub fn new(num_threads: usize) -> Result<Self> {
        if num_threads == 0 || num_threads > 1024 {
            return Err(Error::InvalidArgument(format!("`num_threads` must be in [1, 1024], got {num_threads}")));
        }
        let shared = Arc::new(Shared {
            job: UnsafeCell::new(None),
            epoch: Apart::default(),
            arrived: Apart::default(),
            generation: Apart::default(),
            done: Apart::default(),
            claimed: (0..num_threads).map(|_| Apart::default()).collect(),
            has_panicked: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            sleepers: Mutex::new(0),
            wake: Condvar::new(),
        });
        let mut team = Self { shared, threads: Vec::new() };
        for index in 1..num_threads {
            let shared = Arc::clone(&team.shared);
            let thread = std::thread::Builder::new().name(format!("llm-kernel-{index}"));
            let started = thread.spawn(move || shared.serve(index));
            team.threads.push(started.map_err(|error| Error::Internal(format!("a thread could not start: {error}")))?);
        }
        Ok(team)
    }

    /// Returns the number of threads, the calling thread included.
    pub fn num_threads(&self) -> usize {
        self.shared.claimed.len()
    }

    /// Runs `job` on every worker at once and returns when all are done.
    ///
    /// # Panics
    ///
    /// If the job panics on any worker.
    pub fn run(&mut self, job: Job<'_>) {
        let shared = &*self.shared;
        // SAFETY: the reference outlives its use, since this function waits until every thread is done with the job.
        let job: Job<'static> = unsafe { std::mem::transmute::<Job<'_>, Job<'static>>(job) };
        // SAFETY: no thread reads the job before the epoch below announces it.
        unsafe { *shared.job.get() = Some(job) };
        shared.arrived.0.store(0, Ordering::Relaxed);
        shared.done.0.store(0, Ordering::Relaxed);
        shared.begin_phase();
        shared.epoch.0.fetch_add(1, Ordering::Release);
        if *shared.sleepers.lock().unwrap_or_else(PoisonError::into_inner) > 0 {
            shared.wake.notify_all();
        }
        let own = shared.work(0, job);
        wait_until(|| shared.done.0.load(Ordering::Acquire) == shared.claimed.len());
        let has_panicked = shared.has_panicked.swap(false, Ordering::Relaxed);
        match own {
            Err(panic) => resume_unwind(panic),
            Ok(()) => assert!(!has_panicked, "a kernel's thread panicked"),
        }
    }
}

impl Drop for ThreadTeam {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Release);
        drop(self.shared.sleepers.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.wake.notify_all();
        for thread in self.threads.drain(..) {
            // A panic inside a job was caught and reported to the caller, so joining has nothing to report.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Runs one job after another until the team is dropped.
    fn serve(&self, index: usize) {
        let mut seen = 0;
        while self.wait_for_job(seen) {
            seen += 1;
            // SAFETY: the epoch was loaded with acquire ordering, after the owner had written the job.
            if let Some(job) = unsafe { *self.job.get() } {
                // `has_panicked` tells the calling thread about a panic.
                let _ = self.work(index, job);
            }
        }
    }

    fn work(&self, index: usize, job: Job<'_>) -> std::thread::Result<()> {
        let outcome = catch_unwind(AssertUnwindSafe(|| job(&Worker { shared: self, ahead: Cell::default(), index })));
        if outcome.is_err() {
            self.has_panicked.store(true, Ordering::Release);
        }
        self.done.0.fetch_add(1, Ordering::AcqRel);
        outcome
    }

    fn wait_for_job(&self, seen: usize) -> bool {
        let is_news = || self.is_over.load(Ordering::Acquire) || self.epoch.0.load(Ordering::Acquire) != seen;
        let began = Instant::now();
        let mut spins = 0;
        while !is_news() {
            spins += 1;
            std::hint::spin_loop();
            if spins % SPINS == 0 && began.elapsed() > AWAKE {
                let mut sleepers = self.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
                *sleepers += 1;
                while !is_news() {
                    sleepers = self.wake.wait(sleepers).unwrap_or_else(PoisonError::into_inner);
                }
                *sleepers -= 1;
            }
        }
        !self.is_over.load(Ordering::Acquire)
    }

    /// Returns all work to its shares; no worker claims any meanwhile.
    fn begin_phase(&self) {
        self.claimed.iter().for_each(|claimed| claimed.0.store(0, Ordering::Relaxed));
    }

    /// Waits until every worker has arrived, and calls `idle` again and again meanwhile.
    fn barrier(&self, mut idle: impl FnMut()) {
        let generation = self.generation.0.load(Ordering::Acquire);
        if self.arrived.0.fetch_add(1, Ordering::AcqRel) + 1 == self.claimed.len() {
            self.arrived.0.store(0, Ordering::Relaxed);
            self.begin_phase();
            self.generation.0.store(generation + 1, Ordering::Release);
            return;
        }
        wait_until(|| {
            idle();
            // A worker that panicked never arrives.
            assert!(!self.has_panicked.load(Ordering::Acquire), "another worker of the team panicked");
            self.generation.0.load(Ordering::Acquire) != generation
        });
    }
}

/// Spins for a while, then yields the core between checks.
fn wait_until(mut is_true: impl FnMut() -> bool) {
    let mut spins = 0;
    while !is_true() {
        spins += 1;
        if spins < SPINS {
            std::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
    }
}

impl Worker<'_> {
    /// Returns the number of threads in the team.
    pub fn num_threads(&self) -> usize {
        self.shared.claimed.len()
    }

    /// Waits until every worker has arrived here; everything written before is visible to all afterwards.
    pub fn barrier(&self) {
        self.shared.barrier(|| self.prefetch(LINES_PER_SPIN));
    }

    /// Sets what the worker prefetches while it waits: the memory that it reads next.
    pub fn set_ahead(&self, ahead: Ahead) {
        self.ahead.set(ahead);
    }

    /// Prefetches some more cache lines of what lies ahead.
    pub fn prefetch(&self, num_lines: usize) {
        self.ahead.set(self.ahead.get().proceed(num_lines));
    }

    /// Claims the next `size` units of `0..total`, fewer at the end of a share; `None` once all are taken.
    ///
    /// A worker claims its own share in ascending order, then what is left of the others'. Each barrier starts anew; all
    /// workers must pass the same `total` and `size` in between.
    pub fn claim(&self, total: usize, size: usize) -> Option<Range<usize>> {
        let num_threads = self.num_threads();
        (self.index..self.index + num_threads).find_map(|worker| {
            let worker = worker % num_threads;
            let share = self.share_of(worker, total, size);
            // An exhausted share is only read: writing to it would delay all who do the same.
            let claimed = &self.shared.claimed[worker].0;
            let is_left = claimed.load(Ordering::Relaxed) < share.len();
            let start = share.start + if is_left { claimed.fetch_add(size, Ordering::Relaxed) } else { share.len() };
            (start < share.end).then(|| start..(start + size).min(share.end))
        })
    }

    /// Returns the share of `0..total` that this worker claims first.
    pub fn share(&self, total: usize, size: usize) -> Range<usize> {
        self.share_of(self.index, total, size)
    }

    /// Returns a worker's share of `0..total`, which begins with a multiple of `size`.
    fn share_of(&self, worker: usize, total: usize, size: usize) -> Range<usize> {
        let num_claims = total.div_ceil(size);
        let start = |worker: usize| (num_claims * worker / self.num_threads() * size).min(total);
        start(worker)..start(worker + 1)
    }
}
