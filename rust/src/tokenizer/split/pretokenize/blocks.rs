//! Finds the borders of pieces 64 bytes at a time, without a branch per byte or piece. A character beyond ASCII is
//! looked up on its own, and is then handled as a letter or symbol of several bytes.
//!
//! A block starts where a piece starts, so no state carries over from block to block. Bit operations combine the masks
//! of a block into one mask of borders. Borders that the bytes after the block could change are left out; the piece
//! that is cut off starts the next block.
//!
//! Source: Langdale, Lemire, "Parsing Gigabytes of JSON per Second", VLDB Journal 28(6), 2019, §3.1 (the idea of
//! bit-parallel classification); the rules are those of the published patterns.

use super::classes::{BLANK, CASELESS, Class, Classes, LOWER, MARK, NUMBER, UPPER};
use super::masks::{BLOCK_BYTES, Masks};
use super::scanners::contraction_len;
use crate::tokenizer::bits::{low_bits, places};

/// A block, and the number of its first bytes that are known: these end before an incomplete character, and before a
/// digit or white space beyond ASCII.
pub struct Block<'a> {
    bytes: &'a [u8; BLOCK_BYTES],
    pub len: usize,
    /// Class masks: `letters` and `uppers` cover all scripts, the other masks ASCII only.
    masks: Masks,
    foreign: Foreign,
}

/// Masks of the characters beyond ASCII, with all of their bytes.
#[derive(Default)]
struct Foreign {
    /// `[\p{Lm}\p{Lo}]`
    caseless: u64,
    /// `\p{M}`
    marks: u64,
    /// Continuation bytes of all characters beyond ASCII.
    rests: u64,
}

impl<'a> Block<'a> {
    /// Classifies the first `len` bytes of `bytes`; the rest is padding.
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
        // Adding the bit after a first byte carries through the continuation bytes of its character.
        let whole = |firsts: u64| firsts | ((firsts << 1).wrapping_add(rests) ^ rests) & rests;
        let [uppers, caseless] = [of(UPPER), of(CASELESS)].map(whole);
        self.masks.uppers |= uppers;
        self.masks.letters |= uppers | caseless | whole(of(LOWER));
        self.foreign = Foreign { caseless, marks: whole(of(MARK)), rests };
    }

    /// Clears the bits of unknown bytes.
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

    /// Returns the bytes directly before a byte that is not white space; a run of white space there is known to end.
    fn before_text(&self) -> u64 {
        (low_bits(self.len) & !self.white()) >> 1
    }

    /// Keeps the borders that no byte after the block can change. White space at the end of the block may continue, so
    /// its end is unknown.
    #[inline(always)]
    fn certain(&self, borders: u64) -> u64 {
        let text = low_bits(self.len) & !self.white();
        let run_start = 64 - text.leading_zeros() as usize;
        borders & low_bits(self.len) & low_bits(run_start + 1)
    }

    /// Returns the length of the contraction at `at` in bytes, or `None` if the block ends too early to tell.
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

/// Returns the first byte of each run.
#[inline(always)]
fn starts(mask: u64) -> u64 {
    mask & !(mask << 1)
}

/// Returns the borders of [`Pattern::Gpt2`](super::Pattern::Gpt2).
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

/// Returns the borders of [`Pattern::Gpt4`](super::Pattern::Gpt4), and of cl100k before the end of a text. Digits form
/// groups of at most `NUMBERS`.
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

/// Returns the borders of [`Pattern::O200k`](super::Pattern::O200k).
#[inline(always)]
pub fn o200k(block: &Block) -> u64 {
    let (Masks { letters, uppers, quotes, .. }, Foreign { caseless, marks, .. }) = (block.masks, &block.foreign);
    let symbols = Symbols::of(block, block.symbols() & !marks);
    // Caseless letters and marks count as either case: an uppercase letter after them starts a word if a lowercase
    // letter precedes them. If none does, the scanner decides.
    let (letters, either) = (letters | marks, caseless | marks);
    let lowers = letters & !(uppers | either);
    let after_lower = (lowers << 1).wrapping_add(either) & !either;
    let words = starts(letters) & !(symbols.leads << 1) | uppers & after_lower;
    let mut borders = words | symbols.starts | white_borders(block, &symbols) | number_borders::<3>(block);
    // The scanner also decides the role of a mark that follows a symbol.
    let open = uppers & !after_lower & either << 1 | marks & symbols.all << 1;
    let mut known = low_bits(open.trailing_zeros() as usize);
    let mut last_end = 0;
    for at in places(quotes & letters << 1) {
        // A word has at most one contraction; text after it starts another piece.
        if at == last_end {
            continue;
        }
        match block.contraction_len(at, true) {
            Some(0) => {}
            Some(len) => {
                last_end = at + len;
                let end = 1u64.checked_shl(last_end as u32).unwrap_or(0);
                borders = borders & !(low_bits(len) << at) | end;
                // The next word starts here with a caseless letter or mark, so it has no lowercase letter yet.
                if end & either != 0 {
                    known &= low_bits(last_end + 1);
                }
            }
            None => known &= low_bits(at),
        }
    }
    // A slash may follow the newlines after symbols in the same piece; that piece is left to the scanner.
    let slash = places(symbols.newlines << 1 & symbols.all).find(|&at| block.bytes[at] == b'/');
    block.certain(borders & known & low_bits(slash.unwrap_or(64)))
}

/// Returns the borders of [`Pattern::Whitespace`](super::Pattern::Whitespace).
#[inline(always)]
pub fn whitespace(block: &Block) -> u64 {
    let white = block.white();
    (starts(white) | starts(low_bits(block.len) & !white)) & low_bits(block.len)
}

/// Masks of symbols, as patterns from GPT-4's on treat them.
struct Symbols {
    all: u64,
    /// First bytes of symbol pieces, except those that a space leads.
    starts: u64,
    /// Last byte of each character that may lead a word: a blank, or a symbol that stands alone.
    leads: u64,
    /// Newlines that belong to the symbols before them.
    newlines: u64,
}

impl Symbols {
    #[inline(always)]
    fn of(block: &Block, all: u64) -> Self {
        let Masks { spaces, tabs, newlines, .. } = block.masks;
        let starts = starts(all) & !(spaces << 1);
        // Adding a run's first bit carries through the whole run, so the bits that the sum lacks are the run.
        let taken = newlines & !newlines.wrapping_add(newlines & all << 1);
        // First byte of the character after each piece's first symbol.
        let second = (starts << 1).wrapping_add(block.foreign.rests) & !block.foreign.rests;
        Self { all, starts, leads: spaces | tabs | (second & !all) >> 1, newlines: taken }
    }
}

/// Returns the borders of `\s*[\r\n]+|\s+(?!\S)|\s+` where text follows the run.
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

/// Returns the borders of `\p{N}{1,NUMBERS}`.
#[inline(always)]
fn number_borders<const NUMBERS: u32>(block: &Block) -> u64 {
    let digits = block.masks.digits;
    if NUMBERS == 1 {
        return digits;
    }
    let mut group = starts(digits);
    let mut borders = group;
    // The next group starts three digits after the previous one, if all bytes between are digits.
    let follows = digits & digits << 1 & digits << 2 & digits << 3;
    while group & follows >> 3 != 0 {
        group = group << 3 & follows;
        borders |= group;
    }
    borders
}
