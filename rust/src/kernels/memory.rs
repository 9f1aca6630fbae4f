//! Memory that kernels share: matrices someone else owns, and aligned scratch.

use super::simd::widen;
use crate::{Error, Result};

/// Number format of weights and of cached keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// The upper half of an f32.
    Bf16,
}

impl Dtype {
    /// Bytes of a number.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// A row-major matrix in memory that someone else owns.
#[derive(Debug, Clone, Copy)]
pub struct Matrix {
    data: *const u8,
    /// Rows: a linear layer's outputs.
    pub rows: usize,
    /// Numbers of a row: a linear layer's inputs.
    pub cols: usize,
    /// Format of its numbers.
    pub dtype: Dtype,
}

// SAFETY: only read, and `from_raw`'s caller keeps it alive and unwritten.
unsafe impl Send for Matrix {}
// SAFETY: as above.
unsafe impl Sync for Matrix {}

impl Matrix {
    /// A view of `rows * cols` numbers at `data`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for a null or misaligned pointer, or a matrix without numbers.
    ///
    /// # Safety
    ///
    /// The numbers must stay where they are, unwritten, for as long as this view or a copy of it is used.
    pub unsafe fn from_raw(data: *const u8, rows: usize, cols: usize, dtype: Dtype) -> Result<Self> {
        if data.is_null() || !(data as usize).is_multiple_of(dtype.size()) || rows == 0 || cols == 0 {
            return Err(Error::InvalidArgument(format!(
                "a matrix must have an aligned address and at least one number, got ({rows}, {cols}) at {data:?}"
            )));
        }
        Ok(Self { data, rows, cols, dtype })
    }

    /// Address of a row.
    pub(super) fn row(&self, row: usize) -> *const u8 {
        debug_assert!(row < self.rows);
        // SAFETY: within the matrix, as `from_raw`'s caller promised.
        unsafe { self.data.add(row * self.cols * self.dtype.size()) }
    }

    /// Copies a row as f32.
    pub(super) fn read_row(&self, row: usize, to: &mut [f32]) {
        let from = self.row(row);
        for (col, value) in to[..self.cols].iter_mut().enumerate() {
            // SAFETY: `col` is within the row.
            *value = unsafe {
                match self.dtype {
                    Dtype::F32 => from.cast::<f32>().add(col).read(),
                    Dtype::Bf16 => widen(from.cast::<u16>().add(col).read()),
                }
            };
        }
    }
}

/// Zeroed f32 scratch on a cache line's border, which members of a team write to in disjoint parts.
#[derive(Debug)]
pub(super) struct Scratch {
    lines: Vec<Line>,
}

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

impl Scratch {
    pub fn new(len: usize) -> Self {
        Self { lines: vec![Line([0.0; 16]); len.div_ceil(16)] }
    }

    /// Makes room for `len` numbers; what they hold is then unspecified.
    pub fn grow(&mut self, len: usize) {
        if len.div_ceil(16) > self.lines.len() {
            *self = Self::new(len);
        }
    }

    pub fn shared(&mut self) -> SharedMut {
        SharedMut { data: self.lines.as_mut_ptr().cast(), len: self.lines.len() * 16 }
    }
}

/// A mutable slice that several threads hold, each for parts that no other touches between two barriers.
#[derive(Debug, Clone, Copy)]
pub(super) struct SharedMut {
    data: *mut f32,
    len: usize,
}

// SAFETY: callers of `read` and `write` promise that no two threads use one place while either writes to it.
unsafe impl Send for SharedMut {}
// SAFETY: as above.
unsafe impl Sync for SharedMut {}

impl SharedMut {
    pub fn of(slice: &mut [f32]) -> Self {
        Self { data: slice.as_mut_ptr(), len: slice.len() }
    }

    /// Borrows `len` numbers from `start` on for reading; any number of threads may read one place at once.
    ///
    /// # Safety
    ///
    /// Nobody writes to these numbers while the slice is in use.
    pub unsafe fn read(&self, start: usize, len: usize) -> &[f32] {
        assert!(start + len <= self.len, "a buffer of {} numbers has no {start}..{}", self.len, start + len);
        // SAFETY: the range is within the buffer, and the caller promises that nobody writes to it meanwhile.
        unsafe { std::slice::from_raw_parts(self.data.add(start), len) }
    }

    /// Borrows `len` numbers from `start` on for reading and writing.
    ///
    /// # Safety
    ///
    /// Nobody else reads or writes these numbers while the slice is in use.
    #[expect(clippy::mut_from_ref, reason = "the buffer is split among threads; the caller promises disjoint parts")]
    pub unsafe fn write(&self, start: usize, len: usize) -> &mut [f32] {
        assert!(start + len <= self.len, "a buffer of {} numbers has no {start}..{}", self.len, start + len);
        // SAFETY: the range is within the buffer, and the caller promises that nobody else uses it meanwhile.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), len) }
    }

    /// What follows `start`.
    pub fn from(&self, start: usize) -> Self {
        assert!(start <= self.len, "scratch of {} has no {start}", self.len);
        // SAFETY: within the scratch.
        Self { data: unsafe { self.data.add(start) }, len: self.len - start }
    }

    /// Address of the first of `len` numbers.
    pub fn address(&self, len: usize) -> *mut f32 {
        assert!(len <= self.len, "scratch of {} has no 0..{len}", self.len);
        self.data
    }
}
