//! The product in plain Rust, for machines without vector instructions of their own; also what the others are tested with.

use super::activations::Group;
use super::scheme::{GROUP, Scheme, half_to_f32};
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
    let (scales, codes) = strip.split_at(scheme.scales_len(task.cols));
    out.fill(0.0);
    for group in 0..num_groups {
        let scales = &scales[group * STRIP * scheme.scale_bytes()..][..STRIP * scheme.scale_bytes()];
        let codes = &codes[group * STRIP * scheme.code_bytes()..][..STRIP * scheme.code_bytes()];
        for output in 0..STRIP {
            let weights = Weights::of(scheme, scales, codes, output);
            for row in 0..task.num_rows {
                out[row * STRIP + output] += weights.product(&x[row * num_groups + group]);
            }
        }
    }
}

/// A group of one output.
struct Weights {
    scale: f32,
    min: f32,
    codes: [i16; GROUP],
}

impl Weights {
    fn of(scheme: Scheme, scales: &[u8], codes: &[u8], output: usize) -> Self {
        let half = |kind: usize| {
            let place = 2 * (kind * STRIP + output);
            half_to_f32(u16::from_le_bytes([scales[place], scales[place + 1]]))
        };
        Self {
            scale: half(0),
            min: if scheme == Scheme::Q4_1 { half(1) } else { 0.0 },
            codes: scheme.codes(codes, output),
        }
    }

    fn product(&self, x: &Group) -> f32 {
        let sum: i32 = self.codes.iter().zip(&x.codes).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum();
        sum as f32 * x.scale * self.scale + self.min * x.scaled_sum
    }
}
