use crate::error::Failure;
use wasm_bindgen::prelude::*;
use wgpu_flash_attention::{Algorithm, AttentionLayout, AttentionProblem, AttentionShape, Element, TensorLayout};

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
        self.0.element = Element::ALL
            .iter()
            .copied()
            .find(|element| element.name() == name)
            .ok_or_else(|| Failure::new("InvalidProblem", format!("element = '{name}'; it is f32, f16 or bf16")))?;
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

    /// All of the problem: prepared operations are found again by it.
    #[wasm_bindgen(getter)]
    pub fn key(&self) -> String {
        format!("{:?}", self.0)
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
