//! The plan of an append to a cache.

use super::capabilities::Capabilities;
use super::check::MAX_LENGTH;
use super::direction::Direction;
use super::kernels::{AppendText, Kernel, RowPlace, RowTarget, Storage};
use super::params::Params;
use super::passes::{Pass, Plan};
use super::tensor::{Tensor, tensors_of_append};
use super::tiles::Tiles;
use crate::error::{Error, InvalidProblem};
use crate::operand::Operand;
use crate::problem::{AppendProblem, CacheElement, RotatedQ};

impl Plan {
    /// An append: passes without tiles, for K, V, perhaps Q and the lengths.
    pub(super) fn of_append(append: &AppendProblem, capabilities: &Capabilities) -> Result<Self, Error> {
        if let Some((name, reason)) = append.fault(MAX_LENGTH) {
            return Err(InvalidProblem::Append { name, reason }.into());
        }
        let tensors = tensors_of_append(append);
        let mut plan = Self::without_passes(&append.rows(), capabilities, Direction::Append, tensors)?;
        plan.append = Some(append.clone());
        let rotated = match append.rotated_q() {
            RotatedQ::None => None,
            RotatedQ::InPlace => Some((Kernel::RotateQInPlace, Operand::Q)),
            RotatedQ::Apart => Some((Kernel::RotateQ, Operand::QRotated)),
        };
        // Q is rotated by the lengths before the append, as K is.
        let of_kv = [(Kernel::AppendK, Operand::KCache), (Kernel::AppendV, Operand::VCache)];
        let seqlens = append.writes_seqlens().then_some((Kernel::AppendSeqlens, Operand::NewCacheSeqlens));
        for (kernel, target) in of_kv.into_iter().chain(rotated).chain(seqlens) {
            plan.add_stage(vec![plan.pass_of_append(append, kernel, target)]);
        }
        Ok(plan)
    }

    fn pass_of_append(&self, append: &AppendProblem, kernel: Kernel, target: Operand) -> Pass {
        let mut pass = self.pass(kernel, Tiles::NONE);
        if pass.specialization.storage == Storage::F16 {
            pass.specialization.storage = Storage::F16Packed;
        }
        let is_cache = matches!(target, Operand::KCache | Operand::VCache);
        let element = if is_cache { append.cache.element } else { append.element.into() };
        let whole_words = self.tensors.iter().find(|tensor| tensor.operand == target).is_some_and(in_words);
        let place = match () {
            () if !is_cache => RowPlace::Rows,
            () if append.has_slot_mapping() => RowPlace::Slots,
            () if append.cache.pages.is_some() => RowPlace::Paged,
            () => RowPlace::Contiguous,
        };
        let is_rotated = matches!(target, Operand::KCache | Operand::Q | Operand::QRotated);
        let rotary = append.rotary().filter(|_| is_rotated);
        pass.specialization.append = Some(AppendText {
            element,
            target: match element {
                CacheElement::F32 => RowTarget::F32,
                CacheElement::Int8 => RowTarget::Int8,
                CacheElement::F16 | CacheElement::Bf16 if whole_words => RowTarget::Pairs,
                CacheElement::F16 | CacheElement::Bf16 => RowTarget::Halves,
            },
            place,
            packed: append.packed_tokens().is_some(),
            rotary: rotary.map(|rotary| (rotary.pairs, rotary.rotary_dim)),
            of_positions: rotary.is_some_and(|rotary| rotary.positions.is_some()),
        });
        pass
    }

    /// What of the uniform is for caches.
    pub(super) fn params_of_cache(&self) -> Params {
        let cache = self.append.as_ref().map(|append| &append.cache).or(self.problem.cache());
        let (pages, rotary) =
            (cache.and_then(|cache| cache.pages), self.append.as_ref().and_then(|append| append.rotary()));
        let [num_pages, page_size] = cache.map_or([0, 0], |cache| cache.counts(&self.problem.shape));
        Params {
            page_size: page_size.max(1),
            // Without positions no slot has a place.
            num_pages: if page_size == 0 { 0 } else { num_pages },
            max_pages: pages.map_or(0, |pages| pages.max_pages),
            rotary_positions: rotary.and_then(|rotary| rotary.positions).unwrap_or(0),
            token_rows: self
                .append
                .as_ref()
                .and_then(|append| append.packed_tokens())
                .unwrap_or(self.problem.shape.seqlen_q),
            ..Params::default()
        }
    }
}

/// Whether every row of 16-bit elements starts with a word and is whole words.
fn in_words(tensor: &Tensor) -> bool {
    let layout = &tensor.layout;
    let numbers = [layout.offset, layout.stride_batch, layout.stride_row, layout.stride_head, tensor.extent.dim.into()];
    numbers.iter().all(|number| number % 2 == 0)
}
