//! Threads that stay: a decode step has hundreds of phases of microseconds, too short to start or wake anyone.

use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// Rounds of a spinning wait before the core is offered to other threads.
const SPINS: usize = 4096;
/// How long a thread without work spins on before it sleeps: about the time between two decode steps.
const AWAKE: Duration = Duration::from_micros(300);

type Job<'a> = &'a (dyn Fn(&Member<'_>) + Sync);

/// The caller and `num_threads - 1` threads of its own, which run one closure together.
///
/// Members meet at barriers and share out work by counting: who is late takes less. Where a member panics, all leave
/// the job and [`Team::run`] panics with the same message.
#[derive(Debug)]
pub struct Team {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    num_members: usize,
    job: UnsafeCell<Option<Job<'static>>>,
    /// Counts jobs.
    epoch: AtomicUsize,
    /// Members that have reached the barrier, and how often all have.
    arrived: AtomicUsize,
    generation: AtomicUsize,
    /// Members that are through with the job.
    done: AtomicUsize,
    /// The next piece of work of this phase.
    next: AtomicUsize,
    has_panicked: AtomicBool,
    is_over: AtomicBool,
    sleepers: Mutex<usize>,
    wake: Condvar,
}

// SAFETY: `job` is written only by the owner, while every other thread waits for the epoch that announces it.
unsafe impl Sync for Shared {}
// SAFETY: as above; the job's reference is to a `Sync` closure.
unsafe impl Send for Shared {}

/// One thread's part in a job.
#[derive(Debug)]
pub struct Member<'a> {
    shared: &'a Shared,
    /// Which of the team's members this is; 0 is the caller.
    pub index: usize,
}

impl Team {
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
            num_members: num_threads,
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

    /// Members, the caller included.
    pub fn num_members(&self) -> usize {
        self.shared.num_members
    }

    /// Runs `job` on every member at once and returns when all are done.
    ///
    /// # Panics
    ///
    /// If the job panics on any member.
    pub fn run(&mut self, job: Job<'_>) {
        let shared = &*self.shared;
        // SAFETY: the lifetime ends for the threads before it ends for the caller: this function waits for all of them.
        let job: Job<'static> = unsafe { std::mem::transmute::<Job<'_>, Job<'static>>(job) };
        // SAFETY: nobody reads the job before the epoch below.
        unsafe { *shared.job.get() = Some(job) };
        for counter in [&shared.next, &shared.arrived, &shared.done] {
            counter.store(0, Ordering::Relaxed);
        }
        shared.epoch.fetch_add(1, Ordering::Release);
        if *shared.sleepers.lock().unwrap_or_else(PoisonError::into_inner) > 0 {
            shared.wake.notify_all();
        }
        let own = shared.work(0, job);
        wait_until(|| shared.done.load(Ordering::Acquire) == shared.num_members);
        let has_panicked = shared.has_panicked.swap(false, Ordering::Relaxed);
        match own {
            Err(panic) => resume_unwind(panic),
            Ok(()) => assert!(!has_panicked, "a kernel's thread panicked"),
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Release);
        drop(self.shared.sleepers.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.wake.notify_all();
        for thread in self.threads.drain(..) {
            // A panic inside a job was caught, told to the caller, and is no reason to end here.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// A thread's life: wait for a job, do it, meet the others.
    fn serve(&self, index: usize) {
        let mut seen = 0;
        while self.wait_for_job(seen) {
            seen += 1;
            // SAFETY: the epoch was read with acquire, after the job was written.
            if let Some(job) = unsafe { *self.job.get() } {
                // The caller learns of a panic by `has_panicked`.
                let _ = self.work(index, job);
            }
        }
    }

    fn work(&self, index: usize, job: Job<'_>) -> std::thread::Result<()> {
        let outcome = catch_unwind(AssertUnwindSafe(|| job(&Member { shared: self, index })));
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

    /// Waits until every member is here.
    fn barrier(&self) {
        let generation = self.generation.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.num_members {
            self.arrived.store(0, Ordering::Relaxed);
            self.next.store(0, Ordering::Relaxed);
            self.generation.store(generation + 1, Ordering::Release);
            return;
        }
        wait_until(|| {
            // Whoever panicked will not come.
            assert!(!self.has_panicked.load(Ordering::Acquire), "another member of the team panicked");
            self.generation.load(Ordering::Acquire) != generation
        });
    }
}

/// Spins, then lets other threads of the machine run between looks.
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

impl Member<'_> {
    /// Members of the team.
    pub fn num_members(&self) -> usize {
        self.shared.num_members
    }

    /// Waits until every member has come this far; what each wrote before, all may read.
    pub fn barrier(&self) {
        self.shared.barrier();
    }

    /// The next piece of `0..total`, `size` long but for the last; `None` once all is taken.
    ///
    /// Pieces are counted from the last barrier on: one phase, one `total` and `size` for all members.
    pub fn claim(&self, total: usize, size: usize) -> Option<Range<usize>> {
        let start = self.shared.next.fetch_add(size, Ordering::Relaxed);
        (start < total).then(|| start..(start + size).min(total))
    }
}
