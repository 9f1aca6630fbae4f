//! Asks the processor for memory before it is needed. A hint: any address will do, and what is asked for in vain is only
//! asked for in vain.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};

/// Asks for the cache line of `address`, which will be read soon.
#[inline(always)]
pub fn near<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "no safe way to ask: criterion `tokenizer/encode`")]
    // SAFETY: a hint that never faults.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Asks for the cache line of `address`, which will be read later, into the second cache.
#[inline(always)]
pub fn far<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "no safe way to ask: criterion `tokenizer/encode`")]
    // SAFETY: a hint that never faults.
    unsafe {
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
