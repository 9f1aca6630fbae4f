//! Cuts texts and files into parts that split into the same pieces as the whole.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::{Error, Result};

/// Approximate size of a part in bytes: large enough to make handing out a part cheap, small enough for several threads
/// to finish together and for a part to stay in its thread's cache.
const CHUNK_BYTES: usize = 1 << 18;

/// Finds the places where text may be cut.
///
/// Every built-in pattern ends a piece between a letter and white space, and no pattern looks ahead beyond that letter.
#[derive(Debug, Clone)]
pub struct Cutter {
    /// Approximate size of a part in bytes. A custom pattern may match across any border, so it gets the whole text as
    /// one part.
    pub target_bytes: usize,
    /// Special tokens that contain a possible cut; most vocabularies have none.
    pub bordered: Vec<Box<[u8]>>,
}

impl Cutter {
    /// Creates a cutter for these special tokens and a pattern that is custom or built in.
    pub fn new(is_custom: bool, special_tokens: &[String]) -> Self {
        let bordered = special_tokens.iter().map(|token| token.as_bytes());
        let bordered = bordered.filter(|token| (1..token.len()).any(|at| is_border(token, at)));
        Self {
            target_bytes: if is_custom { usize::MAX } else { CHUNK_BYTES },
            bordered: bordered.map(Into::into).collect(),
        }
    }

    /// Iterates over the parts of a text.
    pub fn chunks<'a>(&self, mut rest: &'a str) -> impl Iterator<Item = &'a str> {
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let bytes = rest.as_bytes();
            let end = (self.target_bytes.max(1)..bytes.len()).find(|&at| self.may_cut(bytes, at));
            let (chunk, after) = rest.split_at(end.unwrap_or(bytes.len()));
            rest = after;
            Some(chunk)
        })
    }

    /// Returns the last place after `from` where `bytes`, the beginning of a longer text, may be cut.
    fn last_cut(&self, bytes: &[u8], from: usize) -> Option<usize> {
        // A special token that crosses the cut must be completely in `bytes` to be recognized.
        let end = bytes.len().saturating_sub(self.margin());
        (from.max(1)..end).rev().find(|&at| self.may_cut(bytes, at))
    }

    fn margin(&self) -> usize {
        self.bordered.iter().map(|token| token.len()).max().unwrap_or(0)
    }

    fn may_cut(&self, bytes: &[u8], at: usize) -> bool {
        let crosses =
            |token: &[u8]| (1..token.len()).any(|before| at >= before && bytes[at - before..].starts_with(token));
        is_border(bytes, at) && !self.bordered.iter().any(|token| crosses(token))
    }
}

fn is_border(bytes: &[u8], at: usize) -> bool {
    bytes[at - 1].is_ascii_alphabetic() && matches!(bytes[at], b' ' | b'\n')
}

/// A file that is read part by part.
#[derive(Debug)]
pub struct FileChunks<'a> {
    path: &'a Path,
    cutter: &'a Cutter,
    file: File,
    /// Bytes read past the end of the last part.
    rest: Vec<u8>,
    /// Offset in the file where `rest` starts.
    offset: u64,
    ended: bool,
}

impl<'a> FileChunks<'a> {
    /// Opens the file.
    ///
    /// # Errors
    ///
    /// `Data` if the file can't be opened.
    pub fn open(path: &'a Path, cutter: &'a Cutter) -> Result<Self> {
        let file = File::open(path).map_err(|error| unreadable(path, &error))?;
        Ok(Self { path, cutter, file, rest: vec![], offset: 0, ended: false })
    }

    /// Reads the next part into `chunk` and returns its offset; returns `None` at the end of the file.
    ///
    /// # Errors
    ///
    /// `Data` if the file can't be read.
    pub fn next_into(&mut self, chunk: &mut Vec<u8>) -> Result<Option<u64>> {
        chunk.clear();
        chunk.append(&mut self.rest);
        let (mut target_bytes, mut searched) = (self.cutter.target_bytes, 0);
        while !self.ended {
            let wanted = target_bytes.saturating_sub(chunk.len()) as u64;
            let read = Read::by_ref(&mut self.file).take(wanted).read_to_end(chunk);
            let num_read = read.map_err(|error| unreadable(self.path, &error))?;
            self.ended = (num_read as u64) < wanted;
            if !self.ended
                && let Some(cut) = self.cutter.last_cut(chunk, searched)
            {
                self.rest.extend_from_slice(&chunk[cut..]);
                chunk.truncate(cut);
                break;
            }
            searched = searched.max(chunk.len().saturating_sub(self.cutter.margin()));
            // The target doubles each time, so that a part without a border is read in linear time.
            target_bytes = target_bytes.saturating_mul(2);
        }
        let offset = self.offset;
        self.offset += chunk.len() as u64;
        Ok((!chunk.is_empty()).then_some(offset))
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::Data(format!("{}: can't be read: {error}", path.display()))
}

/// Returns the text of a part of a file that starts at `offset`.
///
/// # Errors
///
/// `Data` with the offset of the first byte that is not UTF-8.
pub fn text_of<'a>(path: &Path, bytes: &'a [u8], offset: u64) -> Result<&'a str> {
    std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        Error::Data(format!(
            "{path}: text must be UTF-8, got byte {:#04x} at offset {}\nhint: convert it, for example `iconv -f LATIN1 -t \
             UTF-8 {path}`",
            bytes[at],
            offset + at as u64,
            path = path.display(),
        ))
    })
}
