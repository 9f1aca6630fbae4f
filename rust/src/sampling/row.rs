//! One row of logits, with an up-to-date maximum for each chunk.

use super::scan::{CHUNK, chunk_max, scan_maxima};
use crate::{Error, Result};

/// A copy of the model's own row, kept if sampling changes the row and log-probabilities are requested.
#[derive(Debug, Default)]
pub(super) struct RawRow {
    pub logits: Vec<f32>,
    pub maxima: Vec<f32>,
}

impl RawRow {
    pub fn copy(&mut self, row: &LogitsRow<'_>) {
        self.logits.clear();
        self.logits.extend_from_slice(row.logits());
        self.maxima.clear();
        self.maxima.extend_from_slice(row.maxima());
    }
}

/// The maximum of each chunk. An unknown maximum is NaN, and `stale` then holds the chunk's index.
#[derive(Debug, Default)]
pub(super) struct Maxima {
    of_chunk: Vec<f32>,
    stale: Vec<usize>,
}

/// A row of logits while it is sampled.
#[derive(Debug)]
pub(super) struct LogitsRow<'a> {
    logits: &'a mut [f32],
    maxima: &'a mut Maxima,
    has_nan: bool,
}

impl<'a> LogitsRow<'a> {
    /// Wraps a row; reads all of its logits once.
    pub fn new(logits: &'a mut [f32], maxima: &'a mut Maxima) -> Self {
        let mut row = Self { logits, maxima, has_nan: false };
        row.rescan();
        row
    }

    /// Recomputes all maxima.
    fn rescan(&mut self) {
        self.maxima.stale.clear();
        self.has_nan = scan_maxima(self.logits, &mut self.maxima.of_chunk);
    }

    pub fn logits(&self) -> &[f32] {
        self.logits
    }

    /// Returns each chunk's maximum; call [`Self::finite_max`] first to update the chunks that changed.
    pub fn maxima(&self) -> &[f32] {
        &self.maxima.of_chunk
    }

    /// Changes one logit; an id past the row is ignored.
    pub fn change(&mut self, id: u32, to: impl FnOnce(f32) -> f32) {
        let Some(logit) = self.logits.get_mut(id as usize) else { return };
        let (old, new) = (*logit, to(*logit));
        *logit = new;
        self.has_nan |= new.is_nan();
        let max = &mut self.maxima.of_chunk[id as usize / CHUNK];
        if new >= *max {
            *max = new;
        } else if old == *max {
            *max = f32::NAN;
            self.maxima.stale.push(id as usize / CHUNK);
        }
    }

    /// Changes any number of logits.
    pub fn change_all(&mut self, change: impl FnOnce(&mut [f32])) {
        change(self.logits);
        self.rescan();
    }

    /// Returns the row's maximum and updates stale chunk maxima.
    ///
    /// # Errors
    ///
    /// If the row holds a NaN or +inf, or only -inf: its softmax would be meaningless without any error.
    pub fn finite_max(&mut self, what: &str) -> Result<f32> {
        while let Some(chunk) = self.maxima.stale.pop() {
            let start = chunk * CHUNK;
            let end = self.logits.len().min(start + CHUNK);
            self.maxima.of_chunk[chunk] = chunk_max(&self.logits[start..end]);
        }
        if self.has_nan {
            // The NaN may have been masked since the last scan.
            self.rescan();
        }
        let max = chunk_max(&self.maxima.of_chunk);
        if max.is_finite() && !self.has_nan {
            return Ok(max);
        }
        let found = match self.logits.iter().position(|logit| logit.is_nan() || *logit == f32::INFINITY) {
            Some(id) => format!("{} at token id {id}", self.logits[id]),
            None => "-inf everywhere".to_owned(),
        };
        Err(Error::InvalidArgument(format!(
            "{what} must hold no NaN or +inf and at least one finite value, got {found}\n\
             hint: check the checkpoint's weights, or run the model in float32"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::super::uniform;
    use super::*;

    #[test]
    fn maxima_stay_those_of_the_chunks_whatever_changes() {
        let mut logits: Vec<f32> = (0..700).map(|id| (uniform(1, id, 0) * 50.0) as f32).collect();
        let (mut maxima, mut expected) = (Maxima::default(), Vec::new());
        let mut row = LogitsRow::new(&mut logits, &mut maxima);
        for change in 0..3000 {
            // Every other change is of the highest logit of a chunk, which mostly falls.
            let chunk = change as usize % 6;
            let of_chunk = row.logits()[chunk * CHUNK..].iter().position(|&logit| logit == row.maxima()[chunk]);
            let id = if change % 2 == 0 { chunk * CHUNK + of_chunk.unwrap_or_default() } else { change as usize % 700 };
            row.change(id as u32, |logit| (logit - 4.0 + (uniform(2, change, 0) * 5.0) as f32).max(-50.0));
            let max = row.finite_max("it").unwrap();
            scan_maxima(row.logits(), &mut expected);
            assert_eq!((row.maxima(), max), (&expected[..], chunk_max(&expected)));
        }
        row.change(300, |_| f32::NAN);
        row.change(301, |logit| logit + 1.0);
        assert!(row.finite_max("it").is_err_and(|error| error.to_string().contains("NaN at token id 300")));
        row.change_all(|logits| logits[300] = 0.0);
        assert!(row.finite_max("it").is_ok());
    }
}
