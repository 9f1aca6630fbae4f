//! Persistent threads: a decode step has hundreds of phases of some microseconds, too short to start or wake a thread.

use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// Iterations of a spinning wait before the thread offers its core to others.
const SPINS: usize = 4096;
/// Time that an idle thread spins before it sleeps: about the time between two decode steps.
const AWAKE: Duration = Duration::from_micros(300);

type Job<'a> = &'a (dyn Fn(&Worker<'_>) + Sync);

/// The calling thread and `num_threads - 1` threads of its own, which run one closure together.
///
/// Workers meet at barriers and claim work from a shared counter, so a late worker takes less. If a worker panics, all
/// workers leave the job, and [`ThreadTeam::run`] panics on the calling thread.
#[derive(Debug)]
pub struct ThreadTeam {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    num_threads: usize,
    job: UnsafeCell<Option<Job<'static>>>,
    /// Number of jobs started.
    epoch: AtomicUsize,
    /// Workers that have reached the current barrier.
    arrived: AtomicUsize,
    /// Barriers that all workers have passed.
    generation: AtomicUsize,
    /// Workers that have finished the job.
    done: AtomicUsize,
    /// The next unclaimed unit of work in this phase.
    next: AtomicUsize,
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
            num_threads,
            job: UnsafeCell::new(None),
            epoch: AtomicUsize::new(0),
            arrived: AtomicUsize::new(0),
            generation: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
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
        self.shared.num_threads
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
        for counter in [&shared.next, &shared.arrived, &shared.done] {
            counter.store(0, Ordering::Relaxed);
        }
        shared.epoch.fetch_add(1, Ordering::Release);
        if *shared.sleepers.lock().unwrap_or_else(PoisonError::into_inner) > 0 {
            shared.wake.notify_all();
        }
        let own = shared.work(0, job);
        wait_until(|| shared.done.load(Ordering::Acquire) == shared.num_threads);
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
        let outcome = catch_unwind(AssertUnwindSafe(|| job(&Worker { shared: self, index })));
        if outcome.is_err() {
            self.has_panicked.store(true, Ordering::Release);
        }
        self.done.fetch_add(1, Ordering::AcqRel);
        outcome
    }

    fn wait_for_job(&self, seen: usize) -> bool {
        let is_news = || self.is_over.load(Ordering::Acquire) || self.epoch.load(Ordering::Acquire) != seen;
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

    /// Waits until every worker has arrived.
    fn barrier(&self) {
        let generation = self.generation.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.num_threads {
            self.arrived.store(0, Ordering::Relaxed);
            self.next.store(0, Ordering::Relaxed);
            self.generation.store(generation + 1, Ordering::Release);
            return;
        }
        wait_until(|| {
            // A worker that panicked never arrives.
            assert!(!self.has_panicked.load(Ordering::Acquire), "another worker of the team panicked");
            self.generation.load(Ordering::Acquire) != generation
        });
    }
}

/// Spins for a while, then yields the core between checks.
fn wait_until(is_true: impl Fn() -> bool) {
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
        self.shared.num_threads
    }

    /// Waits until every worker has arrived here; everything written before is visible to all afterwards.
    pub fn barrier(&self) {
        self.shared.barrier();
    }

    /// Claims the next `size` units of `0..total`, fewer at the end; `None` once all are taken.
    ///
    /// Each barrier starts a new count; all workers must pass the same `total` and `size` in between.
    pub fn claim(&self, total: usize, size: usize) -> Option<Range<usize>> {
        let start = self.shared.next.fetch_add(size, Ordering::Relaxed);
        (start < total).then(|| start..(start + size).min(total))
    }
}
