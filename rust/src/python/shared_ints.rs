//! Python integers for token ids, shared by all lists; creating one takes 15 ns and 32 bytes.

#![expect(unsafe_code, reason = "bench `encode-list`: a list takes a fifth less time than with pointers of `Py`")]

use pyo3::ffi::PyObject;
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyList};

use crate::prefetch;
use crate::tokenizer::memory::LargeSlice;

/// Number of ids ahead of its use at which an integer is prefetched.
const AHEAD: usize = 12;

/// With more ids than this, the distances are stored on a large page; half a page holds `HALF_PAGE_IDS` of them.
const MANY_IDS: usize = 1 << 16;
const HALF_PAGE_IDS: usize = 1 << 18;

/// Unit of a distance in bytes.
const WORD: isize = 8;

/// The Python integer of each id, created when the id is first listed.
///
/// The integers are spread over megabytes, and every list looks up their addresses. Distances take half the memory of
/// pointers, and a large page makes TLB misses on them rare.
pub struct SharedInts {
    /// Distance of each integer from the first in `kept`; 0 for an id without an integer.
    distances: LargeSlice<i32>,
    /// Owns the integers. The first one stands for no id.
    kept: Vec<Py<PyInt>>,
}

impl SharedInts {
    /// Creates a table without integers for ids below `len`.
    pub fn new(py: Python<'_>, len: usize) -> Self {
        let len = if len > MANY_IDS { len.max(HALF_PAGE_IDS) } else { len };
        Self { distances: LargeSlice::new(len), kept: vec![PyInt::new(py, u64::MAX).unbind()] }
    }

    /// Creates a list of ids.
    pub fn list<'py>(&mut self, py: Python<'py>, ids: &[u32]) -> PyResult<Bound<'py, PyList>> {
        let (origin, kept) = (self.kept[0].as_ptr(), &mut self.kept);
        let distances = self.distances.get_mut();
        let listed = |(index, &id): (usize, &u32)| {
            if let Some(&ahead) = ids.get(index + AHEAD)
                && let Some(&distance) = distances.get(ahead as usize)
            {
                // Prefetched because adding it to the list writes to its reference count.
                prefetch::near(at(origin, distance));
            }
            match distances.get_mut(id as usize) {
                Some(distance) => {
                    if *distance == 0 {
                        match keep(py, kept, id) {
                            Some(kept) => *distance = kept,
                            None => return PyInt::new(py, id),
                        }
                    }
                    // SAFETY: `keep` measured this distance from the first integer in `kept` to another integer that it
                    // pushed to `kept`. `kept` never drops an integer, so the pointer is that of a live `int`.
                    unsafe { Bound::from_borrowed_ptr(py, at(origin, *distance)).cast_into_unchecked() }
                }
                None => PyInt::new(py, id),
            }
        };
        PyList::new(py, ids.iter().enumerate().map(listed))
    }
}

/// Creates the integer of an id and returns its distance from the first, or `None` if the distance does not fit.
#[cold]
#[inline(never)]
fn keep(py: Python<'_>, kept: &mut Vec<Py<PyInt>>, id: u32) -> Option<i32> {
    let int = PyInt::new(py, id);
    let bytes = int.as_ptr().addr().wrapping_sub(kept[0].as_ptr().addr()) as isize;
    let distance = i32::try_from(bytes / WORD).ok().filter(|_| bytes % WORD == 0)?;
    kept.push(int.unbind());
    Some(distance)
}

#[inline(always)]
fn at(origin: *mut PyObject, distance: i32) -> *mut PyObject {
    origin.wrapping_byte_offset(WORD * distance as isize)
}
