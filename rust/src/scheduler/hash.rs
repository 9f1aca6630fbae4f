//! Names of cached blocks: the index in the cache and the hash of the content.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::num::NonZeroU128;

/// Index of a block in the cache.
pub type BlockId = u32;

/// Hash of a block's tokens and, through its parent's hash, of all tokens before them.
pub type BlockHash = NonZeroU128;

/// Hashes chains of blocks with 128-bit SipHash-1-3, under a secret key that each scheduler draws for itself.
///
/// A hit trusts the hash and compares no tokens. At 128 bits, accidental collisions do not happen (a billion blocks:
/// probability 10⁻²⁰). Without the key, nobody can search for two texts that collide, which would expose one user's
/// cache to another. Comparing tokens would mean comparing the whole prefix, or trusting the parent's hash anyway.
///
/// Source: Aumasson and Bernstein 2012, "SipHash: a fast short-input PRF", and its 128-bit variant.
#[derive(Debug, Clone, Copy)]
pub struct BlockHasher {
    key: [u64; 2],
}

impl BlockHasher {
    /// Creates a hasher with a random key from the system.
    pub fn new() -> Self {
        let random = RandomState::new();
        Self { key: [random.hash_one(0), random.hash_one(1)] }
    }

    /// Hashes a block's tokens together with `parent`, the hash of the block before; `None` for the first block.
    pub fn hash(&self, parent: Option<BlockHash>, tokens: &[u32]) -> BlockHash {
        let parent = parent.map_or(0, NonZeroU128::get);
        let mut state = SipState::new(self.key);
        state.absorb(parent as u64);
        state.absorb((parent >> 64) as u64);
        let (pairs, rest) = tokens.as_chunks::<2>();
        for [low, high] in pairs {
            state.absorb(u64::from(*low) | (u64::from(*high) << 32));
        }
        // The last word of SipHash holds the rest of the message below its length in bytes, modulo 256.
        let num_bytes = (16 + 4 * tokens.len()) as u64;
        state.absorb(rest.first().map_or(0, |&token| u64::from(token)) | (num_bytes << 56));
        NonZeroU128::new(state.finish()).unwrap_or(NonZeroU128::MIN)
    }
}

impl Default for BlockHasher {
    fn default() -> Self {
        Self::new()
    }
}

struct SipState([u64; 4]);

impl SipState {
    fn new(key: [u64; 2]) -> Self {
        Self([
            key[0] ^ 0x736f_6d65_7073_6575,
            key[1] ^ 0x646f_7261_6e64_6f6d ^ 0xee,
            key[0] ^ 0x6c79_6765_6e65_7261,
            key[1] ^ 0x7465_6462_7974_6573,
        ])
    }

    #[inline]
    fn round(&mut self) {
        let v = &mut self.0;
        v[0] = v[0].wrapping_add(v[1]);
        v[2] = v[2].wrapping_add(v[3]);
        v[1] = v[1].rotate_left(13) ^ v[0];
        v[3] = v[3].rotate_left(16) ^ v[2];
        v[0] = v[0].rotate_left(32);
        v[2] = v[2].wrapping_add(v[1]);
        v[0] = v[0].wrapping_add(v[3]);
        v[1] = v[1].rotate_left(17) ^ v[2];
        v[3] = v[3].rotate_left(21) ^ v[0];
        v[2] = v[2].rotate_left(32);
    }

    #[inline]
    fn absorb(&mut self, word: u64) {
        self.0[3] ^= word;
        self.round();
        self.0[0] ^= word;
    }

    fn half(&mut self) -> u64 {
        (0..3).for_each(|_| self.round());
        self.0.iter().fold(0, |folded, word| folded ^ word)
    }

    fn finish(mut self) -> u128 {
        self.0[2] ^= 0xee;
        let low = self.half();
        self.0[1] ^= 0xdd;
        u128::from(low) | (u128::from(self.half()) << 64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASHER: BlockHasher = BlockHasher { key: [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908] };

    /// Expected values from OpenSSL's `SIPHASH` with `c-rounds:1`, `d-rounds:3` and `size:16`.
    #[test]
    fn hashes_equal_openssls() {
        let of = |parent: u128, tokens: &[u32]| HASHER.hash(NonZeroU128::new(parent), tokens).get();
        assert_eq!(of(0, &[]), 0xa43f_8ea1_0ee4_9334_9fff_7719_3150_ede0_u128.swap_bytes());
        assert_eq!(of(0, &[1, 2, 3]), 0x45fe_da03_ab8d_cf74_0175_c087_c29a_bda2_u128.swap_bytes());
        assert_eq!(
            of(7 << 64 | 9, &[1, 2, 3, 0xffff_ffff]),
            0x9fff_01c5_224d_aa22_27c2_9151_690d_3d04_u128.swap_bytes()
        );
    }

    #[test]
    fn each_scheduler_hashes_with_a_key_of_its_own() {
        assert_ne!(BlockHasher::new().hash(None, &[1]), BlockHasher::new().hash(None, &[1]));
    }
}
