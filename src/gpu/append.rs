//! The slice form of an append to a cache.

use super::attention::FlashAttention;
use super::host::{Input, expect_element};
use crate::error::Error;
use crate::plan::{Operand, Plan};
use crate::problem::{AppendProblem, CacheTables, CacheType, ElementType};

/// What the slice form of an append takes, each in its layout and perhaps longer than needed. T is the type of the new tokens, C
/// that of the cache (u32 for the words of int8).
#[derive(Clone, Copy, Debug)]
#[must_use]
#[non_exhaustive]
pub struct AppendSlices<'a, T, C> {
    /// New keys.
    pub k: &'a [T],
    /// New values.
    pub v: &'a [T],
    /// The cache of keys.
    pub k_cache: &'a [C],
    /// The cache of values.
    pub v_cache: &'a [C],
    q: Option<&'a [T]>,
    cache_seqlens: Option<&'a [u32]>,
    page_table: Option<&'a [u32]>,
    slot_mapping: Option<&'a [u32]>,
    cu_seqlens_new: Option<&'a [u32]>,
    rotary: Option<[&'a [f32]; 2]>,
}

impl<'a, T, C> AppendSlices<'a, T, C> {
    /// New keys and values, and the caches.
    pub fn new(k: &'a [T], v: &'a [T], k_cache: &'a [C], v_cache: &'a [C]) -> Self {
        Self {
            k,
            v,
            k_cache,
            v_cache,
            q: None,
            cache_seqlens: None,
            page_table: None,
            slot_mapping: None,
            cu_seqlens_new: None,
            rotary: None,
        }
    }

    /// Adds the lengths before the append, `[batch]`.
    pub fn with_cache_seqlens(mut self, cache_seqlens: &'a [u32]) -> Self {
        self.cache_seqlens = Some(cache_seqlens);
        self
    }

    /// Adds the page table, `[batch, max_pages]`.
    pub fn with_page_table(mut self, page_table: &'a [u32]) -> Self {
        self.page_table = Some(page_table);
        self
    }

    /// Adds the slot of each new token, `[batch, seqlen_q]`, or `[total]` of packed tokens.
    pub fn with_slot_mapping(mut self, slot_mapping: &'a [u32]) -> Self {
        self.slot_mapping = Some(slot_mapping);
        self
    }

    /// Adds the sums of [`AppendProblem::with_packed_tokens`], `[batch + 1]`.
    pub fn with_cu_seqlens_new(mut self, cu_seqlens_new: &'a [u32]) -> Self {
        self.cu_seqlens_new = Some(cu_seqlens_new);
        self
    }

    /// Adds the tables of rotary embeddings, a row of rotary_dim / 2 for each position or new token.
    pub fn with_rotary(mut self, cos: &'a [f32], sin: &'a [f32]) -> Self {
        self.rotary = Some([cos, sin]);
        self
    }

    /// Adds Q, which is rotated.
    pub fn with_q(mut self, q: &'a [T]) -> Self {
        self.q = Some(q);
        self
    }
}

/// What the slice form of an append returns.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct AppendOutput<T, C> {
    /// The cache of keys, with the new ones.
    pub k_cache: Vec<C>,
    /// The cache of values, with the new ones.
    pub v_cache: Vec<C>,
    /// The rotated Q; empty if Q is not rotated.
    pub q: Vec<T>,
    /// The new lengths, `[batch]`; empty without [`AppendProblem::with_new_cache_seqlens`].
    pub cache_seqlens: Vec<u32>,
}

impl FlashAttention {
    /// Uploads new keys and values and the caches, appends, and reads the caches back.
    ///
    /// # Errors
    /// [`Error::InvalidTable`] for lengths, sums, pages or slots that do not fit, or that put two tokens into one place;
    /// [`Error::ElementMismatch`], [`Error::CacheMismatch`] and [`Error::SliceTooShort`] for the slices; those of
    /// [`FlashAttention::prepare_append`], and [`Error::OutOfMemory`], [`Error::DeviceLost`] and [`Error::Gpu`] from the device.
    pub async fn append<T: ElementType, C: CacheType>(
        &self,
        append: &AppendProblem,
        slices: &AppendSlices<'_, T, C>,
    ) -> Result<AppendOutput<T, C>, Error> {
        expect_element::<T>(append.element)?;
        if C::CACHE_ELEMENT != append.cache.element {
            return Err(Error::CacheMismatch { expected: append.cache.element, found: C::CACHE_ELEMENT });
        }
        let plan = self.plan_append(append).build()?;
        let inputs = slices.inputs(&plan)?;
        let sums = slices.cu_seqlens_new.unwrap_or_default();
        let tables = CacheTables {
            cache_seqlens: slices.cache_seqlens.unwrap_or_default(),
            page_table: slices.page_table.unwrap_or_default(),
            slot_mapping: slices.slot_mapping.unwrap_or_default(),
            // The first of a longer slice.
            cu_seqlens_new: &sums[..sums.len().min(append.shape.batch as usize + 1)],
            rotary_positions: append.rotary().and_then(|rotary| rotary.positions),
        };
        if let Some((operand, reason)) = append.fault_of_tables(&tables) {
            return Err(Error::InvalidTable { operand, reason });
        }
        let mut outputs = self.run(plan, &inputs).await?;
        let mut q = outputs.take(Operand::QRotated)?;
        q.extend(outputs.take::<T>(Operand::Q)?);
        Ok(AppendOutput {
            k_cache: outputs.take(Operand::KCache)?,
            v_cache: outputs.take(Operand::VCache)?,
            q,
            cache_seqlens: outputs.take(Operand::NewCacheSeqlens)?,
        })
    }
}

impl<'a, T: ElementType, C: CacheType> AppendSlices<'a, T, C> {
    /// What the plan reads. What was given and the plan does not read is refused with the other buffers.
    fn inputs(&self, plan: &Plan) -> Result<Vec<Input<'a>>, Error> {
        let mut inputs = vec![
            Input::new(plan, Operand::K, self.k)?,
            Input::new(plan, Operand::V, self.v)?,
            Input::new(plan, Operand::KCache, self.k_cache)?,
            Input::new(plan, Operand::VCache, self.v_cache)?,
        ];
        let is_read = |operand| plan.operands().any(|other| other == operand);
        if self.q.is_some() || is_read(Operand::Q) {
            inputs.push(Input::new(plan, Operand::Q, self.q.unwrap_or_default())?);
        }
        for (operand, slice) in self.tables() {
            if slice.is_some() || is_read(operand) {
                inputs.push(Input::new(plan, operand, slice.unwrap_or_default())?);
            }
        }
        let [cos, sin] = self.rotary.map_or([None; 2], |tables| tables.map(Some));
        for (operand, slice) in [(Operand::RotaryCos, cos), (Operand::RotarySin, sin)] {
            if slice.is_some() || is_read(operand) {
                inputs.push(Input::new(plan, operand, slice.unwrap_or_default())?);
            }
        }
        Ok(inputs)
    }

    fn tables(&self) -> [(Operand, Option<&'a [u32]>); 4] {
        [
            (Operand::CacheSeqlens, self.cache_seqlens),
            (Operand::PageTable, self.page_table),
            (Operand::SlotMapping, self.slot_mapping),
            (Operand::CuSeqlensNew, self.cu_seqlens_new),
        ]
    }
}
