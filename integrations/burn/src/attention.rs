use crate::backend::{AttentionBackend, Inputs, MaybeFloat, MaybeInt, Others, Outputs, Question, Tables};
use crate::buffers::element;
use crate::device::{Installed, cube_device, installed};
use crate::error::Error;
use crate::options::{AttentionOptions, Causal};
use burn::backend::Dispatch;
use burn::tensor::{Bool, DType, Int, IntDType, Shape, Tensor};
use wgpu_flash_attention::{AttentionProblem, AttentionShape, Call, Dropout, EntryLayout, KeyMask, ScoreMod};

/// What attention gives.
#[derive(Clone, Debug)]
pub struct AttentionOutput {
    /// `[batch, num_heads, seqlen_q, head_dim_v]`, in the type of Q and in Q's order of memory: if Q is a view of
    /// `[batch, seqlen_q, num_heads, head_dim]` by `swap_dims(1, 2)`, so is O, and `swap_dims(1, 2)` and a reshape copy nothing.
    pub o: Tensor<4>,
    /// The log-sum-exp of each row's scores, f32 `[batch, num_heads, seqlen_q]`. It may be a part of the loss.
    pub lse: Tensor<3>,
}

/// Exact attention of Q `[batch, num_heads, seqlen_q, head_dim]` over K `[batch, num_heads_kv, seqlen_kv, head_dim]` and V
/// `[batch, num_heads_kv, seqlen_kv, head_dim_v]`, where num_heads is a multiple of num_heads_kv. All are f32, f16 or bf16, of one
/// type. Every view whose last dimension is contiguous is read where it lies; others are copied first.
///
/// It is differentiable in Q, K, V, bias and sink, and both outputs may be a part of the loss.
///
/// ```no_run
/// use burn::tensor::{Distribution, Tensor};
/// use wgpu_flash_attention_burn::{AttentionOptions, attention};
///
/// let device = wgpu_flash_attention_burn::init()?.autodiff();
/// let q = Tensor::<4>::random([2, 8, 1024, 64], Distribution::Default, &device).require_grad();
/// let output = attention(q.clone(), q.clone(), q.clone(), &AttentionOptions::new().with_causal())?;
/// let gradients = output.o.sum().backward();
/// assert_eq!(q.grad(&gradients).unwrap().dims(), [2, 8, 1024, 64]);
/// # Ok::<(), wgpu_flash_attention_burn::Error>(())
/// ```
///
/// # Errors
/// [`Error::NotInstalled`] and [`Error::NotWgpu`] for the device; [`Error::Shape`] and [`Error::Type`] for the tensors;
/// [`Error::Attention`] for a problem that contradicts itself or that the device cannot run, and for gradients that cannot be had where
/// an input asks for one. What the device refuses later, such as memory, panics where Burn runs the operation.
pub fn attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    options: &AttentionOptions,
) -> Result<AttentionOutput, Error> {
    let installed = installed(&cube_device(&q.device())?, "q")?;
    let [batch, num_heads, seqlen_q, head_dim] = q.dims();
    let [_, num_heads_kv, seqlen_kv, _] = k.dims();
    let head_dim_v = v.dims()[3];
    expect(
        "k",
        &k.dims(),
        &[batch, num_heads_kv, seqlen_kv, head_dim],
        "[batch, num_heads_kv, seqlen_kv, head_dim] of Q",
    )?;
    expect(
        "v",
        &v.dims(),
        &[batch, num_heads_kv, seqlen_kv, head_dim_v],
        "[batch, num_heads_kv, seqlen_kv, dim] of K",
    )?;
    for (name, dtype) in [("k", k.dtype()), ("v", v.dtype())] {
        if dtype != q.dtype() {
            return Err(Error::Type { tensor: name, found: dtype, expected: "the type of Q" });
        }
    }
    let shape = AttentionShape::new(number(batch), number(num_heads), number(seqlen_q), number(head_dim))
        .with_num_heads_kv(number(num_heads_kv))
        .with_seqlen_kv(number(seqlen_kv))
        .with_head_dim_v(number(head_dim_v));
    let asked = Asked::of(options, shape, q.dtype())?;
    let has_gradient = [&q, &k, &v].into_iter().chain(&options.bias).any(Tensor::is_tracked)
        || options.sink.as_ref().is_some_and(Tensor::is_tracked);
    asked.check(&installed, options, has_gradient)?;
    let (q, k, v) = (q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
    let inputs = Inputs::<Dispatch> { q, k, v, others: asked.others };
    Ok(output(Dispatch::flash_attention(inputs, asked.question)))
}

pub(crate) fn output(outputs: Outputs<Dispatch>) -> AttentionOutput {
    AttentionOutput { o: Tensor::from_dispatch(outputs.o), lse: Tensor::from_dispatch(outputs.lse) }
}

/// A number as the library has it. What is too large is refused by planning.
pub(crate) fn number(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

pub(crate) fn expect(tensor: &'static str, found: &[usize], expected: &[usize], what: &str) -> Result<(), Error> {
    match found == expected {
        true => Ok(()),
        false => Err(Error::Shape { tensor, found: found.to_vec(), expected: format!("{expected:?}, {what}") }),
    }
}

/// The options, as the library has them.
pub(crate) struct Asked {
    pub question: Question,
    pub others: Others<Dispatch>,
}

impl Asked {
    /// `shape` is that of Q, K and V; of packed sequences batch is 1 and lengths are totals.
    pub fn of(options: &AttentionOptions, mut shape: AttentionShape, dtype: DType) -> Result<Self, Error> {
        let element = element(dtype, "q")?;
        let totals = [shape.seqlen_q, shape.seqlen_kv];
        if let Some([(cu_seqlens_q, max_seqlen_q), (cu_seqlens_kv, max_seqlen_kv)]) = &options.cu_seqlens {
            expect("cu_seqlens_kv", &cu_seqlens_kv.dims(), &cu_seqlens_q.dims(), "the shape of cu_seqlens_q")?;
            if shape.batch != 1 || cu_seqlens_q.dims()[0] == 0 {
                let found = vec![shape.batch as usize, cu_seqlens_q.dims()[0]];
                let expected = "a batch of 1 and [batch + 1] sums".to_owned();
                return Err(Error::Shape { tensor: "q with cu_seqlens_q", found, expected });
            }
            shape.batch = number(cu_seqlens_q.dims()[0] - 1);
            (shape.seqlen_q, shape.seqlen_kv) = (number(*max_seqlen_q), number(*max_seqlen_kv));
        }
        let mut problem = AttentionProblem::new(shape).with_element(element);
        problem.softmax_scale = options.softmax_scale;
        problem = match options.causal {
            Some(Causal::BottomRight) => problem.with_causal(),
            Some(Causal::TopLeft) => problem.with_causal_top_left(),
            None => problem,
        };
        let [left, right] = options.window;
        problem = problem.with_window(left, right);
        for modifier in &options.scores {
            problem = problem.with_score(modifier.clone());
        }
        for mask in &options.masks {
            problem = problem.with_key_mask(mask.clone());
        }
        let mut call = Call::new();
        if let Some((dropout_p, philox_seed, philox_offset)) = options.dropout {
            // One prepared operation serves all seeds.
            problem.dropout = Some(Dropout::new(dropout_p, 0));
            (call.philox_seed, call.philox_offset) = (Some(philox_seed), Some(philox_offset));
        }
        let lengths = |name, numbers: &Option<Tensor<1, Int>>| match numbers {
            Some(numbers) => {
                expect(name, &numbers.dims(), &[shape.batch as usize], "[batch]")?;
                Ok(Some(numbers.clone()))
            }
            None => Ok::<_, Error>(None),
        };
        let seqlens_q = lengths("seqlens_q", &options.seqlens_q)?;
        let seqlens_kv = lengths("seqlens_kv", &options.seqlens_kv)?;
        if seqlens_q.is_some() {
            problem = problem.with_seqlens_q_at_call();
        }
        if seqlens_kv.is_some() {
            problem = problem.with_seqlens_kv_at_call();
        }
        let [cu_seqlens_q, cu_seqlens_kv] = match &options.cu_seqlens {
            Some([(of_q, _), (of_kv, _)]) => {
                problem = problem.with_cu_seqlens_at_call(totals[0], totals[1]);
                [Some(of_q.clone()), Some(of_kv.clone())]
            }
            None => [None, None],
        };
        if options.sink.is_some() {
            problem = problem.with_sink();
        }
        let key_mask = MaybeInt::<Dispatch>::of(key_mask(options, &shape)?.map(|words| words.into_dispatch()));
        let [seqlens_q, seqlens_kv, cu_seqlens_q, cu_seqlens_kv] = [seqlens_q, seqlens_kv, cu_seqlens_q, cu_seqlens_kv]
            .map(|numbers| MaybeInt::<Dispatch>::of(numbers.map(words)));
        let tables = Tables { key_mask, seqlens_q, seqlens_kv, cu_seqlens_q, cu_seqlens_kv };
        let others = Others { bias: bias(options, &shape, dtype)?, sink: sink(options, &shape)?, tables };
        Ok(Self { question: Question { problem, call }, others })
    }

    /// Refuses here what cannot be planned, with tensors that lie as usual: Burn runs the operation later, where nobody takes an error.
    /// So are gradients, where an input asks for one.
    pub fn check(&self, installed: &Installed, options: &AttentionOptions, has_gradient: bool) -> Result<(), Error> {
        let mut problem = self.question.problem.clone();
        if let Some(bias) = &options.bias {
            let layout = EntryLayout::contiguous(bias.dims().map(number));
            problem = problem.with_score(ScoreMod::Bias { layout, element: element(bias.dtype(), "bias")? });
        }
        if options.key_mask.is_some() {
            let shape = problem.shape;
            let layout = EntryLayout::packed_bits([shape.batch, shape.num_heads, shape.seqlen_q, shape.seqlen_kv]);
            problem = problem.with_key_mask(KeyMask::Boolean(layout));
        }
        installed.check(&problem)?;
        if !has_gradient {
            return Ok(());
        }
        if options.bias.as_ref().is_some_and(Tensor::is_tracked) {
            problem = problem.with_bias_gradient();
        }
        installed.check_backward(&problem)
    }
}

/// Numbers of 32 bits, as WGSL has them.
pub(crate) fn words(numbers: Tensor<1, Int>) -> burn::backend::DispatchTensor {
    match numbers.dtype() {
        DType::I32 | DType::U32 => numbers.into_dispatch(),
        _ => numbers.cast(IntDType::I32).into_dispatch(),
    }
}

/// Whether entries of these numbers stand for all scores.
fn expect_entries(tensor: &'static str, found: [usize; 4], shape: &AttentionShape) -> Result<(), Error> {
    let whole = [shape.batch, shape.num_heads, shape.seqlen_q, shape.seqlen_kv].map(|count| count as usize);
    match found.iter().zip(whole).all(|(&found, whole)| found == 1 || found == whole) {
        true => Ok(()),
        false => {
            let expected = format!("{whole:?}, or 1 in any dimension");
            Err(Error::Shape { tensor, found: found.to_vec(), expected })
        }
    }
}

fn bias(options: &AttentionOptions, shape: &AttentionShape, dtype: DType) -> Result<MaybeFloat<Dispatch>, Error> {
    let Some(bias) = &options.bias else { return Ok(MaybeFloat::None) };
    expect_entries("bias", bias.dims(), shape)?;
    let found = bias.dtype();
    if found != DType::F32 && found != dtype {
        return Err(Error::Type { tensor: "bias", found, expected: "f32 or the type of Q" });
    }
    Ok(MaybeFloat::Some(bias.clone().into_dispatch()))
}

fn sink(options: &AttentionOptions, shape: &AttentionShape) -> Result<MaybeFloat<Dispatch>, Error> {
    let Some(sink) = &options.sink else { return Ok(MaybeFloat::None) };
    expect("sink", &sink.dims(), &[shape.num_heads as usize], "[num_heads]")?;
    Ok(MaybeFloat::Some(sink.clone().cast(DType::F32).into_dispatch()))
}

/// The mask in bits: i32 `[batch or 1, num_heads or 1, seqlen_q or 1, words]`, 32 keys a word, the first in the lowest bit.
fn key_mask(options: &AttentionOptions, shape: &AttentionShape) -> Result<Option<Tensor<4, Int>>, Error> {
    let Some(mask) = &options.key_mask else { return Ok(None) };
    expect_entries("key_mask", mask.dims(), shape)?;
    Ok(Some(pack_bits(mask.clone(), shape.seqlen_kv as usize)))
}

fn pack_bits(mask: Tensor<4, Bool>, keys: usize) -> Tensor<4, Int> {
    let [batch, heads, rows, _] = mask.dims();
    let device = mask.device();
    let count = keys.div_ceil(32);
    let bits = mask.int().cast(IntDType::I32).expand([batch, heads, rows, keys]);
    let rest = Tensor::<4, Int>::zeros([batch, heads, rows, count * 32 - keys], (&device, DType::I32));
    let bits = if count * 32 == keys { bits } else { Tensor::cat(vec![bits, rest], 3) };
    let weights: Vec<i32> = (0..32).map(|bit| 1i32.wrapping_shl(bit)).collect();
    let weights =
        Tensor::<1, Int>::from_data(burn::tensor::TensorData::new(weights, Shape::from([32])), (&device, DType::I32));
    let bits: Tensor<5, Int> = bits.reshape([batch, heads, rows, count, 32]) * weights.reshape([1, 1, 1, 1, 32]);
    // Different bits, so that no sum overflows.
    bits.sum_dim(4).reshape([batch, heads, rows, count])
}
