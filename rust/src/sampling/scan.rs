//! Passes over a whole row. The first pass finds each chunk's maximum, so that later passes can skip most chunks.
//!
//! Every machine computes the same bits: the number of lanes is fixed, and lanes are combined in a fixed order.

use super::exp::SMALLEST;
use super::filter::Candidate;
use super::scale::Scale;

/// Logits per chunk. A row of 131,072 has 1,024 chunks; finding the 50 highest maxima takes 2 µs, scanning them 3 µs.
pub(super) const CHUNK: usize = 128;
const LANES: usize = 16;

/// Compiles one body of safe code twice, with and without AVX2, and picks a version at run time.
macro_rules! vectorized {
    ($(#[$doc:meta])* fn $name:ident($($argument:ident: $kind:ty),*) $body:block) => {
        $(#[$doc])*
        #[cfg_attr(
            target_arch = "x86_64",
            expect(unsafe_code, reason = "256-bit vectors: the sum of weights takes half the time of 128-bit ones")
        )]
        pub(super) fn $name($($argument: $kind),*) {
            #[inline(always)]
            fn body($($argument: $kind),*) $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn with_avx2($($argument: $kind),*) {
                    body($($argument),*);
                }
                if std::arch::is_x86_feature_detected!("avx2") {
                    // SAFETY: the check above found AVX2, the only target feature that `with_avx2` requires.
                    return unsafe { with_avx2($($argument),*) };
                }
            }
            body($($argument),*);
        }
    };
}

/// Fills `maxima` with each chunk's highest logit, ignoring NaN; returns whether the row holds a NaN.
pub(super) fn scan_maxima(row: &[f32], maxima: &mut Vec<f32>) -> bool {
    let (chunks, rest) = row.as_chunks::<CHUNK>();
    maxima.clear();
    maxima.resize(row.len().div_ceil(CHUNK), f32::NEG_INFINITY);
    let has_nan = whole_maxima(chunks, maxima);
    if let Some(last) = maxima.last_mut().filter(|_| !rest.is_empty()) {
        *last = chunk_max(rest);
    }
    has_nan || rest.iter().any(|logit| logit.is_nan())
}

/// Returns the highest of a few logits.
pub(super) fn chunk_max(chunk: &[f32]) -> f32 {
    chunk.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

#[cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "22 µs for 131,072 logits by what the compiler makes of safe code, 8 by this")
)]
fn whole_maxima(chunks: &[[f32; CHUNK]], maxima: &mut [f32]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the check above found AVX2, the only target feature that `whole_maxima` requires.
        return unsafe { avx2::whole_maxima(chunks, maxima) };
    }
    portable_maxima(chunks, maxima)
}

fn portable_maxima(chunks: &[[f32; CHUNK]], maxima: &mut [f32]) -> bool {
    let mut has_nan = [false; LANES];
    for (highest, chunk) in maxima.iter_mut().zip(chunks) {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        for part in chunk.as_chunks::<LANES>().0 {
            for (lane, &logit) in part.iter().enumerate() {
                lanes[lane] = if logit > lanes[lane] { logit } else { lanes[lane] };
                has_nan[lane] |= logit.is_nan();
            }
        }
        *highest = chunk_max(&lanes);
    }
    has_nan.contains(&true)
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::CHUNK;

    /// Number of streams in which a row is read in turn: 131,072 logits take 18 µs, compared with 24 µs in one stream.
    const STREAMS: usize = 8;

    /// Does the same as [`super::portable_maxima`], 16 logits per step.
    #[target_feature(enable = "avx2")]
    pub fn whole_maxima(chunks: &[[f32; CHUNK]], maxima: &mut [f32]) -> bool {
        let stream_len = chunks.len() / STREAMS;
        let mut unordered = _mm256_setzero_ps();
        for index in 0..stream_len {
            step::<STREAMS>(chunks, maxima, index, stream_len, &mut unordered);
        }
        for index in STREAMS * stream_len..chunks.len() {
            step::<1>(chunks, maxima, index, 0, &mut unordered);
        }
        _mm256_movemask_ps(unordered) != 0
    }

    /// Scans one chunk of each of `S` streams: chunks `first`, `first + stride` and so on.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn step<const S: usize>(
        chunks: &[[f32; CHUNK]],
        maxima: &mut [f32],
        first: usize,
        stride: usize,
        unordered: &mut __m256,
    ) {
        let mut lanes = [[_mm256_set1_ps(f32::NEG_INFINITY); 2]; S];
        for part in 0..CHUNK / 16 {
            for (stream, highest) in lanes.iter_mut().enumerate() {
                let [left, right] = &chunks[first + stream * stride].as_chunks::<8>().0.as_chunks::<2>().0[part];
                let (left, right) = (load(left), load(right));
                // If either operand is NaN, `_mm256_max_ps` returns its second operand.
                *highest = [_mm256_max_ps(left, highest[0]), _mm256_max_ps(right, highest[1])];
                *unordered = _mm256_or_ps(*unordered, _mm256_cmp_ps::<_CMP_UNORD_Q>(left, right));
            }
        }
        for (stream, [left, right]) in lanes.into_iter().enumerate() {
            maxima[first + stream * stride] = join(_mm256_max_ps(left, right));
        }
    }

    #[target_feature(enable = "avx2")]
    #[expect(unsafe_code, reason = "vectors are loaded from pointers")]
    fn load(logits: &[f32; 8]) -> __m256 {
        // SAFETY: the array is 32 readable bytes, and the load has no alignment requirement.
        unsafe { _mm256_loadu_ps(logits.as_ptr()) }
    }

    #[target_feature(enable = "avx2")]
    fn join(lanes: __m256) -> f32 {
        let four = _mm_max_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
        let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
    }
}

vectorized! {
    /// Fills `sums` with each chunk's sum of weights. Chunks without weight are not read.
    fn sum_weights(row: &[f32], maxima: &[f32], scale: Scale, sums: &mut Vec<f64>) {
        sums.clear();
        sums.resize(maxima.len(), 0.0);
        for ((sum, chunk), max) in sums.iter_mut().zip(row.chunks(CHUNK)).zip(maxima) {
            if scale.scaled(*max) < SMALLEST {
                continue;
            }
            let (parts, rest) = chunk.as_chunks::<LANES>();
            let mut lanes = [0.0f32; LANES];
            for part in parts {
                for (lane, &logit) in part.iter().enumerate() {
                    lanes[lane] += scale.weight(logit);
                }
            }
            for (lane, &logit) in rest.iter().enumerate() {
                lanes[lane] += scale.weight(logit);
            }
            for width in [8, 4, 2, 1] {
                for lane in 0..width {
                    lanes[lane] += lanes[lane + width];
                }
            }
            *sum = f64::from(lanes[0]);
        }
    }
}

vectorized! {
    /// Fills `candidates` with every logit of at least `lowest`, in ascending id order, with weights of 0.
    fn collect_from(row: &[f32], maxima: &[f32], lowest: f32, candidates: &mut Vec<Candidate>) {
        candidates.clear();
        for (chunk_idx, chunk) in row.chunks(CHUNK).enumerate() {
            if maxima[chunk_idx] < lowest {
                continue;
            }
            for (part_idx, part) in chunk.chunks(LANES).enumerate() {
                // Most parts hold no candidate, so one test covers a whole part.
                if !part.iter().fold(false, |any, &logit| any | (logit >= lowest)) {
                    continue;
                }
                let start = chunk_idx * CHUNK + part_idx * LANES;
                for (offset, &logit) in part.iter().enumerate() {
                    if logit >= lowest {
                        // Adding 0.0 turns -0.0 into 0.0, which `total_cmp` would rank apart.
                        candidates.push(Candidate { id: (start + offset) as u32, key: logit + 0.0, weight: 0.0 });
                    }
                }
            }
        }
    }
}

vectorized! {
    /// Appends bfloat16 numbers, given as bits, converted to float32.
    fn widen(row: &[u16], wide: &mut Vec<f32>) {
        wide.extend(row.iter().map(|&bits| f32::from_bits(u32::from(bits) << 16)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maxima_are_the_same_with_and_without_vectors() {
        let mut row: Vec<f32> = (0..2200).map(|idx| ((idx * 7919) % 1009) as f32 - 500.0).collect();
        row[300] = f32::NEG_INFINITY;
        row[777] = f32::INFINITY;
        for nan_at in [None, Some(3), Some(200), Some(2100), Some(2199)] {
            let mut row = row.clone();
            if let Some(id) = nan_at {
                row[id] = f32::NAN;
            }
            let mut maxima = Vec::new();
            assert_eq!(scan_maxima(&row, &mut maxima), nan_at.is_some());
            assert_eq!(maxima, row.chunks(CHUNK).map(chunk_max).collect::<Vec<_>>());
            let mut portable = vec![0.0; 17];
            let has_nan = portable_maxima(row.as_chunks().0, &mut portable);
            assert_eq!(portable, maxima[..17]);
            assert_eq!(has_nan, nan_at.is_some_and(|id| id < 17 * CHUNK));
        }
    }

    #[test]
    fn sums_skip_chunks_without_weight_and_add_the_rest() {
        let mut row = vec![-1000.0f32; 300];
        row[140] = 2.0;
        row[299] = 1.0;
        let (mut maxima, mut sums) = (Vec::new(), Vec::new());
        scan_maxima(&row, &mut maxima);
        sum_weights(&row, &maxima, Scale::new(2.0, 0.5), &mut sums);
        assert_eq!(sums[..2], [0.0, 1.0]);
        assert!((sums[2] - (-2.0f64).exp()).abs() < 1e-7);
    }

    #[test]
    fn sums_have_the_same_bits_as_lane_by_lane_addition() {
        let row: Vec<f32> = (0..1000).map(|idx| ((idx * 7919) % 1009) as f32 * 0.02).collect();
        let scale = Scale::new(20.16, 0.7);
        let (mut maxima, mut sums) = (Vec::new(), Vec::new());
        scan_maxima(&row, &mut maxima);
        sum_weights(&row, &maxima, scale, &mut sums);
        for (chunk, sum) in row.chunks(CHUNK).zip(sums) {
            let mut lanes = [0.0f32; LANES];
            for (idx, &logit) in chunk.iter().enumerate() {
                lanes[idx % LANES] += scale.weight(logit);
            }
            let eight: [f32; 8] = std::array::from_fn(|lane| lanes[lane] + lanes[lane + 8]);
            let four: [f32; 4] = std::array::from_fn(|lane| eight[lane] + eight[lane + 4]);
            assert_eq!(sum, f64::from((four[0] + four[2]) + (four[1] + four[3])));
        }
    }
}
