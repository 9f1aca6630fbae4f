//! Prefetch hints. Any address is allowed: a prefetch never faults, and a useless one only costs its instruction.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};

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
