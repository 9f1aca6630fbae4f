//! Counter-based random numbers: a draw is a pure function of seed, choice and position.
//!
//! Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox4x32-10).

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const KEY_STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// Returns four random words for a counter and a key.
///
/// ```
/// use llm_core::sampling::philox4x32_10;
/// assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
/// ```
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (mut words, mut key) = (counter, key);
    for _ in 0..ROUNDS {
        let (high_0, low_0) = multiply(MULTIPLIERS[0], words[0]);
        let (high_1, low_1) = multiply(MULTIPLIERS[1], words[2]);
        words = [high_1 ^ words[1] ^ key[0], low_1, high_0 ^ words[3] ^ key[1], low_0];
        key = [key[0].wrapping_add(KEY_STEPS[0]), key[1].wrapping_add(KEY_STEPS[1])];
    }
    words
}

fn multiply(a: u32, b: u32) -> (u32, u32) {
    let product = u64::from(a) * u64::from(b);
    ((product >> 32) as u32, product as u32)
}

/// Returns the 64-bit Philox key of a request's random stream.
///
/// Choice 0 uses the seed itself, and choice `n > 0` the n-th output of SplitMix64 started at the seed, so that the
/// choices of one prompt share no stream.
///
/// Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators" (the mixing function).
pub fn stream_key(seed: u64, choice_index: u32) -> u64 {
    if choice_index == 0 {
        return seed;
    }
    let mut mixed = seed.wrapping_add(u64::from(choice_index).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// Returns a uniform number in [0, 1) with 53 random bits.
///
/// Key words are the low and high half of `key`; counter words are the low and high half of `output_idx` (how many
/// tokens the request had generated before), `draw_idx` (which draw for that token), 0. The first two output words
/// are the low and high half of a 64-bit number whose top 53 bits are used.
pub fn uniform(key: u64, output_idx: u64, draw_idx: u32) -> f64 {
    let counter = [output_idx as u32, (output_idx >> 32) as u32, draw_idx, 0];
    let words = philox4x32_10(counter, [key as u32, (key >> 32) as u32]);
    let bits = u64::from(words[0]) | (u64::from(words[1]) << 32);
    (bits >> 11) as f64 / (1u64 << 53) as f64
}
