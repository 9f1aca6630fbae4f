//! Converts arguments from Python to types of the core.

use numpy::PyReadonlyArray1;
use pyo3::buffer::PyBuffer;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList, PyString};

use crate::Error;

/// Minimum length of a list at which a detour through Python's `array` is faster than converting each integer.
const MIN_ARRAY_IDS: usize = 32;

/// Returns the ids in a `uint32` array, copied in one go, or in any sequence of integers.
pub fn token_ids(ids: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    if let Ok(list) = ids.cast::<PyList>()
        && list.len() >= MIN_ARRAY_IDS
        && let Some(ids) = ids_by_array(list)
    {
        return Ok(ids);
    }
    if let Ok(array) = ids.extract::<PyReadonlyArray1<'_, u32>>() {
        return Ok(array.as_array().to_vec());
    }
    let ids: Vec<i64> = ids.extract()?;
    ids.into_iter().enumerate().map(|(index, id)| narrow(index, id)).collect()
}

/// Returns the ids in a list if all are integers from 0 to 2**32 - 1.
fn ids_by_array(list: &Bound<'_, PyList>) -> Option<Vec<u32>> {
    static ARRAY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = list.py();
    let import = || py.import("array")?.getattr("array").map(Bound::unbind);
    let array = ARRAY.get_or_try_init(py, import).ok()?.bind(py).call1((intern!(py, "I"), list)).ok()?;
    PyBuffer::<u32>::get(&array).ok()?.to_vec(py).ok()
}

fn narrow(index: usize, id: i64) -> PyResult<u32> {
    u32::try_from(id).map_err(|_| {
        Error::InvalidArgument(format!("token ids must be from 0 to {}, got {id} at index {index}", u32::MAX)).into()
    })
}

/// Returns the special tokens in a dict from texts to ids.
pub fn special_tokens(tokens: &Bound<'_, PyDict>) -> PyResult<Vec<(String, u32)>> {
    tokens.iter().map(|(text, id)| Ok((text.extract()?, id.extract()?))).collect()
}

/// Returns the text as UTF-8, without a copy if Python already holds it as UTF-8.
pub fn utf8<'a>(text: &'a Bound<'_, PyString>) -> PyResult<&'a str> {
    text.to_str().map_err(|_| {
        Error::InvalidArgument(
            "text must be Unicode without lone surrogates, got one\nhint: `text.encode(\"utf-8\", \"replace\").decode()` \
             replaces them"
                .to_owned(),
        )
        .into()
    })
}

/// Checks that a number from Python is above 0.
pub fn positive(name: &str, number: i64) -> crate::Result<usize> {
    usize::try_from(number)
        .ok()
        .filter(|&number| number > 0)
        .ok_or_else(|| Error::InvalidArgument(format!("`{name}` must be positive, got {number}")))
}
