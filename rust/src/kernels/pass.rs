//! The phases of a step, run by all members of a team together, with a barrier after each.

use super::attention::{CachePart, CacheShape, Coming, STRETCH, Stretch, join};
use super::decoder::{Buffers, DecoderSpec, FeedForward, Layer, Linear, MAX_ROWS, Sizes, Step};
use super::linear::STRIP;
use super::memory::{Dtype, SharedMut};
use super::prepared::Prepared;
use super::rows::{Norm, rotate};
use super::simd::Isa;
use super::team::Member;

/// One token of a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowTask {
    token: usize,
    position: usize,
    slot: usize,
    request: usize,
    /// Where its attention's stretches begin.
    pub first_stretch: usize,
    /// Its rows of logits: several where choices of one prompt begin.
    pub outputs: (usize, usize),
}

impl RowTask {
    pub fn new(step: &Step<'_>, row: usize, request: usize) -> Self {
        Self {
            token: step.token_ids[row] as usize,
            position: step.positions[row] as usize,
            slot: step.slot_mapping[row] as usize,
            request,
            first_stretch: 0,
            outputs: (0, 0),
        }
    }

    /// Whether its logits are.
    pub fn is_wanted(&self) -> bool {
        self.outputs.0 < self.outputs.1
    }

    /// Tokens it sees, itself included.
    pub fn num_tokens(&self) -> usize {
        self.position + 1
    }
}

/// A row's look at a stretch of tokens through the query heads of one key head.
#[derive(Debug, Clone, Copy)]
struct Piece {
    row: usize,
    stretch: usize,
    head: usize,
}

/// A group of rows on its way through the model.
pub(super) struct Pass<'a> {
    pub spec: &'a DecoderSpec,
    pub isa: Isa,
    shape: &'a CacheShape,
    caches: &'a [(CachePart, CachePart)],
    step: &'a Step<'a>,
    pub rows: &'a [RowTask],
    pieces: Vec<Piece>,
    pub sizes: Sizes,
    hidden: SharedMut,
    input: SharedMut,
    inner: SharedMut,
    pub wide: SharedMut,
    pub mixed: SharedMut,
    turns: SharedMut,
    joined: SharedMut,
    pub routes: SharedMut,
    pub expert_inner: SharedMut,
    own: Vec<SharedMut>,
    logits: SharedMut,
}

/// The rows of a group whose logits are wanted, and the pass that they end in.
pub(super) struct Wanted<'a> {
    pub rows: Vec<usize>,
    pub pass: Pass<'a>,
}

impl<'a> Pass<'a> {
    pub fn new(
        spec: &'a DecoderSpec,
        isa: Isa,
        (shape, caches): (&'a CacheShape, &'a [(CachePart, CachePart)]),
        (step, rows): (&'a Step<'a>, &'a [RowTask]),
        buffers: &mut Buffers,
        logits: &mut [f32],
    ) -> Self {
        Self {
            spec,
            isa,
            shape,
            caches,
            step,
            rows,
            pieces: pieces_of(rows, shape.num_kv_heads),
            sizes: buffers.sizes,
            hidden: buffers.hidden.shared(),
            input: buffers.input.shared(),
            inner: buffers.inner.shared(),
            wide: buffers.wide.shared(),
            mixed: buffers.mixed.shared(),
            turns: buffers.turns.shared(),
            joined: buffers.stretches.shared(),
            routes: buffers.routes.shared(),
            expert_inner: buffers.expert_inner.shared(),
            own: buffers.own.iter_mut().map(|own| own.shared()).collect(),
            logits: SharedMut::of(logits),
        }
    }

    /// One member's part of the whole step. Where some rows want no logits, all that the last layer does for them is to
    /// write their keys and values, and `wanted` goes on with the others.
    pub fn run(&self, member: &Member<'_>, wanted: Option<&Wanted<'_>>) {
        self.each_row(member, |row| self.embed(row));
        let num_layers = self.spec.layers.len();
        for (idx, (layer, cache)) in self.spec.layers.iter().zip(self.caches).enumerate() {
            self.project(member, layer, *cache);
            if let Some(Wanted { rows, pass }) = wanted.filter(|_| idx + 1 == num_layers) {
                self.gather(member, rows, layer.qkv.weight.rows);
                pass.finish(member, layer, *cache);
                return pass.logits(member);
            }
            self.finish(member, layer, *cache);
        }
        self.logits(member);
    }

    /// What a layer does once its rows' keys and values are in the cache.
    fn finish(&self, member: &Member<'_>, layer: &Layer, cache: (CachePart, CachePart)) {
        if self.rows.is_empty() {
            return;
        }
        self.attend(member, layer, cache);
        self.each_row(member, |row| self.join_heads(member, row, layer));
        let heads = self.inputs_of(layer.out.weight.cols);
        self.add(member, (&layer.out, &heads), layer.post_norms.as_ref().map(|norms| &norms.0));
        self.feed_forward(member, layer);
    }

    /// Moves what is known of some rows, in ascending order, to the first places.
    fn gather(&self, member: &Member<'_>, rows: &[usize], width: usize) {
        for (to, &from) in rows.iter().enumerate().filter(|_| member.index == 0) {
            for (buffer, width) in [(self.hidden, self.sizes.hidden), (self.wide, width)] {
                // SAFETY: only the first member does this, the others wait at the barrier.
                let whole = unsafe { buffer.write(to * width, (from - to + 1) * width) };
                whole.copy_within((from - to) * width.., 0);
            }
        }
        member.barrier();
    }

    /// Rows in turn, one member each, then a barrier.
    pub fn each_row(&self, member: &Member<'_>, work: impl Fn(usize)) {
        (member.index..self.rows.len()).step_by(member.num_members()).for_each(work);
        member.barrier();
    }

    fn embed(&self, row: usize) {
        let task = &self.rows[row];
        // SAFETY: each row is one member's until the barrier.
        let (hidden, turns) = unsafe {
            (
                self.hidden.write(row * self.sizes.hidden, self.sizes.hidden),
                self.turns.write(row * self.shape.head_dim, self.shape.head_dim),
            )
        };
        self.spec.embedding.read_row(task.token, hidden);
        hidden.iter_mut().for_each(|value| *value *= self.spec.embedding_scale);
        if let Some(positions) = &self.spec.positions {
            let mut vector = vec![0.0; hidden.len()];
            positions.read_row(task.position, &mut vector);
            hidden.iter_mut().zip(vector).for_each(|(value, place)| *value += place);
        }
        if let Some(rope) = &self.spec.rope {
            rope.fill(task.position as i64, turns);
        }
    }

    /// Queries of all rows, and keys and values into the cache.
    fn project(&self, member: &Member<'_>, layer: &Layer, cache: (CachePart, CachePart)) {
        let dtype = layer.qkv.weight.dtype;
        self.each_row(member, |row| self.normalize(member, row, (&layer.norm1, dtype), &self.inputs(), row));
        let width = layer.qkv.weight.rows;
        self.multiply(member, &layer.qkv, &self.inputs(), |row, first, values| {
            // SAFETY: each column is one member's until the barrier.
            unsafe { self.wide.write(row * width + first, values.len()) }.copy_from_slice(values);
        });
        self.each_row(member, |row| self.rotate_and_store(row, layer, cache));
    }

    /// Norms the residual stream of `row` into row `to_row` of a product's input.
    fn normalize(&self, member: &Member<'_>, row: usize, (norm, dtype): (&Norm, Dtype), to: &Prepared, to_row: usize) {
        // SAFETY: each row, and the member's own scratch, is one member's until the barrier.
        unsafe {
            let aside = self.aside(member);
            let normed = aside.write(0, self.sizes.hidden);
            normed.copy_from_slice(self.hidden.read(row * self.sizes.hidden, self.sizes.hidden));
            norm.apply(self.isa, normed);
            to.write(self.isa, dtype, to_row, normed);
        }
    }

    fn rotate_and_store(&self, row: usize, layer: &Layer, (keys, values): (CachePart, CachePart)) {
        let (width, num_kv) = (self.shape.head_dim, self.shape.num_kv_heads);
        let num_turned = self.spec.num_heads + num_kv;
        let length = layer.qkv.weight.rows;
        // SAFETY: each row, and its slot in the cache, is one member's until the barrier.
        let (heads, turns) = unsafe { (self.wide.write(row * length, length), self.turns.read(row * width, width)) };
        for (idx, head) in heads.chunks_exact_mut(width).enumerate() {
            let is_query = idx < self.spec.num_heads;
            if idx < num_turned {
                if let Some((query_norm, key_norm)) = &layer.qk_norms {
                    if is_query { query_norm } else { key_norm }.apply(self.isa, head);
                }
                if self.spec.rope.is_some() {
                    rotate(self.isa, head, turns);
                }
            }
            if is_query {
                head.iter_mut().for_each(|value| *value *= self.spec.attention_scale);
                continue;
            }
            let (part, head_idx) =
                if idx < num_turned { (keys, idx - self.spec.num_heads) } else { (values, idx - num_turned) };
            // SAFETY: as above; slots are checked by the step.
            unsafe { self.shape.store(self.isa, part, (self.rows[row].slot, head_idx), head) };
        }
    }

    fn attend(&self, member: &Member<'_>, layer: &Layer, cache: (CachePart, CachePart)) {
        let (width, num_kv) = (self.shape.head_dim, self.shape.num_kv_heads);
        let groups = self.spec.num_heads / num_kv;
        let own = self.own(member);
        // SAFETY: the member's own scratch.
        let scratch = unsafe { own.write(0, groups * STRETCH) };
        // One member takes all heads of a stretch, whose tokens lie together, unless there are too few stretches.
        let size = if self.pieces.len() >= 2 * num_kv * member.num_members() { num_kv } else { 1 };
        let mut claims =
            std::iter::from_fn(|| member.claim(self.pieces.len(), size)).map(|range| &self.pieces[range]).peekable();
        let mut coming = claims.peek().map_or_else(Coming::nothing, |pieces| self.coming(&pieces[0], layer, cache));
        while let Some(pieces) = claims.next() {
            coming.ask_for_rest();
            coming = match claims.peek() {
                Some(next) if !self.looks_alike(&pieces[0], &next[0]) => self.coming(&next[0], layer, cache),
                _ => Coming::nothing(),
            };
            for piece in pieces {
                let place = (self.rows[piece.row].first_stretch + piece.stretch) * num_kv + piece.head;
                // SAFETY: each piece is one member's until the barrier.
                let out = unsafe { self.joined.write(place * groups * (width + 2), groups * (width + 2)) };
                match self.stretch(piece, layer, cache) {
                    Some(stretch) => stretch.attend(self.isa, out, scratch, &mut coming),
                    None => silence(out, width),
                }
            }
        }
        member.barrier();
    }

    /// Whether two pieces look at the same tokens.
    fn looks_alike(&self, a: &Piece, b: &Piece) -> bool {
        (self.rows[a.row].request, a.stretch) == (self.rows[b.row].request, b.stretch)
    }

    fn coming(&self, piece: &Piece, layer: &Layer, cache: (CachePart, CachePart)) -> Coming<'_> {
        self.stretch(piece, layer, cache).map_or_else(Coming::nothing, |stretch| Coming::of(&stretch))
    }

    /// What a piece looks at, if anything.
    fn stretch(&self, piece: &Piece, layer: &Layer, (keys, values): (CachePart, CachePart)) -> Option<Stretch<'_>> {
        let task = &self.rows[piece.row];
        let tokens = seen(task.num_tokens(), piece.stretch, layer.window)?;
        let width = self.spec.num_heads / self.shape.num_kv_heads * self.shape.head_dim;
        // SAFETY: queries are only read until the next barrier.
        let queries = unsafe { self.wide.read(piece.row * layer.qkv.weight.rows + piece.head * width, width) };
        let blocks = &self.step.block_tables[task.request * self.step.max_blocks..][..self.step.max_blocks];
        let softcap = self.spec.attention_softcap;
        Some(Stretch { shape: self.shape, keys, values, head: piece.head, blocks, tokens, queries, softcap })
    }

    fn join_heads(&self, member: &Member<'_>, row: usize, layer: &Layer) {
        let (width, num_kv, num_heads) = (self.shape.head_dim, self.shape.num_kv_heads, self.spec.num_heads);
        let groups = num_heads / num_kv;
        let task = &self.rows[row];
        let num_stretches = task.num_tokens().div_ceil(STRETCH);
        // SAFETY: the member's own scratch.
        let aside = self.aside(member);
        let mixed = unsafe { aside.write(0, num_heads * width) };
        for (head, out) in mixed.chunks_exact_mut(width).enumerate() {
            let parts = (0..num_stretches).map(|stretch| {
                let piece = (task.first_stretch + stretch) * num_kv + head / groups;
                let place = (piece * groups + head % groups) * (width + 2);
                // SAFETY: written before the last barrier, only read here.
                unsafe { self.joined.read(place, width + 2) }
            });
            join(parts, out);
        }
        // SAFETY: each row is one member's until the barrier.
        unsafe { self.inputs_of(mixed.len()).write(self.isa, layer.out.weight.dtype, row, mixed) };
    }

    /// Adds a product to the residual stream, through a norm if there is one.
    fn add(&self, member: &Member<'_>, (linear, x): (&Linear, &Prepared), norm: Option<&Norm>) {
        let target = if norm.is_some() { self.mixed } else { self.hidden };
        self.multiply(member, linear, x, |row, first, values| {
            // SAFETY: each column is one member's until the barrier.
            let to = unsafe { target.write(row * self.sizes.hidden + first, values.len()) };
            match norm {
                Some(_) => to.copy_from_slice(values),
                None => to.iter_mut().zip(values).for_each(|(to, value)| *to += value),
            }
        });
        if norm.is_some() {
            self.each_row(member, |row| self.add_mixed(row, norm));
        }
    }

    /// Adds row `row` of what a part has mixed to the residual stream.
    pub fn add_mixed(&self, row: usize, norm: Option<&Norm>) {
        // SAFETY: each row is one member's until the barrier.
        let (mixed, hidden) = unsafe {
            (
                self.mixed.write(row * self.sizes.hidden, self.sizes.hidden),
                self.hidden.write(row * self.sizes.hidden, self.sizes.hidden),
            )
        };
        if let Some(norm) = norm {
            norm.apply(self.isa, mixed);
        }
        hidden.iter_mut().zip(mixed).for_each(|(hidden, value)| *hidden += *value);
    }

    fn feed_forward(&self, member: &Member<'_>, layer: &Layer) {
        let post_norm = layer.post_norms.as_ref().map(|norms| &norms.1);
        match &layer.feed_forward {
            FeedForward::Gated { gate_up: up, down } | FeedForward::Plain { up, down } => {
                self.each_row(member, |row| {
                    self.normalize(member, row, (&layer.norm2, up.weight.dtype), &self.inputs(), row)
                });
                self.open(member, up, down);
                self.add(member, (down, &self.inner(down)), post_norm);
            }
            FeedForward::Experts(experts) => {
                self.each_row(member, |row| {
                    self.normalize(member, row, (&layer.norm2, experts.router.weight.dtype), &self.inputs(), row)
                });
                self.experts(member, experts);
                self.each_row(member, |row| self.add_mixed(row, post_norm));
            }
        }
    }

    /// From the inputs through `up` and the activation to the inputs of `down`, which has half as many if `up` is gated.
    pub fn open(&self, member: &Member<'_>, up: &Linear, down: &Linear) {
        let (x, to) = (self.inputs(), self.inner(down));
        self.each_strip(member, down.weight.cols, |first, next| {
            self.open_strip(member, up, (first, next), &x, (&to, down.weight.dtype));
        });
    }

    /// The activated strip from column `first` on, for a product with weights of a format.
    pub fn open_strip(
        &self,
        member: &Member<'_>,
        up: &Linear,
        (first, next): (usize, usize),
        x: &Prepared,
        (to, dtype): (&Prepared, Dtype),
    ) {
        let (width, count) = (to.cols, STRIP.min(to.cols - first));
        let is_gated = up.weight.rows > width;
        let own = self.own(member);
        // SAFETY: the member's own scratch; the input was prepared for these weights before the last barrier, and each
        // column is one member's until the next.
        unsafe {
            let gate = own.write(0, x.num_rows * STRIP);
            let value = own.write(MAX_ROWS * STRIP, x.num_rows * STRIP);
            up.strip(self.isa, (first, count, if is_gated { width + first } else { next }), x, gate);
            if is_gated {
                up.strip(self.isa, (width + first, count, next), x, value);
            }
            self.spec.activation.apply(self.isa, gate, is_gated.then_some(&*value));
            if count < STRIP {
                gate.as_chunks_mut::<STRIP>().0.iter_mut().for_each(|values| values[count..].fill(0.0));
            }
            to.write_columns(self.isa, dtype, (first, count), gate);
        }
    }

    fn logits(&self, member: &Member<'_>) {
        let head = &self.spec.head;
        let wanted: Vec<usize> = (0..self.rows.len()).filter(|row| self.rows[*row].is_wanted()).collect();
        if wanted.is_empty() {
            return;
        }
        let inputs = Prepared { num_rows: wanted.len(), ..self.inputs() };
        for place in (member.index..wanted.len()).step_by(member.num_members()) {
            self.normalize(member, wanted[place], (&self.spec.norm, head.weight.dtype), &inputs, place);
        }
        member.barrier();
        let vocab_size = head.weight.rows;
        self.multiply(member, head, &inputs, |place, first, values| {
            let (start, end) = self.rows[wanted[place]].outputs;
            for output in start..end {
                // SAFETY: each column is one member's until the end.
                let to = unsafe { self.logits.write(output * vocab_size + first, values.len()) };
                to.copy_from_slice(values);
                if let Some(cap) = self.spec.logit_softcap {
                    to.iter_mut().for_each(|logit| *logit = cap * (*logit / cap).tanh());
                }
            }
        });
    }

    /// Multiplies `x` with a linear layer; `put(row, first column, values)` takes what comes, then there is a barrier.
    pub fn multiply(&self, member: &Member<'_>, linear: &Linear, x: &Prepared, put: impl Fn(usize, usize, &[f32])) {
        self.each_strip(member, linear.weight.rows, |first, next| {
            self.multiply_strip(member, linear, (first, next), x, |row, values| put(row, first, values));
        });
    }

    /// The strip from weight row `first` on; `put(row, values)` takes each row of it. The strip from row `next` on is
    /// asked for meanwhile.
    pub fn multiply_strip(
        &self,
        member: &Member<'_>,
        linear: &Linear,
        (first, next): (usize, usize),
        x: &Prepared,
        put: impl Fn(usize, &[f32]),
    ) {
        let count = STRIP.min(linear.weight.rows - first);
        let own = self.own(member);
        // SAFETY: the member's own scratch; the input was prepared for these weights before the last barrier.
        let out = unsafe { own.write(0, x.num_rows * STRIP) };
        unsafe { linear.strip(self.isa, (first, count, next), x, out) };
        for (row, values) in out.as_chunks::<STRIP>().0.iter().enumerate() {
            // Of a known length they are copied without a call.
            if count == STRIP { put(row, values) } else { put(row, &values[..count]) }
        }
    }

    /// Strips of `num_columns` in turn, one member each: `work(first column, that of the member's next)`, then a barrier.
    fn each_strip(&self, member: &Member<'_>, num_columns: usize, work: impl Fn(usize, usize)) {
        let num_strips = num_columns.div_ceil(STRIP);
        // Few enough that counting costs nothing, enough that a member held up by the system delays no one.
        let size = (num_strips / (member.num_members() * 8)).max(1);
        let claims = std::iter::from_fn(|| member.claim(num_strips, size));
        let mut strips = claims.flatten().map(|strip| strip * STRIP).peekable();
        while let Some(first) = strips.next() {
            work(first, strips.peek().copied().unwrap_or(first));
        }
        member.barrier();
    }

    /// All rows' inputs of a product with weights of the hidden width.
    pub fn inputs(&self) -> Prepared {
        self.inputs_of(self.sizes.hidden)
    }

    fn inputs_of(&self, cols: usize) -> Prepared {
        Prepared { data: self.input, stride: self.sizes.input, num_rows: self.rows.len(), cols }
    }

    /// All rows' inputs of a feed-forward's way back.
    pub fn inner(&self, down: &Linear) -> Prepared {
        Prepared { data: self.inner, stride: self.sizes.inner, num_rows: self.rows.len(), cols: down.weight.cols }
    }

    /// The member's own scratch: two strips, then what [`Self::aside`] gives; or scores.
    pub fn own(&self, member: &Member<'_>) -> SharedMut {
        self.own[member.index]
    }

    /// The part of the member's own scratch that no strip uses: gathered rows, or one row.
    pub fn aside(&self, member: &Member<'_>) -> SharedMut {
        self.own(member).from(2 * MAX_ROWS * STRIP)
    }
}

/// Every piece of attention. A prompt's rows follow each other where they look at the same keys, which then are in the
/// second cache; else each row would bring all of a long prompt's keys there again.
fn pieces_of(rows: &[RowTask], num_kv_heads: usize) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut first = 0;
    for prompt in rows.chunk_by(|a, b| a.request == b.request) {
        let num_stretches = |row: &RowTask| row.num_tokens().div_ceil(STRETCH);
        for stretch in 0..prompt.iter().map(num_stretches).max().unwrap_or(0) {
            for head in 0..num_kv_heads {
                let seeing = prompt.iter().enumerate().filter(|(_, row)| stretch < num_stretches(row));
                pieces.extend(seeing.map(|(idx, _)| Piece { row: first + idx, stretch, head }));
            }
        }
        first += prompt.len();
    }
    pieces
}

/// The part of a stretch that a token sees: first token and one past the last; `None` if its window begins later.
fn seen(num_tokens: usize, stretch: usize, window: Option<usize>) -> Option<(usize, usize)> {
    let first = window.map_or(0, |window| num_tokens.saturating_sub(window));
    let start = (stretch * STRETCH).max(first);
    let end = ((stretch + 1) * STRETCH).min(num_tokens);
    (start < end).then_some((start, end))
}

/// A stretch that nobody sees.
fn silence(out: &mut [f32], width: usize) {
    for head in out.chunks_exact_mut(width + 2) {
        head.fill(0.0);
        head[width + 1] = f32::NEG_INFINITY;
    }
}
