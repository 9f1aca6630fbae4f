//! Operations on rows of sixteen 32-bit lanes in 512-bit registers.

#![expect(unsafe_code, reason = "AVX-512 loads and stores: criterion `tokenizer/encode`")]

use std::arch::x86_64::*;

use bytemuck::Pod;

/// Number of lanes of a register.
pub const LANES: usize = 16;

/// Transposes sixteen rows into sixteen columns.
#[target_feature(enable = "avx512f")]
#[inline]
pub fn transposed(rows: [__m512i; LANES]) -> [__m512i; LANES] {
    let mut pairs = rows;
    for (pair, row) in pairs.chunks_exact_mut(2).zip(rows.chunks_exact(2)) {
        pair[0] = _mm512_unpacklo_epi32(row[0], row[1]);
        pair[1] = _mm512_unpackhi_epi32(row[0], row[1]);
    }
    // Quarter `q` of register `4 * i + j` holds the rows from `4 * i` on of column `4 * q + j`.
    let mut fours = pairs;
    for (four, pair) in fours.chunks_exact_mut(4).zip(pairs.chunks_exact(4)) {
        four[0] = _mm512_unpacklo_epi64(pair[0], pair[2]);
        four[1] = _mm512_unpackhi_epi64(pair[0], pair[2]);
        four[2] = _mm512_unpacklo_epi64(pair[1], pair[3]);
        four[3] = _mm512_unpackhi_epi64(pair[1], pair[3]);
    }
    let mut columns = fours;
    for at in 0..4 {
        // Even quarters first, then odd quarters.
        let even = [0, 8].map(|row| _mm512_shuffle_i32x4::<0x88>(fours[row + at], fours[row + 4 + at]));
        let odd = [0, 8].map(|row| _mm512_shuffle_i32x4::<0xDD>(fours[row + at], fours[row + 4 + at]));
        columns[at] = _mm512_shuffle_i32x4::<0x88>(even[0], even[1]);
        columns[4 + at] = _mm512_shuffle_i32x4::<0x88>(odd[0], odd[1]);
        columns[8 + at] = _mm512_shuffle_i32x4::<0xDD>(even[0], even[1]);
        columns[12 + at] = _mm512_shuffle_i32x4::<0xDD>(odd[0], odd[1]);
    }
    columns
}

/// The lowest set bit of each lane.
#[target_feature(enable = "avx512f")]
#[inline]
pub fn lowest_bit(bits: __m512i) -> __m512i {
    _mm512_and_si512(bits, _mm512_sub_epi32(all(0), bits))
}

/// The position of the highest set bit of each lane.
#[target_feature(enable = "avx512f,avx512cd")]
#[inline]
pub fn highest_place(bits: __m512i) -> __m512i {
    _mm512_sub_epi32(all(31), _mm512_lzcnt_epi32(bits))
}

/// The index of each lane.
#[target_feature(enable = "avx512f")]
#[inline]
pub fn numbers() -> __m512i {
    _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
}

/// The same 32 bits in all lanes.
#[target_feature(enable = "avx512f")]
#[inline]
pub fn all(value: usize) -> __m512i {
    _mm512_set1_epi32(value as i32)
}

/// Loads a row from memory.
#[target_feature(enable = "avx512f")]
#[inline]
pub fn load<T: Pod>(row: &[T; LANES]) -> __m512i {
    const { assert!(size_of::<T>() == 4) };
    // SAFETY: a row has sixteen values of four bytes, the size of the register, and the load needs no alignment.
    unsafe { _mm512_loadu_si512(row.as_ptr().cast()) }
}

/// Stores a row to memory.
#[target_feature(enable = "avx512f")]
#[inline]
pub fn store<T: Pod>(row: &mut [T; LANES], values: __m512i) {
    const { assert!(size_of::<T>() == 4) };
    // SAFETY: a row has sixteen values of four bytes, the size of the register, and any bits are a valid `T: Pod`.
    unsafe { _mm512_storeu_si512(row.as_mut_ptr().cast(), values) };
}
