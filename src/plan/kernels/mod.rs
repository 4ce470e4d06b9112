//! The kernels. Each has a spec that says what it is, in the file of its family.

mod append;
mod backward;
mod backward_matrices;
mod combine;
mod dbias;
mod decode;
mod fold;
mod forward;
mod forward_matrices;
mod kernel;
mod preprocess;
mod sequences;
mod sink;
mod spec;
mod specialization;
mod standard;
mod text;
mod turns;

pub use kernel::Kernel;
pub use specialization::{Access, Chain, LengthsAtCall, RowReduce, Specialization, Storage};

pub(super) use append::rows_of_workgroup;
pub(crate) use spec::{Grid, KernelSpec, Traffic};
pub(crate) use specialization::{AppendText, CachedText, OwnWgsl, RowMaxima, RowPlace, RowTarget};
#[cfg(target_arch = "wasm32")]
pub(crate) use text::shortened;
pub(crate) use text::{File, Piece, Slot, matrix_wgsl, wgsl};
pub(super) use turns::{Loops, PHILOX};

use super::capabilities::Capabilities;
use super::check::MAX_HEAD_DIM;
use super::tiles::{Owns, Tiles};
use crate::operand::{Operand, Usage};

impl Kernel {
    /// All that planning and shaders must know of it.
    pub(crate) const fn spec(self) -> &'static KernelSpec {
        match self {
            Kernel::FlashForward => &forward::FORWARD,
            Kernel::FlashForwardSplit => &forward::SPLIT,
            Kernel::FlashForwardCooperative => &forward_matrices::FORWARD,
            Kernel::FlashForwardCooperativeSplit => &forward_matrices::SPLIT,
            Kernel::FlashForwardCooperativePacked => &forward_matrices::PACKED,
            Kernel::FlashForwardCooperativePackedSplit => &forward_matrices::PACKED_SPLIT,
            Kernel::FlashDecode => &decode::DECODE,
            Kernel::FlashDecodeSplit => &decode::SPLIT,
            Kernel::Combine => &combine::COMBINE,
            Kernel::Fold => &fold::FOLD,
            Kernel::StandardScores => &standard::SCORES,
            Kernel::StandardSoftmax => &standard::SOFTMAX,
            Kernel::StandardOutput => &standard::OUTPUT,
            Kernel::FlashBackwardPreprocess => &preprocess::PREPROCESS,
            Kernel::FlashBackwardDkdv => &backward::DKDV,
            Kernel::FlashBackwardDq => &backward::DQ,
            Kernel::FlashBackwardDkdvCooperative => &backward_matrices::DKDV,
            Kernel::FlashBackwardDqCooperative => &backward_matrices::DQ,
            Kernel::StandardDp => &standard::DP,
            Kernel::StandardDs => &standard::DS,
            Kernel::StandardDv => &standard::DV,
            Kernel::StandardDk => &standard::DK,
            Kernel::StandardDq => &standard::DQ,
            Kernel::BackwardSink => &sink::SINK,
            Kernel::FlashBackwardDbias => &dbias::DBIAS,
            Kernel::FlashBackwardDbiasSums => &dbias::SUMS,
            Kernel::RoundDbias => &dbias::ROUND,
            Kernel::Probabilities => &standard::PROBABILITIES,
            Kernel::Sequences => &sequences::SEQUENCES,
            Kernel::AppendK => &append::APPEND_K,
            Kernel::AppendV => &append::APPEND_V,
            Kernel::RotateQ => &append::ROTATE_Q,
            Kernel::RotateQInPlace => &append::ROTATE_Q_IN_PLACE,
            Kernel::AppendSeqlens => &append::SEQLENS,
        }
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        self.spec().name
    }

    /// The name of its file in `shaders/`, without `.wgsl`.
    pub fn file(self) -> &'static str {
        self.spec().file.name.trim_end_matches(".wgsl")
    }

    /// What all its specializations bind, by number.
    pub const fn operands(self) -> &'static [(Operand, Usage)] {
        self.spec().operands
    }
}

impl Specialization {
    /// The same, where everything that this kernel does not depend on has one fixed value. So it is a cache key.
    pub(crate) fn canonical(mut self) -> Self {
        use Operand::{DO, K, O, OParts, Q, V};
        let kernel = self.kernel.spec();
        let binds_any = |operands: &[Operand]| operands.iter().any(|&operand| kernel.binds(operand));
        self.in_lockstep &= kernel.on_matrices;
        self.masked_loop &= kernel.masked_loop;
        self.has_long_sums &= kernel.long_sums;
        self.has_window &= kernel.masks;
        self.has_dropout &= kernel.drops;
        if !kernel.scores {
            self.score_mods = Chain::default();
            self.wgsl.score = None;
        }
        if !kernel.masks {
            self.key_masks = Chain::default();
            self.wgsl.mask = None;
        }
        if !self.score_mods.reads(Operand::Bias) && !kernel.binds(Operand::DBias) {
            self.bias_element = None;
        }
        if !kernel.binds(K) {
            self.cached = CachedText::default();
        }
        // Others ask for the score of a single key too.
        self.bias_in_quads &= kernel.on_matrices && self.score_mods.reads(Operand::Bias);
        self.has_lists &= kernel.text.iter().any(|piece| matches!(piece, Piece::OneOf(Slot::Visits)));
        let asks_for_tiles = kernel.masks || kernel.scores || kernel.grid == Grid::ScoreTiles;
        let writes_lengths = kernel.owns == Owns::Sequences;
        let has_rows = !writes_lengths && kernel.owns != Owns::Everything;
        self.packed_q &= has_rows;
        self.packed_kv &= has_rows;
        let asks_for_rows = kernel.ends_rows && self.has_sink || self.packed_q;
        self.has_lengths &= asks_for_tiles || asks_for_rows || writes_lengths;
        if !writes_lengths {
            self.lengths_at_call = LengthsAtCall::default();
        }
        self.has_sink &= kernel.ends_rows;
        self.f32_gradients &= kernel.operands.iter().any(|(operand, _)| operand.is_gradient());
        self.adds_gradients &= self.f32_gradients;
        self.f32_output &= kernel.operands.contains(&(O, Usage::Write));
        self.has_place &= self.has_dropout || self.has_own_wgsl();
        if kernel.row_sums.is_none() {
            self.row_reduce = RowReduce::Alone;
        }
        if !binds_any(&[Q, K]) {
            self.head_dim = 1;
        }
        if !binds_any(&[V, O, DO, OParts]) {
            self.head_dim_v = 1;
        }
        let reads_parts = kernel.operands.contains(&(OParts, Usage::Read));
        self.parts_in_f32 &= reads_parts;
        if reads_parts {
            self.tiles = Tiles::NONE;
        }
        if !kernel.operands.iter().any(|(operand, _)| operand.holds_elements()) {
            self.storage = Storage::F32;
            self.access = Access::Quad;
        }
        self
    }

    /// What it binds: what its kernel does, and what its modifiers, masks, sink and lengths read.
    pub fn operands(&self) -> impl Iterator<Item = (Operand, Usage)> {
        let writes_tables = self.kernel.spec().binds(Operand::Tables);
        let is_read = move |operand: &Operand| {
            let has_table = (self.has_lengths || self.has_lists) && !writes_tables && *operand == Operand::Tables;
            has_table || self.score_mods.reads(*operand) || self.key_masks.reads(*operand)
        };
        let read = [Operand::Tables, Operand::Bias, Operand::KeyMask, Operand::Aux].into_iter().filter(is_read);
        let at_call = self
            .lengths_at_call
            .operands()
            .chain(self.operands_of_append())
            .chain(self.cached.is_paged.then_some(Operand::PageTable));
        let more = read.chain(self.has_sink.then_some(Operand::Sink)).chain(at_call);
        self.kernel.operands().iter().copied().chain(more.map(|operand| (operand, Usage::Read)))
    }

    /// Whether it binds this.
    pub(in crate::plan) fn binds(&self, operand: Operand) -> bool {
        self.operands().any(|(other, _)| other == operand)
    }

    /// What an append reads beside the rows.
    fn operands_of_append(&self) -> impl Iterator<Item = Operand> {
        use Operand::{CacheSeqlens, CuSeqlensNew, PageTable, RotaryCos, RotarySin, SlotMapping};
        let append = self.append;
        let is_read = move |operand: &Operand| {
            append.is_some_and(|append| match operand {
                CacheSeqlens => append.reads_seqlens(),
                PageTable => append.place == RowPlace::Paged,
                SlotMapping => append.place == RowPlace::Slots,
                CuSeqlensNew => append.packed,
                _ => append.rotary.is_some(),
            })
        };
        [CacheSeqlens, PageTable, SlotMapping, CuSeqlensNew, RotaryCos, RotarySin].into_iter().filter(is_read)
    }

    /// Whether a kernel can be made of it, on some device. Those of plans always can.
    pub(crate) fn is_sound(&self) -> bool {
        let Self { tiles, head_dim, head_dim_v, .. } = *self;
        let subgroup = if tiles.broadcast > 1 { tiles.broadcast } else { tiles.lanes };
        let anything = Capabilities {
            shader_f16: true,
            subgroups: true,
            subgroup_min_size: subgroup,
            subgroup_max_size: subgroup,
            matrix_side: tiles.matrix_side,
            max_workgroup_storage: u32::MAX - 1,
            max_invocations: 4096,
            ..Capabilities::webgpu_defaults()
        };
        let has_dims = [head_dim, head_dim_v].iter().all(|dim| (1..=MAX_HEAD_DIM).contains(dim));
        has_dims && self.kernel.spec().fits(self, &anything)
    }

    /// Bytes of workgroup memory that the shader declares.
    pub fn workgroup_bytes(&self) -> u32 {
        self.kernel.spec().workgroup_bytes(self)
    }

    /// The workgroup size.
    pub fn invocations(&self) -> u32 {
        let kernel = self.kernel.spec();
        kernel.invocations.unwrap_or_else(|| self.tiles.invocations_of(kernel.owns))
    }
}
