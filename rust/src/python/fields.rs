//! Reads the fields of settings structs from Python objects.

use std::collections::BTreeMap;
use std::sync::Arc;

use pyo3::prelude::*;

use crate::fields::Fields;
use crate::sampling::TokenMask;
use crate::speculation::NgramConfig;
use crate::{Error, Result};

/// A Python object whose attributes are the fields of a settings struct.
pub(super) struct Attributes<'a, 'py>(pub &'a Bound<'py, PyAny>);

impl<'py> Attributes<'_, 'py> {
    fn get<T>(&self, name: &'static str, convert: impl FnOnce(&Bound<'py, PyAny>) -> PyResult<T>) -> Result<T> {
        let value = self.0.getattr(name).map_err(|error| Error::InvalidArgument(error.to_string()))?;
        convert(&value).map_err(|error| Error::InvalidArgument(format!("`{name}` is invalid: {error}, got {value:?}")))
    }
}

/// Implements [`Fields`] for types that PyO3 converts itself.
macro_rules! fields_of {
    ($( $kind:ty ),*) => {
        $( impl Fields<$kind> for Attributes<'_, '_> {
            fn field(&self, name: &'static str) -> Result<$kind> {
                self.get(name, |value| value.extract())
            }
        } )*
    };
}

fields_of!(bool, u64, usize, f64, Option<usize>, Vec<u32>, Vec<String>);

impl Fields<Vec<(u32, f32)>> for Attributes<'_, '_> {
    fn field(&self, name: &'static str) -> Result<Vec<(u32, f32)>> {
        self.get(name, |value| Ok(value.extract::<BTreeMap<u32, f32>>()?.into_iter().collect()))
    }
}

impl Fields<Option<Arc<TokenMask>>> for Attributes<'_, '_> {
    fn field(&self, name: &'static str) -> Result<Option<Arc<TokenMask>>> {
        let mask = |ids: Vec<u32>| Arc::new(ids.into_iter().collect());
        self.get(name, |value| Ok(value.extract::<Option<Vec<u32>>>()?.map(mask)))
    }
}

impl Fields<Option<NgramConfig>> for Attributes<'_, '_> {
    /// Returns `None` for a draft model too, because its tokens arrive through `set_drafts`.
    fn field(&self, name: &'static str) -> Result<Option<NgramConfig>> {
        let settings = self.get(name, |value| Ok(value.hasattr("max_ngram")?.then(|| value.clone())))?;
        settings.map(|value| NgramConfig::read(&Attributes(&value))).transpose()
    }
}
