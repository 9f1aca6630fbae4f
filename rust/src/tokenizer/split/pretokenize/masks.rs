//! Classifies the ASCII characters in 64 bytes at once.

/// Number of bytes in a block; each bit of a mask stands for one.
pub const BLOCK_BYTES: usize = 64;

/// One mask for each class of byte: bit `i` is set if byte `i` is in the class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Masks {
    /// `[A-Za-z]`
    pub letters: u64,
    /// `[A-Z]`
    pub uppers: u64,
    /// `[0-9]`
    pub digits: u64,
    /// A space.
    pub spaces: u64,
    /// `[\t\v\f]`
    pub tabs: u64,
    /// `[\r\n]`
    pub newlines: u64,
    /// An apostrophe.
    pub quotes: u64,
    /// Bytes beyond ASCII.
    pub foreign: u64,
    /// Bytes beyond ASCII that continue a character.
    pub rests: u64,
}

impl Masks {
    /// Returns the masks of `block`.
    #[inline(always)]
    pub fn of(block: &[u8; BLOCK_BYTES]) -> Self {
        #[cfg(target_arch = "x86_64")]
        #[expect(unsafe_code, reason = "classes 64 or 16 bytes at once, words 8: criterion `tokenizer/pieces`")]
        // SAFETY: `wide` is called only if the processor has AVX-512, and every x86-64 processor has SSE2.
        return unsafe { if wide::is_supported() { wide::masks(block) } else { x86::masks(block) } };
        #[cfg(not(target_arch = "x86_64"))]
        return portable::masks(block);
    }
}

/// Masks with SSE2, which every x86-64 processor has; 240 instructions per block, counted by callgrind.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m128i, _mm_cmpeq_epi8, _mm_cmplt_epi8, _mm_min_epu8, _mm_movemask_epi8, _mm_or_si128, _mm_set_epi64x,
        _mm_set1_epi8, _mm_sub_epi8,
    };

    use crate::tokenizer::split::pretokenize::masks::{BLOCK_BYTES, Masks};

    #[target_feature(enable = "sse2")]
    #[inline]
    pub fn masks(block: &[u8; BLOCK_BYTES]) -> Masks {
        let mut masks = Masks::default();
        for (index, lane) in block.as_chunks::<16>().0.iter().enumerate() {
            add_lane(&mut masks, lane, 16 * index as u32);
        }
        masks
    }

    #[target_feature(enable = "sse2")]
    #[inline]
    fn add_lane(masks: &mut Masks, lane: &[u8; 16], shift: u32) {
        let ([low, high], _) = lane.as_chunks::<8>() else { return };
        let bytes = _mm_set_epi64x(i64::from_le_bytes(*high), i64::from_le_bytes(*low));
        let folded = _mm_or_si128(bytes, splat(0x20));
        let newline = _mm_or_si128(equal(bytes, b'\n'), equal(bytes, b'\r'));
        let bits = |lane: __m128i| u64::from(_mm_movemask_epi8(lane) as u16) << shift;
        let newlines = bits(newline);
        masks.letters |= bits(in_range(folded, b'a', b'z'));
        masks.uppers |= bits(in_range(bytes, b'A', b'Z'));
        masks.digits |= bits(in_range(bytes, b'0', b'9'));
        masks.spaces |= bits(equal(bytes, b' '));
        masks.tabs |= bits(in_range(bytes, b'\t', b'\r')) & !newlines;
        masks.newlines |= newlines;
        masks.quotes |= bits(equal(bytes, b'\''));
        masks.foreign |= bits(bytes);
        masks.rests |= bits(_mm_cmplt_epi8(bytes, splat(0xC0)));
    }

    #[target_feature(enable = "sse2")]
    #[inline]
    fn splat(byte: u8) -> __m128i {
        _mm_set1_epi8(byte as i8)
    }

    #[target_feature(enable = "sse2")]
    #[inline]
    fn equal(bytes: __m128i, byte: u8) -> __m128i {
        _mm_cmpeq_epi8(bytes, splat(byte))
    }

    #[target_feature(enable = "sse2")]
    #[inline]
    fn in_range(bytes: __m128i, first: u8, last: u8) -> __m128i {
        let offset = _mm_sub_epi8(bytes, splat(first));
        _mm_cmpeq_epi8(_mm_min_epu8(offset, splat(last - first)), offset)
    }
}

/// Masks with AVX-512, all 64 bytes at once.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "classes 64 bytes at once: criterion `tokenizer/pieces`")]
mod wide {
    use std::arch::x86_64::*;

    use crate::tokenizer::split::pretokenize::masks::{BLOCK_BYTES, Masks};

    #[inline(always)]
    pub fn is_supported() -> bool {
        is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    pub fn masks(block: &[u8; BLOCK_BYTES]) -> Masks {
        // SAFETY: the block is 64 readable bytes, as wide as the register, and the load has no alignment requirement.
        let bytes = unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
        let splat = |byte: u8| _mm512_set1_epi8(byte as i8);
        let equal = |byte: u8| _mm512_cmpeq_epi8_mask(bytes, splat(byte));
        let in_range = |bytes: __m512i, first: u8, last: u8| {
            _mm512_cmple_epu8_mask(_mm512_sub_epi8(bytes, splat(first)), splat(last - first))
        };
        let newlines = equal(b'\n') | equal(b'\r');
        Masks {
            letters: in_range(_mm512_or_si512(bytes, splat(0x20)), b'a', b'z'),
            uppers: in_range(bytes, b'A', b'Z'),
            digits: in_range(bytes, b'0', b'9'),
            spaces: equal(b' '),
            tabs: in_range(bytes, b'\t', b'\r') & !newlines,
            newlines,
            quotes: equal(b'\''),
            foreign: _mm512_movepi8_mask(bytes),
            rests: _mm512_cmplt_epi8_mask(bytes, splat(0xC0)),
        }
    }
}

/// Masks for all other processors, from eight bytes in a `u64` at a time.
#[cfg(any(test, not(target_arch = "x86_64")))]
mod portable {
    use crate::tokenizer::split::pretokenize::masks::{BLOCK_BYTES, Masks};

    const ONES: u64 = u64::from_le_bytes([1; 8]);
    const HIGH: u64 = u64::from_le_bytes([0x80; 8]);

    pub fn masks(block: &[u8; BLOCK_BYTES]) -> Masks {
        let mut masks = Masks::default();
        for (index, word) in block.as_chunks::<8>().0.iter().enumerate() {
            let word = u64::from_le_bytes(*word);
            let bits = |flags: u64| gather(flags) << (8 * index);
            let newlines = in_range(word, b'\n', b'\n') | in_range(word, b'\r', b'\r');
            masks.letters |= bits(in_range(word | (ONES * 0x20), b'a', b'z'));
            masks.uppers |= bits(in_range(word, b'A', b'Z'));
            masks.digits |= bits(in_range(word, b'0', b'9'));
            masks.spaces |= bits(in_range(word, b' ', b' '));
            masks.tabs |= bits(in_range(word, b'\t', b'\r') & !newlines);
            masks.newlines |= bits(newlines);
            masks.quotes |= bits(in_range(word, b'\'', b'\''));
            masks.foreign |= bits(word & HIGH);
            masks.rests |= bits(word & !(word << 1) & HIGH);
        }
        masks
    }

    /// Returns the high bit of each byte from `first` to `last`; both bounds are ASCII.
    fn in_range(word: u64, first: u8, last: u8) -> u64 {
        let low = word & !HIGH;
        let at_least = low + ONES * u64::from(0x80 - first);
        let above = low + ONES * u64::from(0x7F - last);
        at_least & !above & !word & HIGH
    }

    /// Returns the high bits of eight bytes as the low eight bits of a number.
    fn gather(flags: u64) -> u64 {
        (flags >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn byte_by_byte(block: &[u8; BLOCK_BYTES]) -> Masks {
        let mask =
            |is_in: fn(u8) -> bool| (0..BLOCK_BYTES).fold(0, |mask, at| mask | u64::from(is_in(block[at])) << at);
        Masks {
            letters: mask(|byte| byte.is_ascii_alphabetic()),
            uppers: mask(|byte| byte.is_ascii_uppercase()),
            digits: mask(|byte| byte.is_ascii_digit()),
            spaces: mask(|byte| byte == b' '),
            tabs: mask(|byte| matches!(byte, b'\t' | 0x0B | 0x0C)),
            newlines: mask(|byte| matches!(byte, b'\r' | b'\n')),
            quotes: mask(|byte| byte == b'\''),
            foreign: mask(|byte| !byte.is_ascii()),
            rests: mask(|byte| matches!(byte, 0x80..0xC0)),
        }
    }

    /// Compares this processor's masks and those of all other paths with masks computed byte by byte.
    fn check(block: &[u8; BLOCK_BYTES]) {
        let expected = byte_by_byte(block);
        assert_eq!(Masks::of(block), expected);
        assert_eq!(portable::masks(block), expected);
        #[cfg(target_arch = "x86_64")]
        #[expect(unsafe_code, reason = "what processors without AVX-512 take")]
        // SAFETY: every x86-64 processor has SSE2.
        let by_lanes = unsafe { x86::masks(block) };
        #[cfg(target_arch = "x86_64")]
        assert_eq!(by_lanes, expected);
    }

    proptest! {
        #[test]
        fn masks_equal_the_classes_byte_by_byte(block in any::<[u8; 32]>(), ascii in "[ -~\t\r\n]{32}") {
            let bytes: Vec<u8> = block.into_iter().chain(ascii.bytes()).collect();
            check(bytes.first_chunk().unwrap());
        }
    }

    #[test]
    fn every_byte_is_classed() {
        for start in (0..=u8::MAX).step_by(BLOCK_BYTES) {
            check(&std::array::from_fn(|at| start + at as u8));
        }
    }
}
