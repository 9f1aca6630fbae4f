//! Low-rank adapters of a linear layer, for the rows of a batch that ask for one.

use std::ops::Range;

use super::strip::STRIP;
use crate::kernels::memory::{Dtype, Format, Matrix};
#[cfg(target_arch = "x86_64")]
use crate::kernels::simd::Avx2;
use crate::kernels::simd::{Isa, Portable, Simd, narrow};
use crate::prefetch::near;
use crate::{Error, Result};

/// Rows that are added to together: with two sums each, they keep the multipliers busy.
const TILE: usize = 4;

/// The second matrix of one projection's adapter, with its scale in it.
#[derive(Debug, Clone)]
pub struct LowRankPart {
    /// First row of the projection in the layer's matrix.
    pub first: usize,
    /// Number of channels between the two matrices.
    pub rank: usize,
    /// `[outputs, rank]`.
    pub second: Vec<f32>,
}

/// An adapter of a linear layer: `second · (first · x)` is added to what the layer makes of `x`.
///
/// A layer may join several projections, each with second matrices of its own; their first matrices are joined.
///
/// Source: Hu et al. 2021, «LoRA», equation 3.
#[derive(Debug, Clone)]
pub struct LowRank {
    /// The first matrices, one below the other, in the format of the layer's weights.
    pub(in crate::kernels) first: Matrix,
    parts: Vec<LowRankPart>,
    /// The parts, once the adapter is fitted to its layer.
    strips: Vec<Strips>,
}

/// A second matrix, strip by strip.
#[derive(Debug, Clone)]
struct Strips {
    channels: Range<usize>,
    /// Where the layer's strips begin: they are multiples of a strip away.
    origin: usize,
    /// Number of the first strip, counted from `origin`.
    first: usize,
    values: Values,
}

/// For each strip and channel, the numbers of the strip's outputs.
#[derive(Debug, Clone)]
enum Values {
    /// Beside weights in f32.
    F32(Vec<[f32; STRIP]>),
    /// Beside all other weights: a step of many adapters waits for memory.
    Bf16(Vec<[u16; STRIP]>),
}

impl LowRank {
    /// Creates an adapter.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if sizes contradict each other.
    pub fn new(first: Matrix, parts: Vec<LowRankPart>) -> Result<Self> {
        let ranks: usize = parts.iter().map(|part| part.rank).sum();
        let is_whole = parts.iter().all(|part| part.rank > 0 && part.second.len().is_multiple_of(part.rank));
        if ranks != first.rows || !is_whole {
            let message = format!("an adapter's first matrix of {} rows contradicts its ranks of {ranks}", first.rows);
            return Err(Error::InvalidArgument(message));
        }
        Ok(Self { first, parts, strips: Vec::new() })
    }

    /// Number of channels of all projections.
    pub(in crate::kernels) fn channels(&self) -> usize {
        self.first.rows
    }

    /// Fits the adapter to a layer of these weights whose outputs from `second_half` on are cut into strips of their own.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if it is another layer's.
    pub(in crate::kernels) fn fit(&mut self, layer: &Matrix, second_half: usize) -> Result<()> {
        let fits = self.first.cols == layer.cols
            && self.first.format == layer.format
            && self.parts.iter().all(|part| part.first + part.second.len() / part.rank <= layer.rows);
        if !fits {
            let (rows, cols) = (layer.rows, layer.cols);
            return Err(Error::InvalidArgument(format!("an adapter does not fit a layer of ({rows}, {cols})")));
        }
        let is_wide = layer.format == Format::Plain(Dtype::F32);
        let mut channel = 0;
        for part in std::mem::take(&mut self.parts) {
            let origin = if part.first < second_half { 0 } else { second_half };
            self.strips.push(Strips::new(&part, channel, origin, is_wide));
            channel += part.rank;
        }
        Ok(())
    }

    /// Adds to some rows of a strip of outputs, `[rows, STRIP]`.
    pub(in crate::kernels) fn add(&self, isa: Isa, strip: usize, low: &LowRows<'_>, outputs: &mut [f32]) {
        for part in &self.strips {
            let Some(places) = part.places(strip) else { continue };
            let first = part.channels.start;
            // SAFETY: the model runs with a set of this machine.
            unsafe {
                match &part.values {
                    Values::F32(values) => add_rows(isa, &values[places], low, first, outputs),
                    Values::Bf16(values) => add_rows(isa, &values[places], low, first, outputs),
                }
            }
        }
    }
}

/// What the first matrices made of the rows that ask for an adapter.
#[derive(Debug, Clone, Copy)]
pub(in crate::kernels) struct LowRows<'a> {
    /// The rows.
    pub rows: &'a [usize],
    /// Channels of all rows.
    pub channels: &'a [f32],
    /// Distance between rows of `channels`.
    pub stride: usize,
}

/// Numbers of a strip's outputs.
trait Numbers {
    /// # Safety
    ///
    /// The machine has the instruction set, whose vectors hold a strip.
    unsafe fn load<S: Simd>(&self) -> S::V;
}

impl Numbers for [f32; STRIP] {
    #[inline(always)]
    unsafe fn load<S: Simd>(&self) -> S::V {
        // SAFETY: the caller's machine has the set, and the array is as long as a vector.
        unsafe { S::load(self.as_ptr()) }
    }
}

impl Numbers for [u16; STRIP] {
    #[inline(always)]
    unsafe fn load<S: Simd>(&self) -> S::V {
        // SAFETY: the caller's machine has the set, and the array is as long as a vector.
        unsafe { S::load_bf16(self.as_ptr()) }
    }
}

/// Adds the products of the channels from `first` on with a strip's numbers to the outputs of each row.
///
/// A strip is eight numbers wide, as are vectors of AVX2, so sets with wider vectors use AVX2 too.
///
/// # Safety
///
/// The machine has the instruction set.
unsafe fn add_rows<N: Numbers>(isa: Isa, values: &[N], low: &LowRows<'_>, first: usize, outputs: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        unsafe fn avx2<N: Numbers>(values: &[N], low: &LowRows<'_>, first: usize, outputs: &mut [f32]) {
            // SAFETY: this function is compiled for AVX2 and FMA.
            unsafe { run_add::<Avx2, N>(values, low, first, outputs) }
        }
        if isa != Isa::Portable {
            // SAFETY: all other sets include AVX2 and FMA, and the caller's machine has the set.
            return unsafe { avx2(values, low, first, outputs) };
        }
    }
    let _ = isa;
    // SAFETY: plain Rust runs on every machine.
    unsafe { run_add::<Portable, N>(values, low, first, outputs) }
}

#[inline(always)]
unsafe fn run_add<S: Simd, N: Numbers>(values: &[N], low: &LowRows<'_>, first: usize, outputs: &mut [f32]) {
    const { assert!(S::LANES == STRIP, "a vector holds a strip") };
    let row_of = |row: usize| (&low.channels[row * low.stride + first..][..values.len()], row);
    // A worker's next strip usually lies behind this one, and this one's product takes longer than memory.
    let next = values.as_ptr_range().end.cast::<u8>();
    (0..size_of_val(values)).step_by(64).for_each(|offset| near(next.wrapping_add(offset)));
    // SAFETY: the caller's machine has the instruction set.
    unsafe {
        for rows in low.rows.chunks(TILE) {
            match *rows {
                [a, b, c, d] => add_tile::<S, N, 4>(values, [a, b, c, d].map(row_of), outputs),
                [a, b, c] => add_tile::<S, N, 3>(values, [a, b, c].map(row_of), outputs),
                [a, b] => add_tile::<S, N, 2>(values, [a, b].map(row_of), outputs),
                _ => rows.iter().for_each(|row| add_tile::<S, N, 1>(values, [row_of(*row)], outputs)),
            }
        }
    }
}

/// Adds to `M` rows, given as their channels and their places among the outputs. A row has two sums, of even and of odd
/// channels, since the next product can't be added to a sum before the last one is.
#[inline(always)]
unsafe fn add_tile<S: Simd, N: Numbers, const M: usize>(values: &[N], rows: [(&[f32], usize); M], outputs: &mut [f32]) {
    // SAFETY: the caller's machine has the instruction set; vectors are as wide as a strip, and slices are checked.
    unsafe {
        let mut sums = [[S::splat(0.0); 2]; M];
        let (pairs, last) = values.as_chunks::<2>();
        for (idx, pair) in pairs.iter().enumerate() {
            let pair = [pair[0].load::<S>(), pair[1].load::<S>()];
            for m in 0..M {
                sums[m][0] = S::fma(pair[0], S::splat(*rows[m].0.get_unchecked(2 * idx)), sums[m][0]);
                sums[m][1] = S::fma(pair[1], S::splat(*rows[m].0.get_unchecked(2 * idx + 1)), sums[m][1]);
            }
        }
        for (m, (channels, row)) in rows.into_iter().enumerate() {
            if let ([values], Some(channel)) = (last, channels.last()) {
                sums[m][0] = S::fma(values.load::<S>(), S::splat(*channel), sums[m][0]);
            }
            let output = outputs[row * STRIP..][..STRIP].as_mut_ptr();
            S::store(output, S::add(S::load(output), S::add(sums[m][0], sums[m][1])));
        }
    }
}

impl Strips {
    /// Cuts the outputs of a part, whose channels begin at `channel`, into strips that begin at `origin`.
    fn new(part: &LowRankPart, channel: usize, origin: usize, is_wide: bool) -> Self {
        let (start, num_outputs) = (part.first - origin, part.second.len() / part.rank);
        let first = start / STRIP;
        let mut values = vec![[0.0; STRIP]; ((start + num_outputs).div_ceil(STRIP) - first) * part.rank];
        for (output, row) in part.second.chunks_exact(part.rank).enumerate() {
            let place = start + output;
            for (channel, value) in row.iter().enumerate() {
                values[(place / STRIP - first) * part.rank + channel][place % STRIP] = *value;
            }
        }
        let values = match is_wide {
            true => Values::F32(values),
            false => Values::Bf16(values.into_iter().map(|strip| strip.map(narrow)).collect()),
        };
        Self { channels: channel..channel + part.rank, origin, first, values }
    }

    /// Returns the places of the numbers of the layer's strip that begins with output `strip`, if the projection has
    /// outputs there.
    fn places(&self, strip: usize) -> Option<Range<usize>> {
        let place = strip.checked_sub(self.origin).filter(|place| place.is_multiple_of(STRIP))?;
        let start = (place / STRIP).checked_sub(self.first)? * self.channels.len();
        let len = match &self.values {
            Values::F32(values) => values.len(),
            Values::Bf16(values) => values.len(),
        };
        (start < len).then(|| start..start + self.channels.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that differ, so that a wrong place shows.
    fn numbers(count: usize) -> Vec<f32> {
        (0..count).map(|idx| ((idx * 37) % 19) as f32 - 9.0).collect()
    }

    /// Parts that begin and end within strips, and a second half that does, are added to their own outputs alone.
    #[test]
    fn each_output_gets_the_product_of_its_own_projection() {
        let (cols, half) = (5, 13);
        for (firsts, outputs) in [(vec![0, 6], [6, 7]), (vec![6, half], [7, 11]), (vec![0, half + 3], [13, 4])] {
            let weights = numbers(7 * cols);
            // SAFETY: the vector outlives the matrix.
            let first =
                unsafe { Matrix::from_raw(weights.as_ptr().cast(), 7, cols, crate::kernels::Dtype::F32) }.unwrap();
            let base = numbers(24 * cols);
            // SAFETY: the vector outlives the matrix.
            let base = unsafe { Matrix::from_raw(base.as_ptr().cast(), 24, cols, crate::kernels::Dtype::F32) }.unwrap();
            let parts: Vec<LowRankPart> = firsts
                .iter()
                .zip([3, 4].into_iter().zip(outputs))
                .map(|(&first, (rank, outputs))| LowRankPart { first, rank, second: numbers(rank * outputs) })
                .collect();
            let low = numbers(7);
            let mut expected = [0.0_f32; 24];
            let mut channel = 0;
            for part in &parts {
                for (output, row) in part.second.chunks_exact(part.rank).enumerate() {
                    expected[part.first + output] += row.iter().zip(&low[channel..]).map(|(b, l)| b * l).sum::<f32>();
                }
                channel += part.rank;
            }
            let mut adapter = LowRank::new(first, parts).unwrap();
            adapter.fit(&base, half).unwrap();
            for strip in [0, 8, half, half + STRIP] {
                let end = if strip < half { half } else { 24 };
                let mut found = [0.0; 2 * STRIP];
                let rows = LowRows { rows: &[1], channels: &[&[9.0; 7], &low[..]].concat(), stride: 7 };
                adapter.add(Isa::detect(), strip, &rows, &mut found);
                let found = &found[STRIP..];
                let count = STRIP.min(end - strip);
                assert_eq!(found[..count], expected[strip..strip + count], "strip {strip} of {firsts:?}");
            }
        }
    }

    /// A row gets the same bits whatever rows run beside it, and what a plain sum of products gives.
    #[test]
    fn rows_keep_their_bits_whatever_rows_run_beside_them() {
        let stride = 21;
        let numbers: Vec<f32> = (0..9 * stride + STRIP * stride).map(|idx| (idx as f32 * 0.7).sin()).collect();
        let (channels, second) = numbers.split_at(9 * stride);
        let wide: Vec<[f32; STRIP]> = second.as_chunks().0.to_vec();
        for (rank, isa) in
            [1, 2, 7, 16].into_iter().flat_map(|rank| Isa::supported().into_iter().map(move |isa| (rank, isa)))
        {
            let run = |rows: &[usize]| {
                let mut found = [0.5_f32; 9 * STRIP];
                // SAFETY: the machine has the set.
                unsafe { add_rows(isa, &wide[..rank], &LowRows { rows, channels, stride }, 3, &mut found) };
                found
            };
            let together = run(&[0, 1, 2, 3, 4, 5, 7, 8]);
            assert_eq!(together[6 * STRIP..7 * STRIP], [0.5; STRIP], "a row that asks for nothing");
            for row in [0, 3, 4, 8] {
                let own = row * STRIP..(row + 1) * STRIP;
                assert_eq!(run(&[row])[own.clone()], together[own.clone()], "row {row}, rank {rank}, {isa:?}");
                for (output, found) in together[own].iter().enumerate() {
                    let products = (0..rank).map(|idx| f64::from(channels[row * stride + 3 + idx] * wide[idx][output]));
                    let expected = 0.5 + products.sum::<f64>();
                    assert!(
                        (f64::from(*found) - expected).abs() < 1e-5,
                        "{found} for {expected}, rank {rank}, {isa:?}"
                    );
                }
            }
        }
    }
}
