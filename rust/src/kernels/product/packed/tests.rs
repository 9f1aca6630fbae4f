#![cfg(test)]

use proptest::prelude::*;

use super::activations::{Group, quantise};
use super::multiply::{PackedTask, multiply_strip};
use super::scheme::{GROUP, Scheme, half_to_f32};
use crate::kernels::product::strip::STRIP;
use crate::kernels::simd::Isa;

/// Blocks as in a file: codes of any value, and scales and minima of moderate size.
fn blocks(scheme: Scheme, num: usize, state: &mut u64) -> Vec<u8> {
    let mut next = || {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 40) as u16
    };
    let mut found = Vec::new();
    for _ in 0..num {
        for _ in 0..scheme.scale_bytes() / 2 {
            // Between 2^-9 and 2^-5, of either sign.
            let half = (next() & 0x83FF) | ((6 + next() % 4) << 10);
            found.extend(half.to_le_bytes());
        }
        found.extend((0..scheme.code_bytes()).map(|_| next() as u8));
    }
    found
}

/// The values that a file's blocks mean, by the definition of each scheme.
fn values(scheme: Scheme, blocks: &[u8]) -> Vec<f32> {
    let mut found = Vec::new();
    for block in blocks.chunks(scheme.group_bytes()) {
        let half = |at: usize| half_to_f32(u16::from_le_bytes([block[at], block[at + 1]]));
        let codes = &block[scheme.scale_bytes()..];
        found.extend((0..GROUP).map(|col| {
            let four = || f32::from(if col < 16 { codes[col] & 15 } else { codes[col - 16] >> 4 });
            match scheme {
                Scheme::Q8_0 => half(0) * f32::from(codes[col] as i8),
                Scheme::Q4_0 => half(0) * (four() - 8.0),
                Scheme::Q4_1 => half(0) * four() + half(2),
            }
        }));
    }
    found
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
            let weights = values(
                scheme,
                &blocks[output * num_groups * scheme.group_bytes()..][..num_groups * scheme.group_bytes()],
            );
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
        let (rows, cols) = (13, 96);
        let blocks = blocks(scheme, rows * cols / GROUP, &mut 5);
        let mut packed = vec![0; scheme.packed_bytes(rows, cols)];
        let row_bytes = cols / GROUP * scheme.group_bytes();
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
        let mut packed = vec![0; scheme.packed_bytes(8, 64)];
        let blocks = blocks(scheme, 16, &mut 5);
        for (blocks, cols, first) in
            [(&blocks[1..], 64, 0), (&blocks[..], 48, 0), (&blocks[..], 0, 0), (&blocks[..], 64, 1)]
        {
            assert!(scheme.pack(blocks, cols, &mut packed, first).is_err());
        }
        let mut wrong = blocks.clone();
        let at = 3 * scheme.group_bytes() + scheme.scale_bytes() - 2;
        wrong[at..at + 2].copy_from_slice(&0x7C00_u16.to_le_bytes());
        let error = scheme.pack(&wrong, 64, &mut packed, 0).unwrap_err().to_string();
        assert_eq!(error, "a scale of row 1 is not a finite number");
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
            assert_eq!((group.offset, group.scaled_sum), (-4 * sum, group.scale * sum as f32));
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
                    let mut block: Vec<u8> = one[..].repeat(scheme.scale_bytes() / 2);
                    block.extend(vec![byte; scheme.code_bytes()]);
                    let blocks = block.repeat(STRIP * 2);
                    let x = quantised(isa, &[f32::from(code); 2 * GROUP]);
                    let strip = packed(scheme, &blocks, STRIP, 2 * GROUP);
                    let wanted: f32 = values(scheme, &block).iter().map(|value| 2.0 * value * f32::from(code)).sum();
                    let found = product(isa, scheme, &strip, &x, 2 * GROUP);
                    assert_eq!(found, vec![wanted; STRIP], "{} {} {byte:x}", isa.name(), scheme.name());
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn every_set_equals_the_reference_and_rows_are_independent(
        num_rows in 1_usize..66, num_groups in 1_usize..20, seed in any::<u64>(),
    ) {
        let (cols, mut state) = (num_groups * GROUP, seed);
        let rows = activations(num_rows * cols, &mut state);
        for scheme in Scheme::ALL {
            let blocks = blocks(scheme, STRIP * num_groups, &mut state);
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
    fn every_set_sums_whole_numbers_exactly(num_rows in 1_usize..14, num_groups in 1_usize..5, seed in any::<u64>()) {
        let (cols, mut state) = (num_groups * GROUP, seed);
        for scheme in Scheme::ALL {
            let mut blocks = blocks(scheme, STRIP * num_groups, &mut state);
            for block in blocks.chunks_mut(scheme.group_bytes()) {
                for number in block[..scheme.scale_bytes()].chunks_mut(2) {
                    number.copy_from_slice(&0x3C00_u16.to_le_bytes());
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
