//! Weights of four to eight bits as GGUF files quantise them, packed in the order in which tiles read them.
//!
//! A group is 32 columns of one output, with a scale and, in some schemes, a minimum; in others the group's are multiples
//! of those of a block of 256 columns. A strip holds the groups of eight outputs: a head with the scales of all its groups,
//! filled up to whole cache lines, then the codes. The codes of a group lie in blocks of eight columns, and in each block
//! the eight codes of one output follow those of the output before. A vector thus multiplies eight columns of several
//! outputs with the same eight activations, which one load repeats in all of its lanes. Four-bit codes share bytes: columns
//! 0 to 15 of a group in the low halves, 16 to 31 in the high. A fifth bit lies in the head, after its group's scales; the
//! two upper bits of six lie after the lower four, four columns in a byte.
//!
//! Activations are quantised once per row, to eight bits per group (`activations`). A group's products are summed as
//! whole numbers, exactly; each group's sum is then scaled and added in the order of columns.

pub(crate) mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
mod blocks_of_256;
mod blocks_of_32;
pub(crate) mod cell;
#[cfg(target_arch = "x86_64")]
mod kind;
mod layout;
pub(crate) mod multiply;
pub(crate) mod parts;
mod portable;
pub(crate) mod scheme;
mod task;
mod tests;
#[cfg(target_arch = "x86_64")]
mod vnni;
