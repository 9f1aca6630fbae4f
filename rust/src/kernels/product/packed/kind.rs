//! A type for each scheme, so that a product is compiled for its scheme alone.
#![expect(non_camel_case_types, reason = "names as in GGUF files")]

use super::layout::Layout;
use super::scheme::Scheme;

/// One scheme.
pub(super) trait Kind {
    const SCHEME: Scheme;
    const LAYOUT: Layout = Self::SCHEME.layout();
    /// Sizes as constants, which a product never computes anew: [`Layout`] names them.
    const GROUPS: usize = Self::LAYOUT.groups();
    const NUM_HALVES: usize = Self::LAYOUT.num_halves();
    const NUM_MULTIPLES: usize = Self::LAYOUT.num_multiples();
    const GROUP_HEAD: usize = Self::LAYOUT.group_head();
    const CODE_BYTES: usize = Self::LAYOUT.code_bytes();
    /// What the sum of two lanes' codes begins with is `Group::offset` shifted left by this: an offset is that of codes 8
    /// too high.
    const SHIFT: u32 = if Self::LAYOUT.middle == 0 { 0 } else { (Self::LAYOUT.middle / 8).ilog2() };
}

macro_rules! kinds {
    ($($name:ident)*) => {
        $(
            pub(super) struct $name;
            impl Kind for $name {
                const SCHEME: Scheme = Scheme::$name;
            }
        )*
    };
}

kinds! { Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q4_K Q5_K Q6_K MXFP4 Z4 Z8 }

/// Calls a function with the type of a scheme.
macro_rules! for_kind {
    ($scheme:expr, $function:ident, $argument:expr) => {
        match $scheme {
            Scheme::Q8_0 => $function::<kind::Q8_0>($argument),
            Scheme::Q4_0 => $function::<kind::Q4_0>($argument),
            Scheme::Q4_1 => $function::<kind::Q4_1>($argument),
            Scheme::Q5_0 => $function::<kind::Q5_0>($argument),
            Scheme::Q5_1 => $function::<kind::Q5_1>($argument),
            Scheme::Q4_K => $function::<kind::Q4_K>($argument),
            Scheme::Q5_K => $function::<kind::Q5_K>($argument),
            Scheme::Q6_K => $function::<kind::Q6_K>($argument),
            Scheme::MXFP4 => $function::<kind::MXFP4>($argument),
            Scheme::Z4 => $function::<kind::Z4>($argument),
            Scheme::Z8 => $function::<kind::Z8>($argument),
        }
    };
}
pub(super) use for_kind;
