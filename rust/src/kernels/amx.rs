//! Whether this process may use the tiles of AMX.
//!
//! Linux saves tiles only for processes that ask for them, since they take 8 KB.
//! Source: Linux, Documentation/arch/x86/xstate.rst; Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1,
//! chapter 18.

/// Bits of leaf 7 in EDX: products of bf16, and tiles.
#[cfg(target_os = "linux")]
const BF16_AND_TILES: u32 = 1 << 22 | 1 << 24;
/// State components of tiles' shapes and data in XCR0.
#[cfg(target_os = "linux")]
const SHAPES_AND_DATA: u64 = 1 << 17 | 1 << 18;

/// Returns whether the machine has tiles with products of bf16 and the system lets this process use them.
#[cfg(target_os = "linux")]
pub(super) fn is_allowed() -> bool {
    use std::sync::OnceLock;
    static IS_ALLOWED: OnceLock<bool> = OnceLock::new();
    *IS_ALLOWED.get_or_init(|| has_tiles() && ask())
}

/// Other systems are not asked.
#[cfg(not(target_os = "linux"))]
pub(super) fn is_allowed() -> bool {
    false
}

#[cfg(target_os = "linux")]
fn has_tiles() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    #[target_feature(enable = "xsave")]
    fn enabled() -> u64 {
        // SAFETY: the processor has the instruction, and XCR0 always exists.
        unsafe { _xgetbv(0) }
    }
    let has_leaf = __cpuid(0).eax >= 7;
    // SAFETY: `xsave` is looked for first, and the system has enabled it wherever AVX-512 is seen.
    has_leaf
        && __cpuid_count(7, 0).edx & BF16_AND_TILES == BF16_AND_TILES
        && is_x86_feature_detected!("xsave")
        && unsafe { enabled() } & SHAPES_AND_DATA == SHAPES_AND_DATA
}

/// Asks the system for the use of tiles in all threads of this process.
#[cfg(target_os = "linux")]
fn ask() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XTILEDATA: i64 = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: the call changes nothing but what this process may use; it clobbers rcx and r11 alone.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack)
        );
    }
    result == 0
}
