//! The product in plain Rust, for machines without vector instructions of their own; also what the others are tested with.

use super::cell::{Cell, Places};
use super::task::PackedTask;
use crate::kernels::product::strip::STRIP;

/// Multiplies all rows of activations with a strip.
///
/// # Safety
///
/// The task's pointers are valid for its sizes.
pub(super) unsafe fn multiply_strip(task: &PackedTask) {
    let (scheme, num_groups) = (task.scheme, task.num_groups());
    // SAFETY: the caller promises a whole strip, and rows of `num_groups` groups and `STRIP` outputs each.
    let (strip, x, out) = unsafe {
        (
            std::slice::from_raw_parts(task.strip, scheme.strip_bytes(task.cols)),
            std::slice::from_raw_parts(task.x, task.num_rows * num_groups),
            std::slice::from_raw_parts_mut(task.out, task.num_rows * STRIP),
        )
    };
    let (head, codes) = strip.split_at(scheme.head_len(task.cols));
    let layout = scheme.layout();
    out.fill(0.0);
    for group in 0..num_groups {
        for output in 0..STRIP {
            let cell = Cell::read(Places::of(layout, group, output), head, codes);
            for row in 0..task.num_rows {
                out[row * STRIP + output] += cell.product(layout, &x[row * num_groups + group]);
            }
        }
    }
}
