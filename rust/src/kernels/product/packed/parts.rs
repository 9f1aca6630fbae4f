//! The parts of a packed matrix: rows of one scheme after those of another.

use super::scheme::Scheme;
use crate::kernels::product::strip::STRIP;
use crate::{Error, Result};

/// Most parts of a matrix: queries, keys and values.
pub const MAX_PARTS: usize = 3;

/// Rows of a packed matrix in one scheme.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The scheme.
    pub scheme: Scheme,
    /// Number of rows.
    pub rows: usize,
}

/// A row of a packed matrix, or the strip that begins with it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub part: Part,
    /// Row within the part.
    pub row: usize,
    /// Where the part begins, in bytes.
    pub start: usize,
}

/// All parts of a matrix, each packed by itself.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Parts([Option<Part>; MAX_PARTS]);

impl Parts {
    /// Lists parts of `cols` columns.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for none or too many parts, a part without rows or of partial blocks, or a part that
    /// begins within a strip.
    pub fn of(parts: &[Part], cols: usize) -> Result<Self> {
        let has_blocks = |part: &Part| {
            let size = part.rows.saturating_mul(cols);
            (1..1 << 48).contains(&size) && cols.is_multiple_of(part.scheme.block_cols())
        };
        let are_cut = parts.iter().rev().skip(1).all(|part| part.rows.is_multiple_of(STRIP));
        if !(1..=MAX_PARTS).contains(&parts.len()) || !parts.iter().all(has_blocks) || !are_cut {
            return Err(Error::InvalidArgument(format!(
                "a packed matrix must have 1 to {MAX_PARTS} parts of whole blocks, each but the last of whole strips of \
                 {STRIP} rows, got {parts:?} of {cols} columns"
            )));
        }
        let mut found = Self::default();
        found.0.iter_mut().zip(parts).for_each(|(to, part)| *to = Some(*part));
        Ok(found)
    }

    /// Returns the number of rows of all parts.
    pub fn rows(&self) -> usize {
        self.0.iter().flatten().map(|part| part.rows).sum()
    }

    /// Returns the bytes of all parts.
    pub fn num_bytes(&self, cols: usize) -> usize {
        self.0.iter().flatten().map(|part| part.scheme.packed_bytes(part.rows, cols)).sum()
    }

    /// Returns where a row of the matrix is.
    ///
    /// # Panics
    ///
    /// If the matrix has no such row.
    pub fn find(&self, row: usize, cols: usize) -> Place {
        let (mut row, mut start) = (row, 0);
        for part in self.0.iter().flatten() {
            if row < part.rows {
                return Place { part: *part, row, start };
            }
            row -= part.rows;
            start += part.scheme.packed_bytes(part.rows, cols);
        }
        panic!("a packed matrix has {row} rows less than asked for");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_in_their_parts() {
        let parts = [Part { scheme: Scheme::Q4_K, rows: 16 }, Part { scheme: Scheme::Q6_K, rows: 3 }];
        let found = Parts::of(&parts, 512).unwrap();
        let first = Scheme::Q4_K.packed_bytes(16, 512);
        assert_eq!((found.rows(), found.num_bytes(512)), (19, first + Scheme::Q6_K.packed_bytes(3, 512)));
        for (row, part, within, start) in [(0, 0, 0, 0), (15, 0, 15, 0), (16, 1, 0, first), (18, 1, 2, first)] {
            let place = found.find(row, 512);
            assert_eq!((place.part, place.row, place.start), (parts[part], within, start));
        }
    }

    #[test]
    fn parts_that_begin_within_a_strip_or_a_block_are_refused() {
        let part = |scheme, rows| Part { scheme, rows };
        for (parts, cols) in [
            (&[][..], 256),
            (&[part(Scheme::Q4_0, 0)], 256),
            (&[part(Scheme::Q4_K, 8)], 288),
            (&[part(Scheme::Q4_0, 4), part(Scheme::Q4_1, 8)], 256),
            (&[part(Scheme::Q4_0, 8); 4], 256),
        ] {
            assert!(Parts::of(parts, cols).is_err());
        }
    }
}
