//! Prefetch hints. Any address is allowed: a prefetch never faults, and a useless one only costs its instruction.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};

/// Bytes of a cache line.
const LINE: usize = 64;

/// Prefetches the cache line of `address` into all cache levels, for a read that follows soon.
#[inline(always)]
pub fn near<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "no safe way to ask: criterion `tokenizer/encode`")]
    // SAFETY: a prefetch reads no memory that the program can see, and never faults, whatever the address.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Prefetches the cache line of `address` into the second-level cache, for a later read.
#[inline(always)]
pub fn far<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "no safe way to ask: criterion `tokenizer/encode`")]
    // SAFETY: a prefetch reads no memory that the program can see, and never faults, whatever the address.
    unsafe {
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Up to two ranges of addresses, to be prefetched side by side into the second-level cache.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ahead {
    ranges: [(usize, usize); 2],
}

impl Ahead {
    /// Prefetches the first `len` bytes from each address on.
    pub fn of(starts: [Option<*const u8>; 2], len: usize) -> Self {
        Self { ranges: starts.map(|start| start.map_or((0, 0), |start| (start as usize, start as usize + len))) }
    }

    /// Prefetches the next lines of each range and returns the rest.
    #[inline]
    pub fn proceed(mut self, num_lines: usize) -> Self {
        for (next, end) in &mut self.ranges {
            for _ in 0..num_lines {
                if *next < *end {
                    far(*next as *const u8);
                    *next += LINE;
                }
            }
        }
        self
    }
}
