//! What all methods are given: a problem, its inputs, and the inputs on the device.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use wgpu_flash_attention::{AttentionLayout, AttentionProblem, AttentionShape, Element};

use crate::device::Gpu;
use crate::elements;
use crate::failure::{Failure, Result};
use crate::resident;

/// Self-attention: as many rows as keys. Tensors are `[batch, heads, seqlen, head_dim]`, contiguous, so that each head is
/// one piece.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Problem {
    pub batch: u32,
    /// Heads of Q and O.
    pub num_heads: u32,
    /// Heads of K and V, a divisor of `num_heads`.
    pub num_heads_kv: u32,
    pub seqlen: u32,
    /// Of Q, K, V and O.
    pub head_dim: u32,
    /// What Q, K, V and O are stored in.
    pub element: Element,
    /// Whether row i sees keys j ≤ i only.
    pub causal: bool,
}

impl Problem {
    /// Fails where tensors would be larger than this program takes.
    pub fn check_size(&self) -> Result<()> {
        const MOST: u64 = 1 << 30;
        let Self { batch, num_heads, num_heads_kv, seqlen, head_dim, .. } = *self;
        let counts = [batch, num_heads.max(num_heads_kv), seqlen, head_dim];
        let elements = counts.into_iter().fold(1u64, |product, count| product.saturating_mul(count.into()));
        match elements <= MOST {
            true => Ok(()),
            false => Err(Failure::new(format_args!("Q would have {elements} elements, and {MOST} are the most here"))),
        }
    }

    /// Elements of Q and O.
    pub fn q_len(&self) -> usize {
        self.batch as usize * self.num_heads as usize * self.head_len()
    }

    /// Elements of K, and of V.
    pub fn kv_len(&self) -> usize {
        self.batch as usize * self.num_heads_kv as usize * self.head_len()
    }

    /// Elements of one head.
    pub fn head_len(&self) -> usize {
        self.seqlen as usize * self.head_dim as usize
    }

    /// Bytes of Q, K, V and O together.
    pub fn tensor_bytes(&self) -> u64 {
        2 * (self.q_len() + self.kv_len()) as u64 * self.element.size()
    }

    /// Exact attention on these tensors, for the library.
    pub fn attention(&self) -> AttentionProblem {
        let shape = AttentionShape::new(self.batch, self.num_heads, self.seqlen, self.head_dim)
            .with_num_heads_kv(self.num_heads_kv);
        let problem =
            AttentionProblem::new(shape).with_layout(AttentionLayout::bhsd(&shape)).with_element(self.element);
        if self.causal { problem.with_causal() } else { problem }
    }

    /// Every head of Q.
    pub fn heads(&self) -> impl Iterator<Item = Head> {
        let num_heads = self.num_heads;
        (0..self.batch).flat_map(move |batch| (0..num_heads).map(move |head| Head { batch, head }))
    }
}

/// A head of Q in a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub batch: u32,
    pub head: u32,
}

impl Head {
    /// Its place among the heads of Q of all sequences.
    pub fn of_q(self, problem: &Problem) -> usize {
        self.batch as usize * problem.num_heads as usize + self.head as usize
    }

    /// The place of its K and V among those of all sequences.
    pub fn of_kv(self, problem: &Problem) -> usize {
        let shared_by = problem.num_heads / problem.num_heads_kv;
        self.batch as usize * problem.num_heads_kv as usize + (self.head / shared_by) as usize
    }
}

/// Q, K and V, rounded to the element.
pub struct Inputs {
    pub problem: Problem,
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
}

impl Inputs {
    /// Q, K and V that a head of Q meets, `[seqlen, head_dim]` each.
    pub fn of_head(&self, head: Head) -> [&[f32]; 3] {
        let len = self.problem.head_len();
        let (q, kv) = (head.of_q(&self.problem) * len, head.of_kv(&self.problem) * len);
        [&self.q[q..q + len], &self.k[kv..kv + len], &self.v[kv..kv + len]]
    }
}

/// Named tensors of what a method draws, learns or decides: random matrices, hashes, centroids, supports. The f64 twin takes
/// them from the GPU, so that both compute the same thing. `--dump` writes them, `--load` gives them.
pub type State = BTreeMap<String, Tensor>;

/// One of them, contiguous.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub dims: Vec<usize>,
    pub values: Values,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    F32(Vec<f32>),
    U32(Vec<u32>),
}

impl Tensor {
    pub fn f32(dims: &[usize], values: Vec<f32>) -> Self {
        Self { dims: dims.to_vec(), values: Values::F32(values) }
    }

    /// Its values; none if it holds words.
    pub fn f32s(&self) -> &[f32] {
        match &self.values {
            Values::F32(values) => values,
            Values::U32(_) => &[],
        }
    }

    /// Its words; none if it holds numbers.
    #[allow(dead_code, reason = "methods that decide in whole numbers read it")]
    pub fn u32s(&self) -> &[u32] {
        match &self.values {
            Values::U32(values) => values,
            Values::F32(_) => &[],
        }
    }
}

/// What `--load` gives, and which of it was taken.
#[derive(Default)]
pub struct Given {
    state: State,
    taken: RefCell<BTreeSet<String>>,
}

impl Given {
    pub fn new(state: State) -> Self {
        Self { state, taken: RefCell::default() }
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.state.get(name)
    }

    /// The names of all tensors.
    pub fn names(&self) -> Vec<&str> {
        self.state.keys().map(String::as_str).collect()
    }

    /// Notes that a method uses this tensor.
    pub fn take(&self, name: &str) {
        self.taken.borrow_mut().insert(name.to_owned());
    }

    /// What was taken since the last call.
    pub fn taken(&self) -> BTreeSet<String> {
        self.taken.take()
    }
}

/// In words, for messages.
pub fn not_finite(value: f32) -> &'static str {
    if value.is_nan() { "a NaN" } else { "an infinity" }
}

/// The tensor that `--load` gives under this name, of this shape, if it gives one.
///
/// # Errors
/// It has another shape, not numbers in f32, or numbers that are not finite.
pub fn given(case: &Case, name: &str, dims: &[usize]) -> Result<Option<Tensor>> {
    match case.given.get(name) {
        None => Ok(None),
        Some(tensor) if tensor.dims == dims && matches!(tensor.values, Values::F32(_)) => {
            if let Some(at) = tensor.f32s().iter().position(|x| !x.is_finite()) {
                let value = not_finite(tensor.f32s()[at]);
                return Err(Failure::new(format_args!("the loaded {name} has {value} at element {at}")));
            }
            case.given.take(name);
            Ok(Some(tensor.clone()))
        }
        Some(tensor) => Err(Failure::new(format_args!(
            "the loaded {name} has the shape {:?}, it must be f32 of {dims:?} here",
            tensor.dims
        ))),
    }
}

/// The inputs on the device, and what else a method is made from.
pub struct Case<'a> {
    pub inputs: &'a Inputs,
    pub q: wgpu::Buffer,
    pub k: wgpu::Buffer,
    pub v: wgpu::Buffer,
    /// The key of all random draws (Philox).
    pub seed: u64,
    /// What `--load` gives. A method uses the tensors of its names instead of drawing or learning them.
    pub given: &'a Given,
}

impl<'a> Case<'a> {
    /// Uploads the inputs.
    pub fn new(gpu: &Gpu, inputs: &'a Inputs, seed: u64, given: &'a Given) -> Result<Self> {
        let element = inputs.problem.element;
        let filled = |name: &str, values: &[f32]| {
            gpu.filled(name, &elements::encode(element, values.iter().copied().map(f64::from)))
        };
        let [q, k, v] = [filled("Q", &inputs.q)?, filled("K", &inputs.k)?, filled("V", &inputs.v)?];
        Ok(Self { inputs, q, k, v, seed, given })
    }

    /// A buffer for O.
    pub fn output(&self, gpu: &Gpu) -> Result<wgpu::Buffer> {
        let problem = &self.inputs.problem;
        gpu.buffer("O", problem.q_len() as u64 * problem.element.size())
    }
}

/// The values of a buffer in the element of the problem, from element `first` on.
pub fn read(gpu: &Gpu, element: Element, buffer: &wgpu::Buffer, first: usize, len: usize) -> Result<Vec<f64>> {
    let size = element.size();
    let bytes = resident::read(gpu, buffer, first as u64 * size, len as u64 * size)?;
    Ok(elements::decode(element, &bytes).collect())
}
