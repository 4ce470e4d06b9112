//! One device, random tensors, attention written with Burn's own operations, and the library's oracle in f64.

use burn::tensor::activation::softmax;
use burn::tensor::{Bool, DType, Device, Shape, Tensor, TensorData};
use std::sync::OnceLock;
use wgpu_flash_attention::reference::{self, Arithmetic, Case, ErrorTerms};
use wgpu_flash_attention::{
    AttentionLayout, AttentionProblem, AttentionShape, Element, EntryLayout, FlashAttention, KeyMask, Plan, ScoreMod,
    pack_bits,
};
use wgpu_flash_attention_burn::{AttentionOptions, AttentionOutput, attention, install};

/// The device of all tests, with Burn's default memory pools, and the library as it plans there.
fn installed() -> &'static (Device, FlashAttention) {
    static DEVICE: OnceLock<(Device, FlashAttention)> = OnceLock::new();
    DEVICE.get_or_init(|| {
        let (device, setup) = Device::wgpu_options().init_with_setup().expect("there is an adapter");
        install(&device, &setup).expect("it is a wgpu device");
        (device, FlashAttention::new(&setup.adapter, &setup.device, &setup.queue).with_shared_buffers(true))
    })
}

pub fn device() -> Device {
    installed().0.clone()
}

/// Numbers of a normal distribution, the same for the same seed (splitmix64).
pub fn normal(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut unit = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    let pair = |u: f64, v: f64| ((-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32;
    (0..len).map(|_| pair(unit(), unit())).collect()
}

pub fn tensor<const D: usize>(shape: [usize; D], seed: u64, dtype: DType, device: &Device) -> Tensor<D> {
    of_values(shape, normal(shape.iter().product(), seed), device).cast(dtype)
}

/// In f32.
pub fn of_values<const D: usize>(shape: [usize; D], values: Vec<f32>, device: &Device) -> Tensor<D> {
    Tensor::<D>::from_data(TensorData::new(values, Shape::from(shape)), (device, DType::F32))
}

pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.cast(DType::F32).into_data().try_to_vec().expect("f32")
}

fn wide<const D: usize>(tensor: &Tensor<D>) -> Vec<f64> {
    values(tensor.clone().detach()).into_iter().map(f64::from).collect()
}

/// What naive attention adds to the scores and hides.
#[derive(Clone, Default)]
pub struct Naive {
    pub softcap: Option<f64>,
    pub bias: Option<Tensor<4>>,
    /// True where a row sees a key.
    pub seen: Option<Tensor<4, Bool>>,
}

/// softmax(Q Kᵀ / √head_dim) V and LSE, by Burn's operations. Rows without keys are not for it.
pub fn naive(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, naive: &Naive) -> AttentionOutput {
    let [batch, heads, rows, dim] = q.dims();
    let keys = k.dims()[2];
    let repeat = |tensor: Tensor<4>| {
        let [batch, heads_kv, keys, dim] = tensor.dims();
        tensor
            .reshape([batch, heads_kv, 1, keys, dim])
            .expand([batch, heads_kv, heads / heads_kv, keys, dim])
            .reshape([batch, heads, keys, dim])
    };
    let mut scores = q.matmul(repeat(k).swap_dims(2, 3)) / (dim as f64).sqrt();
    if let Some(softcap) = naive.softcap {
        scores = (scores / softcap).tanh() * softcap;
    }
    if let Some(bias) = &naive.bias {
        scores = scores + bias.clone();
    }
    if let Some(seen) = &naive.seen {
        scores = scores.mask_fill(seen.clone().bool_not().expand([batch, heads, rows, keys]), f32::NEG_INFINITY);
    }
    let largest = scores.clone().detach().max_dim(3);
    let lse = (scores.clone() - largest.clone()).exp().sum_dim(3).log() + largest;
    let o = softmax(scores, 3).matmul(repeat(v));
    AttentionOutput { o, lse: lse.reshape([batch, heads, rows]) }
}

/// A causal mask, the last row at the last key.
pub fn causal(rows: usize, keys: usize, device: &Device) -> Tensor<4, Bool> {
    let seen: Vec<bool> = (0..rows).flat_map(|row| (0..keys).map(move |key| key + rows <= row + keys)).collect();
    Tensor::from_data(TensorData::new(seen, Shape::from([1, 1, rows, keys])), device)
}

pub fn ours(q: &Tensor<4>, k: &Tensor<4>, v: &Tensor<4>, options: &AttentionOptions) -> AttentionOutput {
    attention(q.clone(), k.clone(), v.clone(), options).expect("the problem is sound")
}

/// The problem of some tensors in f64, where it is solved by plain loops.
pub struct Oracle {
    problem: AttentionProblem,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    bias: Vec<f64>,
    key_mask: Vec<u32>,
    sink: Vec<f64>,
}

impl Oracle {
    pub fn new([q, k, v]: [&Tensor<4>; 3]) -> Self {
        let [[batch, num_heads, seqlen_q, head_dim], [_, num_heads_kv, seqlen_kv, _], [.., head_dim_v]] =
            [q, k, v].map(|tensor| tensor.dims().map(|count| count as u32));
        let shape = AttentionShape::new(batch, num_heads, seqlen_q, head_dim)
            .with_num_heads_kv(num_heads_kv)
            .with_seqlen_kv(seqlen_kv)
            .with_head_dim_v(head_dim_v);
        let problem =
            AttentionProblem::new(shape).with_element(element(q.dtype())).with_layout(AttentionLayout::bhsd(&shape));
        let [q, k, v] = [q, k, v].map(wide);
        Self { problem, q, k, v, bias: Vec::new(), key_mask: Vec::new(), sink: Vec::new() }
    }

    pub fn with(mut self, change: impl FnOnce(AttentionProblem) -> AttentionProblem) -> Self {
        self.problem = change(self.problem);
        self
    }

    /// A bias, whose gradient is asked for.
    pub fn with_bias(mut self, bias: &Tensor<4>) -> Self {
        let layout = EntryLayout::contiguous(bias.dims().map(|count| count as u32));
        self.bias = wide(bias);
        self.with(|problem| problem.with_score(ScoreMod::Bias { layout, element: element(bias.dtype()) }))
    }

    /// True where a row sees a key.
    pub fn with_key_mask(mut self, dims: [u32; 4], seen: &[bool]) -> Self {
        self.key_mask = pack_bits(seen, dims[3]);
        self.with(|problem| problem.with_key_mask(KeyMask::Boolean(EntryLayout::packed_bits(dims))))
    }

    pub fn with_sink(mut self, sink: &Tensor<1>) -> Self {
        self.sink = wide(sink);
        self.with(AttentionProblem::with_sink)
    }

    fn case(&self) -> Case<'_> {
        Case::new(&self.problem, &self.bias, &self.key_mask).with_sink(&self.sink)
    }

    /// O and LSE.
    pub fn forward(&self) -> [Exact; 2] {
        let plan = installed().1.plan_forward(&self.problem).build().expect("the problem is sound");
        let of = reference::forward(self.case(), &self.q, &self.k, &self.v);
        let errors = reference::forward_errors(self.case(), &self.q, &self.k, &self.v);
        [Exact::new(of.o, &errors.o, &plan, self.problem.element), Exact::new(of.lse, &errors.lse, &plan, Element::F32)]
    }

    /// dQ, dK, dV, and the gradients of a bias and of a sink, when O is this and has this gradient. Those of LSE are optional.
    pub fn backward(&self, o: &Tensor<4>, d_o: &Tensor<4>, d_lse: Option<&Tensor<3>>) -> [Exact; 5] {
        let mut problem = self.problem.clone();
        if !self.bias.is_empty() {
            problem = problem.with_bias_gradient();
        }
        let plan = installed().1.plan_backward(&problem).build().expect("the problem is sound");
        let case = Case::new(&problem, &self.bias, &self.key_mask).with_sink(&self.sink);
        let (o, d_o, d_lse) = (wide(o), wide(d_o), d_lse.map(wide));
        let inputs = [&self.q[..], &self.k, &self.v, &o];
        let of = reference::backward_for(case, inputs, &d_o, d_lse.as_deref());
        let errors = reference::backward_errors(case, inputs, &d_o, d_lse.as_deref());
        let element = problem.element;
        let of_bias = problem.scores().iter().find_map(|modifier| match modifier {
            ScoreMod::Bias { element, .. } => Some(*element),
            _ => None,
        });
        [
            Exact::new(of.dq, &errors.dq, &plan, element),
            Exact::new(of.dk, &errors.dk, &plan, element),
            Exact::new(of.dv, &errors.dv, &plan, element),
            Exact::new(of.dbias, &errors.dbias, &plan, of_bias.unwrap_or(Element::F32)),
            Exact::new(of.dsink, &errors.dsink, &plan, Element::F32),
        ]
    }
}

fn element(dtype: DType) -> Element {
    match dtype {
        DType::F32 => Element::F32,
        DType::F16 => Element::F16,
        other => panic!("the tests have no {other:?}"),
    }
}

/// A tensor in f64, and how far rounding may take a kernel from each of its elements.
pub struct Exact {
    values: Vec<f64>,
    bounds: Vec<f64>,
    /// In which it is stored.
    element: Element,
}

impl Exact {
    fn new(values: Vec<f64>, errors: &[ErrorTerms], plan: &Plan, element: Element) -> Self {
        let on_matrices = plan.passes().iter().any(|pass| pass.kernel.name().contains("cooperative"));
        let arithmetic = match (plan.rounds_p(), on_matrices) {
            (true, _) => Arithmetic::MATRICES,
            (false, true) => Arithmetic::MATRICES_IN_PARTS,
            (false, false) => Arithmetic::F32,
        };
        // A cache may split the keys where a plan without one does not.
        let bounds = errors.iter().map(|terms| terms.bound(&arithmetic.merging())).collect();
        Self { values, bounds, element }
    }

    /// The error of each element before it was rounded to its type.
    fn errors(&self, found: &[f32]) -> impl Iterator<Item = f64> {
        assert_eq!(found.len(), self.values.len());
        let pairs = found.iter().zip(&self.values);
        pairs.map(move |(found, exact)| reference::error_before_storing(self.element, f64::from(*found), *exact))
    }

    /// How far rounding may take the sum of all elements, each with a weight.
    pub fn bound_of_sum(&self, weights: &[f32]) -> f64 {
        assert_eq!(weights.len(), self.bounds.len());
        weights.iter().zip(&self.bounds).map(|(weight, bound)| f64::from(weight.abs()) * bound).sum()
    }

    /// That each element is within its bound.
    pub fn expect(&self, name: &str, found: &[f32]) {
        for (index, (error, bound)) in self.errors(found).zip(&self.bounds).enumerate() {
            let (found, exact) = (found[index], self.values[index]);
            assert!(error <= *bound, "{name}[{index}] is {found:e}, not {exact:e}: more than {bound:e} apart");
        }
    }

    /// The same, and that in 16 bits the largest error is at most so many times that of naive attention in the same type. (In f32
    /// both err by a few units of the last place, and which errs more is chance.)
    pub fn expect_beside(&self, name: &str, found: &[f32], by_burn: &[f32], times: f64) {
        self.expect(name, found);
        let largest = |found| self.errors(found).fold(0.0, f64::max);
        let (ours, theirs) = (largest(found), largest(by_burn));
        eprintln!("{name}: errs by {ours:.1e}, naive attention by {theirs:.1e}");
        if self.element != Element::F32 {
            assert!(ours <= times * theirs, "{name} errs by {ours:e}, naive attention by {theirs:e}");
        }
    }
}
