#![cfg(test)]

use proptest::prelude::*;

use super::linear::Linear;
use super::prepared::{ALIGN, Layout, Prepared};
use super::strip::{STRIP, Strip};
use crate::kernels::memory::{AlignedBuffer, Dtype, Matrix};
use crate::kernels::simd::{Isa, narrow, widen};

fn numbers(len: usize, state: &mut u64) -> Vec<f32> {
    let mut next = || {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// The outputs of `count` rows of weights for each row of activations, laid out row by row or strip by strip.
fn product(isa: Isa, weights: &[u16], count: usize, rows: &[f32], cols: usize, by_strips: bool) -> Vec<f32> {
    let (num_rows, stride) = (rows.len() / cols, cols.next_multiple_of(ALIGN));
    // SAFETY: the slice outlives the layer and nobody writes to it.
    let weight = unsafe { Matrix::from_raw(weights.as_ptr().cast(), count, cols, Dtype::Bf16) }.unwrap();
    let mut buffer = AlignedBuffer::new(num_rows * stride);
    let (data, layout) = (buffer.shared(), Layout::Plain(Dtype::Bf16));
    let x = Prepared { isa, layout, data, stride, num_rows, cols, order: None };
    if by_strips {
        for first in (0..cols).step_by(STRIP) {
            let count = STRIP.min(cols - first);
            let at = |row: usize, col: usize| if col < count { rows[row * cols + first + col] } else { 0.0 };
            let strip: Vec<f32> = (0..num_rows * STRIP).map(|idx| at(idx / STRIP, idx % STRIP)).collect();
            // SAFETY: nobody else uses the buffer.
            unsafe { x.write_columns(first, count, &strip) };
        }
    } else {
        // SAFETY: nobody else uses the buffer.
        rows.chunks(cols).enumerate().for_each(|(row, from)| unsafe { x.write(row, from) });
    }
    let mut out = vec![f32::NAN; num_rows * STRIP];
    // SAFETY: all columns are written, and nobody writes any more.
    unsafe { Linear::new(weight, None).multiply_strip(Strip { first: 0, count, next: 0 }, &x, &mut out) };
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn products_of_bf16_are_those_of_the_definition_and_rows_are_independent(
        num_rows in 1_usize..67, cols in 1_usize..150, count in 1_usize..=STRIP, seed in any::<u64>(),
    ) {
        let mut state = seed;
        let weights: Vec<u16> = numbers(count * cols, &mut state).into_iter().map(narrow).collect();
        let rows = numbers(num_rows * cols, &mut state);
        for isa in Isa::supported() {
            let found = product(isa, &weights, count, &rows, cols, false);
            let by_strips = product(isa, &weights, count, &rows, cols, true);
            for (row, values) in rows.chunks(cols).enumerate() {
                let outputs = |found: &[f32]| found[row * STRIP..][..count].iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                let alone = product(isa, &weights, count, values, cols, false);
                prop_assert_eq!(outputs(&found), alone[..count].iter().map(|x| x.to_bits()).collect::<Vec<_>>());
                prop_assert_eq!(outputs(&found), outputs(&by_strips));
                for (output, weights) in weights.chunks(cols).enumerate() {
                    let terms = values.iter().zip(weights).map(|(x, weight)| {
                        let x = if isa >= Isa::Avx512Bf16 { widen(narrow(*x)) } else { *x };
                        f64::from(x) * f64::from(widen(*weight))
                    });
                    let (wanted, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
                    let error = (f64::from(found[row * STRIP + output]) - wanted).abs();
                    prop_assert!(error <= 1e-6 * size, "{} row {row} output {output}: {error} of {size}", isa.name());
                }
            }
        }
    }
}
