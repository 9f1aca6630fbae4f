//! Products of small matrices in f32: four rows of the result at a time, with all sums in registers.

use crate::kernels::simd::Simd;

/// Rows of a result that are computed together. Sixteen sums of AVX-512 hide the latency of their additions.
pub(super) const ROWS: usize = 4;

/// Four rows of a product: `out[r][c] = sum over s of left[r][s] * right[s][c]`, which may be added to what `out` holds.
#[derive(Clone, Copy)]
pub(super) struct Strip {
    pub left: *const f32,
    /// Distance between rows of `left`.
    pub left_row: usize,
    /// Distance between steps of `left`.
    pub left_step: usize,
    pub right: *const f32,
    /// Distance between steps of `right`.
    pub right_step: usize,
    pub num_steps: usize,
    pub out: *mut f32,
    /// Distance between rows of `out`.
    pub out_row: usize,
    /// Whether the product is added.
    pub adds: bool,
}

/// Computes the first `num_cols` columns of a strip, rounded up to whole vectors.
///
/// # Safety
///
/// The machine has the instruction set; all pointers are valid for four rows, all steps and whole vectors of columns.
#[inline(always)]
pub(super) unsafe fn multiply<S: Simd>(strip: &Strip, num_cols: usize) {
    let num_vectors = num_cols.div_ceil(S::LANES);
    let mut first = 0;
    // SAFETY: the vectors lie within the columns that the caller promises.
    unsafe {
        while first + S::TILE_COLS <= num_vectors {
            match S::TILE_COLS {
                4 => tile::<S, 4>(strip, first),
                _ => tile::<S, 2>(strip, first),
            }
            first += S::TILE_COLS;
        }
        match num_vectors - first {
            0 => {}
            1 => tile::<S, 1>(strip, first),
            2 => tile::<S, 2>(strip, first),
            _ => tile::<S, 3>(strip, first),
        }
    }
}

/// Computes `C` vectors of columns, from vector `first` on.
#[inline(always)]
unsafe fn tile<S: Simd, const C: usize>(strip: &Strip, first: usize) {
    let (mut left, mut right) = (strip.left, strip.right.wrapping_add(first * S::LANES));
    let out = strip.out.wrapping_add(first * S::LANES);
    // SAFETY: the caller promises pointers that are valid for four rows, all steps and these vectors.
    unsafe {
        let mut sums = [[S::splat(0.0); C]; ROWS];
        if strip.adds {
            for r in 0..ROWS {
                for c in 0..C {
                    sums[r][c] = S::load(out.add(r * strip.out_row + c * S::LANES));
                }
            }
        }
        for _ in 0..strip.num_steps {
            let mut values = [S::splat(0.0); C];
            for c in 0..C {
                values[c] = S::load(right.add(c * S::LANES));
            }
            for r in 0..ROWS {
                let factor = S::splat(*left.add(r * strip.left_row));
                for c in 0..C {
                    sums[r][c] = S::fma(factor, values[c], sums[r][c]);
                }
            }
            left = left.wrapping_add(strip.left_step);
            right = right.wrapping_add(strip.right_step);
        }
        for r in 0..ROWS {
            for c in 0..C {
                S::store(out.add(r * strip.out_row + c * S::LANES), sums[r][c]);
            }
        }
    }
}
