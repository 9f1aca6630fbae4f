//! Work on the threads of the OpenMP runtime that PyTorch loads.
//!
//! PyTorch's threads spin for a while after each of its operations. A second team beside them would share their cores,
//! and every operation would wait for a thread that has none.

use std::ffi::{c_uint, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

type Job<'a> = &'a (dyn Fn(usize) + Sync);
/// Signature of `GOMP_parallel`, which GCC calls for `#pragma omp parallel`.
type Parallel = unsafe extern "C" fn(unsafe extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);

/// A job, and what its threads share.
struct Shared<'a> {
    job: Job<'a>,
    next: AtomicUsize,
    panic: Mutex<Option<Box<dyn std::any::Any + Send>>>,
}

impl Shared<'_> {
    /// Runs the job as the next worker; a panic is kept for the calling thread.
    fn work(&self) {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (self.job)(index))) {
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
    }
}

/// Runs `job` on up to `num_threads` threads at once, the calling thread among them, each with an index of its own below
/// `num_threads`. Returns when all are done.
///
/// The threads are those of OpenMP if PyTorch has loaded its runtime, and new ones otherwise.
///
/// # Panics
///
/// If the job panics on any thread.
pub(super) fn run(num_threads: usize, job: Job<'_>) {
    let shared = Shared { job, next: AtomicUsize::new(0), panic: Mutex::new(None) };
    match (num_threads, parallel()) {
        (0 | 1, _) => shared.work(),
        (_, Some(parallel)) => {
            let count = c_uint::try_from(num_threads).unwrap_or(c_uint::MAX);
            // SAFETY: `parallel` returns after all threads have left `entry`, which reads `shared` only.
            unsafe { parallel(entry, (&raw const shared).cast_mut().cast(), count, 0) }
        }
        _ => std::thread::scope(|scope| {
            for _ in 1..num_threads {
                scope.spawn(|| shared.work());
            }
            shared.work();
        }),
    }
    if let Some(panic) = shared.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
        resume_unwind(panic);
    }
}

unsafe extern "C" fn entry(shared: *mut c_void) {
    // SAFETY: `run` passes a `Shared` that outlives all threads' calls.
    unsafe { &*shared.cast::<Shared<'_>>() }.work();
}

/// Returns the function that runs a job on OpenMP's threads, if the process has loaded a runtime with GCC's interface.
#[cfg(target_os = "linux")]
fn parallel() -> Option<Parallel> {
    use std::ffi::c_char;
    use std::ptr;
    use std::sync::OnceLock;

    unsafe extern "C" {
        fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    }
    static FOUND: OnceLock<Option<Parallel>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        // SAFETY: a null library asks for the symbols that all libraries share; the name ends with a zero.
        let found = unsafe { dlsym(ptr::null_mut(), c"GOMP_parallel".as_ptr()) };
        // SAFETY: the runtimes of GCC, LLVM and Intel give this name to a function of this signature alone.
        (!found.is_null()).then(|| unsafe { std::mem::transmute::<*mut c_void, Parallel>(found) })
    })
}

#[cfg(not(target_os = "linux"))]
fn parallel() -> Option<Parallel> {
    None
}
