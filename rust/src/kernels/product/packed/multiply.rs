//! The product by the best instructions of a set.

use super::portable;
pub(crate) use super::task::PackedTask;
#[cfg(target_arch = "x86_64")]
use super::{avx2, vnni};
use crate::kernels::simd::Isa;

/// Multiplies all rows of activations with a strip.
///
/// # Safety
///
/// The machine has the instruction set, and the task's pointers are valid for its sizes.
pub(crate) unsafe fn multiply_strip(isa: Isa, task: &PackedTask) {
    // SAFETY: the caller answers for set and task; instructions beyond the set are looked for here.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        match isa {
            Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx if vnni::is_supported() => return vnni::multiply_strip(task),
            Isa::Avx2 | Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx if avx2::is_supported() => {
                return avx2::multiply_strip(task);
            }
            _ => {}
        }
        let _ = isa;
        portable::multiply_strip(task);
    }
}
