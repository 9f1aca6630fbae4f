//! Memory that kernels work on: matrices owned by somebody else, and aligned buffers that threads split among themselves.

use super::product::packed::parts::{Part, Parts};
use super::product::packed::scheme::Scheme;
use super::product::strip::STRIP;
use super::simd::widen;
use crate::{Error, Result};

/// Number format of weights in place and of cached keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// bfloat16: the upper half of an f32.
    Bf16,
}

impl Dtype {
    /// Returns the size of a number in bytes.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// Number format of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Row after row of numbers.
    Plain(Dtype),
    /// Strips of quantised numbers, in parts of one scheme each.
    Packed,
}

/// A matrix in memory owned by somebody else.
#[derive(Debug, Clone, Copy)]
pub struct Matrix {
    data: *const u8,
    /// Number of rows: a linear layer's outputs.
    pub rows: usize,
    /// Numbers per row: a linear layer's inputs.
    pub cols: usize,
    /// Number format.
    pub format: Format,
    /// The parts of a packed matrix.
    parts: Parts,
}

// SAFETY: a matrix is only read, and the caller of `from_raw` keeps its memory alive and unwritten.
unsafe impl Send for Matrix {}
// SAFETY: reading from several threads is safe, since nobody writes to the memory (see `from_raw`).
unsafe impl Sync for Matrix {}

impl Matrix {
    /// Creates a view of `rows * cols` numbers at `data`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for a null or misaligned pointer, or a matrix without numbers.
    ///
    /// # Safety
    ///
    /// The memory must stay in place and unwritten for as long as this view or any copy of the view is used.
    pub unsafe fn from_raw(data: *const u8, rows: usize, cols: usize, dtype: Dtype) -> Result<Self> {
        if data.is_null() || !(data as usize).is_multiple_of(dtype.size()) || rows == 0 || cols == 0 {
            return Err(Error::InvalidArgument(format!(
                "a matrix must have an aligned address and at least one number, got ({rows}, {cols}) at {data:?}"
            )));
        }
        Ok(Self { data, rows, cols, format: Format::Plain(dtype), parts: Parts::default() })
    }

    /// Creates a view of a matrix whose parts [`Scheme::pack`] packed one after the other into `num_bytes` at `data`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for a null pointer, none or more than three parts, rows that are no whole blocks, a part
    /// that begins within a strip, or another number of bytes than [`Scheme::packed_bytes`] gives.
    ///
    /// # Safety
    ///
    /// The memory must stay in place and unwritten for as long as this view or any copy of the view is used.
    pub unsafe fn from_packed(data: *const u8, num_bytes: usize, cols: usize, parts: &[Part]) -> Result<Self> {
        let found = Parts::of(parts, cols)?;
        if data.is_null() || num_bytes != found.num_bytes(cols) {
            return Err(Error::InvalidArgument(format!(
                "a packed matrix of {cols} columns in {parts:?} can't have {num_bytes} bytes at {data:?}"
            )));
        }
        Ok(Self { data, rows: found.rows(), cols, format: Format::Packed, parts: found })
    }

    /// Returns whether the numbers are quantised.
    pub(crate) fn is_packed(&self) -> bool {
        self.format == Format::Packed
    }

    /// Returns the address of a row of numbers of this type.
    pub(crate) fn row(&self, row: usize, dtype: Dtype) -> *const u8 {
        debug_assert!(row < self.rows && self.format == Format::Plain(dtype));
        // SAFETY: the row lies within the memory that the caller of `from_raw` vouched for.
        unsafe { self.data.add(row * self.cols * dtype.size()) }
    }

    /// Returns the address of a row, or of the packed strip that begins with the row.
    pub(crate) fn address(&self, row: usize) -> *const u8 {
        match self.format {
            Format::Plain(dtype) => self.row(row, dtype),
            Format::Packed => self.strip(row).1,
        }
    }

    /// Returns scheme and address of the packed strip that begins with row `first`.
    pub(crate) fn strip(&self, first: usize) -> (Scheme, *const u8) {
        assert!(first < self.rows && self.is_packed(), "a matrix of {} rows has no strip at {first}", self.rows);
        let place = self.parts.find(first, self.cols);
        assert!(place.row.is_multiple_of(STRIP), "no strip of packed weights begins with row {first}");
        let scheme = place.part.scheme;
        // SAFETY: the strip lies within the memory that the caller of `from_packed` vouched for.
        (scheme, unsafe { self.data.add(place.start + place.row / STRIP * scheme.strip_bytes(self.cols)) })
    }

    /// Copies a row into `to`, converted to f32.
    ///
    /// # Panics
    ///
    /// If the matrix has no such row, or `to` is shorter than a row.
    pub fn read_row(&self, row: usize, to: &mut [f32]) {
        assert!(row < self.rows, "a matrix of {} rows has no row {row}", self.rows);
        let to = &mut to[..self.cols];
        // SAFETY: all columns lie within the row, and all strips within the memory that the constructor's caller vouched for.
        unsafe {
            match self.format {
                Format::Plain(Dtype::F32) => {
                    let from = self.row(row, Dtype::F32).cast::<f32>();
                    to.iter_mut().enumerate().for_each(|(col, value)| *value = from.add(col).read());
                }
                Format::Plain(Dtype::Bf16) => {
                    let from = self.row(row, Dtype::Bf16).cast::<u16>();
                    to.iter_mut().enumerate().for_each(|(col, value)| *value = widen(from.add(col).read()));
                }
                Format::Packed => {
                    let place = self.parts.find(row, self.cols);
                    let scheme = place.part.scheme;
                    let num_bytes = scheme.packed_bytes(place.part.rows, self.cols);
                    scheme.unpack_row(std::slice::from_raw_parts(self.data.add(place.start), num_bytes), place.row, to);
                }
            }
        }
    }
}

/// A zeroed f32 buffer, aligned to cache lines.
#[derive(Debug)]
pub(crate) struct AlignedBuffer {
    lines: Vec<Line>,
}

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

impl AlignedBuffer {
    pub fn new(len: usize) -> Self {
        Self { lines: vec![Line([0.0; 16]); len.div_ceil(16)] }
    }

    /// Makes room for `len` numbers; the buffer's content is unspecified afterwards.
    pub fn grow(&mut self, len: usize) {
        if len.div_ceil(16) > self.lines.len() {
            *self = Self::new(len);
        }
    }

    /// Returns a handle that threads can copy; valid until the buffer grows or is dropped.
    pub fn shared(&mut self) -> SharedBuffer {
        SharedBuffer { data: self.lines.as_mut_ptr().cast(), len: self.lines.len() * 16 }
    }
}

/// A buffer that several threads hold. Each place is written by at most one thread between two barriers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SharedBuffer {
    data: *mut f32,
    len: usize,
}

// SAFETY: callers of `read` and `write` promise that no two threads use one place while either of them writes to it.
unsafe impl Send for SharedBuffer {}
// SAFETY: the same promise of `read` and `write` makes shared handles safe.
unsafe impl Sync for SharedBuffer {}

impl SharedBuffer {
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

    /// Returns the part of the buffer from `start` on.
    pub fn from(&self, start: usize) -> Self {
        assert!(start <= self.len, "a buffer of {} numbers has no {start}", self.len);
        // SAFETY: `start` is within the buffer.
        Self { data: unsafe { self.data.add(start) }, len: self.len - start }
    }

    /// Returns the buffer's address, checked to be that of at least `len` numbers.
    pub fn address(&self, len: usize) -> *mut f32 {
        assert!(len <= self.len, "a buffer of {} numbers has no 0..{len}", self.len);
        self.data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_place_is_read_twice_at_once_and_disjoint_places_are_written_at_once() {
        let mut owner = AlignedBuffer::new(16);
        let buffer = owner.shared();
        // SAFETY: the two halves are disjoint.
        let (left, right) = unsafe { (buffer.write(0, 8), buffer.write(8, 8)) };
        left.fill(1.0);
        right.fill(2.0);
        // SAFETY: the writers above are no longer in use.
        let (whole, part) = unsafe { (buffer.read(0, 16), buffer.read(6, 4)) };
        assert_eq!((whole[7], whole[8], part), (1.0, 2.0, &[1.0, 1.0, 2.0, 2.0][..]));
    }

    #[test]
    #[should_panic(expected = "a buffer of 16 numbers has no 9..17")]
    fn reading_past_the_end_panics() {
        let mut owner = AlignedBuffer::new(16);
        // SAFETY: nobody writes; the range is refused.
        unsafe { owner.shared().read(9, 8) };
    }
}
