//! The operations as Burn knows them: a backend extension, deferred by fusion, with gradients of its own.

use crate::error::Error;
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
use burn_cubecl::cubecl::client::Client;
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

/// What a forward pass reads beside Q, K and V.
#[derive(ExtensionType, Clone, Debug)]
#[extension_type(fusion)]
pub struct Others<B: Backend> {
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
    /// The rest.
    #[extension_type]
    pub others: Others<B>,
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
    /// The rest.
    #[extension_type]
    pub others: Others<B>,
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
    let InputsMetadata { q, k, v, others: OthersMetadata { bias, sink, .. } } = inputs.clone();
    let dbias = if question.problem.has_bias_gradient() { bias } else { MaybeFloatMetadata::None };
    InputGradientsMetadata { dq: q, dk: k, dv: v, dbias, dsink: sink }
}

fn appended(inputs: &AppendInputsMetadata, _: &AppendProblem) -> AppendedMetadata {
    let AppendInputsMetadata { k_cache, v_cache, seqlens, q, .. } = inputs.clone();
    AppendedMetadata { k_cache, v_cache, seqlens, q }
}

/// Runs an operation in the thread that owns the device, where each request for the buffer of a tensor is answered without a wait.
/// Burn takes no error here. [`attention`](crate::attention) has planned the problem, so that none is left but the device's.
fn on_device<T: Send + 'static>(what: &str, client: Client, run: impl FnOnce() -> Result<T, Error> + Send) -> T {
    match client.exclusive(run) {
        Ok(Ok(done)) => done,
        Ok(Err(error)) => panic!("{what}: {error}"),
        Err(error) => panic!("{what}: {error}"),
    }
}

impl AttentionBackend for CubeBackend {
    fn flash_attention(inputs: Inputs<Self>, question: Question) -> Outputs<Self> {
        let client = inputs.q.client.clone();
        on_device("attention", client, || run::forward(inputs, &question))
    }

    fn flash_attention_backward(inputs: Inputs<Self>, saved: Saved<Self>, question: Question) -> InputGradients<Self> {
        let client = inputs.q.client.clone();
        on_device("gradients of attention", client, || run::backward(inputs, saved, &question))
    }

    fn flash_attention_cached(inputs: CachedInputs<Self>, question: Question) -> Outputs<Self> {
        let client = inputs.q.client.clone();
        on_device("attention over a cache", client, || run::cached(inputs, &question))
    }

    fn flash_attention_append(inputs: AppendInputs<Self>, append: AppendProblem) -> Appended<Self> {
        let client = inputs.k.client.clone();
        on_device("append to a cache", client, || run::append(inputs, append))
    }
}

impl<B: AttentionBackend, C: CheckpointStrategy> AttentionBackend for Autodiff<B, C> {
    fn flash_attention(inputs: Inputs<Self>, question: Question) -> Outputs<Self> {
        tracked(inputs, question)
    }

    fn flash_attention_backward(_: Inputs<Self>, _: Saved<Self>, _: Question) -> InputGradients<Self> {
        panic!("attention has no second derivative")
    }

    fn flash_attention_cached(inputs: CachedInputs<Self>, question: Question) -> Outputs<Self> {
        let CachedInputs { q, k, v, others } = inputs;
        let inputs = CachedInputs { q: q.into_primitive(), k, v, others: others.into_inner() };
        let Outputs { o, lse } = B::flash_attention_cached(inputs, question);
        Outputs { o: Self::from_inner(o), lse: Self::from_inner(lse) }
    }

    fn flash_attention_append(inputs: AppendInputs<Self>, append: AppendProblem) -> Appended<Self> {
        let AppendInputs { k_cache, v_cache, seqlens, k, v, q, cos, sin } = inputs;
        let [k, v] = [k, v].map(|tensor| tensor.into_primitive());
        let [q, cos, sin] = [q, cos, sin].map(MaybeFloat::into_inner);
        let inputs = AppendInputs { k_cache, v_cache, seqlens, k, v, q, cos, sin };
        let Appended { k_cache, v_cache, seqlens, q } = B::flash_attention_append(inputs, append);
        Appended { k_cache, v_cache, seqlens, q: MaybeFloat::of(q.tensor().map(Self::from_inner)) }
    }
}

impl<B: Backend> MaybeFloat<B> {
    pub(crate) fn of(tensor: Option<FloatTensor<B>>) -> Self {
        tensor.map_or(Self::None, Self::Some)
    }

    pub(crate) fn tensor(self) -> Option<FloatTensor<B>> {
        match self {
            Self::None => None,
            Self::Some(tensor) => Some(tensor),
        }
    }
}

impl<B: Backend> MaybeInt<B> {
    pub(crate) fn of(tensor: Option<IntTensor<B>>) -> Self {
        tensor.map_or(Self::None, Self::Some)
    }

    pub(crate) fn tensor(self) -> Option<IntTensor<B>> {
        match self {
            Self::None => None,
            Self::Some(tensor) => Some(tensor),
        }
    }
}

// What lies below autodiff.

impl<B: Backend, C: CheckpointStrategy> MaybeFloat<Autodiff<B, C>> {
    fn into_inner(self) -> MaybeFloat<B> {
        MaybeFloat::of(self.tensor().map(|tensor| tensor.into_primitive()))
    }
}

impl<B: Backend, C: CheckpointStrategy> Tables<Autodiff<B, C>> {
    fn into_inner(self) -> Tables<B> {
        let Self { key_mask, seqlens_q, seqlens_kv, cu_seqlens_q, cu_seqlens_kv } = self;
        let all = [key_mask, seqlens_q, seqlens_kv, cu_seqlens_q, cu_seqlens_kv];
        let [key_mask, seqlens_q, seqlens_kv, cu_seqlens_q, cu_seqlens_kv] =
            all.map(|numbers| MaybeInt::of(numbers.tensor()));
        Tables { key_mask, seqlens_q, seqlens_kv, cu_seqlens_q, cu_seqlens_kv }
    }
}

impl<B: Backend, C: CheckpointStrategy> Others<Autodiff<B, C>> {
    fn into_inner(self) -> Others<B> {
        let Self { bias, sink, tables } = self;
        Others { bias: bias.into_inner(), sink: sink.into_inner(), tables: tables.into_inner() }
    }
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

/// What the step of LSE needs. Q, K, V, bias and sink are nodes; Burn may compute their tensors again.
#[derive(Clone, Debug)]
struct LseState<B: Backend> {
    qkv: [NodeId; 3],
    bias: Option<NodeId>,
    sink: Option<NodeId>,
    tables: Tables<B>,
    o: FloatTensor<B>,
    lse: FloatTensor<B>,
    d_o: HandedOn<B>,
    question: Question,
}

fn tracked<B: AttentionBackend, C: CheckpointStrategy>(
    inputs: Inputs<Autodiff<B, C>>,
    question: Question,
) -> Outputs<Autodiff<B, C>> {
    let Inputs { q, k, v, others: Others { bias, sink, tables } } = inputs;
    let (bias, sink, tables) = (bias.tensor(), sink.tensor(), tables.into_inner());
    // The parents of a node are a fixed number: Q stands in for what is left out, and gets nothing from there.
    let nodes = [&q, &k, &v, bias.as_ref().unwrap_or(&q), sink.as_ref().unwrap_or(&q)].map(|tensor| tensor.node());
    let prepared = Backward::<B, 5>::prepare::<C>(LseStep, nodes).compute_bound().stateful();
    let inner = |tensor: &FloatTensor<Autodiff<B, C>>| tensor.primitive().clone();
    let [bias_inner, sink_inner] = [&bias, &sink].map(|tensor| MaybeFloat::<B>::of(tensor.as_ref().map(inner)));
    let others = Others { bias: bias_inner, sink: sink_inner, tables: tables.clone() };
    let run = || {
        let inputs = Inputs { q: inner(&q), k: inner(&k), v: inner(&v), others };
        B::flash_attention(inputs, question.clone())
    };
    match prepared {
        OpsKind::Tracked(mut prepared) => {
            let qkv = [&q, &k, &v].map(|input| prepared.checkpoint(input));
            let [bias, sink] = [&bias, &sink].map(|input| input.as_ref().map(|input| prepared.checkpoint(input)));
            let Outputs { o, lse } = run();
            let handed_on: HandedOn<B> = Arc::default();
            let state =
                LseState { qkv, bias, sink, tables, o: o.clone(), lse: lse.clone(), d_o: handed_on.clone(), question };
            let of_output = (handed_on, lse.clone());
            let lse = prepared.finish(state, lse);
            let o = match Backward::<B, 1>::prepare::<C>(OutputStep, [lse.node()]).compute_bound().stateful() {
                OpsKind::Tracked(prepared) => prepared.finish(of_output, o),
                OpsKind::UnTracked(prepared) => prepared.finish(o),
            };
            Outputs { o, lse }
        }
        OpsKind::UnTracked(prepared) => {
            let Outputs { o, lse } = run();
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

impl<B: AttentionBackend> Backward<B, 5> for LseStep {
    type State = LseState<B>;

    fn backward(self, ops: Ops<Self::State, 5>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let d_lse = grads.consume::<B>(&ops.node);
        let LseState { qkv, bias, sink, tables, o, lse, d_o, mut question } = ops.state;
        let mut tensor = |id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id);
        let [q, k, v] = qkv.map(&mut tensor);
        let [bias, sink] = [bias, sink].map(|id| MaybeFloat::<B>::of(id.map(&mut tensor)));
        let d_o = d_o.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The loss may not use O.
        let d_o = d_o.unwrap_or_else(|| B::float_zeros(o.shape(), &o.device(), o.dtype().into()));
        if matches!(bias, MaybeFloat::Some(_)) && ops.parents[3].is_some() {
            question.problem = question.problem.with_bias_gradient();
        }
        let inputs = Inputs { q, k, v, others: Others { bias, sink, tables } };
        let gradients = B::flash_attention_backward(inputs, Saved { o, lse, d_o, d_lse }, question);
        let InputGradients { dq, dk, dv, dbias, dsink } = gradients;
        let gradients = [Some(dq), Some(dk), Some(dv), dbias.tensor(), dsink.tensor()];
        for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}
