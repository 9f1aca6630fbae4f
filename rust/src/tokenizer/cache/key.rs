//! Keys of pieces: 16 bytes, computed without a branch.

/// Maximum number of bytes of a small piece, which takes 16 bytes in the cache. Most pieces of any text are small.
pub const SMALL_BYTES: usize = 8;

/// Maximum number of bytes of a piece that is its own key; with its length, the piece fills 16 bytes.
pub const MEDIUM_BYTES: usize = 15;

/// The key under which a piece is cached. A small piece: its bytes and length, and zero. A medium piece: its bytes and
/// length. A long piece: a hash, and its length in a form that no other kind has. Keys are valid for text only, because
/// a byte that never occurs in UTF-8 marks the length.
pub type Key = [u64; 2];

/// Whether the key belongs to a small piece.
#[inline(always)]
pub fn is_small(key: Key) -> bool {
    key[1] == 0
}

/// The mask that keeps the bytes of a piece, by the length of the piece.
const KEPT: [u128; MEDIUM_BYTES + 1] = {
    let mut kept = [0; MEDIUM_BYTES + 1];
    let mut len = 1;
    while len <= MEDIUM_BYTES {
        kept[len] = u128::MAX >> (128 - 8 * len);
        len += 1;
    }
    kept
};

/// The tag of each length, stored in the last byte of the last word that has room.
const LENGTHS: [u128; MEDIUM_BYTES + 1] = {
    let mut lengths = [0; MEDIUM_BYTES + 1];
    let mut len = 0;
    while len <= MEDIUM_BYTES {
        let tag = 0xF8 | (len % SMALL_BYTES) as u128;
        lengths[len] = if len == SMALL_BYTES {
            0
        } else if len < SMALL_BYTES {
            tag << 56
        } else {
            tag << 120
        };
        len += 1;
    }
    lengths
};

/// The key of the piece `text[start..end]` of at most [`MEDIUM_BYTES`].
#[inline(always)]
fn short_key(text: &[u8], start: usize, end: usize) -> Key {
    let bytes = match text[start..].first_chunk() {
        Some(bytes) => u128::from_le_bytes(*bytes),
        None => last_bytes(&text[start..]),
    };
    words(bytes & KEPT[end - start] | LENGTHS[end - start])
}

/// The key of the piece `text[start..end]`.
#[inline(always)]
pub fn piece_key(text: &[u8], start: usize, end: usize) -> Key {
    if end - start <= MEDIUM_BYTES { short_key(text, start, end) } else { long_key(&text[start..end]) }
}

/// A hash of the piece with this key.
#[inline(always)]
pub fn key_hash(key: Key) -> u64 {
    mix(key[0], key[1])
}

/// The key of a piece of more than [`MEDIUM_BYTES`].
fn long_key(piece: &[u8]) -> Key {
    let (chunks, _) = piece.as_chunks();
    // The last chunk may repeat bytes of the chunk before.
    let hash = chunks.iter().chain(piece.last_chunk()).fold(0, |state, chunk| {
        let [low, high] = words(u128::from_le_bytes(*chunk));
        mix(low ^ state, high)
    });
    [hash, u64::MAX << 32 | piece.len() as u64]
}

#[inline(always)]
fn words(bytes: u128) -> [u64; 2] {
    [bytes as u64, (bytes >> 64) as u64]
}

/// The last bytes of a text, padded with zeros.
#[cold]
fn last_bytes(rest: &[u8]) -> u128 {
    let mut bytes = [0; 16];
    let len = rest.len().min(16);
    bytes[..len].copy_from_slice(&rest[..len]);
    u128::from_le_bytes(bytes)
}

/// Multiplies two words and combines both halves of the product, so that every bit of the result depends on every bit
/// of both words.
#[inline(always)]
fn mix(one: u64, other: u64) -> u64 {
    let product = u128::from(one ^ 0x9E37_79B9_7F4A_7C15) * u128::from(other ^ 0xD1B5_4A32_D192_ED03);
    (product >> 64) as u64 ^ product as u64
}
