//! From the pieces of a text to ids, at the speed of a look-up.

use std::hint::select_unpredictable;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use super::backtrack::Backtracker;
use super::bpe::{NO_MERGE, SHORT_PIECE};
use super::cache::{
    Found, LONG_BYTES, MEDIUM_BYTES, PieceTable, SMALL_BYTES, SmallTable, Triple, hash, medium_key, small_key,
    tokens_of, triple,
};
use super::memory::LargeSlice;
use super::pretokenize::{MAX_PIECES, Visit};
use super::stream::TokenTable;
use super::vocab::{NO_ID, Vocab};

/// Up to this many bytes a piece is merged; a [`Backtracker`] pays for longer ones only.
const MERGED_BYTES: usize = 512;

/// Bytes of longer pieces that are merged as well: making a backtracker costs as much as merging some hundred kilobytes.
const MERGED_LONG_BYTES: usize = 1 << 16;

/// Ids that are collected before they go to the caller's vector.
const BUFFER_IDS: usize = 1024;

/// Merges pieces by a vocabulary that begins with bytes. Threads share it; each takes tables of its own for as long as it
/// encodes.
pub struct PieceEncoder {
    vocab: Arc<Vocab>,
    whole: WholeTable,
    has_all_bytes: bool,
    /// Rank of the merge of each two bytes: where merging begins.
    byte_merges: Vec<u32>,
    /// For long pieces; made when [`MERGED_LONG_BYTES`] of them have come.
    backtracker: OnceLock<Option<Backtracker>>,
    /// Bytes of long pieces so far.
    long_bytes: AtomicUsize,
    /// What no thread uses right now; as many as threads ever encoded at once.
    workers: Mutex<Vec<Box<Worker>>>,
}

/// What a thread needs for itself while it encodes.
struct Worker {
    small: SmallTable,
    pieces: PieceTable,
    buffer: [u32; BUFFER_IDS],
}

impl Worker {
    fn new() -> Box<Self> {
        Box::new(Self { small: SmallTable::new(), pieces: PieceTable::new(), buffer: [0; BUFFER_IDS] })
    }
}

impl PieceEncoder {
    /// The encoder of a vocabulary; of one that begins with characters it has nothing to encode.
    pub fn new(vocab: Arc<Vocab>) -> Self {
        let whole = WholeTable::new(vocab.size());
        let (byte_merges, has_all_bytes) = (byte_merges(&vocab), vocab.has_all_bytes());
        let mut encoder = Self {
            vocab,
            whole,
            has_all_bytes,
            byte_merges,
            backtracker: OnceLock::new(),
            long_bytes: AtomicUsize::new(0),
            workers: Mutex::default(),
        };
        let vocab = Arc::clone(&encoder.vocab);
        if vocab.characters().is_some() {
            return encoder;
        }
        for id in (0..vocab.size() as u32).filter(|&id| vocab.is_ordinary(id)) {
            let Some(token) = vocab.tokens().bytes(id) else { continue };
            // A merge list can hold tokens that merging never reaches; looking those up would change ids.
            if vocab.whole_first() || vocab.reaches_all() || encoder.makes(token, id) {
                encoder.whole.insert(id, token);
            }
        }
        encoder.give_back(Worker::new());
        encoder
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
        let mut worker = free.unwrap_or_else(Worker::new);
        let mut session = Session { encoder: self, worker: &mut worker, len: 0, ids };
        let result = work(&mut session);
        session.flush();
        self.give_back(worker);
        result
    }

    /// Whether merging makes this id of a token's bytes.
    fn makes(&self, token: &[u8], id: u32) -> bool {
        let mut ids = Vec::new();
        self.merge(token, &mut ids);
        ids == [id]
    }

    /// Adds the ids of a piece to `ids`, by merging alone.
    fn merge(&self, piece: &[u8], ids: &mut Vec<u32>) {
        if piece.len() <= SHORT_PIECE && self.has_all_bytes {
            let mut left = [0; SHORT_PIECE];
            let count = self.merge_short(piece, &mut left);
            return ids.extend_from_slice(&left[..count]);
        }
        let merges = self.vocab.merge_table().merges();
        if piece.len() > MERGED_BYTES
            && self.long_bytes.fetch_add(piece.len(), Ordering::Relaxed) + piece.len() > MERGED_LONG_BYTES
            && let Some(backtracker) = self.backtracker.get_or_init(|| Backtracker::new(&self.vocab, merges))
        {
            return backtracker.encode(piece, merges, ids);
        }
        self.vocab.merge_bytes(piece, ids);
    }

    /// Merges a piece of at most [`SHORT_PIECE`] bytes that all are tokens into `ids`, and returns how many those are.
    #[inline(always)]
    fn merge_short(&self, piece: &[u8], ids: &mut [u32]) -> usize {
        let symbols = piece.iter().map(|&byte| self.vocab.byte_ids()[usize::from(byte)]);
        let pairs = piece.windows(2).map(|pair| usize::from(pair[0]) << 8 | usize::from(pair[1]));
        self.vocab.merge_table().merges().apply_short(symbols, pairs.map(|pair| self.byte_merges[pair]), ids)
    }

    /// Adds the ids of a piece to `ids`.
    fn encode(&self, piece: &[u8], ids: &mut Vec<u32>) {
        match self.whole.get(piece, self.vocab.tokens()) {
            Some(id) => ids.push(id),
            None => self.merge(piece, ids),
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

    /// In rounds: the look-ups of many pieces wait for memory at once, for none depends on another or on a branch.
    #[inline(always)]
    fn pieces(&mut self, start: usize, ends: &[usize]) {
        let mut triples = [0; MAX_PIECES];
        let Worker { small, pieces, .. } = &*self.session.worker;
        let mut from = start;
        for (&end, triple) in ends.iter().zip(&mut triples) {
            let len = end - from;
            let found = small.get(small_key(self.text, from, len.min(SMALL_BYTES)));
            *triple = select_unpredictable(len <= SMALL_BYTES, found, 0);
            from = end;
        }
        from = start;
        for (&end, &triple) in ends.iter().zip(&triples) {
            if triple == 0 && end - from <= MEDIUM_BYTES {
                pieces.fetch(medium_key(self.text, from, end - from));
            }
            from = end;
        }
        from = start;
        for (&end, &triple) in ends.iter().zip(&triples) {
            match triple {
                0 => self.session.encode_medium(self.text, from, end),
                triple => self.session.push_triple(triple),
            }
            from = end;
        }
    }
}

/// A thread's use of an encoder.
pub struct Session<'a> {
    encoder: &'a PieceEncoder,
    worker: &'a mut Worker,
    /// Ids in the worker's buffer.
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
            let triple = self.worker.small.get(small_key(text, start, len));
            if triple != 0 {
                return self.push_triple(triple);
            }
        }
        self.encode_medium(text, start, end);
    }

    /// Takes all three tokens of a triple, and counts those that are there.
    #[inline(always)]
    fn push_triple(&mut self, triple: Triple) {
        let (tokens, count) = tokens_of(triple);
        if self.len + tokens.len() > BUFFER_IDS {
            self.flush();
        }
        self.worker.buffer[self.len..self.len + tokens.len()].copy_from_slice(&tokens);
        self.len += count;
    }

    #[inline(never)]
    fn encode_medium(&mut self, text: &[u8], start: usize, end: usize) {
        let len = end - start;
        if len <= SMALL_BYTES {
            let triple = self.worker.small.get_next_door(small_key(text, start, len));
            if triple != 0 {
                return self.push_triple(triple);
            }
        }
        // A smaller piece has three tokens at most, so it is in no other table.
        if (4..=MEDIUM_BYTES).contains(&len) {
            match self.worker.pieces.get(medium_key(text, start, len)) {
                Some(Found::Triples(first, second)) => {
                    self.push_triple(first);
                    if second != 0 {
                        self.push_triple(second);
                    }
                    return;
                }
                Some(Found::Many(ids)) => {
                    self.ids.extend_from_slice(&self.worker.buffer[..self.len]);
                    self.len = 0;
                    return self.ids.extend_from_slice(ids);
                }
                None => {}
            }
        }
        self.encode_slowly(text, start, end);
    }

    #[inline(never)]
    fn flush(&mut self) {
        self.ids.extend_from_slice(&self.worker.buffer[..self.len]);
        self.len = 0;
    }

    /// For pieces that are long or new.
    #[inline(never)]
    fn encode_slowly(&mut self, text: &[u8], start: usize, end: usize) {
        let piece = &text[start..end];
        if piece.len() > MEDIUM_BYTES || !self.encoder.has_all_bytes {
            return self.encode_long(piece);
        }
        if self.len + MEDIUM_BYTES > BUFFER_IDS {
            self.flush();
        }
        let room = &mut self.worker.buffer[self.len..];
        let count = match self.encoder.whole.get(piece, self.encoder.vocab.tokens()) {
            Some(id) => {
                room[0] = id;
                1
            }
            None => self.encoder.merge_short(piece, room),
        };
        let ids = &self.worker.buffer[self.len..][..count];
        self.len += count;
        let triple = triple(ids);
        if piece.len() <= SMALL_BYTES && triple != 0 {
            self.worker.small.insert(small_key(text, start, piece.len()), triple);
        } else {
            self.worker.pieces.insert(medium_key(text, start, piece.len()), ids);
        }
    }

    #[inline(never)]
    fn encode_long(&mut self, piece: &[u8]) {
        self.flush();
        if piece.len() > LONG_BYTES {
            return self.encoder.encode(piece, self.ids);
        }
        if let Some(ids) = self.worker.pieces.get_long(piece) {
            return self.ids.extend_from_slice(ids);
        }
        let first = self.ids.len();
        self.encoder.encode(piece, self.ids);
        self.worker.pieces.insert_long(piece, &self.ids[first..]);
    }
}

/// The rank of the merge of each two bytes.
fn byte_merges(vocab: &Vocab) -> Vec<u32> {
    let (merges, ids) = (vocab.merge_table().merges(), vocab.byte_ids());
    let pairs = ids.iter().flat_map(|&left| ids.iter().map(move |&right| (left, right)));
    let rank = |(left, right): (u32, u32)| if left.max(right) == NO_ID { NO_MERGE } else { merges.rank(left, right) };
    pairs.map(rank).collect()
}

/// Tokens by their bytes, which stay in the table of tokens; behind a filter, for most new pieces are no token.
struct WholeTable {
    /// One more than the id, and half of the hash of its bytes; zero where there is none.
    slots: LargeSlice<[u32; 2]>,
    /// Two bits for each hash that a token has.
    filter: Vec<u64>,
}

impl WholeTable {
    /// An empty table for up to `num_tokens` tokens.
    fn new(num_tokens: usize) -> Self {
        let num_slots = (2 * num_tokens).next_power_of_two().max(16);
        Self { slots: LargeSlice::new(num_slots), filter: vec![0; num_slots / 16] }
    }

    /// Half of the hash of a piece, and the slots to look at.
    #[inline]
    fn places(&self, hash: u64) -> (u32, impl Iterator<Item = usize> + use<>) {
        let len = self.slots.get().len();
        ((hash >> 32) as u32, (0..len).map(move |step| (hash as usize).wrapping_add(step) & (len - 1)))
    }

    /// Word and bits of the filter.
    #[inline]
    fn filter_place(&self, hash: u64) -> (usize, u64) {
        ((hash >> 44) as usize & (self.filter.len() - 1), 1 << (hash >> 32 & 63) | 1 << (hash >> 38 & 63))
    }

    fn insert(&mut self, id: u32, token: &[u8]) {
        let hash = hash(token);
        let (word, bits) = self.filter_place(hash);
        let (half, mut places) = self.places(hash);
        let slots = self.slots.get_mut();
        if let Some(place) = places.find(|&place| slots[place][0] == 0) {
            slots[place] = [id + 1, half];
            self.filter[word] |= bits;
        }
    }

    #[inline]
    fn get(&self, piece: &[u8], tokens: &TokenTable) -> Option<u32> {
        let hash = hash(piece);
        let (word, bits) = self.filter_place(hash);
        if self.filter[word] & bits != bits {
            return None;
        }
        let (half, places) = self.places(hash);
        let slots = self.slots.get();
        let mut slots = places.map(|place| slots[place]).take_while(|slot| slot[0] != 0);
        slots.find(|slot| slot[1] == half && tokens.bytes(slot[0] - 1) == Some(piece)).map(|slot| slot[0] - 1)
    }
}

impl std::fmt::Debug for PieceEncoder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("PieceEncoder").field("num_ids", &self.vocab.size()).finish_non_exhaustive()
    }
}
