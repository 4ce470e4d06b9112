use crate::error::Failure;
use wasm_bindgen::prelude::*;
use wgpu_flash_attention::{
    Algorithm, AppendProblem, AttentionLayout, AttentionProblem, AttentionShape, AuxType, BlockKind, BlockMask,
    CacheElement, Element, EntryLayout, Error, KeyMask, KvCache, MaskWgsl, Rotary, ScoreMod, ScoreWgsl, TensorLayout,
    WgslOptions, alibi_slopes, unstable,
};

/// The most heads whose slopes of ALiBi are made here. Memory for more may not exist.
const MAX_ALIBI_HEADS: u32 = 1 << 16;

/// An `AttentionProblem`, set field by field.
#[wasm_bindgen]
pub struct Problem(pub(crate) AttentionProblem);

#[wasm_bindgen]
impl Problem {
    #[wasm_bindgen(constructor)]
    pub fn new(
        batch: u32,
        num_heads: u32,
        num_heads_kv: u32,
        seqlen_q: u32,
        seqlen_kv: u32,
        head_dim: u32,
        head_dim_v: u32,
    ) -> Self {
        let shape = AttentionShape { batch, num_heads, num_heads_kv, seqlen_q, seqlen_kv, head_dim, head_dim_v };
        Self(AttentionProblem::new(shape))
    }

    pub fn element(&mut self, name: &str) -> Result<(), Failure> {
        self.0.element = element(name)?;
        Ok(())
    }

    pub fn layout(&mut self, name: &str) -> Result<(), Failure> {
        self.0.layout = match name {
            "bshd" => AttentionLayout::bshd(&self.0.shape),
            "bhsd" => AttentionLayout::bhsd(&self.0.shape),
            "packed-qkv" => AttentionLayout::packed_qkv(&self.0.shape),
            _ => {
                let message = format!("layout = '{name}'; it is bshd, bhsd, packed-qkv or strides");
                return Err(Failure::new("InvalidProblem", message));
            }
        };
        Ok(())
    }

    /// Numbers of elements, exact up to 2⁵³.
    pub fn strides(&mut self, tensor: &str, offset: f64, stride_batch: f64, stride_row: f64, stride_head: f64) {
        let [offset, stride_batch, stride_row, stride_head] =
            [offset, stride_batch, stride_row, stride_head].map(|number| number as u64);
        let strides = TensorLayout { offset, stride_batch, stride_row, stride_head };
        let layout = &mut self.0.layout;
        match tensor {
            "q" => layout.q = strides,
            "k" => layout.k = strides,
            "v" => layout.v = strides,
            _ => layout.o = strides,
        }
    }

    pub fn causal(&mut self, top_left: bool) {
        let problem = self.0.clone();
        self.0 = if top_left { problem.with_causal_top_left() } else { problem.with_causal() };
    }

    pub fn window(&mut self, left: Option<u32>, right: Option<u32>) {
        self.0 = self.0.clone().with_window(left, right);
    }

    pub fn softmax_scale(&mut self, softmax_scale: f64) {
        self.0.softmax_scale = Some(softmax_scale);
    }

    pub fn softcap(&mut self, softcap: f32) {
        self.0 = self.0.clone().with_score(ScoreMod::Softcap(softcap));
    }

    /// ALiBi with these slopes, or with the usual ones.
    pub fn alibi(&mut self, slopes: Option<Vec<f32>>) -> Result<(), Failure> {
        let num_heads = self.0.shape.num_heads;
        let slopes = match slopes {
            Some(slopes) => slopes,
            None if num_heads <= MAX_ALIBI_HEADS => alibi_slopes(num_heads),
            None => {
                let message = format!("alibi = true and numHeads = {num_heads}; at most {MAX_ALIBI_HEADS} have slopes");
                return Err(Failure::new("InvalidProblem", message));
            }
        };
        self.0 = self.0.clone().with_score(ScoreMod::Alibi(slopes));
        Ok(())
    }

    /// Functions in the caller's own WGSL. Loops of a call take the usual number of turns if no other is given.
    pub fn score_mod(&mut self, text: &str, reads_u32: bool, max_turns: Option<u32>) -> Result<(), Failure> {
        let wgsl = ScoreWgsl::with_options(text, wgsl_options(reads_u32, max_turns)).map_err(Error::from)?;
        self.0 = self.0.clone().with_score(ScoreMod::Wgsl(wgsl));
        Ok(())
    }

    pub fn mask_mod(&mut self, text: &str, reads_u32: bool, max_turns: Option<u32>) -> Result<(), Failure> {
        let wgsl = MaskWgsl::with_options(text, wgsl_options(reads_u32, max_turns)).map_err(Error::from)?;
        self.0 = self.0.clone().with_key_mask(KeyMask::Wgsl(wgsl));
        Ok(())
    }

    pub fn aux(&mut self, len: u32) {
        self.0 = self.0.clone().with_aux(len);
    }

    /// A block mask by its name: the numbers of its constructor, and ids of documents or kinds of blocks.
    pub fn block_mask(&mut self, name: &str, numbers: &[u32], values: &[u32]) -> Result<(), Failure> {
        let shape = self.0.shape;
        let mask = match (name, numbers) {
            ("local", [window]) => BlockMask::local(*window),
            ("longformer", [window, global]) => BlockMask::longformer(*window, *global),
            ("strided", [step]) => BlockMask::strided(*step),
            ("prefix", [len]) => BlockMask::prefix(*len),
            ("documents", [batch]) => BlockMask::documents(*batch, values),
            ("butterfly", []) => BlockMask::butterfly(&shape),
            ("bigbird", [low, high]) => BlockMask::bigbird(&shape, u64::from(*high) << 32 | u64::from(*low)),
            ("blocks", [batch, heads, rows, columns, side_q, side_kv]) => {
                let kind = |kind: &u32| match kind {
                    0 => BlockKind::Absent,
                    1 => BlockKind::Partial,
                    _ => BlockKind::Full,
                };
                let kinds: Vec<_> = values.iter().map(kind).collect();
                BlockMask::new([*batch, *heads, *rows, *columns], [*side_q, *side_kv], &kinds)
            }
            _ => return Err(Failure::new("InvalidProblem", format!("blockMask: there is no pattern '{name}'"))),
        };
        self.0 = self.0.clone().with_key_mask(KeyMask::Blocks(mask));
        Ok(())
    }

    /// A bias of these counts, contiguous.
    pub fn bias(&mut self, batch: u32, heads: u32, rows: u32, keys: u32, name: &str) -> Result<(), Failure> {
        let layout = EntryLayout::contiguous([batch, heads, rows, keys]);
        let element = element(name)?;
        self.0 = self.0.clone().with_score(ScoreMod::Bias { layout, element });
        Ok(())
    }

    pub fn bias_gradient(&mut self) {
        self.0 = self.0.clone().with_bias_gradient();
    }

    /// A boolean mask of these counts, in packed bits.
    pub fn key_mask(&mut self, batch: u32, heads: u32, rows: u32, keys: u32) {
        let layout = EntryLayout::packed_bits([batch, heads, rows, keys]);
        self.0 = self.0.clone().with_key_mask(KeyMask::Boolean(layout));
    }

    pub fn sink(&mut self) {
        self.0 = self.0.clone().with_sink();
    }

    pub fn lengths(&mut self, seqlens_q: Vec<u32>, seqlens_kv: Vec<u32>) {
        self.0 = self.0.clone().with_lengths(seqlens_q, seqlens_kv);
    }

    /// Lengths that come with each call.
    pub fn lengths_at_call(&mut self, of_q: bool, of_kv: bool) {
        if of_q {
            self.0 = self.0.clone().with_seqlens_q_at_call();
        }
        if of_kv {
            self.0 = self.0.clone().with_seqlens_kv_at_call();
        }
    }

    /// Packed sequences: where they begin in Q, and in K and V if these are packed too.
    pub fn packed(&mut self, cu_seqlens_q: Vec<u32>, cu_seqlens_kv: Option<Vec<u32>>) {
        let problem = self.0.clone();
        self.0 = match cu_seqlens_kv {
            Some(cu_seqlens_kv) => problem.with_cu_seqlens(cu_seqlens_q, cu_seqlens_kv),
            None => problem.with_cu_seqlens_q(cu_seqlens_q),
        };
    }

    /// The same, by sums that come with each call; the tensors have so many rows.
    pub fn packed_at_call(&mut self, total_q: u32, total_kv: Option<u32>) {
        let problem = self.0.clone();
        self.0 = match total_kv {
            Some(total_kv) => problem.with_cu_seqlens_at_call(total_q, total_kv),
            None => problem.with_cu_seqlens_q_at_call(total_q),
        };
    }

    /// K and V are a cache: side by side, or in so many pages of so many positions each.
    pub fn cache(
        &mut self,
        name: &str,
        num_pages: Option<u32>,
        page_size: u32,
        max_pages: Option<u32>,
    ) -> Result<(), Failure> {
        let element = CacheElement::ALL.iter().copied().find(|element| element.name() == name);
        let element = element.ok_or_else(|| Failure::new("InvalidProblem", format!("there is no cache of {name}")))?;
        let cache = match num_pages {
            Some(num_pages) => KvCache::paged(&self.0.shape, element, num_pages, page_size),
            None => KvCache::contiguous(&self.0.shape, element),
        };
        self.0 = self.0.clone().with_cache(max_pages.into_iter().fold(cache, KvCache::with_max_pages));
        Ok(())
    }

    /// Seed and offset come with each call.
    pub fn dropout(&mut self, dropout_p: f64) {
        self.0 = self.0.clone().with_dropout(dropout_p, 0);
    }

    pub fn standard(&mut self) {
        self.0.algorithm = Algorithm::Standard;
    }

    pub fn bounded_work(&mut self, max_flops: f64) {
        self.0.max_flops_per_dispatch = Some(max_flops as u64);
    }

    pub fn f32_gradients(&mut self) {
        self.0 = self.0.clone().with_f32_gradients();
    }

    /// Gradients lie densely: those of packed views would leave most of three buffers empty.
    pub fn dense_gradients(&mut self) {
        self.0 = self.0.clone().with_gradient_layout(AttentionLayout::bshd(&self.0.shape));
    }

    /// Prepared operations are found again by this.
    pub fn is_same(&self, other: &Problem) -> bool {
        self.0 == other.0
    }

    #[wasm_bindgen(getter)]
    pub fn backward_flops(&self) -> f64 {
        self.0.backward_flops() as f64
    }

    #[wasm_bindgen(getter)]
    pub fn flops(&self) -> f64 {
        self.0.forward_flops() as f64
    }
}

/// An `AppendProblem`, set field by field: new keys and values of a problem's shape, into its cache.
#[wasm_bindgen]
pub struct Append(pub(crate) AppendProblem);

#[wasm_bindgen]
impl Append {
    #[wasm_bindgen(constructor)]
    pub fn new(problem: &Problem) -> Result<Append, Failure> {
        let AttentionProblem { shape, element, .. } = problem.0;
        let cache = problem.0.cache().ok_or_else(|| Failure::new("InvalidProblem", "cache is missing"))?;
        Ok(Self(AppendProblem::new(shape, *cache).with_element(element)))
    }

    /// Rotary embeddings by tables of so many positions, or with a row for each new token.
    pub fn rotary(&mut self, is_interleaved: bool, rotary_dim: u32, positions: Option<u32>) {
        let of_positions = positions.unwrap_or(0);
        let rotary = match is_interleaved {
            true => Rotary::interleaved(rotary_dim, of_positions),
            false => Rotary::halves(rotary_dim, of_positions),
        };
        self.0 = self.0.clone().with_rotary(if positions.is_some() { rotary } else { rotary.per_token() });
    }

    pub fn rotated_q(&mut self, in_place: bool) {
        let append = self.0.clone();
        self.0 = if in_place { append.with_rotated_q_in_place() } else { append.with_rotated_q() };
    }

    pub fn slot_mapping(&mut self) {
        self.0 = self.0.clone().with_slot_mapping();
    }

    pub fn new_cache_seqlens(&mut self) {
        self.0 = self.0.clone().with_new_cache_seqlens();
    }

    /// New tokens are packed, so many in all.
    pub fn packed_tokens(&mut self, total: u32) {
        self.0 = self.0.clone().with_packed_tokens(total);
    }

    /// Whether it reads lengths of the cache.
    #[wasm_bindgen(getter)]
    pub fn has_cache_seqlens(&self) -> bool {
        self.0.has_cache_seqlens()
    }
}

fn element(name: &str) -> Result<Element, Failure> {
    let found = Element::ALL.iter().copied().find(|element| element.name() == name);
    found.ok_or_else(|| Failure::new("InvalidProblem", format!("element = '{name}'; it is f32, f16 or bf16")))
}

fn wgsl_options(reads_u32: bool, max_turns: Option<u32>) -> WgslOptions {
    let options = WgslOptions::new().with_aux(if reads_u32 { AuxType::U32 } else { AuxType::F32 });
    max_turns.into_iter().fold(options, WgslOptions::with_max_turns)
}

/// What the browser's compiler found in a text of `score_mod` or `mask_mod`, as the crate tells of faults that it finds.
#[wasm_bindgen]
pub fn fault_of_compiler(function: &str, text: &str, line: u32, column: u32, message: &str) -> String {
    unstable::fault_of_compiler(function, text, line, column, message).to_string()
}
