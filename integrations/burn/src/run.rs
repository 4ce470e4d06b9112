//! Attention on CubeCL's tensors.

use crate::backend::{
    AppendInputs, Appended, CachedInputs, InputGradients, Inputs, MaybeFloat, MaybeInt, Others, Outputs, Question,
    Saved, Tables,
};
use crate::buffers::{Bound, element, empty_contiguous, empty_rows};
use crate::device::{Installed, installed};
use crate::error::Error;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use wgpu_flash_attention::{
    AppendBuffers, AppendProblem, AttentionLayout, AttentionProblem, BackwardBuffers, Buffers, EntryLayout,
    ForwardBuffers, KeyMask, Operand, ScoreMod, TensorLayout,
};

/// Tensors that a call reads beside Q, K and V.
struct BoundOthers(Vec<(Operand, Bound)>);

impl BoundOthers {
    /// Binds what is there, and says so in the problem.
    fn of(others: Others<CubeBackend>, installed: &Installed, problem: &mut AttentionProblem) -> Result<Self, Error> {
        let Others { bias, sink, tables } = others;
        let mut others = Vec::new();
        let mut with = |operand, bound| others.push((operand, bound));
        // Where a gradient has an entry for each of the bias, so has the bias.
        if let Some(bias) = bias.tensor() {
            let repeats = |bias: &CubeTensor| {
                bias.meta
                    .shape()
                    .iter()
                    .zip(bias.meta.strides().iter())
                    .any(|(&count, &stride)| count > 1 && stride == 0)
            };
            let is_copied = problem.has_bias_gradient() && repeats(&bias);
            let bound =
                if is_copied { Bound::contiguous(bias, 16) } else { Bound::new(burn_cubecl::kernel::untile(bias)) };
            let element = element(bound.tensor.dtype, "bias")?;
            *problem = problem.clone().with_score(ScoreMod::Bias { layout: bound.entries(), element });
            with(Operand::Bias, bound);
        }
        let Tables { key_mask, seqlens_q, seqlens_kv, cu_seqlens_q, cu_seqlens_kv } = tables;
        if let Some(words) = key_mask.tensor() {
            let bound = Bound::contiguous(words, 16);
            let layout = EntryLayout { stride_key: 1, ..bound.entries() };
            *problem = problem.clone().with_key_mask(KeyMask::Boolean(layout));
            with(Operand::KeyMask, bound);
        }
        if let Some(sink) = sink.tensor() {
            with(Operand::Sink, Bound::contiguous(sink, 16));
        }
        let alignment = u64::from(installed.attention.device().limits().min_storage_buffer_offset_alignment);
        let lengths = [
            (Operand::SeqlensQ, seqlens_q),
            (Operand::SeqlensKv, seqlens_kv),
            (Operand::CuSeqlensQ, cu_seqlens_q),
            (Operand::CuSeqlensKv, cu_seqlens_kv),
        ];
        for (operand, numbers) in lengths {
            if let Some(numbers) = numbers.tensor() {
                with(operand, Bound::contiguous(numbers, alignment.max(16)));
            }
        }
        Ok(Self(others))
    }

    fn add_to<'a, D>(&'a self, buffers: Buffers<'a, D>) -> Buffers<'a, D> {
        self.0.iter().fold(buffers, |buffers, (operand, bound)| buffers.with(*operand, bound.slice()))
    }
}

/// Rows of packed sequences that no sequence uses are not written, and new memory holds anything.
fn leaves_rows(problem: &AttentionProblem, tables: &Tables<CubeBackend>) -> bool {
    let is_given = |numbers: &MaybeInt<CubeBackend>| matches!(numbers, MaybeInt::Some(_));
    problem.total_q().is_some() && (is_given(&tables.seqlens_q) || is_given(&tables.seqlens_kv))
}

/// A new tensor with rows like those of another; zeros where something may not be written.
fn rows(like: &CubeTensor, dim: usize, is_zero: bool) -> CubeTensor {
    let shape = like.meta.shape();
    let new = empty_rows(like, [shape[0], shape[1], shape[2], dim], like.dtype);
    if !is_zero {
        return new;
    }
    let len: usize = new.meta.shape().iter().product();
    let zeros = CubeBackend::float_zeros(Shape::from([len.max(1)]), &new.device, new.dtype.into());
    CubeTensor { handle: zeros.handle, ..new }
}

pub(crate) fn forward(inputs: Inputs<CubeBackend>, question: &Question) -> Result<Outputs<CubeBackend>, Error> {
    let Inputs { q, k, v, others } = inputs;
    let installed = installed(&q.device, "q")?;
    let [q, k, v] = [q, k, v].map(Bound::of_rows);
    let mut problem = question.problem.clone();
    let is_zero = leaves_rows(&problem, &others.tables);
    let others = BoundOthers::of(others, &installed, &mut problem)?;
    let o = Bound::new(rows(&q.tensor, problem.shape.head_dim_v as usize, is_zero));
    let layout = AttentionLayout { q: q.layout(), k: k.layout(), v: v.layout(), o: o.layout() };
    finish(&installed, problem.with_layout(layout), question, [q, k, v, o], others)
}

pub(crate) fn cached(inputs: CachedInputs<CubeBackend>, question: &Question) -> Result<Outputs<CubeBackend>, Error> {
    let CachedInputs { q, k, v, others } = inputs;
    let installed = installed(&q.device, "q")?;
    let q = Bound::of_rows(q);
    let [k, v] = [k, v].map(Bound::new);
    let mut problem = question.problem.clone();
    let others = BoundOthers::of(others, &installed, &mut problem)?;
    let o = Bound::new(rows(&q.tensor, problem.shape.head_dim_v as usize, false));
    let unused = TensorLayout { offset: 0, ..q.layout() };
    let layout = AttentionLayout { q: q.layout(), k: unused, v: unused, o: o.layout() };
    finish(&installed, problem.with_layout(layout), question, [q, k, v, o], others)
}

fn finish(
    installed: &Installed,
    problem: AttentionProblem,
    question: &Question,
    [q, k, v, o]: [Bound; 4],
    others: BoundOthers,
) -> Result<Outputs<CubeBackend>, Error> {
    let shape = q.tensor.meta.shape();
    let lse = Bound::new(empty_contiguous(&q.tensor, &[shape[0], shape[1], shape[2]], DType::F32));
    let prepared = installed.forward(&problem)?;
    let buffers = ForwardBuffers::new(q.slice(), k.slice(), v.slice(), o.slice(), lse.slice());
    let buffers = others.add_to(buffers);
    installed.submit(|encoder| prepared.encode_call(encoder, &buffers, &question.call))?;
    Ok(Outputs { o: o.tensor, lse: lse.tensor })
}

pub(crate) fn backward(
    inputs: Inputs<CubeBackend>,
    saved: Saved<CubeBackend>,
    question: &Question,
) -> Result<InputGradients<CubeBackend>, Error> {
    let Inputs { q, k, v, others } = inputs;
    let installed = installed(&q.device, "q")?;
    let [q, k, v, o, d_o] = [q, k, v, saved.o, saved.d_o].map(Bound::of_rows);
    let [lse, d_lse] = [saved.lse, saved.d_lse].map(|tensor| Bound::contiguous(tensor, 16));
    let mut problem = question.problem.clone();
    let is_zero = leaves_rows(&problem, &others.tables);
    let others = BoundOthers::of(others, &installed, &mut problem)?;
    let gradient = |of: &Bound| Bound::new(rows(&of.tensor, of.tensor.meta.shape()[3], is_zero));
    let [dq, dk, dv] = [gradient(&q), gradient(&k), gradient(&v)];
    let problem = problem
        .with_layout(AttentionLayout { q: q.layout(), k: k.layout(), v: v.layout(), o: o.layout() })
        .with_gradient_layout(AttentionLayout { q: dq.layout(), k: dk.layout(), v: dv.layout(), o: d_o.layout() });
    let new_like = |operand| {
        let bound = others.0.iter().find(|(other, _)| *other == operand).map(|(_, bound)| &bound.tensor)?;
        Some(Bound::new(empty_contiguous(&q.tensor, bound.meta.shape(), bound.dtype)))
    };
    let dbias = if problem.has_bias_gradient() { new_like(Operand::Bias) } else { None };
    let dsink = new_like(Operand::Sink);
    let prepared = installed.backward(&problem)?;
    let forward = ForwardBuffers::new(q.slice(), k.slice(), v.slice(), o.slice(), lse.slice());
    let buffers = BackwardBuffers::new(forward, d_o.slice(), dq.slice(), dk.slice(), dv.slice());
    let buffers = others.add_to(buffers.with(Operand::DLse, d_lse.slice()));
    let buffers = buffers.with(Operand::DBias, dbias.as_ref().map(Bound::slice));
    let buffers = buffers.with(Operand::DSink, dsink.as_ref().map(Bound::slice));
    installed.submit(|encoder| prepared.encode_call(encoder, &buffers, &question.call))?;
    let [dbias, dsink] = [dbias, dsink].map(|bound| MaybeFloat::of(bound.map(|bound| bound.tensor)));
    Ok(InputGradients { dq: dq.tensor, dk: dk.tensor, dv: dv.tensor, dbias, dsink })
}

pub(crate) fn append(inputs: AppendInputs<CubeBackend>, append: AppendProblem) -> Result<Appended<CubeBackend>, Error> {
    let AppendInputs { k_cache, v_cache, seqlens, k, v, q, cos, sin } = inputs;
    let installed = installed(&k.device, "k")?;
    // In place, unless somebody else still has the cache as it was.
    let own = |cache: CubeTensor| if cache.handle.can_mut() { cache } else { cache.copy() };
    let [k_cache, v_cache] = [own(k_cache), own(v_cache)].map(Bound::new);
    let [k, v] = [k, v].map(Bound::of_rows);
    let seqlens = Bound::contiguous(seqlens, 16);
    let new_seqlens = Bound::new(empty_contiguous(&k.tensor, seqlens.tensor.meta.shape(), seqlens.tensor.dtype));
    let mut layout = AttentionLayout { k: k.layout(), v: v.layout(), ..append.layout };
    let q = q.tensor().map(Bound::of_rows);
    let [cos, sin] = [cos, sin].map(|table| table.tensor().map(|table| Bound::contiguous(table, 16)));
    let rotated = q.as_ref().map(|q| Bound::new(rows(&q.tensor, q.tensor.meta.shape()[3], false)));
    if let (Some(q), Some(rotated)) = (&q, &rotated) {
        (layout.q, layout.o) = (q.layout(), rotated.layout());
    }
    let prepared = installed.append(&append.with_layout(layout))?;
    let buffers = AppendBuffers::new(k.slice(), v.slice(), k_cache.slice(), v_cache.slice())
        .with(Operand::CacheSeqlens, seqlens.slice())
        .with(Operand::NewCacheSeqlens, new_seqlens.slice())
        .with(Operand::Q, q.as_ref().map(Bound::slice))
        .with(Operand::QRotated, rotated.as_ref().map(Bound::slice))
        .with(Operand::RotaryCos, cos.as_ref().map(Bound::slice))
        .with(Operand::RotarySin, sin.as_ref().map(Bound::slice));
    installed.submit(|encoder| prepared.encode(encoder, &buffers))?;
    let q = MaybeFloat::of(rotated.map(|rotated| rotated.tensor));
    Ok(Appended { k_cache: k_cache.tensor, v_cache: v_cache.tensor, seqlens: new_seqlens.tensor, q })
}
