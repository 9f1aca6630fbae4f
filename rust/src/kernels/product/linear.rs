//! A linear layer, multiplied one strip of outputs at a time.

#[cfg(target_arch = "x86_64")]
use super::bf16_pairs;
use super::packed::multiply::{PackedTask, multiply_strip};
use super::prepared::{Layout, Prepared};
use super::strip::{STRIP, Strip, StripTask, strip_bf16, strip_f32};
use crate::kernels::memory::{Dtype, Format, Matrix};
#[cfg(target_arch = "x86_64")]
use crate::kernels::simd::Isa;

/// A linear layer.
#[derive(Debug, Clone)]
pub struct Linear {
    /// Weights, `[outputs, inputs]`.
    pub weight: Matrix,
    /// One number per output.
    pub bias: Option<Vec<f32>>,
}

impl Linear {
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
                (Dtype::Bf16, isa) => strip_bf16(isa, &task),
                (Dtype::F32, isa) => strip_f32(isa, &task),
            }
        }
    }
}
