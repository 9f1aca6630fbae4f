//! One strip's product, as every instruction set takes it.

use super::activations::Group;
use super::layout::GROUP;
use super::scheme::Scheme;

/// Prefetch distance of codes, in bytes.
pub(super) const PREFETCH_BYTES: usize = 4096;
/// The same for a single row of activations.
#[cfg(target_arch = "x86_64")]
pub(super) const SINGLE_ROW_PREFETCH_BYTES: usize = 8192;

/// Pointers and sizes of one strip's product.
#[derive(Clone, Copy)]
pub(crate) struct PackedTask {
    pub scheme: Scheme,
    /// The strip.
    pub strip: *const u8,
    /// Activations, row after row without gaps.
    pub x: *const Group,
    pub num_rows: usize,
    pub cols: usize,
    /// The outputs, `[num_rows, STRIP]`.
    pub out: *mut f32,
}

impl PackedTask {
    /// Returns the number of groups in a row.
    #[inline(always)]
    pub(super) fn num_groups(&self) -> usize {
        self.cols / GROUP
    }

    /// Returns where the codes begin.
    #[inline(always)]
    pub(super) fn codes(&self) -> *const u8 {
        self.strip.wrapping_add(self.scheme.head_len(self.cols))
    }
}
