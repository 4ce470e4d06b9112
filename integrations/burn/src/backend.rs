//! The operations as Burn knows them: a backend extension, deferred by fusion, with gradients of its own.

use crate::run;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, AutodiffBackend, Backend, ExtensionType, TensorMetadata, backend_extension};
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use std::sync::{Arc, Mutex, PoisonError};
use wgpu_flash_attention::{AppendProblem, AttentionProblem, Call};

/// A float tensor that may be left out.
#[derive(ExtensionType, Clone, Debug)]
#[extension_type(fusion)]
pub enum MaybeFloat<B: Backend> {
    /// It is left out.
    None,
    /// It is there.
    Some(FloatTensor<B>),
}

/// An integer tensor that may be left out.
#[derive(ExtensionType, Clone, Debug)]
#[extension_type(fusion)]
pub enum MaybeInt<B: Backend> {
    /// It is left out.
    None,
    /// It is there.
    Some(IntTensor<B>),
}

/// Words that say what is seen, i32 or u32.
#[derive(ExtensionType, Clone, Debug)]
#[extension_type(fusion)]
pub struct Tables<B: Backend> {
    /// A boolean mask, in bits.
    #[extension_type]
    pub key_mask: MaybeInt<B>,
    /// Rows that each sequence has.
    #[extension_type]
    pub seqlens_q: MaybeInt<B>,
    /// Keys that each sequence has.
    #[extension_type]
    pub seqlens_kv: MaybeInt<B>,
    /// Where sequences start in Q.
    #[extension_type]
    pub cu_seqlens_q: MaybeInt<B>,
    /// Where sequences start in K and V.
    #[extension_type]
    pub cu_seqlens_kv: MaybeInt<B>,
}

/// What a forward pass reads.
#[derive(ExtensionType, Clone, Debug)]
#[extension_type(fusion)]
pub struct Inputs<B: Backend> {
    /// Queries.
    pub q: FloatTensor<B>,
    /// Keys.
    pub k: FloatTensor<B>,
    /// Values.
    pub v: FloatTensor<B>,
    /// What is added to the scores.
    #[extension_type]
    pub bias: MaybeFloat<B>,
    /// A logit of each head.
    #[extension_type]
    pub sink: MaybeFloat<B>,
    /// What is seen.
    #[extension_type]
    pub tables: Tables<B>,
}

/// What a forward pass over a cache reads.
#[derive(ExtensionType, Clone, Debug)]
#[extension_type(fusion)]
pub struct CachedInputs<B: Backend> {
    /// Queries.
    pub q: FloatTensor<B>,
    /// The words of the cache of keys.
    pub k: IntTensor<B>,
    /// The words of the cache of values.
    pub v: IntTensor<B>,
    /// What is added to the scores.
    #[extension_type]
    pub bias: MaybeFloat<B>,
    /// A logit of each head.
    #[extension_type]
    pub sink: MaybeFloat<B>,
    /// What is seen.
    #[extension_type]
    pub tables: Tables<B>,
}

/// What a forward pass writes.
#[derive(ExtensionType, Clone, Debug)]
#[extension_type(fusion)]
pub struct Outputs<B: Backend> {
    /// The output.
    pub o: FloatTensor<B>,
    /// The log-sum-exp of each row.
    pub lse: FloatTensor<B>,
}

/// What a backward pass reads beside the inputs.
#[derive(ExtensionType, Clone, Debug)]
#[extension_type(fusion)]
pub struct Saved<B: Backend> {
    /// The output.
    pub o: FloatTensor<B>,
    /// The log-sum-exp of each row.
    pub lse: FloatTensor<B>,
    /// The gradient of the output.
    pub d_o: FloatTensor<B>,
    /// The gradient of LSE.
    pub d_lse: FloatTensor<B>,
}

/// What a backward pass writes.
#[derive(ExtensionType, Clone, Debug)]
#[extension_type(fusion)]
pub struct InputGradients<B: Backend> {
    /// Of the queries.
    pub dq: FloatTensor<B>,
    /// Of the keys.
    pub dk: FloatTensor<B>,
    /// Of the values.
    pub dv: FloatTensor<B>,
    /// Of the bias, if it was asked for.
    #[extension_type]
    pub dbias: MaybeFloat<B>,
    /// Of the sink, if there is one.
    #[extension_type]
    pub dsink: MaybeFloat<B>,
}

/// What an append reads.
#[derive(ExtensionType, Clone, Debug)]
#[extension_type(fusion)]
pub struct AppendInputs<B: Backend> {
    /// The words of the cache of keys.
    pub k_cache: IntTensor<B>,
    /// The words of the cache of values.
    pub v_cache: IntTensor<B>,
    /// Tokens of each sequence.
    pub seqlens: IntTensor<B>,
    /// New keys.
    pub k: FloatTensor<B>,
    /// New values.
    pub v: FloatTensor<B>,
    /// Queries to rotate.
    #[extension_type]
    pub q: MaybeFloat<B>,
    /// Cosines of the rotation.
    #[extension_type]
    pub cos: MaybeFloat<B>,
    /// Sines of the rotation.
    #[extension_type]
    pub sin: MaybeFloat<B>,
}

/// What an append writes.
#[derive(ExtensionType, Clone, Debug)]
#[extension_type(fusion)]
pub struct Appended<B: Backend> {
    /// The words of the cache of keys.
    pub k_cache: IntTensor<B>,
    /// The words of the cache of values.
    pub v_cache: IntTensor<B>,
    /// Tokens of each sequence.
    pub seqlens: IntTensor<B>,
    /// Rotated queries.
    #[extension_type]
    pub q: MaybeFloat<B>,
}

/// What is asked: the problem without layouts, bias and boolean mask, which the tensors tell, and the draw of dropout.
#[derive(Clone, Debug)]
pub struct Question {
    /// The problem.
    pub problem: AttentionProblem,
    /// Seed and offset.
    pub call: Call,
}

/// Attention as an extension of Burn's backends. [`attention`](crate::attention) and [`KvCache`](crate::KvCache) call it.
#[backend_extension(Cube, Autodiff, Fusion)]
pub trait AttentionBackend: Backend {
    /// O and LSE.
    #[fusion(meta = outputs)]
    fn flash_attention(#[extension_type] inputs: Inputs<Self>, question: Question) -> Outputs<Self>;

    /// The gradients of the inputs.
    #[fusion(meta = gradients)]
    fn flash_attention_backward(
        #[extension_type] inputs: Inputs<Self>,
        #[extension_type] saved: Saved<Self>,
        question: Question,
    ) -> InputGradients<Self>;

    /// O and LSE over a cache.
    #[fusion(meta = cached_outputs)]
    fn flash_attention_cached(#[extension_type] inputs: CachedInputs<Self>, question: Question) -> Outputs<Self>;

    /// New tokens to a cache.
    #[fusion(meta = appended)]
    fn flash_attention_append(#[extension_type] inputs: AppendInputs<Self>, append: AppendProblem) -> Appended<Self>;
}

fn outputs_of(q: &TensorSpec, question: &Question) -> OutputsMetadata {
    let mut o = q.clone();
    o.shape[3] = question.problem.shape.head_dim_v as usize;
    let lse = TensorSpec::new(Shape::from([q.shape[0], q.shape[1], q.shape[2]]), DType::F32);
    OutputsMetadata { o, lse }
}

fn outputs(inputs: &InputsMetadata, question: &Question) -> OutputsMetadata {
    outputs_of(&inputs.q, question)
}

fn cached_outputs(inputs: &CachedInputsMetadata, question: &Question) -> OutputsMetadata {
    outputs_of(&inputs.q, question)
}

fn gradients(inputs: &InputsMetadata, _: &SavedMetadata, question: &Question) -> InputGradientsMetadata {
    let InputsMetadata { q, k, v, bias, sink, .. } = inputs.clone();
    let dbias = if question.problem.has_bias_gradient() { bias } else { MaybeFloatMetadata::None };
    InputGradientsMetadata { dq: q, dk: k, dv: v, dbias, dsink: sink }
}

fn appended(inputs: &AppendInputsMetadata, _: &AppendProblem) -> AppendedMetadata {
    let AppendInputsMetadata { k_cache, v_cache, seqlens, q, .. } = inputs.clone();
    AppendedMetadata { k_cache, v_cache, seqlens, q }
}

impl AttentionBackend for CubeBackend {
    fn flash_attention(inputs: Inputs<Self>, question: Question) -> Outputs<Self> {
        run::forward(inputs, &question).unwrap_or_else(|error| panic!("attention: {error}"))
    }

    fn flash_attention_backward(inputs: Inputs<Self>, saved: Saved<Self>, question: Question) -> InputGradients<Self> {
        run::backward(inputs, saved, &question).unwrap_or_else(|error| panic!("gradients of attention: {error}"))
    }

    fn flash_attention_cached(inputs: CachedInputs<Self>, question: Question) -> Outputs<Self> {
        run::cached(inputs, &question).unwrap_or_else(|error| panic!("attention over a cache: {error}"))
    }

    fn flash_attention_append(inputs: AppendInputs<Self>, append: AppendProblem) -> Appended<Self> {
        run::append(inputs, append).unwrap_or_else(|error| panic!("append to a cache: {error}"))
    }
}

impl<B: AttentionBackend, C: CheckpointStrategy> AttentionBackend for Autodiff<B, C> {
    fn flash_attention(inputs: Inputs<Self>, question: Question) -> Outputs<Self> {
        let Inputs { q, k, v, bias, sink, tables } = inputs;
        let tables = tables.into_inner();
        match (bias, sink) {
            (MaybeFloat::None, MaybeFloat::None) => tracked::<B, C, 3>([q, k, v], [false, false], tables, question),
            (MaybeFloat::Some(bias), MaybeFloat::None) => {
                tracked::<B, C, 4>([q, k, v, bias], [true, false], tables, question)
            }
            (MaybeFloat::None, MaybeFloat::Some(sink)) => {
                tracked::<B, C, 4>([q, k, v, sink], [false, true], tables, question)
            }
            (MaybeFloat::Some(bias), MaybeFloat::Some(sink)) => {
                tracked::<B, C, 5>([q, k, v, bias, sink], [true, true], tables, question)
            }
        }
    }

    fn flash_attention_backward(_: Inputs<Self>, _: Saved<Self>, _: Question) -> InputGradients<Self> {
        panic!("attention has no second derivative")
    }

    fn flash_attention_cached(inputs: CachedInputs<Self>, question: Question) -> Outputs<Self> {
        let CachedInputs { q, k, v, bias, sink, tables } = inputs;
        let (bias, sink, tables) = (bias.into_inner(), sink.into_inner(), tables.into_inner());
        let inputs = CachedInputs { q: q.into_primitive(), k, v, bias, sink, tables };
        let Outputs { o, lse } = B::flash_attention_cached(inputs, question);
        Outputs { o: Self::from_inner(o), lse: Self::from_inner(lse) }
    }

    fn flash_attention_append(inputs: AppendInputs<Self>, append: AppendProblem) -> Appended<Self> {
        let AppendInputs { k_cache, v_cache, seqlens, k, v, q, cos, sin } = inputs;
        let inputs = AppendInputs {
            k_cache,
            v_cache,
            seqlens,
            k: k.into_primitive(),
            v: v.into_primitive(),
            q: q.into_inner(),
            cos: cos.into_inner(),
            sin: sin.into_inner(),
        };
        let Appended { k_cache, v_cache, seqlens, q } = B::flash_attention_append(inputs, append);
        let q = match q {
            MaybeFloat::None => MaybeFloat::None,
            MaybeFloat::Some(q) => MaybeFloat::Some(Self::from_inner(q)),
        };
        Appended { k_cache, v_cache, seqlens, q }
    }
}

impl<B: Backend, C: CheckpointStrategy> MaybeFloat<Autodiff<B, C>> {
    fn into_inner(self) -> MaybeFloat<B> {
        match self {
            MaybeFloat::None => MaybeFloat::None,
            MaybeFloat::Some(tensor) => MaybeFloat::Some(tensor.into_primitive()),
        }
    }
}

impl<B: Backend, C: CheckpointStrategy> MaybeInt<Autodiff<B, C>> {
    fn into_inner(self) -> MaybeInt<B> {
        match self {
            MaybeInt::None => MaybeInt::None,
            MaybeInt::Some(tensor) => MaybeInt::Some(tensor),
        }
    }
}

impl<B: Backend, C: CheckpointStrategy> Tables<Autodiff<B, C>> {
    fn into_inner(self) -> Tables<B> {
        let Tables { key_mask, seqlens_q, seqlens_kv, cu_seqlens_q, cu_seqlens_kv } = self;
        Tables {
            key_mask: key_mask.into_inner(),
            seqlens_q: seqlens_q.into_inner(),
            seqlens_kv: seqlens_kv.into_inner(),
            cu_seqlens_q: cu_seqlens_q.into_inner(),
            cu_seqlens_kv: cu_seqlens_kv.into_inner(),
        }
    }
}

/// The inputs, in their order: Q, K, V, and the bias and the sink where they are there.
fn inputs_of<B: Backend, const N: usize>(
    tensors: [FloatTensor<B>; N],
    [has_bias, has_sink]: [bool; 2],
    tables: Tables<B>,
) -> Inputs<B> {
    let mut tensors = tensors.into_iter();
    let mut next = || tensors.next().expect("as many tensors as inputs");
    let (q, k, v) = (next(), next(), next());
    let bias = if has_bias { MaybeFloat::Some(next()) } else { MaybeFloat::None };
    let sink = if has_sink { MaybeFloat::Some(next()) } else { MaybeFloat::None };
    Inputs { q, k, v, bias, sink, tables }
}

/// The gradient of O, on its way from the step of O to that of LSE.
type HandedOn<B> = Arc<Mutex<Option<FloatTensor<B>>>>;

/// A node of Burn's graph has one output, attention has two. LSE is the output of the node whose parents are the inputs. O is that
/// of a second node, whose parent is the first: its step hands the gradient of O on, and the step of LSE, which runs later, has both
/// gradients for one backward pass.
#[derive(Debug)]
struct LseStep;

/// See [`LseStep`].
#[derive(Debug)]
struct OutputStep;

/// What the step of LSE needs.
#[derive(Clone, Debug)]
struct LseState<B: Backend, const N: usize> {
    inputs: [NodeId; N],
    /// Whether a bias and a sink are among them.
    has: [bool; 2],
    tables: Tables<B>,
    o: FloatTensor<B>,
    lse: FloatTensor<B>,
    d_o: HandedOn<B>,
    question: Question,
}

fn tracked<B: AttentionBackend, C: CheckpointStrategy, const N: usize>(
    inputs: [FloatTensor<Autodiff<B, C>>; N],
    has: [bool; 2],
    tables: Tables<B>,
    question: Question,
) -> Outputs<Autodiff<B, C>> {
    let nodes = inputs.each_ref().map(|input| input.node());
    let prepared = Backward::<B, N>::prepare::<C>(LseStep, nodes).compute_bound().stateful();
    let run = |inputs: [FloatTensor<Autodiff<B, C>>; N]| {
        let inputs = inputs_of(inputs.map(|input| input.into_primitive()), has, tables.clone());
        B::flash_attention(inputs, question.clone())
    };
    match prepared {
        OpsKind::Tracked(mut prepared) => {
            let ids = inputs.each_ref().map(|input| prepared.checkpoint(input));
            let Outputs { o, lse } = run(inputs);
            let d_o: HandedOn<B> = Arc::default();
            let (o_saved, lse_saved, handed_on) = (o.clone(), lse.clone(), d_o.clone());
            let state = LseState { inputs: ids, has, tables, o: o_saved, lse: lse_saved, d_o, question };
            let shape = lse.clone();
            let lse = prepared.finish(state, lse);
            let o = match Backward::<B, 1>::prepare::<C>(OutputStep, [lse.node()]).compute_bound().stateful() {
                OpsKind::Tracked(prepared) => prepared.finish((handed_on, shape), o),
                OpsKind::UnTracked(prepared) => prepared.finish(o),
            };
            Outputs { o, lse }
        }
        OpsKind::UnTracked(prepared) => {
            let Outputs { o, lse } = run(inputs);
            Outputs { o: Autodiff::<B, C>::from_inner(o), lse: prepared.finish(lse) }
        }
    }
}

impl<B: AttentionBackend> Backward<B, 1> for OutputStep {
    /// Where the gradient goes, and LSE.
    type State = (HandedOn<B>, FloatTensor<B>);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let d_o = grads.consume::<B>(&ops.node);
        let (handed_on, lse) = ops.state;
        *handed_on.lock().unwrap_or_else(PoisonError::into_inner) = Some(d_o);
        let [parent] = ops.parents;
        if let Some(parent) = parent {
            // The loss may not use LSE.
            let zeros = B::float_zeros(lse.shape(), &lse.device(), DType::F32.into());
            grads.register::<B>(parent.id, zeros);
        }
    }
}

impl<B: AttentionBackend, const N: usize> Backward<B, N> for LseStep {
    type State = LseState<B, N>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let d_lse = grads.consume::<B>(&ops.node);
        let LseState { inputs, has, tables, o, lse, d_o, mut question } = ops.state;
        let tensors = inputs.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let d_o = d_o.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The loss may not use O.
        let d_o = d_o.unwrap_or_else(|| B::float_zeros(o.shape(), &o.device(), o.dtype().into()));
        let [has_bias, _] = has;
        if has_bias && ops.parents[3].is_some() {
            question.problem = question.problem.with_bias_gradient();
        }
        let saved = Saved { o, lse, d_o, d_lse };
        let gradients = B::flash_attention_backward(inputs_of(tensors, has, tables), saved, question);
        let InputGradients { dq, dk, dv, dbias, dsink } = gradients;
        let [of_bias, of_sink] = [(has[0], dbias), (has[1], dsink)].map(|(has, tensor)| has.then(|| tensor.tensor()));
        let of_inputs = [dq, dk, dv].map(Some).into_iter().chain(of_bias).chain(of_sink);
        for (parent, gradient) in ops.parents.into_iter().zip(of_inputs) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

impl<B: Backend> MaybeFloat<B> {
    fn tensor(self) -> Option<FloatTensor<B>> {
        match self {
            MaybeFloat::None => None,
            MaybeFloat::Some(tensor) => Some(tensor),
        }
    }
}
