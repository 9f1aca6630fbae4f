//! Tests of `llm_core::kernels`: the thread team, and every instruction set against a naive decoder.

mod attention;
mod pointwise;
mod reference;
mod table;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use llm_core::kernels::{Isa, ThreadTeam};

#[test]
fn every_worker_runs_each_phase_before_the_next_begins() {
    for num_threads in [1, 2, 3, 5] {
        let mut team = ThreadTeam::new(num_threads).unwrap();
        for _ in 0..50 {
            let arrived = AtomicUsize::new(0);
            team.run(&|worker| {
                for phase in 1..=20 {
                    arrived.fetch_add(1, Ordering::Relaxed);
                    worker.barrier();
                    assert_eq!(arrived.load(Ordering::Relaxed), phase * worker.num_threads());
                    worker.barrier();
                }
            });
            assert_eq!(arrived.into_inner(), 20 * num_threads);
        }
    }
}

#[test]
fn work_is_claimed_once_and_whole() {
    let mut team = ThreadTeam::new(3).unwrap();
    for (total, size) in [(0, 4), (1, 4), (100, 7), (64, 64), (65, 64)] {
        let claimed = Mutex::new(vec![0; total]);
        team.run(&|worker| {
            for _ in 0..3 {
                while let Some(range) = worker.claim(total, size) {
                    claimed.lock().unwrap()[range].iter_mut().for_each(|count| *count += 1);
                }
                worker.barrier();
            }
        });
        assert!(claimed.into_inner().unwrap().iter().all(|count| *count == 3), "{total} by {size}");
    }
}

#[test]
fn a_panic_of_any_worker_reaches_the_caller_and_the_team_goes_on() {
    let mut team = ThreadTeam::new(3).unwrap();
    for culprit in 0..3 {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            team.run(&|worker| {
                worker.barrier();
                assert_ne!(worker.index, culprit, "on purpose");
                worker.barrier();
            });
        }));
        assert!(outcome.is_err());
        let count = AtomicUsize::new(0);
        team.run(&|worker| {
            worker.barrier();
            count.fetch_add(worker.index, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 3);
    }
}

#[test]
fn a_team_wakes_after_a_rest() {
    let mut team = ThreadTeam::new(2).unwrap();
    for _ in 0..3 {
        std::thread::sleep(std::time::Duration::from_millis(5));
        let count = AtomicUsize::new(0);
        team.run(&|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 2);
    }
}

#[test]
fn a_team_of_nobody_is_refused() {
    assert_eq!(ThreadTeam::new(0).unwrap_err().to_string(), "`num_threads` must be in [1, 1024], got 0");
}

#[test]
fn the_detected_set_is_the_last_of_those_supported() {
    assert_eq!(Some(&Isa::detect()), Isa::supported().last());
    assert_eq!(Isa::supported()[0], Isa::Portable);
}
