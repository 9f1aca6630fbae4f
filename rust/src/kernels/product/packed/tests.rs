#![cfg(test)]

use proptest::prelude::*;

use super::activations::{Group, quantise};
use super::cell::half_to_f32;
use super::multiply::{PackedTask, multiply_strip};
use super::scheme::{GROUP, Scheme};
use crate::kernels::product::strip::STRIP;
use crate::kernels::simd::Isa;

/// Where a block in a file has half-precision numbers.
fn places_of_halves(scheme: Scheme) -> &'static [usize] {
    match scheme {
        Scheme::Q8_0 | Scheme::Q4_0 | Scheme::Q5_0 => &[0],
        Scheme::Q4_1 | Scheme::Q5_1 | Scheme::Q4_K | Scheme::Q5_K | Scheme::Z4 | Scheme::Z8 => &[0, 2],
        Scheme::Q6_K => &[208],
        Scheme::MXFP4 => &[],
    }
}

/// Blocks as in a file: codes and multiples of any value, and half-precision numbers of moderate size.
fn blocks(scheme: Scheme, num: usize, state: &mut u64) -> Vec<u8> {
    let mut next = || {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 40) as u16
    };
    let mut found = Vec::new();
    for _ in 0..num {
        let mut block: Vec<u8> = (0..scheme.block_bytes()).map(|_| next() as u8).collect();
        for place in places_of_halves(scheme) {
            // Between 2^-9 and 2^-5, of either sign.
            let half = (next() & 0x83FF) | ((6 + next() % 4) << 10);
            block[*place..*place + 2].copy_from_slice(&half.to_le_bytes());
        }
        if scheme == Scheme::MXFP4 {
            // From the smallest power of two that half precision has on.
            block[0] = 104 + (next() % 40) as u8;
        }
        found.extend(block);
    }
    found
}

/// The values that a file's blocks mean, column after column by the definition of each scheme.
fn values(scheme: Scheme, blocks: &[u8]) -> Vec<f32> {
    let block_values = |block: &[u8]| -> Vec<f32> {
        let half = |at: usize| half_to_f32(u16::from_le_bytes([block[at], block[at + 1]]));
        let four = |at: usize, is_high: bool| if is_high { block[at] >> 4 } else { block[at] & 15 };
        let of_32 = |at: usize, col: usize| four(at + col % 16, col >= 16);
        let of_256 = |at: usize, col: usize| four(at + col / 64 * 32 + col % 32, col / 32 % 2 == 1);
        let fifth = |at: usize, col: usize| (block[at + col / 8] >> (col % 8) & 1) << 4;
        let with_min = |col: usize, code: u8| {
            let (group, bytes) = (col / 32, &block[4..16]);
            let (scale, min) = match group {
                0..4 => (bytes[group] & 63, bytes[group + 4] & 63),
                _ => (
                    (bytes[group + 4] & 15) | (bytes[group - 4] >> 6 << 4),
                    (bytes[group + 4] >> 4) | (bytes[group] >> 6 << 4),
                ),
            };
            half(0) * f32::from(scale) * f32::from(code) - half(2) * f32::from(min)
        };
        let value = |col: usize| match scheme {
            Scheme::Q8_0 => half(0) * f32::from(block[2 + col] as i8),
            Scheme::Q4_0 => half(0) * (f32::from(of_32(2, col)) - 8.0),
            Scheme::Q4_1 => half(0) * f32::from(of_32(4, col)) + half(2),
            Scheme::Q5_0 => half(0) * (f32::from(of_32(6, col) | fifth(2, col)) - 16.0),
            Scheme::Q5_1 => half(0) * f32::from(of_32(8, col) | fifth(4, col)) + half(2),
            Scheme::Q4_K => with_min(col, of_256(16, col)),
            Scheme::Q5_K => with_min(col, of_256(48, col) | (block[16 + col % 32] >> (col / 32) & 1) << 4),
            Scheme::MXFP4 => {
                let code = of_32(1, col);
                let (exponent, fraction) = (i32::from(code >> 1 & 3), f32::from(code & 1));
                let size =
                    if exponent == 0 { fraction / 2.0 } else { (1.0 + fraction / 2.0) * 2.0_f32.powi(exponent - 1) };
                (if code & 8 == 0 { size } else { -size }) * 2.0_f32.powi(i32::from(block[0]) - 127)
            }
            Scheme::Z4 => half(0) * f32::from(of_32(4, col)) - half(0) * half(2),
            Scheme::Z8 => half(0) * f32::from(block[4 + col] as i8) - half(0) * half(2),
            Scheme::Q6_K => {
                let low = four(col / 128 * 64 + col % 64, col % 128 >= 64);
                let high = block[128 + col / 128 * 32 + col % 32] >> (col % 128 / 32 * 2) & 3;
                half(208) * f32::from(block[192 + col / 16] as i8) * (f32::from(low | high << 4) - 32.0)
            }
        };
        (0..scheme.block_cols()).map(value).collect()
    };
    blocks.chunks(scheme.block_bytes()).flat_map(block_values).collect()
}

fn packed(scheme: Scheme, blocks: &[u8], rows: usize, cols: usize) -> Vec<u8> {
    let mut found = vec![0; scheme.packed_bytes(rows, cols)];
    scheme.pack(blocks, cols, &mut found, 0).unwrap();
    found
}

fn activations(num: usize, state: &mut u64) -> Vec<f32> {
    let mut next = || {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..num).map(|_| next() * next() * 4.0).collect()
}

fn quantised(isa: Isa, rows: &[f32]) -> Vec<Group> {
    let mut found = Vec::with_capacity(rows.len() / GROUP);
    // SAFETY: there is room for all groups, which are then all written.
    unsafe {
        quantise(isa, rows, found.as_mut_ptr());
        found.set_len(rows.len() / GROUP);
    }
    found
}

/// The first strip's outputs of each row, by the instruction set.
fn product(isa: Isa, scheme: Scheme, strip: &[u8], x: &[Group], cols: usize) -> Vec<f32> {
    let num_rows = x.len() / (cols / GROUP);
    let mut out = vec![f32::NAN; num_rows * STRIP];
    assert!(strip.len() >= scheme.strip_bytes(cols));
    let task = PackedTask { scheme, strip: strip.as_ptr(), x: x.as_ptr(), num_rows, cols, out: out.as_mut_ptr() };
    // SAFETY: all slices have the task's sizes, and only supported sets are tested.
    unsafe { multiply_strip(isa, &task) };
    out
}

/// The same outputs with a sum of whole numbers per group, in f64, and the sum of all magnitudes.
fn reference(scheme: Scheme, blocks: &[u8], x: &[Group], cols: usize) -> Vec<(f64, f64)> {
    let num_groups = cols / GROUP;
    let mut found = Vec::new();
    for row in x.chunks(num_groups) {
        for output in 0..STRIP {
            let row_bytes = cols / scheme.block_cols() * scheme.block_bytes();
            let weights = values(scheme, &blocks[output * row_bytes..][..row_bytes]);
            let terms = weights.iter().enumerate().map(|(col, weight)| {
                let group = &row[col / GROUP];
                f64::from(*weight) * f64::from(group.codes[col % GROUP]) * f64::from(group.scale)
            });
            found.push(terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs())));
        }
    }
    found
}

#[test]
fn half_precision_numbers_are_converted_exactly() {
    for (half, wanted) in
        [(0x3C00, 1.0), (0xC000, -2.0), (0x0001, 5.960_464_5e-8), (0x83FF, -6.097_555e-5), (0x7BFF, 65504.0)]
    {
        assert_eq!(half_to_f32(half), wanted, "{half:x}");
    }
    assert_eq!(half_to_f32(0x8000).to_bits(), 0x8000_0000);
    assert_eq!(half_to_f32(0xFC00), f32::NEG_INFINITY);
    assert!(half_to_f32(0x7E00).is_nan());
}

#[test]
fn packed_rows_have_the_values_of_the_file_wherever_they_begin() {
    for scheme in Scheme::ALL {
        let (rows, cols) = (13, 3 * scheme.block_cols());
        let blocks = blocks(scheme, rows * 3, &mut 5);
        let mut packed = vec![0; scheme.packed_bytes(rows, cols)];
        let row_bytes = 3 * scheme.block_bytes();
        scheme.pack(&blocks[..5 * row_bytes], cols, &mut packed, 0).unwrap();
        scheme.pack(&blocks[5 * row_bytes..], cols, &mut packed, 5).unwrap();
        for (row, wanted) in values(scheme, &blocks).chunks(cols).enumerate() {
            let mut found = vec![f32::NAN; cols];
            scheme.unpack_row(&packed, row, &mut found);
            assert_eq!(found, wanted, "{} row {row}", scheme.name());
        }
    }
}

#[test]
fn wrong_sizes_and_infinite_scales_are_refused() {
    for scheme in Scheme::ALL {
        let cols = 2 * scheme.block_cols();
        let mut packed = vec![0; scheme.packed_bytes(8, cols)];
        let blocks = blocks(scheme, 16, &mut 5);
        for (blocks, cols, first) in
            [(&blocks[1..], cols, 0), (&blocks[..], cols / 4 * 3, 0), (&blocks[..], 0, 0), (&blocks[..], cols, 1)]
        {
            assert!(scheme.pack(blocks, cols, &mut packed, first).is_err());
        }
        for place in places_of_halves(scheme) {
            let mut wrong = blocks.clone();
            let at = 3 * scheme.block_bytes() + place;
            wrong[at..at + 2].copy_from_slice(&0x7C00_u16.to_le_bytes());
            let error = scheme.pack(&wrong, cols, &mut packed, 0).unwrap_err().to_string();
            assert_eq!(error, "a scale of row 1 is not a finite number");
        }
    }
}

#[test]
fn many_rows_are_packed_in_threads_as_in_one() {
    let scheme = Scheme::Q4_1;
    let (rows, cols) = (1_500, 2_048);
    let blocks = blocks(scheme, rows * cols / GROUP, &mut 7);
    let row_bytes = cols / GROUP * scheme.block_bytes();
    for first in [0, 3] {
        let mut whole = vec![0; scheme.packed_bytes(first + rows, cols)];
        let mut by_rows = whole.clone();
        scheme.pack(&blocks, cols, &mut whole, first).unwrap();
        for (idx, row) in blocks.chunks(row_bytes).enumerate() {
            scheme.pack(row, cols, &mut by_rows, first + idx).unwrap();
        }
        assert!(whole == by_rows, "from row {first}");
        let mut wrong = blocks.clone();
        for row in [1_499, 1_201] {
            wrong[row * row_bytes + 1] = 0x7C;
            let error = scheme.pack(&wrong, cols, &mut whole, first).unwrap_err().to_string();
            assert_eq!(error, format!("a scale of row {row} is not a finite number"));
        }
    }
}

#[test]
fn powers_of_two_that_half_precision_lacks_are_refused_unless_all_floats_are_zero() {
    let mut packed = vec![0; Scheme::MXFP4.packed_bytes(1, GROUP)];
    for exponent in [0, 103, 144, 255] {
        let mut block = vec![0; Scheme::MXFP4.block_bytes()];
        block[0] = exponent;
        block[9] = 0x08;
        assert!(Scheme::MXFP4.pack(&block, GROUP, &mut packed, 0).is_ok(), "{exponent}");
        block[16] = 0x10;
        assert!(Scheme::MXFP4.pack(&block, GROUP, &mut packed, 0).is_err(), "{exponent}");
    }
}

#[test]
fn activations_are_rounded_to_the_nearest_of_255_steps() {
    for isa in Isa::supported() {
        let row = activations(20 * GROUP, &mut 3);
        for (group, values) in quantised(isa, &row).iter().zip(row.chunks(GROUP)) {
            let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
            assert_eq!(group.scale, largest / 127.0);
            for (code, value) in group.codes.iter().zip(values) {
                assert!((f32::from(*code) * group.scale - value).abs() <= group.scale * 0.500_1);
            }
            let sum: i32 = group.codes.iter().map(|code| i32::from(*code)).sum();
            let first: i32 = group.codes[..16].iter().map(|code| i32::from(*code)).sum();
            assert_eq!((group.offset, group.scaled_sum), (-4 * sum, group.scale * sum as f32));
            assert_eq!(group.first_offset, -4 * first);
        }
        let zero = quantised(isa, &[0.0; GROUP]);
        assert_eq!((zero[0].codes, zero[0].scale), ([0; GROUP], 0.0));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut row = [1.0; GROUP];
            row[9] = bad;
            assert!(!quantised(isa, &row)[0].scale.is_finite());
        }
    }
}

#[test]
fn extreme_codes_are_multiplied_without_saturation() {
    let one = 0x3C00_u16.to_le_bytes();
    for isa in Isa::supported() {
        for scheme in Scheme::ALL {
            for byte in [0x00, 0x7F, 0x80, 0x81, 0xFF_u8] {
                for code in [127_i8, -127] {
                    let mut block = vec![byte; scheme.block_bytes()];
                    if scheme == Scheme::MXFP4 {
                        block[0] = 128;
                    }
                    for place in places_of_halves(scheme) {
                        block[*place..*place + 2].copy_from_slice(&one);
                    }
                    let (blocks, cols) = (block.repeat(STRIP * 2), 2 * scheme.block_cols());
                    let x = quantised(isa, &vec![f32::from(code); cols]);
                    let strip = packed(scheme, &blocks, STRIP, cols);
                    let terms =
                        values(scheme, &block).into_iter().map(|value| 2.0 * f64::from(value) * f64::from(code));
                    let (wanted, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
                    for found in product(isa, scheme, &strip, &x, cols) {
                        let error = (f64::from(found) - wanted).abs();
                        assert!(error <= 1e-6 * size, "{} {} {byte:x}: {found} {wanted}", isa.name(), scheme.name());
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn every_set_equals_the_reference_and_rows_are_independent(
        num_rows in 1_usize..66, num_blocks in 1_usize..20, seed in any::<u64>(),
    ) {
        let mut state = seed;
        for scheme in Scheme::ALL {
            let num_blocks = num_blocks.div_ceil(scheme.block_cols() / GROUP);
            let cols = num_blocks * scheme.block_cols();
            let num_groups = cols / GROUP;
            let rows = activations(num_rows * cols, &mut state);
            let blocks = blocks(scheme, STRIP * num_blocks, &mut state);
            let strip = packed(scheme, &blocks, STRIP, cols);
            for isa in Isa::supported() {
                let x = quantised(isa, &rows);
                let found = product(isa, scheme, &strip, &x, cols);
                for (found, (wanted, size)) in found.iter().zip(reference(scheme, &blocks, &x, cols)) {
                    prop_assert!((f64::from(*found) - wanted).abs() <= 1e-6 * size, "{found} {wanted} {size}");
                }
                for (row, found) in found.chunks(STRIP).enumerate() {
                    let alone = product(isa, scheme, &strip, &x[row * num_groups..][..num_groups], cols);
                    prop_assert_eq!(
                        alone.iter().map(|value| value.to_bits()).collect::<Vec<_>>(),
                        found.iter().map(|value| value.to_bits()).collect::<Vec<_>>()
                    );
                }
            }
        }
    }

    #[test]
    fn every_set_sums_whole_numbers_exactly(num_rows in 1_usize..14, num_blocks in 1_usize..5, seed in any::<u64>()) {
        let mut state = seed;
        for scheme in Scheme::ALL {
            let num_blocks = num_blocks.div_ceil(scheme.block_cols() / GROUP);
            let cols = num_blocks * scheme.block_cols();
            let mut blocks = blocks(scheme, STRIP * num_blocks, &mut state);
            for block in blocks.chunks_mut(scheme.block_bytes()) {
                for place in places_of_halves(scheme) {
                    block[*place..*place + 2].copy_from_slice(&0x3C00_u16.to_le_bytes());
                }
                // Small multiples, so that sums are whole numbers below 2^24.
                match scheme {
                    Scheme::Q4_K | Scheme::Q5_K => block[4..16].iter_mut().for_each(|byte| *byte &= 3),
                    Scheme::Q6_K => block[192..208].iter_mut().for_each(|byte| *byte %= 7),
                    Scheme::MXFP4 => block[0] = 128,
                    _ => {}
                }
            }
            let strip = packed(scheme, &blocks, STRIP, cols);
            // Whole activations with a largest of 127 have the scale 1.
            let mut rows: Vec<f32> = activations(num_rows * cols, &mut state).iter().map(|x| (x * 31.0).round()).collect();
            rows.chunks_mut(GROUP).for_each(|group| group[7] = 127.0);
            for isa in Isa::supported() {
                let x = quantised(isa, &rows);
                let found = product(isa, scheme, &strip, &x, cols);
                let wanted: Vec<f32> = reference(scheme, &blocks, &x, cols).iter().map(|(sum, _)| *sum as f32).collect();
                prop_assert_eq!(&found, &wanted);
            }
        }
    }
}
