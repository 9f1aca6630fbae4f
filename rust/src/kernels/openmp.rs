//! Work on the threads of the OpenMP runtime that PyTorch loads.
//!
//! PyTorch's threads spin for a while after each of its operations. A second team beside them would share their cores,
//! and every operation would wait for a thread that has none.

use std::ffi::{c_int, c_uint, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

type Job<'a> = &'a (dyn Fn(usize) + Sync);
/// Signature of `GOMP_parallel`, which GCC calls for `#pragma omp parallel`.
type Parallel = unsafe extern "C" fn(unsafe extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);
/// Signature of `omp_get_thread_num`.
type ThreadNum = unsafe extern "C" fn() -> c_int;

/// OpenMP's functions.
#[derive(Clone, Copy)]
struct Runtime {
    parallel: Parallel,
    thread_num: ThreadNum,
}

/// A job, and what its threads share.
struct Shared<'a> {
    job: Job<'a>,
    /// Whether a thread has each index.
    taken: Vec<AtomicBool>,
    panic: Mutex<Option<Box<dyn std::any::Any + Send>>>,
}

impl Shared<'_> {
    /// Runs the job with the index `wanted`, or another that no thread has; a panic is kept for the calling thread.
    fn work(&self, wanted: usize) {
        let count = self.taken.len();
        let mut indices = (0..count).map(|offset| (wanted + offset) % count);
        let Some(index) = indices.find(|&index| !self.taken[index].swap(true, Ordering::Relaxed)) else {
            return;
        };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (self.job)(index))) {
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
    }
}

/// Runs `work` for each of `num_items` items, with the index of the worker that does it, below `num_threads`.
///
/// A worker begins with a range of its own, the same in every call, and then takes items that others have left. Rows that
/// it wrote in one operation are thus in its core's cache in the next; PyTorch's operations divide rows likewise.
///
/// # Panics
///
/// If `work` panics on any thread.
pub(super) fn each(num_threads: usize, num_items: usize, work: impl Fn(usize, usize) + Sync) {
    let num_workers = num_threads.clamp(1, num_items.max(1));
    let start = |worker: usize| worker * num_items / num_workers;
    let next: Vec<AtomicUsize> = (0..num_workers).map(|worker| AtomicUsize::new(start(worker))).collect();
    run(num_workers, &|worker| {
        for victim in worker..worker + num_workers {
            let victim = victim % num_workers;
            let end = start(victim + 1);
            loop {
                let item = next[victim].fetch_add(1, Ordering::Relaxed);
                if item >= end {
                    break;
                }
                work(worker, item);
            }
        }
    });
}

/// Runs `job` on up to `num_threads` threads at once, the calling thread among them, each with an index of its own below
/// `num_threads`. Returns when all are done.
///
/// The threads are those of OpenMP if PyTorch has loaded its runtime, and new ones otherwise.
///
/// # Panics
///
/// If the job panics on any thread.
fn run(num_threads: usize, job: Job<'_>) {
    let taken = (0..num_threads.max(1)).map(|_| AtomicBool::new(false)).collect();
    let shared = Shared { job, taken, panic: Mutex::new(None) };
    match (num_threads, runtime()) {
        (0 | 1, _) => shared.work(0),
        (_, Some(runtime)) => {
            let count = c_uint::try_from(num_threads).unwrap_or(c_uint::MAX);
            let call = Call { shared: &shared, thread_num: runtime.thread_num };
            // SAFETY: `parallel` returns after all threads have left `entry`, which reads `call` only.
            unsafe { (runtime.parallel)(entry, (&raw const call).cast_mut().cast(), count, 0) }
        }
        _ => std::thread::scope(|scope| {
            let shared = &shared;
            for index in 1..num_threads {
                scope.spawn(move || shared.work(index));
            }
            shared.work(0);
        }),
    }
    if let Some(panic) = shared.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
        resume_unwind(panic);
    }
}

/// What `entry` is given.
struct Call<'a> {
    shared: &'a Shared<'a>,
    thread_num: ThreadNum,
}

unsafe extern "C" fn entry(call: *mut c_void) {
    // SAFETY: `run` passes a `Call` that outlives all threads' calls.
    let call = unsafe { &*call.cast::<Call<'_>>() };
    // SAFETY: the function has no conditions.
    let number = unsafe { (call.thread_num)() };
    call.shared.work(usize::try_from(number).unwrap_or(0));
}

/// Returns OpenMP's functions, if the process has loaded a runtime with GCC's interface.
#[cfg(target_os = "linux")]
fn runtime() -> Option<Runtime> {
    use std::ffi::c_char;
    use std::ptr;
    use std::sync::OnceLock;

    unsafe extern "C" {
        fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    }
    static FOUND: OnceLock<Option<Runtime>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let names = [c"GOMP_parallel", c"omp_get_thread_num"];
        // SAFETY: a null library asks for the symbols that all libraries share; the names end with a zero.
        let [parallel, thread_num] = names.map(|name| unsafe { dlsym(ptr::null_mut(), name.as_ptr()) });
        // SAFETY: the runtimes of GCC, LLVM and Intel give these names to functions of these signatures alone.
        (!parallel.is_null() && !thread_num.is_null()).then(|| unsafe {
            Runtime {
                parallel: std::mem::transmute::<*mut c_void, Parallel>(parallel),
                thread_num: std::mem::transmute::<*mut c_void, ThreadNum>(thread_num),
            }
        })
    })
}

#[cfg(not(target_os = "linux"))]
fn runtime() -> Option<Runtime> {
    None
}
