//! Encodes and decodes many texts at once, on several threads.

use std::ops::Range;

use rayon::prelude::*;

use super::Tokenizer;
use super::options::{Allowed, EncodePlan};
use super::threads::{MAX_THREADS, default_num_threads, pool};
use crate::{Error, Result};

/// Number of bytes of text per job. Waking a thread costs some microseconds, as much as encoding 1 KB; with much larger
/// jobs, the last job keeps one thread busy while the others wait.
const JOB_BYTES: usize = 1 << 15;

/// The ids of many texts: a few long lists instead of one allocation per text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows {
    /// The ids of all texts, one after the other.
    pub ids: Vec<u32>,
    /// Where the ids of each text end in `ids`; they start where those of the text before end.
    pub ends: Vec<usize>,
}

impl Rows {
    /// The ids of each text.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u32]> {
        (0..self.ends.len()).map(|index| {
            let start = if index == 0 { 0 } else { self.ends[index - 1] };
            &self.ids[start..self.ends[index]]
        })
    }

    fn append(&mut self, other: &Self) {
        let start = self.ids.len();
        self.ids.extend_from_slice(&other.ids);
        self.ends.extend(other.ends.iter().map(|end| start + end));
    }
}

impl Tokenizer {
    /// The ids of each text, according to `plan`; on all cores if `num_threads` is `None`. The ids do not depend on the
    /// number of threads or cores.
    ///
    /// ```
    /// # use llm_core::tokenizer::{Tokenizer, split::pretokenize::Pattern, vocab::Vocab};
    /// use llm_core::tokenizer::options::{Allowed, EncodePlan, Template};
    ///
    /// # let bytes: Vec<u8> = (0..=255).collect();
    /// # let tokenizer = Tokenizer::new(Vocab::new(&bytes, vec![(104, 105)], vec![])?, Pattern::Gpt4);
    /// let plan = EncodePlan::new(Allowed::None, vec![], Template::default(), None)?;
    /// let rows = tokenizer.encode_rows(&["hi", "", "oh"], &plan, Some(2))?;
    /// assert_eq!(rows.iter().collect::<Vec<_>>(), [&[256][..], &[], &[111, 104]]);
    /// # Ok::<(), llm_core::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The errors of [`Tokenizer::encode_planned`], naming the text; `InvalidArgument` if `num_threads` is 0 or too
    /// high.
    pub fn encode_rows(&self, texts: &[&str], plan: &EncodePlan, num_threads: Option<usize>) -> Result<Rows> {
        let encode = |range: Range<usize>| {
            let mut rows = Rows::default();
            for index in range {
                self.encode_planned(texts[index], plan, &mut rows.ids).map_err(|error| in_text(index, error))?;
                rows.ends.push(rows.ids.len());
            }
            Ok(rows)
        };
        let parts = in_jobs(texts.len(), |index| texts[index].len(), num_threads, encode)?;
        let mut parts = parts.into_iter();
        let mut all = parts.next().unwrap_or_default();
        all.ids.reserve_exact(parts.as_slice().iter().map(|part| part.ids.len()).sum());
        parts.for_each(|part| all.append(&part));
        Ok(all)
    }

    /// The ids of consecutive pieces of documents in one list, with `end` after each document; and where documents end,
    /// as the number of ids up to there.
    ///
    /// Uses threads as [`Tokenizer::encode_rows`] does.
    ///
    /// # Errors
    ///
    /// The errors of [`Tokenizer::encode`], naming the piece; `InvalidArgument` if an id doesn't fit into `I`, or
    /// `num_threads` is 0 or too high.
    pub fn encode_documents<I>(
        &self,
        pieces: &[(&str, bool)],
        end: Option<u32>,
        num_threads: Option<usize>,
    ) -> Result<(Vec<I>, Vec<i64>)>
    where
        I: TryFrom<u32> + Copy + Send,
    {
        let encode = |range: Range<usize>| {
            let mut rows = Rows::default();
            let mut narrow = Vec::new();
            for index in range {
                let (text, ends) = pieces[index];
                self.encode_into(text, &Allowed::None, &mut rows.ids).map_err(|error| in_text(index, error))?;
                if ends {
                    rows.ids.extend(end);
                    rows.ends.push(rows.ids.len());
                }
            }
            narrow.reserve_exact(rows.ids.len());
            for &id in &rows.ids {
                narrow.push(I::try_from(id).map_err(|_| too_wide::<I>(id))?);
            }
            Ok((narrow, rows.ends))
        };
        let parts = in_jobs(pieces.len(), |index| pieces[index].0.len(), num_threads, encode)?;
        let mut ids = Vec::with_capacity(parts.iter().map(|(ids, _)| ids.len()).sum());
        let mut all_ends = Vec::with_capacity(parts.iter().map(|(_, ends)| ends.len()).sum());
        for (narrow, ends) in parts {
            all_ends.extend(ends.iter().map(|end| (ids.len() + end) as i64));
            ids.extend_from_slice(&narrow);
        }
        Ok((ids, all_ends))
    }

    /// The text of each row of ids; bytes that are not valid UTF-8 become U+FFFD. Uses threads as
    /// [`Tokenizer::encode_rows`] does.
    ///
    /// # Errors
    ///
    /// The errors of [`Tokenizer::decode`], naming the row; `InvalidArgument` if `num_threads` is 0 or too high.
    pub fn decode_rows(&self, rows: &[Vec<u32>], skip: bool, num_threads: Option<usize>) -> Result<Vec<String>> {
        let decode = |range: Range<usize>| {
            let text = |index: usize| self.decode(&rows[index], skip).map_err(|error| in_text(index, error));
            range.map(text).collect::<Result<Vec<String>>>()
        };
        // Decoding a token takes about as much work as encoding a byte.
        Ok(in_jobs(rows.len(), |index| rows[index].len(), num_threads, decode)?.into_iter().flatten().collect())
    }
}

/// Runs `work` for consecutive ranges of about [`JOB_BYTES`] that cover `0..num_items`; returns the results in order.
///
/// With one job or one thread, the caller's thread does the work. If several jobs fail, the first error by position is
/// returned.
fn in_jobs<T: Send>(
    num_items: usize,
    size: impl Fn(usize) -> usize,
    num_threads: Option<usize>,
    work: impl Fn(Range<usize>) -> Result<T> + Send + Sync,
) -> Result<Vec<T>> {
    let mut jobs = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for index in 0..num_items {
        bytes += size(index);
        if bytes >= JOB_BYTES || index + 1 == num_items {
            jobs.push(start..index + 1);
            (start, bytes) = (index + 1, 0);
        }
    }
    let wanted = num_threads.unwrap_or_else(default_num_threads);
    if wanted == 1 || jobs.len() < 2 && (1..=MAX_THREADS).contains(&wanted) {
        return jobs.into_iter().map(work).collect();
    }
    let results: Vec<Result<T>> = pool(num_threads)?.install(|| jobs.into_par_iter().map(work).collect());
    results.into_iter().collect()
}

fn too_wide<I>(id: u32) -> Error {
    Error::InvalidArgument(format!("ids must fit into {} bytes, got {id}", size_of::<I>()))
}

/// Adds the index of the text in the batch to an error.
fn in_text(index: usize, error: Error) -> Error {
    let named = |message| format!("item {index} of the batch: {message}");
    match error {
        Error::InvalidArgument(message) => Error::InvalidArgument(named(message)),
        Error::Tokenizer(message) => Error::Tokenizer(named(message)),
        other => other,
    }
}
