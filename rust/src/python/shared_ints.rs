//! Python's integers for token ids, shared by all lists: a new one takes 15 ns and 32 bytes.

#![expect(unsafe_code, reason = "bench `encode-list`: a list takes a fifth less time than with pointers of `Py`")]

use pyo3::ffi::PyObject;
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyList};

use crate::prefetch;
use crate::tokenizer::memory::LargeSlice;

/// How many ids before it is needed an integer is asked for.
const AHEAD: usize = 12;

/// With more ids than this their distances lie on a large page, half of which has room for as many as the other says.
const MANY_IDS: usize = 1 << 16;
const HALF_PAGE_IDS: usize = 1 << 18;

/// Distances are in words of so many bytes.
const WORD: isize = 8;

/// The integer of each id, from when it was first listed.
///
/// They are spread over megabytes, and a list reads where each is. Distances take half the room of pointers, and on a large
/// page the processor knows where to look.
pub struct SharedInts {
    /// How far from the first in `kept` each is; zero where there is none.
    distances: LargeSlice<i32>,
    /// Keeps them alive. The first stands for no id.
    kept: Vec<Py<PyInt>>,
}

impl SharedInts {
    /// None yet, for ids below `len`.
    pub fn new(py: Python<'_>, len: usize) -> Self {
        let len = if len > MANY_IDS { len.max(HALF_PAGE_IDS) } else { len };
        Self { distances: LargeSlice::new(len), kept: vec![PyInt::new(py, u64::MAX).unbind()] }
    }

    /// A list of ids.
    pub fn list<'py>(&mut self, py: Python<'py>, ids: &[u32]) -> PyResult<Bound<'py, PyList>> {
        let (origin, kept) = (self.kept[0].as_ptr(), &mut self.kept);
        let distances = self.distances.get_mut();
        let listed = |(index, &id): (usize, &u32)| {
            if let Some(&ahead) = ids.get(index + AHEAD)
                && let Some(&distance) = distances.get(ahead as usize)
            {
                // Its count will be written to.
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
                    // SAFETY: `keep` measured this distance from the first integer of `kept` to another one that it put into
                    // `kept`, which never drops one: the pointer is that of a live `int`.
                    unsafe { Bound::from_borrowed_ptr(py, at(origin, *distance)).cast_into_unchecked() }
                }
                None => PyInt::new(py, id),
            }
        };
        PyList::new(py, ids.iter().enumerate().map(listed))
    }
}

/// Makes the integer of an id, and tells how far from the first it is, if that can be told.
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
