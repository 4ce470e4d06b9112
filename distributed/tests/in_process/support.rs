use std::sync::OnceLock;
use std::time::Duration;
use wgpu_flash_attention::reference::{self, Arithmetic, Case, ErrorTerms};
use wgpu_flash_attention::{
    AttentionProblem, AttentionShape, BackwardSlices, Element, ElementType, EntryLayout, FlashAttention, ForwardSlices,
    KeyMask, Operand, ScoreMod,
};
use wgpu_flash_attention_distributed::{Error, InProcess, RingAttention, Scheme, Span, adapters, run_in_process};

pub const TIMEOUT: Duration = Duration::from_secs(300);

/// One device, which all ranks of all tests share: a software driver compiles slowly.
pub fn device() -> FlashAttention {
    static DEVICE: OnceLock<FlashAttention> = OnceLock::new();
    let open = || {
        let adapters = adapters().expect("these tests need an adapter; Mesa's software driver is enough");
        pollster::block_on(FlashAttention::from_adapter(&adapters[0])).expect("the adapter has a device")
    };
    DEVICE.get_or_init(open).clone()
}

/// Q, K, V and dO of a whole problem, rounded to its element; the entries of its bias and of its mask, and the logits of its
/// sink, empty where it has none.
pub struct Inputs {
    pub q: Vec<f64>,
    pub k: Vec<f64>,
    pub v: Vec<f64>,
    pub d_o: Vec<f64>,
    pub bias: Vec<f64>,
    pub key_mask: Vec<u32>,
    pub sink: Vec<f64>,
}

impl Inputs {
    pub fn new(problem: &AttentionProblem, seed: u64) -> Self {
        let AttentionShape { batch, num_heads, num_heads_kv, seqlen_q, seqlen_kv, head_dim, head_dim_v } =
            problem.shape;
        let mut state = seed;
        let mut draw_as = |len: u32, element: Element| -> Vec<f64> {
            let mut value = || {
                // SplitMix64, twelve halves of words for a nearly normal number.
                let mut sum = 0.0;
                for _ in 0..6 {
                    state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                    let word = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                    let word = word ^ (word >> 31);
                    sum += (word as u32) as f64 / 4_294_967_296.0 + (word >> 32) as f64 / 4_294_967_296.0 - 1.0;
                }
                element.round(sum)
            };
            (0..len).map(|_| value()).collect()
        };
        let mut draw = |len| draw_as(len, problem.element);
        let q = draw(batch * seqlen_q * num_heads * head_dim);
        let k = draw(batch * seqlen_kv * num_heads_kv * head_dim);
        let v = draw(batch * seqlen_kv * num_heads_kv * head_dim_v);
        let d_o = draw(batch * seqlen_q * num_heads * head_dim_v);
        let sink = draw_as(if problem.has_sink() { num_heads } else { 0 }, Element::F32);
        let mut bias = bias_of(problem)
            .map_or(Vec::new(), |(layout, element)| draw_as(layout.required_len(&problem.shape) as u32, element));
        bias.iter_mut().skip(5).step_by(13).for_each(|entry| *entry = f64::NEG_INFINITY);
        let words = mask_of(problem).map_or(0, |layout| layout.required_words(&problem.shape) as u32);
        // About half of all keys.
        let key_mask = (1..=words).map(|word| word.wrapping_mul(0x9e37_79b9).rotate_left(word % 32)).collect();
        Self { q, k, v, d_o, bias, key_mask, sink }
    }

    /// The problem with its entries, for the oracle.
    pub fn case<'a>(&'a self, problem: &'a AttentionProblem) -> Case<'a> {
        Case::new(problem, &self.bias, &self.key_mask).with_sink(&self.sink)
    }

    /// What modifies the scores of some rows, as ranks take it.
    pub fn of_rows(&self, problem: &AttentionProblem, rows: &[Span]) -> Vec<(Operand, Vec<u8>)> {
        let mut all = Vec::new();
        if let Some((layout, element)) = bias_of(problem) {
            let keys = if layout.stride_key == 0 { 1 } else { problem.shape.seqlen_kv };
            all.push((Operand::Bias, to_bytes(element, &cut_entries(&self.bias, problem, &layout, keys, rows))));
        }
        if let Some(layout) = mask_of(problem) {
            let words = if layout.stride_key == 0 { 1 } else { problem.shape.seqlen_kv.div_ceil(32) };
            let own = cut_entries(&self.key_mask, problem, &layout, words, rows);
            all.push((Operand::KeyMask, own.into_iter().flat_map(u32::to_le_bytes).collect()));
        }
        if problem.has_sink() {
            all.push((Operand::Sink, to_bytes(Element::F32, &self.sink)));
        }
        all
    }
}

/// Layout and type of a problem's bias.
pub fn bias_of(problem: &AttentionProblem) -> Option<(EntryLayout, Element)> {
    problem.scores().iter().find_map(|modifier| match modifier {
        ScoreMod::Bias { layout, element } => Some((*layout, *element)),
        _ => None,
    })
}

fn mask_of(problem: &AttentionProblem) -> Option<EntryLayout> {
    problem.key_masks().iter().find_map(|mask| match mask {
        KeyMask::Boolean(layout) => Some(*layout),
        _ => None,
    })
}

/// Sequences and heads with entries of their own, together.
pub fn groups(problem: &AttentionProblem, layout: &EntryLayout) -> u32 {
    let own = |stride, count| if stride == 0 { 1 } else { count };
    own(layout.stride_batch, problem.shape.batch) * own(layout.stride_head, problem.shape.num_heads)
}

/// The entries of some spans of rows, `width` numbers a row, span after span.
fn cut_entries<T: Copy>(
    all: &[T],
    problem: &AttentionProblem,
    layout: &EntryLayout,
    width: u32,
    rows: &[Span],
) -> Vec<T> {
    match layout.stride_row {
        0 => all.repeat(rows.len()),
        _ => cut(all, groups(problem, layout), problem.shape.seqlen_q, width, rows),
    }
}

pub fn to_bytes(element: Element, values: &[f64]) -> Vec<u8> {
    let halves = |encode: fn(f64) -> [u8; 2]| values.iter().flat_map(|value| encode(*value)).collect();
    match element {
        Element::F16 => halves(|value| <half::f16 as ElementType>::from_f64(value).to_le_bytes()),
        Element::Bf16 => halves(|value| <half::bf16 as ElementType>::from_f64(value).to_le_bytes()),
        _ => values.iter().flat_map(|value| (*value as f32).to_le_bytes()).collect(),
    }
}

pub fn from_bytes(element: Element, bytes: &[u8]) -> Vec<f64> {
    let halves = || bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
    match element {
        Element::F16 => halves().map(|pair| half::f16::from_le_bytes(pair).to_f64()).collect(),
        Element::Bf16 => halves().map(|pair| half::bf16::from_le_bytes(pair).to_f64()).collect(),
        _ => bytes.chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().unwrap()).into()).collect(),
    }
}

/// The rows of some spans of `[batch, rows, width]`, span after span.
pub fn cut<T: Copy>(whole: &[T], batch: u32, rows: u32, width: u32, spans: &[Span]) -> Vec<T> {
    let of = |span: &Span| {
        let (first, len) = ((span.first * width) as usize, (span.len * width) as usize);
        (0..batch as usize).flat_map(move |b| {
            let from = b * (rows * width) as usize + first;
            whole[from..from + len].to_vec()
        })
    };
    spans.iter().flat_map(of).collect()
}

/// Puts them back.
pub fn paste(whole: &mut [f64], part: &[f64], [batch, rows, width]: [u32; 3], spans: &[Span]) {
    let mut rest = part;
    for span in spans {
        for b in 0..batch as usize {
            let (own, behind) = rest.split_at((span.len * width) as usize);
            rest = behind;
            let from = b * (rows * width) as usize + (span.first * width) as usize;
            whole[from..from + own.len()].copy_from_slice(own);
        }
    }
    assert!(rest.is_empty());
}

/// Results of a whole problem.
#[derive(Clone, Debug, PartialEq)]
pub struct Results {
    pub o: Vec<f64>,
    pub lse: Vec<f64>,
    /// dQ, dK and dV, if they were asked for.
    pub gradients: Option<[Vec<f64>; 3]>,
    /// Of a sink and of a bias; empty without.
    pub d_sink: Vec<f64>,
    pub d_bias: Vec<f64>,
}

/// What one rank returns: spans of rows and keys, and its tensors.
struct Part {
    rows: Vec<Span>,
    keys: Vec<Span>,
    o: Vec<f64>,
    lse: Vec<f64>,
    gradients: Option<[Vec<f64>; 3]>,
    d_sink: Vec<f64>,
    d_bias: Vec<f64>,
}

/// A whole problem on so many ranks.
pub fn on_ranks(scheme: Scheme, ranks: usize, problem: &AttentionProblem, given: &Inputs, backward: bool) -> Results {
    let parts = run_in_process(vec![device(); ranks], TIMEOUT, |transport, device| {
        rank(transport, &device, scheme, problem, given, backward)
    });
    let AttentionShape { batch, num_heads, num_heads_kv, seqlen_q, seqlen_kv, head_dim, head_dim_v } = problem.shape;
    let zeros = |len: u32| vec![0.0; len as usize];
    let mut o = zeros(batch * seqlen_q * num_heads * head_dim_v);
    let mut lse = zeros(batch * num_heads * seqlen_q);
    let mut gradients = [
        zeros(batch * seqlen_q * num_heads * head_dim),
        zeros(batch * seqlen_kv * num_heads_kv * head_dim),
        zeros(batch * seqlen_kv * num_heads_kv * head_dim_v),
    ];
    let bias = bias_of(problem).filter(|_| backward && problem.has_bias_gradient());
    let groups = bias.map_or(0, |(layout, _)| groups(problem, &layout));
    let mut d_bias = vec![f64::NAN; (groups * seqlen_q * seqlen_kv) as usize];
    let mut d_sink = Vec::new();
    for part in parts {
        let part = part.unwrap_or_else(|error| panic!("{error}\n{problem:?}"));
        assert!(d_sink.is_empty() || d_sink == part.d_sink, "ranks differ in dSink");
        d_sink = part.d_sink;
        paste(&mut d_bias, &part.d_bias, [groups, seqlen_q, seqlen_kv], &part.rows);
        paste(&mut o, &part.o, [batch, seqlen_q, num_heads * head_dim_v], &part.rows);
        paste(&mut lse, &part.lse, [batch * num_heads, seqlen_q, 1], &part.rows);
        if let Some([dq, dk, dv]) = part.gradients {
            paste(&mut gradients[0], &dq, [batch, seqlen_q, num_heads * head_dim], &part.rows);
            paste(&mut gradients[1], &dk, [batch, seqlen_kv, num_heads_kv * head_dim], &part.keys);
            paste(&mut gradients[2], &dv, [batch, seqlen_kv, num_heads_kv * head_dim_v], &part.keys);
        }
    }
    Results { o, lse, gradients: backward.then_some(gradients), d_sink, d_bias }
}

fn rank(
    transport: InProcess,
    device: &FlashAttention,
    scheme: Scheme,
    problem: &AttentionProblem,
    given: &Inputs,
    backward: bool,
) -> Result<Part, Error> {
    let AttentionShape { batch, num_heads, num_heads_kv, seqlen_q, seqlen_kv, head_dim, head_dim_v } = problem.shape;
    let element = problem.element;
    let mut ring = RingAttention::new(transport, device, scheme, problem)?;
    let (rows, keys) = (ring.rows().to_vec(), ring.keys().to_vec());
    let bytes =
        |whole: &[f64], length, width, spans: &[Span]| to_bytes(element, &cut(whole, batch, length, width, spans));
    ring.set(Operand::Q, &bytes(&given.q, seqlen_q, num_heads * head_dim, &rows))?;
    ring.set(Operand::K, &bytes(&given.k, seqlen_kv, num_heads_kv * head_dim, &keys))?;
    ring.set(Operand::V, &bytes(&given.v, seqlen_kv, num_heads_kv * head_dim_v, &keys))?;
    for (operand, bytes) in given.of_rows(problem, &rows) {
        ring.set(operand, &bytes)?;
    }
    ring.forward()?;
    let o = from_bytes(element, &ring.get(Operand::O)?);
    let lse = from_bytes(Element::F32, &ring.get(Operand::Lse)?);
    let (mut gradients, mut d_sink, mut d_bias) = (None, Vec::new(), Vec::new());
    if backward {
        ring.set(Operand::DO, &bytes(&given.d_o, seqlen_q, num_heads * head_dim_v, &rows))?;
        ring.backward()?;
        let read = |operand| ring.get(operand).map(|bytes| from_bytes(Element::F32, &bytes));
        gradients = Some([read(Operand::Dq)?, read(Operand::Dk)?, read(Operand::Dv)?]);
        if problem.has_sink() {
            d_sink = read(Operand::DSink)?;
        }
        if let Some((_, element)) = bias_of(problem).filter(|_| problem.has_bias_gradient()) {
            d_bias = from_bytes(element, &ring.get(Operand::DBias)?);
        }
    }
    Ok(Part { rows, keys, o, lse, gradients, d_sink, d_bias })
}

/// The same on one device, by the slice form.
pub fn on_one_device(problem: &AttentionProblem, given: &Inputs, backward: bool) -> Results {
    match problem.element {
        Element::F16 => alone::<half::f16>(problem, given, backward),
        Element::Bf16 => alone::<half::bf16>(problem, given, backward),
        _ => alone::<f32>(problem, given, backward),
    }
}

fn alone<T: ElementType>(problem: &AttentionProblem, given: &Inputs, backward: bool) -> Results {
    let of = |values: &[f64]| values.iter().map(|value| T::from_f64(*value)).collect::<Vec<T>>();
    let (q, k, v, d_o) = (of(&given.q), of(&given.k), of(&given.v), of(&given.d_o));
    let device = device();
    let (bias, sink) = (of(&given.bias), given.sink.iter().map(|value| *value as f32).collect::<Vec<f32>>());
    let in_f32: Vec<f32> = given.bias.iter().map(|value| *value as f32).collect();
    let bias_element = bias_of(problem).map(|(_, element)| element);
    macro_rules! with_all {
        ($slices:expr) => {{
            let mut slices = $slices;
            match bias_element {
                Some(Element::F32) => slices = slices.with_bias(&in_f32),
                Some(_) => slices = slices.with_bias(&bias),
                None => {}
            }
            if mask_of(problem).is_some() {
                slices = slices.with_key_mask(&given.key_mask);
            }
            if problem.has_sink() {
                slices = slices.with_sink(&sink);
            }
            slices
        }};
    }
    let slices = with_all!(ForwardSlices::new(&q, &k, &v));
    let forward = pollster::block_on(device.forward_with(problem, &slices)).unwrap();
    let wide = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect::<Vec<f64>>();
    let o = forward.o.iter().map(|value| value.to_f64()).collect();
    let mut results = Results { o, lse: wide(&forward.lse), gradients: None, d_sink: Vec::new(), d_bias: Vec::new() };
    if backward {
        let slices = with_all!(BackwardSlices::new(&q, &k, &v, &forward.o, &forward.lse, &d_o));
        let of = pollster::block_on(device.backward_in_f32(problem, &slices)).unwrap();
        results.gradients = Some([wide(&of.dq), wide(&of.dk), wide(&of.dv)]);
        (results.d_sink, results.d_bias) = (wide(&of.dsink), wide(&of.dbias));
    }
    results
}

/// Root of the mean square of the error.
pub fn rms(found: &[f64], expected: &[f64]) -> f64 {
    let finite = found.iter().zip(expected).filter(|(_, expected)| expected.is_finite());
    let (count, sum) =
        finite.fold((0, 0.0), |(count, sum), (found, expected)| (count + 1, sum + (found - expected).powi(2)));
    (sum / f64::from(count.max(1))).sqrt()
}

/// Each number within its own bound of the oracle.
pub fn within(
    name: &str,
    element: Element,
    found: &[f64],
    expected: &[f64],
    errors: &[ErrorTerms],
    problem: &AttentionProblem,
) {
    let arithmetic = if problem.element == Element::F32 { Arithmetic::F32 } else { Arithmetic::MATRICES }.merging();
    assert_eq!(found.len(), expected.len());
    for (index, ((found, expected), errors)) in found.iter().zip(expected).zip(errors).enumerate() {
        let error = reference::error_before_storing(element, *found, *expected);
        let bound = errors.bound(&arithmetic);
        assert!(
            error == 0.0 || error <= bound,
            "{name}[{index}] is {found:e}, not {expected:e} ± {bound:e}\n{problem:?}"
        );
    }
}
