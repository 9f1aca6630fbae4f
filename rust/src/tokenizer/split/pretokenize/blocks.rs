//! Borders of pieces, 64 bytes at a time, without a branch for each byte or piece: a character beyond ASCII is looked up
//! by itself, and stands for a letter or symbol of several bytes from then on.
//!
//! A block starts where a piece starts, so no state is carried from one to the next. Its masks are combined by bit
//! operations into one mask of borders. What the bytes after the block could change is left out; the piece that is cut
//! off starts the next block.
//!
//! Source: the idea of bit-parallel classification is Langdale, Lemire, "Parsing Gigabytes of JSON per Second", VLDB
//! Journal 28(6), 2019, §3.1; the rules are those of the published patterns.

use super::classes::{BLANK, CASELESS, Class, Classes, LOWER, MARK, NUMBER, UPPER};
use super::masks::{BLOCK_BYTES, Masks};
use super::scanners::contraction_len;
use crate::tokenizer::bits::{low_bits, places};

/// A block and how many of its first bytes are known: not those from an incomplete character on, nor from a digit or
/// white space beyond ASCII.
pub struct Block<'a> {
    bytes: &'a [u8; BLOCK_BYTES],
    pub len: usize,
    /// Letters and upper ones are of any script, the others ASCII.
    masks: Masks,
    foreign: Foreign,
}

/// Characters beyond ASCII, by all their bytes.
#[derive(Default)]
struct Foreign {
    /// `[\p{Lm}\p{Lo}]`
    caseless: u64,
    /// `\p{M}`
    marks: u64,
    /// Bytes of any of them after the first.
    rests: u64,
}

impl<'a> Block<'a> {
    /// The block of the text `bytes`, of which `len` bytes are there.
    #[inline(always)]
    pub fn new(bytes: &'a [u8; BLOCK_BYTES], len: usize, classes: &Classes) -> Self {
        let mut block = Self { bytes, len, masks: Masks::of(bytes), foreign: Foreign::default() };
        if block.masks.foreign != 0 {
            block.add_foreign(classes);
        }
        if block.len < BLOCK_BYTES {
            block.cut();
        }
        block
    }

    fn add_foreign(&mut self, classes: &Classes) {
        let Masks { foreign, rests, .. } = self.masks;
        let mut found = [0u64; 8];
        for at in places(foreign & !rests & low_bits(self.len)) {
            let Some((class, len)) = classes.at(self.bytes, at) else { break };
            if at + len > self.len || class & (NUMBER | BLANK) != 0 {
                self.len = at;
                break;
            }
            found[class.trailing_zeros() as usize % 8] |= 1 << at;
        }
        let of = |class: Class| found[class.trailing_zeros() as usize];
        // Adding what follows a first byte carries through the others of its character.
        let whole = |firsts: u64| firsts | ((firsts << 1).wrapping_add(rests) ^ rests) & rests;
        let [uppers, caseless] = [of(UPPER), of(CASELESS)].map(whole);
        self.masks.uppers |= uppers;
        self.masks.letters |= uppers | caseless | whole(of(LOWER));
        self.foreign = Foreign { caseless, marks: whole(of(MARK)), rests };
    }

    /// Leaves what is known.
    fn cut(&mut self) {
        let (known, Masks { letters, uppers, digits, spaces, tabs, newlines, quotes, .. }) =
            (low_bits(self.len), &mut self.masks);
        let Foreign { caseless, marks, rests } = &mut self.foreign;
        for mask in [letters, uppers, digits, spaces, tabs, newlines, quotes, caseless, marks, rests] {
            *mask &= known;
        }
    }

    fn white(&self) -> u64 {
        self.masks.spaces | self.masks.tabs | self.masks.newlines
    }

    fn symbols(&self) -> u64 {
        low_bits(self.len) & !(self.masks.letters | self.masks.digits | self.white())
    }

    /// Characters that are white space no more; their run is known to end.
    fn before_text(&self) -> u64 {
        (low_bits(self.len) & !self.white()) >> 1
    }

    /// Leaves the borders that nothing after the block can change: white space that goes on there ends who knows where.
    #[inline(always)]
    fn certain(&self, borders: u64) -> u64 {
        let text = low_bits(self.len) & !self.white();
        let run_start = 64 - text.leading_zeros() as usize;
        borders & low_bits(self.len) & low_bits(run_start + 1)
    }

    /// Bytes of the contraction at `at`, or `None` where the block ends too early to say.
    #[inline(always)]
    fn contraction_len(&self, at: usize, ignore_case: bool) -> Option<usize> {
        let known = &self.bytes[at..self.len];
        match contraction_len(known, ignore_case) {
            Some(len) => Some(len),
            None if known.len() < 3 => match known.get(1) {
                Some(b'l' | b'L' | b'r' | b'R' | b'v' | b'V') | None => None,
                Some(_) => Some(0),
            },
            None => Some(0),
        }
    }
}

/// The first byte of each run.
#[inline(always)]
fn starts(mask: u64) -> u64 {
    mask & !(mask << 1)
}

/// Borders as [`Pattern::Gpt2`](super::Pattern::Gpt2) sets them.
#[inline(always)]
pub fn gpt2(block: &Block) -> u64 {
    let Masks { letters, digits, spaces, quotes, .. } = block.masks;
    let (white, symbols) = (block.white(), block.symbols());
    let bodies = (starts(letters) | starts(digits) | starts(symbols)) & !(spaces << 1);
    let mut borders = bodies | starts(white) | white & block.before_text();
    for at in places(quotes & bodies & letters >> 1) {
        match block.contraction_len(at, false) {
            Some(0) => {}
            Some(len) => borders = borders & !(2 << at) | 1u64.checked_shl((at + len) as u32).unwrap_or(0),
            None => borders &= low_bits(at + 1),
        }
    }
    block.certain(borders)
}

/// Borders as [`Pattern::Gpt4`](super::Pattern::Gpt4) (and cl100k inside a text) sets them: digits in groups of
/// `NUMBERS`.
#[inline(always)]
pub fn gpt4<const NUMBERS: u32>(block: &Block) -> u64 {
    let symbols = Symbols::of(block, block.symbols());
    let letters = starts(block.masks.letters) & !(symbols.leads << 1);
    let mut borders = letters | symbols.starts | white_borders(block, &symbols) | number_borders::<NUMBERS>(block);
    for at in places(block.masks.quotes & symbols.leads & block.masks.letters >> 1) {
        let len = block.contraction_len(at, true).unwrap_or(0);
        borders |= 1u64.checked_shl((at + len) as u32).unwrap_or(0);
    }
    block.certain(borders)
}

/// Borders as [`Pattern::O200k`](super::Pattern::O200k) sets them.
#[inline(always)]
pub fn o200k(block: &Block) -> u64 {
    let (Masks { letters, uppers, quotes, .. }, Foreign { caseless, marks, .. }) = (block.masks, &block.foreign);
    let symbols = Symbols::of(block, block.symbols() & !marks);
    // Caseless letters and marks pass for upper and for lower ones: an upper one starts a word if before those is a lower
    // one, and if there is none, the scanner tells what it does.
    let (letters, either) = (letters | marks, caseless | marks);
    let lowers = letters & !(uppers | either);
    let after_lower = (lowers << 1).wrapping_add(either) & !either;
    let words = starts(letters) & !(symbols.leads << 1) | uppers & after_lower;
    let mut borders = words | symbols.starts | white_borders(block, &symbols) | number_borders::<3>(block);
    // So it does what a mark is that follows a symbol.
    let open = uppers & !after_lower & either << 1 | marks & symbols.all << 1;
    let mut known = low_bits(open.trailing_zeros() as usize);
    let mut last_end = 0;
    for at in places(quotes & letters << 1) {
        // A word has one contraction at most; what follows it starts another piece.
        if at == last_end {
            continue;
        }
        match block.contraction_len(at, true) {
            Some(0) => {}
            Some(len) => {
                last_end = at + len;
                let end = 1u64.checked_shl(last_end as u32).unwrap_or(0);
                borders = borders & !(low_bits(len) << at) | end;
                // There a word starts, before which is no lower letter.
                if end & either != 0 {
                    known &= low_bits(last_end + 1);
                }
            }
            None => known &= low_bits(at),
        }
    }
    // Newlines after symbols may go on with a slash; where they do, the piece is left to the scanner.
    let slash = places(symbols.newlines << 1 & symbols.all).find(|&at| block.bytes[at] == b'/');
    block.certain(borders & known & low_bits(slash.unwrap_or(64)))
}

/// Borders as [`Pattern::Whitespace`](super::Pattern::Whitespace) sets them.
#[inline(always)]
pub fn whitespace(block: &Block) -> u64 {
    let white = block.white();
    (starts(white) | starts(low_bits(block.len) & !white)) & low_bits(block.len)
}

/// What patterns since GPT-4's make of symbols.
struct Symbols {
    all: u64,
    /// First bytes of their pieces, but for those that a space leads.
    starts: u64,
    /// The last byte of what a word may begin with: a blank, or a symbol that stands alone.
    leads: u64,
    /// Newlines that belong to the symbols before them.
    newlines: u64,
}

impl Symbols {
    #[inline(always)]
    fn of(block: &Block, all: u64) -> Self {
        let Masks { spaces, tabs, newlines, .. } = block.masks;
        let starts = starts(all) & !(spaces << 1);
        // Adding a run's first bit carries through all of it, so what the sum lacks is the run.
        let taken = newlines & !newlines.wrapping_add(newlines & all << 1);
        // Where the character after the first one is.
        let second = (starts << 1).wrapping_add(block.foreign.rests) & !block.foreign.rests;
        Self { all, starts, leads: spaces | tabs | (second & !all) >> 1, newlines: taken }
    }
}

/// `\s*[\r\n]+|\s+(?!\S)|\s+` where a run goes on with text.
#[inline(always)]
fn white_borders(block: &Block, symbols: &Symbols) -> u64 {
    let Masks { spaces, tabs, newlines, .. } = block.masks;
    let blanks = spaces | tabs;
    let free_newlines = newlines & !symbols.newlines;
    let mut after_newline = blanks & free_newlines << 1;
    let ends = blanks.wrapping_add(after_newline) & !blanks;
    // Blanks between newlines belong to the piece that ends at the last newline.
    for end in places(ends & newlines) {
        let start = 64 - (!blanks & low_bits(end)).leading_zeros();
        after_newline &= !(1 << start);
    }
    starts(blanks | free_newlines) | after_newline | blanks & block.before_text()
}

/// `\p{N}{1,NUMBERS}`
#[inline(always)]
fn number_borders<const NUMBERS: u32>(block: &Block) -> u64 {
    let digits = block.masks.digits;
    if NUMBERS == 1 {
        return digits;
    }
    let mut group = starts(digits);
    let mut borders = group;
    // A further group starts three digits after the last, if all in between are digits.
    let follows = digits & digits << 1 & digits << 2 & digits << 3;
    while group & follows >> 3 != 0 {
        group = group << 3 & follows;
        borders |= group;
    }
    borders
}
