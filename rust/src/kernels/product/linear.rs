//! A linear layer, multiplied one strip of outputs at a time.

use std::sync::Arc;

use super::low_rank::LowRank;
use super::packed::multiply::{PackedTask, multiply_strip};
use super::prepared::{Layout, Prepared};
use super::strip::{STRIP, Strip, StripTask, strip_bf16, strip_f32};
#[cfg(target_arch = "x86_64")]
use super::{bf16_pairs, tiles};
use crate::kernels::memory::{Dtype, Format, Matrix};
#[cfg(target_arch = "x86_64")]
use crate::kernels::simd::Isa;
use crate::{Error, Result};

/// A linear layer.
#[derive(Debug, Clone)]
pub struct Linear {
    /// Weights, `[outputs, inputs]`.
    pub weight: Matrix,
    /// One number per output.
    pub bias: Option<Vec<f32>>,
    /// The input that each column of packed weights belongs to, if they are in another order.
    order: Option<Arc<[u32]>>,
    /// Adapters by their numbers, ascending.
    pub(in crate::kernels) adapters: Vec<(u16, LowRank)>,
}

impl Linear {
    /// Creates a layer without adapters.
    pub fn new(weight: Matrix, bias: Option<Vec<f32>>) -> Self {
        Self { weight, bias, order: None, adapters: Vec::new() }
    }

    /// Returns the layer with weights whose columns lie in another order: column `idx` belongs to input `order[idx]`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if the weights aren't packed, or not every input has one column.
    pub fn with_order(self, order: Vec<u32>) -> Result<Self> {
        let mut is_seen = vec![false; self.weight.cols];
        let is_new = |input: &u32| is_seen.get_mut(*input as usize).is_some_and(|seen| !std::mem::replace(seen, true));
        if !self.weight.is_packed() || order.len() != self.weight.cols || !order.iter().all(is_new) {
            let message = format!("an order of columns must name each input of {} once", self.weight.cols);
            return Err(Error::InvalidArgument(message));
        }
        Ok(Self { order: Some(order.into()), ..self })
    }

    /// Returns the input that each column of the weights belongs to, if they are in another order.
    pub(in crate::kernels) fn order(&self) -> Option<&[u32]> {
        self.order.as_deref()
    }

    /// Returns the adapter of this number, if it changes the layer.
    pub(in crate::kernels) fn adapter(&self, number: u16) -> Option<&LowRank> {
        let place = self.adapters.binary_search_by_key(&number, |(own, _)| *own).ok()?;
        Some(&self.adapters[place].1)
    }

    /// Sets or removes the adapter of this number.
    pub(in crate::kernels) fn set_adapter(&mut self, number: u16, adapter: Option<LowRank>) {
        self.adapters.retain(|(own, _)| *own != number);
        if let Some(adapter) = adapter {
            let place = self.adapters.partition_point(|(own, _)| *own < number);
            self.adapters.insert(place, (number, adapter));
        }
    }

    /// Returns whether the layer has this many outputs and inputs.
    pub(crate) fn has_shape(&self, outputs: usize, inputs: usize) -> bool {
        self.weight.rows == outputs
            && self.weight.cols == inputs
            && self.bias.as_ref().is_none_or(|bias| bias.len() == outputs)
    }

    /// Multiplies all rows of `x` with a strip of weight rows and adds the bias; prefetches the strip to come next.
    ///
    /// `out` gets `[x.num_rows, STRIP]`.
    ///
    /// # Safety
    ///
    /// `x` was written for all of its columns, and nobody writes to `x` meanwhile.
    pub(crate) unsafe fn multiply_strip(&self, strip: Strip, x: &Prepared, out: &mut [f32]) {
        let weights = &self.weight;
        assert!(strip.count <= STRIP && strip.first + strip.count <= weights.rows && out.len() >= x.num_rows * STRIP);
        assert!(
            x.stride >= weights.cols && x.cols == weights.cols,
            "rows of {} for weights of {}",
            x.cols,
            weights.cols
        );
        assert_eq!(x.layout, Layout::of(weights.format), "activations laid out for other weights");
        // SAFETY: sizes and layout are checked above, the model runs with a set of this machine, and the caller promises
        // that `x` is complete and stays unwritten.
        unsafe {
            match weights.format {
                Format::Plain(dtype) => self.multiply_plain(dtype, strip, x, out),
                Format::Packed => {
                    let (num_rows, cols, out) = (x.num_rows, weights.cols, out.as_mut_ptr());
                    let (scheme, strip) = weights.strip(strip.first);
                    multiply_strip(x.isa, &PackedTask { scheme, strip, x: x.groups(), num_rows, cols, out });
                }
            }
        }
        if let Some(bias) = &self.bias {
            let bias = &bias[strip.first..strip.first + strip.count];
            for values in out.as_chunks_mut::<STRIP>().0 {
                values.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
            }
        }
    }

    /// Multiplies with weights in place.
    ///
    /// # Safety
    ///
    /// As for [`Self::multiply_strip`], which has checked all sizes.
    unsafe fn multiply_plain(&self, dtype: Dtype, strip: Strip, x: &Prepared, out: &mut [f32]) {
        let weights = &self.weight;
        let row_bytes = weights.cols * dtype.size();
        let task = StripTask {
            weights: weights.row(strip.first, dtype),
            row_bytes,
            next: weights.row(0, dtype).wrapping_add(strip.next * row_bytes),
            count: strip.count,
            x: x.data.address(x.num_rows * x.stride),
            x_stride: x.stride,
            num_rows: x.num_rows,
            cols: weights.cols,
            out: out.as_mut_ptr(),
        };
        // SAFETY: the caller answers for sizes, layout, instruction set and `x`.
        unsafe {
            match (dtype, x.isa) {
                #[cfg(target_arch = "x86_64")]
                (Dtype::Bf16, Isa::Avx512Bf16) => bf16_pairs::multiply_strip(&task),
                #[cfg(target_arch = "x86_64")]
                (Dtype::Bf16, Isa::Amx) => tiles::multiply_strip(&task),
                (Dtype::Bf16, isa) => strip_bf16(isa, &task),
                (Dtype::F32, isa) => strip_f32(isa, &task),
            }
        }
    }
}
