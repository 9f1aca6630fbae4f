//! Encodes the pieces of a text into token ids, at the speed of a table look-up.

mod worker;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use self::worker::{BUFFER_IDS, LookupRound, Worker};
use crate::tokenizer::cache::key::{Key, MEDIUM_BYTES, piece_key};
use crate::tokenizer::cache::table::{LONG_BYTES, Triple, is_inline, tokens_of};
use crate::tokenizer::cache::whole::WholeTable;
use crate::tokenizer::merge::backtrack::Backtracker;
use crate::tokenizer::merge::table::SHORT_PIECE;
use crate::tokenizer::merge::{BATCH, BATCH_BYTES, PieceMerger};
use crate::tokenizer::split::pretokenize::{MAX_PIECES, Visit};
use crate::tokenizer::vocab::Vocab;

/// Maximum number of bytes of a piece that is always merged; a [`Backtracker`] pays off only for longer pieces.
const MERGED_BYTES: usize = 512;

/// Number of bytes of longer pieces that are merged before a [`Backtracker`] is built: building one costs as much as
/// merging a few hundred kilobytes.
const MERGED_LONG_BYTES: usize = 1 << 16;

/// Maximum number of ids written before the buffer is checked again: the ids of one cached piece, then six ids for each
/// piece of a round.
const ROOM_IDS: usize = LONG_BYTES + 6 * (MAX_PIECES + 1);

/// Encodes pieces with a vocabulary that merges from bytes. Threads share the encoder; each thread takes its own tables
/// for as long as it encodes.
pub struct PieceEncoder {
    vocab: Arc<Vocab>,
    whole: WholeTable,
    has_all_bytes: bool,
    /// Merges pieces, starting from their bytes.
    merger: PieceMerger,
    /// The backtracker for long pieces; built once [`MERGED_LONG_BYTES`] bytes of them have been encoded.
    backtracker: OnceLock<Option<Backtracker>>,
    /// Number of bytes encoded so far in pieces longer than [`MERGED_BYTES`].
    long_bytes: AtomicUsize,
    /// Workers that no thread is using right now, those with a compact cache first; at most as many as threads have
    /// ever encoded at once.
    workers: Mutex<Vec<Box<Worker>>>,
}

impl PieceEncoder {
    /// Builds the encoder of a vocabulary. For a vocabulary that merges from characters, the encoder stays empty
    /// because it has nothing to encode.
    pub fn new(vocab: Arc<Vocab>) -> Self {
        let whole = WholeTable::new(vocab.size());
        let (merger, has_all_bytes) = (PieceMerger::new(&vocab), vocab.has_all_bytes());
        let mut encoder = Self {
            vocab,
            whole,
            has_all_bytes,
            merger,
            backtracker: OnceLock::new(),
            long_bytes: AtomicUsize::new(0),
            workers: Mutex::default(),
        };
        let vocab = Arc::clone(&encoder.vocab);
        if vocab.sentence_piece().is_some() {
            return encoder;
        }
        for id in (0..vocab.size() as u32).filter(|&id| vocab.is_ordinary(id)) {
            let Some(token) = vocab.tokens().bytes(id) else { continue };
            // A merge list can contain tokens that merging never reaches; finding those by look-up would change ids.
            if vocab.whole_first() || vocab.reaches_all() || encoder.makes(token, id) {
                encoder.whole.insert(id, token);
            }
        }
        encoder.give_back(Worker::new());
        encoder
    }

    fn give_back(&self, worker: Box<Worker>) {
        if let Ok(mut workers) = self.workers.lock() {
            let place = if worker.is_compact() { 0 } else { workers.len() };
            workers.insert(place, worker);
        }
    }

    /// Calls `work` with a session that appends the ids of a text of `num_bytes` bytes to `ids`.
    #[inline]
    pub fn session<T>(&self, ids: &mut Vec<u32>, num_bytes: usize, work: impl FnOnce(&mut Session) -> T) -> T {
        let free = self.workers.lock().ok().and_then(|mut workers| workers.pop());
        let mut worker = free.unwrap_or_else(Worker::compact);
        worker.expect(num_bytes);
        let mut session = Session { encoder: self, worker: &mut worker, len: 0, ids };
        let result = work(&mut session);
        session.flush();
        self.give_back(worker);
        result
    }

    /// Whether merging the bytes of a token gives this id alone.
    fn makes(&self, token: &[u8], id: u32) -> bool {
        let mut ids = Vec::new();
        self.merge(token, &mut ids);
        ids == [id]
    }

    /// Appends the ids of a piece to `ids`, by merging alone.
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
        if !self.has_all_bytes {
            return self.vocab.merge_bytes(piece, ids);
        }
        let start = ids.len();
        self.merger.begin(piece, self.vocab.byte_ids(), &merges, ids);
        self.vocab.merge_table().apply(ids, start);
    }

    /// Merges a piece of at most [`SHORT_PIECE`] bytes into `ids` and returns the number of tokens. Each byte must be a
    /// token.
    #[inline(always)]
    fn merge_short(&self, piece: &[u8], ids: &mut [u32]) -> usize {
        self.merger.merge(piece, self.vocab.byte_ids(), &self.vocab.merge_table().merges(), ids)
    }

    /// Appends the ids of a piece to `ids`, by look-up or by merging.
    fn encode(&self, piece: &[u8], key: Key, ids: &mut Vec<u32>) {
        match self.whole.get(piece, key, self.vocab.tokens()) {
            Some(id) => ids.push(id),
            None => self.merge(piece, ids),
        }
    }
}

/// Encodes the pieces of a text.
pub struct TextEncoder<'t, 's, 'a> {
    /// The text that the pieces are part of.
    pub text: &'t [u8],
    /// The session that collects the ids.
    pub session: &'s mut Session<'a>,
}

impl Visit for TextEncoder<'_, '_, '_> {
    #[inline(always)]
    fn piece(&mut self, start: usize, end: usize) {
        self.session.encode(self.text, start, end);
    }

    /// Looks up every piece before encoding the first, so that cache misses overlap.
    #[inline(always)]
    fn pieces(&mut self, start: usize, ends: &[usize]) {
        self.session.make_room();
        self.session.look_for(self.text, start, ends);
        let (mut next, mut is_ahead) = (0, false);
        loop {
            next = self.session.push_known(next, ends.len());
            let Some(&end) = ends.get(next) else { return };
            let LookupRound { keys, firsts, .. } = &self.session.worker.round;
            let (key, first) = (keys[next], firsts[next]);
            if first == 0 && !is_ahead {
                self.session.encode_ahead(self.text, start, ends, next);
                is_ahead = true;
            } else {
                let from = if next == 0 { start } else { ends[next - 1] };
                self.session.encode_other(&self.text[from..end], key, first);
                next += 1;
            }
        }
    }
}

/// One thread's use of an encoder.
pub struct Session<'a> {
    encoder: &'a PieceEncoder,
    worker: &'a mut Worker,
    /// Number of ids in the worker's buffer.
    len: usize,
    ids: &'a mut Vec<u32>,
}

impl Session<'_> {
    /// Appends an id.
    pub fn push(&mut self, id: u32) {
        self.ids().push(id);
    }

    /// The caller's vector, with all ids so far.
    pub fn ids(&mut self) -> &mut Vec<u32> {
        self.flush();
        self.ids
    }

    /// Appends the ids of the piece `text[start..end]`.
    pub fn encode(&mut self, text: &[u8], start: usize, end: usize) {
        self.worker.cache.bound();
        self.encode_other(&text[start..end], piece_key(text, start, end), 0);
    }

    /// Looks up the pieces of a text, of which the first starts at `start` and each ends at one of `ends`, in passes
    /// without a branch.
    #[inline(always)]
    fn look_for(&mut self, text: &[u8], start: usize, ends: &[usize]) {
        let Worker { cache, round, .. } = &mut *self.worker;
        cache.bound();
        let cache = cache.look();
        let mut from = start;
        for ((&end, [low, high]), line) in ends.iter().zip(&mut round.keys).zip(&mut round.lines) {
            let key = piece_key(text, from, end);
            (*low, *high, *line) = (key[0], key[1], cache.home(key));
            cache.fetch(*line);
            from = end;
        }
        let places = round.keys.iter().zip(&round.lines).zip(round.firsts.iter_mut().zip(&mut round.seconds));
        for ((&key, &line), (first, second)) in places.take(ends.len()) {
            let words = cache.get(key, line);
            (*first, *second) = (words[0], words[1]);
            cache.fetch_pooled(words);
        }
    }

    /// Appends the tokens of the pieces from `first` on, up to the first piece whose cache words do not hold its
    /// tokens. Returns the index of that piece, or `count` if there is none.
    #[inline(always)]
    fn push_known(&mut self, first: usize, count: usize) -> usize {
        let Worker { round, buffer, .. } = &mut *self.worker;
        let mut len = self.len;
        let mut next = first;
        for (&first, &second) in round.firsts[first..count].iter().zip(&round.seconds[first..count]) {
            if !is_inline(first) {
                break;
            }
            len += push(buffer, len, first);
            if second != 0 {
                len += push(buffer, len, second);
            }
            next += 1;
        }
        self.len = len;
        next
    }

    /// Finds the new pieces from `first` on, prefetches the memory that encoding them reads, and returns their number.
    fn find_new(&mut self, first: usize, count: usize) -> usize {
        let Worker { cache, round, .. } = &mut *self.worker;
        let mut num_new = 0;
        for index in first..count {
            round.new[num_new] = index;
            num_new += usize::from(round.firsts[index] == 0);
        }
        let cache = cache.look();
        let new = &round.new[..num_new];
        new.iter().for_each(|&index| cache.fetch(round.lines[index]));
        self.encoder.whole.fetch(new.iter().map(|&index| round.keys[index]), self.encoder.vocab.tokens());
        num_new
    }

    /// Encodes the new pieces from `first` on, except long ones, so that their cache words are known. Merges short
    /// pieces in batches, which is faster.
    #[inline(never)]
    fn encode_ahead(&mut self, text: &[u8], start: usize, ends: &[usize], first: usize) {
        let encoder = self.encoder;
        if !encoder.has_all_bytes {
            return;
        }
        let piece_at = |index: usize| &text[if index == 0 { start } else { ends[index - 1] }..ends[index]];
        for place in 0..self.find_new(first, ends.len()) {
            let Worker { cache, round, waiting, .. } = &mut *self.worker;
            let index = round.new[place];
            let (piece, key) = (piece_at(index), round.keys[index]);
            if piece.len() > SHORT_PIECE {
                continue;
            }
            let words = cache.look().find(key);
            if words[0] != 0 {
                // Another long piece may have the same key.
                if piece.len() <= MEDIUM_BYTES || cache.is_of(words, piece) {
                    round.set(index, words);
                }
            } else if let Some(id) = encoder.whole.get(piece, key, encoder.vocab.tokens()) {
                self.worker.keep(index, piece, &[id]);
            } else if piece.len() > BATCH_BYTES {
                let mut left = [0; SHORT_PIECE];
                let len = encoder.merge_short(piece, &mut left);
                self.worker.keep(index, piece, &left[..len]);
            } else {
                let kind = usize::from(2 * piece.len() > BATCH_BYTES);
                if waiting[kind].push(index, round.lines[index] as u32) == BATCH {
                    self.encode_batch(kind, piece_at);
                }
            }
        }
        (0..2).for_each(|kind| self.encode_batch(kind, piece_at));
    }

    /// Merges the pending pieces of one kind, shorter or longer.
    fn encode_batch<'t>(&mut self, kind: usize, piece_at: impl Fn(usize) -> &'t [u8]) {
        let (vocab, worker) = (&self.encoder.vocab, &mut *self.worker);
        let (indices, count) = worker.waiting[kind].take();
        let mut pieces = [&[][..]; BATCH];
        pieces.iter_mut().zip(&indices[..count]).for_each(|(piece, &index)| *piece = piece_at(index));
        let (pieces, merges) = (&pieces[..count], vocab.merge_table().merges());
        self.encoder.merger.merge_batch(pieces, vocab.byte_ids(), &merges, &mut worker.batch);
        for (place, (&piece, &index)) in pieces.iter().zip(&indices).enumerate() {
            let (ids, len) = (worker.batch.merged.ids[place], worker.batch.merged.counts[place] as usize);
            worker.keep(index, piece, &ids[..len]);
        }
    }

    /// Encodes a piece for which no inline tokens were found; `first` is the first cache word found for it, or zero.
    #[inline(never)]
    fn encode_other(&mut self, piece: &[u8], key: Key, first: u64) {
        self.make_room();
        let Worker { cache, buffer, .. } = &mut *self.worker;
        let words = if first != 0 { [first, 0] } else { cache.look().find(key) };
        if is_inline(words[0]) {
            self.len += push(buffer, self.len, words[0]);
            self.len += push(buffer, self.len, words[1]);
        } else if words[0] != 0 && (piece.len() <= MEDIUM_BYTES || cache.is_of(words, piece)) {
            let ids = cache.pooled(words);
            buffer[self.len..][..ids.len()].copy_from_slice(ids);
            self.len += ids.len();
        } else {
            self.encode_new(piece, key);
        }
    }

    /// Makes room for [`ROOM_IDS`] ids in the buffer.
    fn make_room(&mut self) {
        if self.len + ROOM_IDS > BUFFER_IDS {
            self.flush();
        }
    }

    #[inline(never)]
    fn flush(&mut self) {
        self.ids.extend_from_slice(&self.worker.buffer[..self.len]);
        self.len = 0;
    }

    /// Encodes a piece that is new, or too long to be cached.
    #[inline(never)]
    fn encode_new(&mut self, piece: &[u8], key: Key) {
        let encoder = self.encoder;
        if piece.len() > SHORT_PIECE || !encoder.has_all_bytes {
            self.flush();
            let first = self.ids.len();
            encoder.encode(piece, key, self.ids);
            if piece.len() <= LONG_BYTES {
                self.worker.cache.insert(key, piece, &self.ids[first..]);
            }
            return;
        }
        let room = &mut self.worker.buffer[self.len..];
        let count = match encoder.whole.get(piece, key, encoder.vocab.tokens()) {
            Some(id) => {
                room[0] = id;
                1
            }
            None => encoder.merge_short(piece, room),
        };
        self.worker.cache.insert(key, piece, &self.worker.buffer[self.len..][..count]);
        self.len += count;
    }
}

/// Copies all three tokens of a triple into `buffer` and returns how many of them are valid.
#[inline(always)]
fn push(buffer: &mut [u32; BUFFER_IDS], len: usize, triple: Triple) -> usize {
    let (tokens, count) = tokens_of(triple);
    buffer[len..len + tokens.len()].copy_from_slice(&tokens);
    count
}

impl std::fmt::Debug for PieceEncoder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("PieceEncoder").field("num_ids", &self.vocab.size()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::tokens::Merge;
    use crate::tokenizer::vocab::VocabParts;

    /// An encoder of all bytes and of `ab`.
    fn encoder() -> PieceEncoder {
        let tokens = (0..=u8::MAX).map(|byte| vec![byte]).chain([b"ab".to_vec()]);
        let vocab = Vocab::build(VocabParts {
            tokens: (0..).zip(tokens).collect(),
            unreached: vec![],
            byte_ids: std::array::from_fn(|byte| byte as u32),
            unknown: None,
            sentence_piece: None,
            merges: vec![Merge { left: 97, right: 98, id: 256 }],
            whole_first: false,
            added: vec![],
        });
        PieceEncoder::new(Arc::new(vocab.unwrap()))
    }

    /// The ids of pieces of six bytes, encoded while another thread holds the full worker, and whether the worker that
    /// encoded them was compact.
    fn beside_another(encoder: &PieceEncoder, text: &[u8]) -> (Vec<u32>, bool) {
        let (mut unused, mut ids) = (vec![], vec![]);
        let is_compact = encoder.session(&mut unused, 0, |_| {
            encoder.session(&mut ids, text.len(), |session| {
                (0..text.len() / 6).for_each(|piece| session.encode(text, 6 * piece, 6 * piece + 6));
                session.worker.is_compact()
            })
        });
        (ids, is_compact)
    }

    #[test]
    fn a_second_worker_stays_compact_for_short_texts_and_is_full_for_long_ones() {
        let encoder = encoder();
        assert_eq!(beside_another(&encoder, b"ababab"), (vec![256; 3], true));
        assert_eq!(encoder.workers.lock().unwrap().len(), 2);
        assert!(!encoder.session(&mut vec![], 0, |session| session.worker.is_compact()), "a free full worker is first");
        let long: Vec<u8> = (0..60_000).flat_map(|number| format!("{number:05}a").into_bytes()).collect();
        let plain: Vec<u32> = long.iter().map(|&byte| u32::from(byte)).collect();
        assert_eq!(beside_another(&encoder, &long), (plain, false));
        assert_eq!(encoder.workers.lock().unwrap().len(), 2);
    }

    #[test]
    fn many_pieces_through_a_compact_cache_keep_their_ids() {
        let encoder = encoder();
        for first in (0..80_000).step_by(8_000) {
            let text: Vec<u8> =
                (first..first + 4_000).flat_map(|number| format!("{number:05}b").into_bytes()).collect();
            let plain: Vec<u32> = text.iter().map(|&byte| u32::from(byte)).collect();
            let (ids, is_compact) = beside_another(&encoder, &text);
            assert_eq!(ids, plain);
            assert!(is_compact, "the texts have 240 KB together");
        }
    }
}
