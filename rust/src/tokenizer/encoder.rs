//! From the pieces of a text to ids, at the speed of a look-up.

use std::sync::{Arc, Mutex, OnceLock};

use super::backtrack::Backtracker;
use super::cache::{
    Found, LONG_BYTES, MEDIUM_BYTES, ONE_TOKEN, Pair, PieceCache, SMALL_BYTES, SmallTable, hash, insert_small,
    look_up_small, medium_key, small_key,
};
use super::memory::ZeroedMemory;
use super::pretokenize::Visit;
use super::stream::TokenTable;
use super::vocab::Vocab;

/// Up to this many bytes a piece is merged; making a [`Backtracker`] pays for longer ones only.
const MERGED_BYTES: usize = 512;

/// Ids that are collected before they go to the caller's vector.
const BUFFER_IDS: usize = 1024;

/// Merges pieces by a vocabulary that begins with bytes. Threads share it; each takes a cache for as long as it encodes.
pub struct PieceEncoder {
    vocab: Arc<Vocab>,
    whole: WholeTable,
    /// For long pieces; made when the first comes.
    backtracker: OnceLock<Option<Backtracker>>,
    /// What no thread uses right now; as many as threads ever encoded at once.
    workers: Mutex<Vec<Box<Worker>>>,
}

/// What a thread needs for itself while it encodes.
struct Worker {
    small: ZeroedMemory<SmallTable>,
    cache: PieceCache,
    buffer: [u32; BUFFER_IDS],
}

impl PieceEncoder {
    /// The encoder of a vocabulary; of one that begins with characters it has nothing to encode.
    pub fn new(vocab: Arc<Vocab>) -> Self {
        let whole = WholeTable::new(vocab.size());
        let mut encoder = Self { vocab, whole, backtracker: OnceLock::new(), workers: Mutex::default() };
        let vocab = Arc::clone(&encoder.vocab);
        if vocab.characters().is_some() {
            return encoder;
        }
        for id in (0..vocab.size() as u32).filter(|&id| vocab.is_ordinary(id)) {
            let Some(token) = vocab.tokens().bytes(id) else { continue };
            // A merge list can hold tokens that merging never reaches; looking those up would change ids.
            if vocab.whole_first() || vocab.reaches_all() || encoder.merge(token) == [id] {
                encoder.whole.insert(id, token);
            }
        }
        encoder.give_back(encoder.new_worker());
        encoder
    }

    /// A worker whose cache knows the vocabulary: the first tokens are the most frequent ones.
    fn new_worker(&self) -> Box<Worker> {
        let (mut small, mut cache) = (ZeroedMemory::new(), PieceCache::new());
        // In reverse: the last that come stay, and the first tokens are the most frequent ones.
        for id in self.whole.ids().into_iter().rev() {
            let Some(token) = self.vocab.tokens().bytes(id) else { continue };
            match token.len() {
                // A token that is no UTF-8 is no piece, and could be taken for a shorter one.
                _ if std::str::from_utf8(token).is_err() => {}
                len @ ..=SMALL_BYTES => _ = insert_small(small.get(), small_key(token, 0, len), &[id]),
                len @ ..=MEDIUM_BYTES => cache.insert(medium_key(token, 0, len), &[id]),
                _ => {}
            }
        }
        Box::new(Worker { small, cache, buffer: [0; BUFFER_IDS] })
    }

    fn give_back(&self, worker: Box<Worker>) {
        if let Ok(mut workers) = self.workers.lock() {
            workers.push(worker);
        }
    }

    /// Adds to `ids` what `work` encodes.
    #[inline]
    pub fn session<T>(&self, ids: &mut Vec<u32>, work: impl FnOnce(&mut Session) -> T) -> T {
        let free = self.workers.lock().ok().and_then(|mut workers| workers.pop());
        let mut worker = free.unwrap_or_else(|| self.new_worker());
        let Worker { small, cache, buffer } = &mut *worker;
        let mut session = Session { encoder: self, small: small.get(), cache, buffer, len: 0, ids };
        let result = work(&mut session);
        session.flush();
        self.give_back(worker);
        result
    }

    /// The ids of a piece, by merging alone.
    fn merge(&self, piece: &[u8]) -> Vec<u32> {
        let merges = self.vocab.merge_table();
        if piece.len() > MERGED_BYTES
            && let Some(backtracker) = self.backtracker.get_or_init(|| Backtracker::new(&self.vocab, merges))
        {
            let mut ids = Vec::new();
            backtracker.encode(piece, merges, &mut ids);
            return ids;
        }
        let mut ids = Vec::new();
        self.vocab.merge_bytes(piece, &mut ids);
        ids
    }

    /// The ids of a piece.
    fn encode(&self, piece: &[u8]) -> Vec<u32> {
        match self.whole.get(piece, self.vocab.tokens()) {
            Some(id) => vec![id],
            None => self.merge(piece),
        }
    }
}

/// Encodes the pieces of a text.
pub struct TextEncoder<'t, 's, 'a> {
    /// The text.
    pub text: &'t [u8],
    /// Takes the ids.
    pub session: &'s mut Session<'a>,
}

impl Visit for TextEncoder<'_, '_, '_> {
    #[inline(always)]
    fn piece(&mut self, start: usize, end: usize) {
        self.session.encode(self.text, start, end);
    }
}

/// A thread's use of an encoder.
pub struct Session<'a> {
    encoder: &'a PieceEncoder,
    small: &'a mut SmallTable,
    cache: &'a mut PieceCache,
    buffer: &'a mut [u32; BUFFER_IDS],
    len: usize,
    ids: &'a mut Vec<u32>,
}

impl Session<'_> {
    /// Adds an id.
    pub fn push(&mut self, id: u32) {
        self.ids().push(id);
    }

    /// The caller's vector, with all ids so far.
    pub fn ids(&mut self) -> &mut Vec<u32> {
        self.flush();
        self.ids
    }

    /// Adds the ids of the piece `text[start..end]`.
    #[inline(always)]
    pub fn encode(&mut self, text: &[u8], start: usize, end: usize) {
        let len = end - start;
        if len <= SMALL_BYTES {
            let pair = look_up_small(self.small, small_key(text, start, len));
            if pair != 0 {
                return self.push_pair(pair);
            }
        }
        self.encode_medium(text, start, end);
    }

    /// Takes both tokens of a pair, and counts one or two.
    #[inline(always)]
    fn push_pair(&mut self, pair: Pair) {
        if self.len + 2 > BUFFER_IDS {
            self.flush();
        }
        self.buffer[self.len..self.len + 2].copy_from_slice(&[pair as u32, (pair >> 32) as u32]);
        self.len += if pair & ONE_TOKEN == 0 { 2 } else { 1 };
    }

    #[inline(never)]
    fn encode_medium(&mut self, text: &[u8], start: usize, end: usize) {
        if self.len + 8 > BUFFER_IDS {
            self.flush();
        }
        let len = end - start;
        if len <= MEDIUM_BYTES
            && let Some(Found::Inline(tokens, count)) = self.cache.get(medium_key(text, start, len))
        {
            self.buffer[self.len..self.len + tokens.len()].copy_from_slice(&tokens);
            self.len += count;
            return;
        }
        self.encode_slowly(text, start, end);
    }

    #[inline(never)]
    fn flush(&mut self) {
        self.ids.extend_from_slice(&self.buffer[..self.len]);
        self.len = 0;
    }

    /// For pieces that are long, have many tokens or are new.
    #[inline(never)]
    fn encode_slowly(&mut self, text: &[u8], start: usize, end: usize) {
        self.flush();
        let piece = &text[start..end];
        let known = match piece.len() {
            len @ ..=MEDIUM_BYTES => match self.cache.get(medium_key(text, start, len)) {
                Some(Found::Many(ids)) => Some(ids),
                _ => None,
            },
            ..=LONG_BYTES => self.cache.get_long(piece),
            _ => None,
        };
        if let Some(ids) = known {
            return self.ids.extend_from_slice(ids);
        }
        let ids = self.encoder.encode(piece);
        match piece.len() {
            len @ ..=SMALL_BYTES if insert_small(self.small, small_key(text, start, len), &ids) => {}
            len @ ..=MEDIUM_BYTES => self.cache.insert(medium_key(text, start, len), &ids),
            ..=LONG_BYTES => self.cache.insert_long(piece, &ids),
            _ => {}
        }
        self.ids.extend(ids);
    }
}

/// Tokens by their bytes, which stay in the table of tokens.
struct WholeTable {
    /// Ids, or `EMPTY`.
    slots: Vec<u32>,
}

const EMPTY: u32 = u32::MAX;

impl WholeTable {
    /// An empty table for up to `num_tokens` tokens.
    fn new(num_tokens: usize) -> Self {
        Self { slots: vec![EMPTY; (2 * num_tokens).next_power_of_two().max(2)] }
    }

    fn places(&self, piece: &[u8]) -> impl Iterator<Item = usize> {
        let last = self.slots.len() - 1;
        let first = hash(piece) as usize;
        (0..self.slots.len()).map(move |step| first.wrapping_add(step) & last)
    }

    fn insert(&mut self, id: u32, token: &[u8]) {
        let free = self.places(token).find(|&place| self.slots[place] == EMPTY);
        if let Some(place) = free {
            self.slots[place] = id;
        }
    }

    fn get(&self, piece: &[u8], tokens: &TokenTable) -> Option<u32> {
        let ids = self.places(piece).map(|place| self.slots[place]);
        ids.take_while(|&id| id != EMPTY).find(|&id| tokens.bytes(id) == Some(piece))
    }

    /// All ids, in order.
    fn ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = self.slots.iter().copied().filter(|&id| id != EMPTY).collect();
        ids.sort_unstable();
        ids
    }
}

impl std::fmt::Debug for PieceEncoder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("PieceEncoder").field("num_ids", &self.vocab.size()).finish_non_exhaustive()
    }
}
