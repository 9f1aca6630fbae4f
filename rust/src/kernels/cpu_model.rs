//! A decoder-only transformer on the CPU: token ids and a paged cache in, logits out, in one call per step.

use std::collections::BTreeMap;

use super::buffers::{Buffers, Sizes};
use super::cache::{CacheLayer, CacheShape};
use super::memory::{AlignedBuffer, SharedBuffer};
use super::phases::{LogitsRows, Pass, StepContext};
use super::product::low_rank::LowRank;
#[cfg(target_arch = "x86_64")]
use super::product::tiles;
use super::simd::Isa;
use super::spec::ModelSpec;
use super::step::{MAX_ROWS, StepInput, TokenRow, group_size};
use super::threads::ThreadTeam;
use crate::{Error, Result};

/// A model ready to run steps.
#[derive(Debug)]
pub struct CpuModel {
    spec: ModelSpec,
    isa: Isa,
    team: ThreadTeam,
    shape: CacheShape,
    caches: Vec<CacheLayer>,
    buffers: Buffers,
    /// Channels of the rows' adapters.
    low: AlignedBuffer,
    /// Distance between rows of `low`.
    low_stride: usize,
}

impl CpuModel {
    /// Creates a model that runs on `num_threads` threads, with one cache per layer.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if the sizes of weights, norms and caches contradict each other, if the machine lacks
    /// the instruction set, or if there are not 1 to 1,024 threads.
    pub fn new(
        spec: ModelSpec,
        shape: CacheShape,
        caches: Vec<CacheLayer>,
        num_threads: usize,
        isa: Isa,
    ) -> Result<Self> {
        spec.check(&shape, caches.len())?;
        if !Isa::supported().contains(&isa) {
            return Err(Error::InvalidArgument(format!("this machine has no {}", isa.name())));
        }
        let buffers = Buffers::new(Sizes::of(&spec, &shape), &shape, num_threads);
        Ok(Self {
            spec,
            isa,
            team: ThreadTeam::new(num_threads)?,
            shape,
            caches,
            buffers,
            low: AlignedBuffer::new(0),
            low_stride: 0,
        })
    }

    /// Returns the number of token ids that a row of logits covers.
    pub fn vocab_size(&self) -> usize {
        self.spec.head.weight.rows
    }

    /// Sets the adapter of a number from 1 on: for each layer, what it adds to `qkv`, `out`, `up` and `down`. `None` removes
    /// it; a number without an adapter computes what 0 does.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if the adapter is another model's; nothing is changed then.
    pub fn set_adapter(&mut self, number: u16, layers: Option<Vec<BTreeMap<String, Option<LowRank>>>>) -> Result<()> {
        let mut layers = layers.map_or_else(
            || Ok(vec![BTreeMap::new(); self.spec.layers.len()]),
            |layers| {
                let num_layers = self.spec.layers.len();
                let message =
                    || format!("an adapter must have {num_layers} layers from number 1 on, got {}", layers.len());
                if layers.len() == num_layers && number > 0 {
                    Ok(layers)
                } else {
                    Err(Error::InvalidArgument(message()))
                }
            },
        )?;
        for (layer, own) in self.spec.layers.iter().zip(&mut layers) {
            for (name, adapter) in own.iter_mut() {
                let unknown = || Error::InvalidArgument(format!("the kernels can't adapt `{name}` of this model"));
                let (linear, second_half) = layer.linear(name).ok_or_else(unknown)?;
                adapter.as_mut().map_or(Ok(()), |adapter| adapter.fit(&linear.weight, second_half))?;
            }
        }
        let widths = layers.iter().flat_map(|own| own.values().flatten().map(LowRank::channels));
        self.low_stride = self.low_stride.max(widths.max().unwrap_or(0));
        self.low.grow(MAX_ROWS * self.low_stride);
        for (layer, mut own) in self.spec.layers.iter_mut().zip(layers) {
            for (name, linear) in layer.linears_mut() {
                linear.set_adapter(number, own.remove(name).flatten());
            }
        }
        Ok(())
    }

    /// Runs a step: writes keys and values into the cache, and the requested logits (S, V) into `logits`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if the arrays contradict each other or point outside vocabulary or cache; nothing is
    /// written then.
    pub fn run(&mut self, step: &StepInput<'_>, logits: &mut [f32]) -> Result<()> {
        self.check(step, logits.len())?;
        let mut rows = step.rows();
        let logits = SharedBuffer::of(logits);
        let size = group_size(self.isa, rows.len());
        for rows in rows.chunks_mut(size) {
            self.run_group(step, rows, logits);
        }
        Ok(())
    }

    fn run_group(&mut self, step: &StepInput<'_>, rows: &mut [TokenRow], logits: SharedBuffer) {
        let mut num_splits = 0;
        for row in rows.iter_mut() {
            row.first_split = num_splits;
            num_splits += row.num_splits();
        }
        self.buffers.partials.grow(num_splits * self.spec.num_heads * (self.shape.head_dim + 2));
        let Self { spec, isa, team, shape, caches, buffers, low, low_stride } = self;
        let low = (low.shared(), *low_stride);
        let buffers = &buffers.shared();
        let context = StepContext { spec, isa: *isa, shape, caches, step, buffers, logits, low };
        let (places, with_logits): (Vec<usize>, Vec<TokenRow>) =
            rows.iter().enumerate().filter(|(_, row)| row.has_logits()).map(|(idx, row)| (idx, *row)).unzip();
        let whole = Pass::new(&context, rows);
        let rest =
            (with_logits.len() < rows.len()).then(|| LogitsRows { places, pass: Pass::new(&context, &with_logits) });
        team.run(&|worker| {
            #[cfg(target_arch = "x86_64")]
            let _tiles = (*isa == Isa::Amx).then(tiles::Span::begin);
            whole.run(worker, rest.as_ref());
        });
    }

    fn check(&self, step: &StepInput<'_>, num_logits: usize) -> Result<()> {
        let (num_tokens, num_requests) = (step.token_ids.len(), step.query_start.len().saturating_sub(1));
        let lengths_agree = step.positions.len() == num_tokens
            && step.slot_mapping.len() == num_tokens
            && step.block_tables.len() == num_requests * step.max_blocks
            && step.adapters.len() == num_requests
            && num_logits == step.logits_indices.len() * self.vocab_size();
        let starts = step.query_start;
        let starts_agree = starts.first() == Some(&0)
            && starts.last().is_some_and(|end| *end as usize == num_tokens)
            && starts.is_sorted();
        if !lengths_agree || !starts_agree {
            return Err(Error::InvalidArgument(format!(
                "the arrays of a step of {num_tokens} tokens and {num_requests} requests differ in length"
            )));
        }
        let limits = [
            ("token_ids", step.token_ids, self.spec.embedding.rows),
            ("positions", step.positions, self.max_position(step)),
            ("slot_mapping", step.slot_mapping, self.shape.num_blocks * self.shape.block_size),
            ("logits_indices", step.logits_indices, num_tokens),
        ];
        for (name, values, end) in limits {
            if let Some(value) = values.iter().find(|value| **value < 0 || **value as usize >= end) {
                return Err(Error::InvalidArgument(format!("`{name}` must be in [0, {end}), got {value}")));
            }
        }
        if let Some(block) = step.block_tables.iter().find(|b| **b < 0 || **b as usize >= self.shape.num_blocks) {
            return Err(Error::InvalidArgument(format!(
                "`block_tables` must be in [0, {}), got {block}",
                self.shape.num_blocks
            )));
        }
        if !step.logits_indices.is_sorted() {
            return Err(Error::InvalidArgument("`logits_indices` must ascend".to_owned()));
        }
        Ok(())
    }

    /// Returns one past the last position that block tables and position embeddings have room for.
    fn max_position(&self, step: &StepInput<'_>) -> usize {
        let in_tables = step.max_blocks * self.shape.block_size;
        self.spec.positions.map_or(in_tables, |positions| in_tables.min(positions.rows))
    }
}
