//! Counts the pieces of texts and files on several threads.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rayon::ThreadPool;

use super::chunks::{FileChunks, text_of};
use super::words::{LocalCounts, WordCounts};
use crate::tokenizer::split::pretokenize::Pattern;
use crate::tokenizer::split::special::SpecialMatcher;
use crate::{Error, Result};

/// Longest time between two calls of the progress callback, which also checks for Ctrl-C.
const REPORT_INTERVAL: Duration = Duration::from_millis(50);

/// The source of the text's parts, shared by all threads.
#[derive(Debug)]
pub enum Source<'a> {
    /// Parts in memory, and the index of the next part.
    Texts(Vec<&'a str>, AtomicUsize),
    /// Parts read from a file.
    File(&'a Path, Mutex<FileChunks<'a>>),
}

impl Source<'_> {
    /// Returns the next part, which may be stored in `buffer`, and its position in the order of parts.
    fn next<'b>(&'b self, buffer: &'b mut Vec<u8>) -> (u64, Result<Option<&'b str>>) {
        match self {
            Self::Texts(parts, next) => {
                let index = next.fetch_add(1, Ordering::Relaxed);
                (index as u64, Ok(parts.get(index).copied()))
            }
            Self::File(path, chunks) => {
                let offset = chunks.lock().unwrap_or_else(PoisonError::into_inner).next_into(buffer);
                match offset {
                    Ok(Some(offset)) => (offset, text_of(path, buffer, offset).map(Some)),
                    Ok(None) => (u64::MAX, Ok(None)),
                    Err(error) => (u64::MAX, Err(error)),
                }
            }
        }
    }
}

/// The pattern, special tokens and shared table for counting text.
#[derive(Debug, Clone, Copy)]
pub struct Counter<'a> {
    /// Pattern that splits text into pieces.
    pub pattern: &'a Pattern,
    /// Matcher of the special tokens to skip.
    pub special: &'a SpecialMatcher,
    /// Shared table that receives the counts of all threads.
    pub counts: &'a WordCounts,
}

/// The first error in the order of parts, and the position of the part that caused it.
type FirstError = Mutex<Option<(u64, Error)>>;

impl Counter<'_> {
    /// Counts all of `source`, with one thread of `pool` for each of `locals`. `progress` receives the number of bytes
    /// counted so far and stops counting by returning false; the calling thread calls it and does not count.
    ///
    /// # Errors
    ///
    /// `Data` or `Tokenizer`, the first in the order of the text; `InvalidArgument` if `progress` stopped counting.
    pub fn run(
        &self,
        source: &Source<'_>,
        locals: &mut [LocalCounts],
        pool: &ThreadPool,
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<()> {
        let (stop, first_error) = (AtomicBool::new(false), FirstError::default());
        let num_bytes = AtomicU64::new(0);
        let (at_work, all_done) = channel::<()>();
        let mut goes_on = true;
        pool.in_place_scope(|scope| {
            for local in locals {
                let (at_work, num_bytes, stop, first_error) = (at_work.clone(), &num_bytes, &stop, &first_error);
                scope.spawn(move |_| {
                    self.work(source, local, num_bytes, stop, first_error);
                    drop(at_work);
                });
            }
            drop(at_work);
            // No thread sends anything: the channel closes when the last thread drops its end.
            while goes_on && all_done.recv_timeout(REPORT_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                goes_on = progress(num_bytes.load(Ordering::Relaxed));
            }
            stop.fetch_or(!goes_on, Ordering::Relaxed);
        });
        match first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some((_, error)) => Err(error),
            None if goes_on && progress(num_bytes.into_inner()) => Ok(()),
            None => Err(Error::InvalidArgument("counting was stopped by its progress callback".to_owned())),
        }
    }

    fn work(
        &self,
        source: &Source<'_>,
        local: &mut LocalCounts,
        num_bytes: &AtomicU64,
        stop: &AtomicBool,
        first_error: &FirstError,
    ) {
        let mut buffer = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let (order, part) = source.next(&mut buffer);
            let result = part.and_then(|part| {
                let Some(text) = part else { return Ok(None) };
                local.count(text, self.pattern, self.special, self.counts)?;
                Ok(Some(text.len() as u64))
            });
            match result {
                Ok(Some(bytes)) => drop(num_bytes.fetch_add(bytes, Ordering::Relaxed)),
                Ok(None) => return,
                Err(error) => {
                    stop.store(true, Ordering::Relaxed);
                    let mut first = first_error.lock().unwrap_or_else(PoisonError::into_inner);
                    if first.as_ref().is_none_or(|&(known, _)| order < known) {
                        *first = Some((order, error));
                    }
                }
            }
        }
    }
}
