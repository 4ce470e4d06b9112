//! The slice form: upload, run, read back.

use super::attention::FlashAttention;
use super::buffers::NO_SLICES;
use super::operation::Operation;
use super::scope::ErrorScope;
use crate::error::{Error, InvalidProblem};
use crate::plan::{Call, Direction, Operand, Plan, Usage};
use crate::problem::{AttentionProblem, AuxType, CacheType, Element, ElementType, MergeProblem, ProbabilitiesProblem};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

/// What the slice form returns.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ForwardOutput<T> {
    /// O in the problem's layout; places between its rows are 0.
    pub o: Vec<T>,
    /// The log-sum-exp of each row, `[batch, num_heads, seqlen_q]`, of packed sequences `[num_heads, total_q]`.
    pub lse: Vec<f32>,
}

/// The setters of what a problem may have beside Q, K and V, for those who take it.
macro_rules! entry_setters {
    (of_bias_mask_and_aux) => {
        /// Adds the entries of [`ScoreMod::Bias`](crate::ScoreMod::Bias).
        pub fn with_bias<B: ElementType>(mut self, bias: &'a [B]) -> Self {
            self.entries.bias = Some((B::ELEMENT, bytemuck::cast_slice(bias)));
            self
        }

        /// Adds the words of [`KeyMask::Boolean`](crate::KeyMask::Boolean).
        pub fn with_key_mask(mut self, words: &'a [u32]) -> Self {
            self.entries.key_mask = Some(words);
            self
        }

        /// Adds the data of [`AttentionProblem::with_aux`], for functions that read f32.
        pub fn with_aux(mut self, aux: &'a [f32]) -> Self {
            self.entries.aux = Some((AuxType::F32, bytemuck::cast_slice(aux)));
            self
        }

        /// Adds the data of [`AttentionProblem::with_aux`], for functions that read u32.
        pub fn with_aux_u32(mut self, aux: &'a [u32]) -> Self {
            self.entries.aux = Some((AuxType::U32, bytemuck::cast_slice(aux)));
            self
        }
    };
    (of_sink) => {
        /// Adds the logits of [`AttentionProblem::with_sink`], f32 `[num_heads]`.
        pub fn with_sink(mut self, sink: &'a [f32]) -> Self {
            self.entries.sink = Some(sink);
            self
        }
    };
}

/// What the slice form of the forward pass takes, each in its layout and perhaps longer than needed.
#[derive(Clone, Copy, Debug)]
#[must_use]
#[non_exhaustive]
pub struct ForwardSlices<'a, T> {
    /// Queries.
    pub q: &'a [T],
    /// Keys.
    pub k: &'a [T],
    /// Values.
    pub v: &'a [T],
    entries: EntrySlices<'a>,
}

impl<'a, T> ForwardSlices<'a, T> {
    /// Q, K and V; no bias and no mask.
    pub fn new(q: &'a [T], k: &'a [T], v: &'a [T]) -> Self {
        Self { q, k, v, entries: EntrySlices::default() }
    }

    entry_setters!(of_bias_mask_and_aux);
    entry_setters!(of_sink);
}

/// The entries of a bias, in their element, the words of a mask, the logits of a sink, and data for functions in WGSL.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct EntrySlices<'a> {
    bias: Option<(Element, &'a [u8])>,
    key_mask: Option<&'a [u32]>,
    sink: Option<&'a [f32]>,
    aux: Option<(AuxType, &'a [u8])>,
}

impl<'a> EntrySlices<'a> {
    /// What the plan reads of them. What was given and the plan does not read is refused with the other buffers.
    fn inputs(&self, plan: &Plan) -> Result<Vec<Input<'a>>, Error> {
        // The plan counts words of a mask, and all that aux holds, as f32.
        let words = self.key_mask.map(|words| (Element::F32, bytemuck::cast_slice(words)));
        let sink = self.sink.map(|logits| (Element::F32, bytemuck::cast_slice(logits)));
        let aux = self.aux.map(|(_, bytes)| (Element::F32, bytes));
        let read = plan.problem().snippets().find_map(|snippet| snippet.aux);
        if let (Some((found, _)), Some(expected)) = (self.aux, read)
            && found != expected
        {
            return Err(Error::AuxMismatch { expected, found });
        }
        let mut inputs = Vec::new();
        let of_all =
            [(Operand::Bias, self.bias), (Operand::KeyMask, words), (Operand::Sink, sink), (Operand::Aux, aux)];
        for (operand, given) in of_all {
            let Some(expected) = plan.element(operand) else {
                inputs.extend(given.map(|(_, bytes)| Input { operand, bytes }));
                continue;
            };
            let (found, bytes): (Element, &[u8]) = given.unwrap_or((expected, &[]));
            if found != expected {
                return Err(Error::ElementMismatch { expected, found });
            }
            let (needed, size) = (plan.required_len(operand), expected.size());
            let found = bytes.len() as u64 / size;
            if found < needed {
                return Err(Error::SliceTooShort { operand, needed, found });
            }
            inputs.push(Input { operand, bytes: &bytes[..(needed * size) as usize] });
        }
        Ok(inputs)
    }
}

/// What the slice form of attention over a cache takes, each in its layout and perhaps longer than needed. T is the type of Q, C that
/// of the cache (u32 for the words of int8).
#[derive(Clone, Copy, Debug)]
#[must_use]
#[non_exhaustive]
pub struct CacheSlices<'a, T, C> {
    /// Queries.
    pub q: &'a [T],
    /// The cache of keys.
    pub k_cache: &'a [C],
    /// The cache of values.
    pub v_cache: &'a [C],
    page_table: Option<&'a [u32]>,
    entries: EntrySlices<'a>,
}

impl<'a, T, C> CacheSlices<'a, T, C> {
    /// Queries and the caches; no page table, no bias and no mask.
    pub fn new(q: &'a [T], k_cache: &'a [C], v_cache: &'a [C]) -> Self {
        Self { q, k_cache, v_cache, page_table: None, entries: EntrySlices::default() }
    }

    /// Adds the page table, `[batch, max_pages]`.
    pub fn with_page_table(mut self, page_table: &'a [u32]) -> Self {
        self.page_table = Some(page_table);
        self
    }

    entry_setters!(of_bias_mask_and_aux);
    entry_setters!(of_sink);
}

/// What the slice form of the backward pass takes, each in its layout and perhaps longer than needed.
#[derive(Clone, Copy, Debug)]
#[must_use]
#[non_exhaustive]
pub struct BackwardSlices<'a, T> {
    /// Queries.
    pub q: &'a [T],
    /// Keys.
    pub k: &'a [T],
    /// Values.
    pub v: &'a [T],
    /// The output of the forward pass.
    pub o: &'a [T],
    /// The log-sum-exp of the forward pass, as it gives it.
    pub lse: &'a [f32],
    /// The gradient of O.
    pub d_o: &'a [T],
    /// The gradient of LSE, if there is one.
    pub d_lse: Option<&'a [f32]>,
    entries: EntrySlices<'a>,
}

impl<'a, T> BackwardSlices<'a, T> {
    /// What the forward pass took and gave, and the gradient of O; no gradient of LSE.
    pub fn new(q: &'a [T], k: &'a [T], v: &'a [T], o: &'a [T], lse: &'a [f32], d_o: &'a [T]) -> Self {
        Self { q, k, v, o, lse, d_o, d_lse: None, entries: EntrySlices::default() }
    }

    /// Adds the gradient of LSE, f32, which lies as LSE does.
    pub fn with_d_lse(mut self, d_lse: &'a [f32]) -> Self {
        self.d_lse = Some(d_lse);
        self
    }

    entry_setters!(of_bias_mask_and_aux);
    entry_setters!(of_sink);
}

/// What the slice form of probabilities takes, all of the whole problem, each in its layout and perhaps longer than needed.
#[derive(Clone, Copy, Debug)]
#[must_use]
#[non_exhaustive]
pub struct ProbabilitiesSlices<'a, T> {
    /// Queries.
    pub q: &'a [T],
    /// Keys.
    pub k: &'a [T],
    /// The log-sum-exp of the forward pass, `[batch, num_heads, seqlen_q]`. A sink is a part of it.
    pub lse: &'a [f32],
    pub(super) entries: EntrySlices<'a>,
}

impl<'a, T> ProbabilitiesSlices<'a, T> {
    /// Q, K and LSE; no bias and no mask.
    pub fn new(q: &'a [T], k: &'a [T], lse: &'a [f32]) -> Self {
        Self { q, k, lse, entries: EntrySlices::default() }
    }

    entry_setters!(of_bias_mask_and_aux);
}

/// What the slice form of the backward pass returns, in the problem's gradient layout; places between rows are 0.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct BackwardOutput<T> {
    /// The gradient of Q.
    pub dq: Vec<T>,
    /// The gradient of K.
    pub dk: Vec<T>,
    /// The gradient of V.
    pub dv: Vec<T>,
    /// The gradient of the sinks, `[num_heads]`; empty without any.
    pub dsink: Vec<f32>,
    /// The gradient of the bias, rounded to the bias's type, in the layout of
    /// [`EntryLayout::of_gradient`](crate::EntryLayout::of_gradient); empty without
    /// [`with_bias_gradient`](AttentionProblem::with_bias_gradient).
    pub dbias: Vec<f32>,
}

impl FlashAttention {
    /// Uploads Q, K and V, runs the operation and reads O and LSE back. Slices are in the problem's layouts and may be
    /// longer than needed. Pipelines are kept for the next call; buffers are not.
    ///
    /// # Errors
    /// [`Error::ElementMismatch`] and [`Error::SliceTooShort`] for the slices, those of
    /// [`FlashAttention::prepare_forward`], and [`Error::OutOfMemory`], [`Error::DeviceLost`] and [`Error::Gpu`] from
    /// the device.
    pub async fn forward<T: ElementType>(
        &self,
        problem: &AttentionProblem,
        q: &[T],
        k: &[T],
        v: &[T],
    ) -> Result<ForwardOutput<T>, Error> {
        self.forward_with(problem, &ForwardSlices::new(q, k, v)).await
    }

    /// As [`FlashAttention::forward`], for problems with a bias, a mask or a sink too.
    ///
    /// # Errors
    /// As [`FlashAttention::forward`]; [`Error::BufferUnexpected`] for one that the problem has not.
    pub async fn forward_with<T: ElementType>(
        &self,
        problem: &AttentionProblem,
        slices: &ForwardSlices<'_, T>,
    ) -> Result<ForwardOutput<T>, Error> {
        expect_element::<T>(problem.element)?;
        if problem.cache().is_some() {
            let reason = "K and V are in one: use FlashAttention::forward_over_cache".into();
            return Err(InvalidProblem::Cache { reason }.into());
        }
        let plan = self.plan_forward(problem).build()?;
        let mut inputs = slices.entries.inputs(&plan)?;
        for (operand, slice) in [(Operand::Q, slices.q), (Operand::K, slices.k), (Operand::V, slices.v)] {
            inputs.push(Input::new(&plan, operand, slice)?);
        }
        self.o_and_lse(plan, &inputs).await
    }

    /// As [`FlashAttention::forward_with`], for a problem [over a cache](AttentionProblem::with_cache), whose lengths are a part of
    /// it ([`with_lengths`](AttentionProblem::with_lengths)).
    ///
    /// # Errors
    /// As [`FlashAttention::forward_with`]; [`Error::CacheMismatch`] for a cache of another type;
    /// [`Error::InvalidTable`] for a page that does not exist, before the end of a sequence.
    pub async fn forward_over_cache<T: ElementType, C: CacheType>(
        &self,
        problem: &AttentionProblem,
        slices: &CacheSlices<'_, T, C>,
    ) -> Result<ForwardOutput<T>, Error> {
        self.forward_over_cache_plan(self.plan_forward(problem).build()?, slices).await
    }

    /// As [`FlashAttention::forward_over_cache`], by a plan that was made for this device, for example with other
    /// [splits](crate::PlanBuilder::with_splits).
    ///
    /// # Errors
    /// As [`FlashAttention::forward_over_cache`], and those of [`FlashAttention::prepare_forward_plan`].
    pub async fn forward_over_cache_plan<T: ElementType, C: CacheType>(
        &self,
        plan: Plan,
        slices: &CacheSlices<'_, T, C>,
    ) -> Result<ForwardOutput<T>, Error> {
        let plan = self.own(plan, Direction::Forward)?;
        let problem = plan.problem();
        expect_element::<T>(problem.element)?;
        let Some(cache) = problem.cache() else {
            let reason = "the problem has none: add AttentionProblem::with_cache".into();
            return Err(InvalidProblem::Cache { reason }.into());
        };
        if C::CACHE_ELEMENT != cache.element {
            return Err(Error::CacheMismatch { expected: cache.element, found: C::CACHE_ELEMENT });
        }
        let mut inputs = slices.entries.inputs(&plan)?;
        inputs.push(Input::new(&plan, Operand::Q, slices.q)?);
        inputs.push(Input::new(&plan, Operand::K, slices.k_cache)?);
        inputs.push(Input::new(&plan, Operand::V, slices.v_cache)?);
        if cache.pages.is_some() || slices.page_table.is_some() {
            let page_table = slices.page_table.unwrap_or_default();
            inputs.push(Input::new(&plan, Operand::PageTable, page_table)?);
            let positions = |batch| 0..problem.lengths_of(batch).1;
            let fault = |batch| cache.fault_of_pages(page_table, batch, &positions(batch));
            if let Some(reason) = (0..problem.shape.batch).find_map(fault) {
                return Err(Error::InvalidTable { operand: Operand::PageTable, reason });
            }
        }
        self.o_and_lse(plan, &inputs).await
    }

    /// Uploads partial results, merges them and reads O and LSE back. P is the type of the parts, T that of O.
    ///
    /// # Errors
    /// As [`FlashAttention::forward`], and those of [`FlashAttention::prepare_merge`].
    pub async fn merge<P: ElementType, T: ElementType>(
        &self,
        merge: &MergeProblem,
        o_parts: &[P],
        lse_parts: &[f32],
    ) -> Result<ForwardOutput<T>, Error> {
        expect_element::<P>(merge.parts_element)?;
        expect_element::<T>(merge.element)?;
        let plan = self.plan_merge(merge).build()?;
        let inputs = [Input::new(&plan, Operand::OParts, o_parts)?, Input::new(&plan, Operand::LseParts, lse_parts)?];
        self.o_and_lse(plan, &inputs).await
    }

    /// Uploads Q, K and the LSE of the forward pass; reads the probabilities of the chosen heads and rows back, `[batch, chosen
    /// heads, chosen rows, seqlen_kv]`.
    ///
    /// # Errors
    /// As [`FlashAttention::forward_with`], and those of [`FlashAttention::prepare_probabilities`].
    pub async fn probabilities<T: ElementType>(
        &self,
        chosen: &ProbabilitiesProblem,
        slices: &ProbabilitiesSlices<'_, T>,
    ) -> Result<Vec<f32>, Error> {
        expect_element::<T>(chosen.attention.element)?;
        let plan = self.plan_probabilities(chosen).build()?;
        let mut inputs = slices.entries.inputs(&plan)?;
        inputs.push(Input::new(&plan, Operand::Q, slices.q)?);
        inputs.push(Input::new(&plan, Operand::K, slices.k)?);
        inputs.push(Input::new(&plan, Operand::Lse, slices.lse)?);
        self.run(plan, &inputs).await?.take(Operand::Probabilities)
    }

    /// Uploads what the forward pass took and gave, and the gradient of O; reads the gradients of Q, K and V back, and those of a
    /// sink and a bias.
    ///
    /// # Errors
    /// As [`FlashAttention::forward`]; [`Error::ElementMismatch`] also for a problem with
    /// [`with_f32_gradients`](AttentionProblem::with_f32_gradients) that are not T: see [`FlashAttention::backward_in_f32`].
    pub async fn backward<T: ElementType>(
        &self,
        problem: &AttentionProblem,
        slices: &BackwardSlices<'_, T>,
    ) -> Result<BackwardOutput<T>, Error> {
        self.gradients(problem, slices).await
    }

    /// As [`FlashAttention::backward`], with gradients in f32 for every type of the other tensors.
    ///
    /// # Errors
    /// As [`FlashAttention::backward`].
    pub async fn backward_in_f32<T: ElementType>(
        &self,
        problem: &AttentionProblem,
        slices: &BackwardSlices<'_, T>,
    ) -> Result<BackwardOutput<f32>, Error> {
        self.gradients(&problem.clone().with_f32_gradients(), slices).await
    }

    async fn gradients<T: ElementType, G: ElementType>(
        &self,
        problem: &AttentionProblem,
        slices: &BackwardSlices<'_, T>,
    ) -> Result<BackwardOutput<G>, Error> {
        expect_element::<T>(problem.element)?;
        expect_element::<G>(problem.gradient_element())?;
        let plan = self.plan_backward(problem).build()?;
        let mut inputs = vec![
            Input::new(&plan, Operand::Q, slices.q)?,
            Input::new(&plan, Operand::K, slices.k)?,
            Input::new(&plan, Operand::V, slices.v)?,
            Input::new(&plan, Operand::O, slices.o)?,
            Input::new(&plan, Operand::Lse, slices.lse)?,
            Input::new(&plan, Operand::DO, slices.d_o)?,
        ];
        if let Some(d_lse) = slices.d_lse {
            inputs.push(Input::new(&plan, Operand::DLse, d_lse)?);
        }
        inputs.extend(slices.entries.inputs(&plan)?);
        let bias_element = plan.element(Operand::DBias);
        let mut outputs = self.run(plan, &inputs).await?;
        Ok(BackwardOutput {
            dq: outputs.take(Operand::Dq)?,
            dk: outputs.take(Operand::Dk)?,
            dv: outputs.take(Operand::Dv)?,
            dsink: outputs.take(Operand::DSink)?,
            dbias: match bias_element {
                Some(Element::F16) => in_f32::<half::f16>(outputs.take(Operand::DBias)?),
                Some(Element::Bf16) => in_f32::<half::bf16>(outputs.take(Operand::DBias)?),
                Some(Element::F32) | None => outputs.take(Operand::DBias)?,
            },
        })
    }

    async fn o_and_lse<T: ElementType>(&self, plan: Plan, inputs: &[Input<'_>]) -> Result<ForwardOutput<T>, Error> {
        let mut outputs = self.run(plan, inputs).await?;
        Ok(ForwardOutput { o: outputs.take(Operand::O)?, lse: outputs.take(Operand::Lse)? })
    }

    /// Compiles, uploads, runs and reads back what the plan writes.
    pub(super) async fn run(&self, plan: Plan, inputs: &[Input<'_>]) -> Result<Outputs, Error> {
        self.run_on_device(plan, inputs).await.map_err(|error| self.or_lost(error))
    }

    async fn run_on_device(&self, plan: Plan, inputs: &[Input<'_>]) -> Result<Outputs, Error> {
        if let Some(name) = plan.lengths_at_call().next() {
            let reason = "slices have none; give them with the problem, by with_lengths or with_cu_seqlens".into();
            return Err(InvalidProblem::Lengths { name: name.name(), reason }.into());
        }
        let operation = Operation::new(self, plan).await?;
        let written = operation.plan.tensors().iter().filter(|tensor| tensor.usage == Usage::Write);
        let written: Vec<Operand> = written.map(|tensor| tensor.operand).collect();
        let scope = ErrorScope::open(&self.device, "uploading, running or reading back");
        let result = self.submit(&operation, inputs, &written);
        scope.close().await?;
        let mut outputs = Outputs(Vec::new());
        for (operand, readback) in written.into_iter().zip(result?) {
            let len = operation.plan.required_len(operand);
            let mapped = spanned!(readback.mapped(&self.device), "read_back", tensor = operand.name());
            outputs.0.push((operand, len, mapped.await?));
        }
        Ok(outputs)
    }

    fn submit(&self, operation: &Operation, inputs: &[Input<'_>], outputs: &[Operand]) -> Result<Vec<Readback>, Error> {
        span!("submit", operation = %operation.title);
        let output = |operand: Operand, usage| {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(operand.name()),
                size: operation.plan.required_bytes(operand).max(16),
                usage,
                mapped_at_creation: false,
            })
        };
        let mut buffers = Vec::with_capacity(inputs.len() + outputs.len());
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
        for Input { operand, bytes } in inputs {
            // What is written in part, such as a cache, is both.
            let usage = if outputs.contains(operand) { usage } else { wgpu::BufferUsages::STORAGE };
            buffers.push((*operand, buffer_with(&self.device, operand.name(), bytes, usage)?));
        }
        for &operand in outputs.iter().filter(|output| inputs.iter().all(|input| input.operand != **output)) {
            let buffer = match operand {
                // That of rows that no sequence uses, which nothing writes.
                Operand::Lse if operation.plan.problem().total_q().is_some() => {
                    let lse = vec![f32::NEG_INFINITY; operation.plan.required_len(operand) as usize];
                    buffer_with(&self.device, operand.name(), bytemuck::cast_slice(&lse), usage)?
                }
                _ => output(operand, usage),
            };
            buffers.push((operand, buffer));
        }
        let mut slices = NO_SLICES;
        for (operand, buffer) in &buffers {
            slices[*operand as usize] = Some(buffer.slice(..));
        }

        let encoder = || self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let call = Call::default();
        let mut last = encoder();
        let dispatches = operation.dispatches(&slices, &call)?;
        if operation.plan.problem().max_flops_per_dispatch.is_some() {
            // A watchdog counts submissions, so each part goes alone.
            for dispatch in dispatches.chunks(1) {
                let mut encoder = encoder();
                operation.record(&mut encoder, &slices, dispatch)?;
                self.queue.submit([encoder.finish()]);
            }
        } else {
            operation.record(&mut last, &slices, &dispatches)?;
        }
        let mut hosts = Vec::with_capacity(outputs.len());
        for operand in outputs {
            let host = output(*operand, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
            let written = buffers.iter().find(|(other, _)| other == operand);
            written.inspect(|(_, buffer)| last.copy_buffer_to_buffer(buffer, 0, &host, 0, host.size()));
            hosts.push(host);
        }
        self.queue.submit([last.finish()]);
        Ok(hosts.into_iter().map(Readback::start).collect())
    }
}

pub(super) fn expect_element<T: ElementType>(expected: Element) -> Result<(), Error> {
    if T::ELEMENT == expected { Ok(()) } else { Err(Error::ElementMismatch { expected, found: T::ELEMENT }) }
}

/// 16-bit elements in f32, which holds all of them.
fn in_f32<T: ElementType>(elements: Vec<T>) -> Vec<f32> {
    elements.into_iter().map(|element| element.to_f64() as f32).collect()
}

/// The bytes of a tensor on the host.
pub(super) struct Input<'a> {
    operand: Operand,
    bytes: &'a [u8],
}

impl<'a> Input<'a> {
    pub fn new<T: bytemuck::Pod>(plan: &Plan, operand: Operand, slice: &'a [T]) -> Result<Self, Error> {
        let (needed, found) = (plan.required_len(operand), slice.len() as u64);
        if found < needed {
            return Err(Error::SliceTooShort { operand, needed, found });
        }
        Ok(Self { operand, bytes: bytemuck::cast_slice(&slice[..needed as usize]) })
    }
}

/// The tensors that an operation wrote, each with its elements, in a buffer that is mapped.
pub(super) struct Outputs(Vec<(Operand, u64, wgpu::Buffer)>);

impl Outputs {
    /// The elements of a tensor, whose buffer is freed; none of one that was not written.
    pub fn take<T: bytemuck::Pod>(&mut self, operand: Operand) -> Result<Vec<T>, Error> {
        let mut elements = Vec::new();
        let Some(position) = self.0.iter().position(|(written, ..)| *written == operand) else { return Ok(elements) };
        let (_, len, buffer) = self.0.swap_remove(position);
        let is_gone = |_| Error::DeviceLost("a result buffer is no longer mapped".into());
        let range = buffer.slice(..).get_mapped_range().map_err(is_gone)?;
        let no_memory = |_| Error::OutOfMemory("copying results to the host");
        elements.try_reserve_exact(len as usize).map_err(no_memory)?;
        elements.resize(len as usize, T::zeroed());
        let target: &mut [u8] = bytemuck::cast_slice_mut(&mut elements);
        target.copy_from_slice(&range[..target.len()]);
        drop(range);
        buffer.destroy();
        Ok(elements)
    }
}

/// A buffer that holds `bytes`, padded with zeros to whole words and at least 16 bytes.
pub(super) fn buffer_with(
    device: &wgpu::Device,
    label: &'static str,
    bytes: &[u8],
    usage: wgpu::BufferUsages,
) -> Result<wgpu::Buffer, Error> {
    let size = (bytes.len() as u64).next_multiple_of(4).max(16);
    let buffer =
        device.create_buffer(&wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: true });
    // Without memory there is nothing mapped either, but then the scope around knows, and its error goes first.
    let mut mapped =
        buffer.slice(..).get_mapped_range_mut().map_err(|_| Error::DeviceLost("no buffer can be created".into()))?;
    mapped.slice(..bytes.len()).copy_from_slice(bytes);
    drop(mapped);
    buffer.unmap();
    Ok(buffer)
}

/// A buffer on its way to the host.
struct Readback {
    buffer: wgpu::Buffer,
    /// Whether the mapping succeeded.
    mapped: Answer<bool>,
}

impl Readback {
    fn start(buffer: wgpu::Buffer) -> Self {
        let mapped = Answer::default();
        let answer = mapped.clone();
        buffer.slice(..).map_async(wgpu::MapMode::Read, move |result| answer.give(result.is_ok()));
        Self { buffer, mapped }
    }

    async fn mapped(self, device: &wgpu::Device) -> Result<wgpu::Buffer, Error> {
        let driven = drive(device);
        let is_mapped = self.mapped.await;
        driven.await;
        if !is_mapped {
            return Err(Error::DeviceLost("a result buffer could not be mapped".into()));
        }
        Ok(self.buffer)
    }
}

/// Makes callbacks arrive. A thread waits for the device, so the caller's executor does not. The answer comes when the
/// thread has left the driver: a program that ends while a thread is in there may crash.
#[cfg(not(target_arch = "wasm32"))]
fn drive(device: &wgpu::Device) -> Answer<()> {
    let left = Answer::default();
    let wait = {
        let (device, left) = (device.clone(), left.clone());
        move || {
            // An error here is a lost device, which the callback reports too.
            drop(device.poll(wgpu::PollType::wait_indefinitely()));
            drop(device);
            left.give(());
        }
    };
    if std::thread::Builder::new().name("wgpu poll".into()).spawn(wait).is_err() {
        drop(device.poll(wgpu::PollType::wait_indefinitely()));
        left.give(());
    }
    left
}

/// A browser delivers callbacks without help.
#[cfg(target_arch = "wasm32")]
fn drive(_: &wgpu::Device) -> std::future::Ready<()> {
    std::future::ready(())
}

/// What a callback or another thread gives, once.
struct Answer<T>(Arc<Mutex<AnswerState<T>>>);

struct AnswerState<T> {
    given: Option<T>,
    waker: Option<Waker>,
}

impl<T> Default for Answer<T> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(AnswerState { given: None, waker: None })))
    }
}

impl<T> Clone for Answer<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Answer<T> {
    fn give(&self, value: T) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.given = Some(value);
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }
}

impl<T> Future for Answer<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context) -> Poll<T> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match state.given.take() {
            Some(value) => Poll::Ready(value),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}
