//! Tiles measured on one device, and what is worth measuring.

use super::capabilities::Capabilities;
use super::check::check;
use super::choice::fits;
use super::direction::Direction;
use super::kernels::Kernel;
use super::tensor::tensors;
use super::tile_table;
use super::tiles::Tiles;
use crate::problem::{AttentionProblem, Element};

/// What a problem asks of a device. The same tiles are best for problems of one workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Workload {
    /// At most 32 rows for each KV head: the time is that of reading K and V.
    Decode,
    /// Too few rows to fill a large GPU: at most 6144 over all heads and sequences.
    Small,
    /// More rows than that.
    Large,
}

impl Workload {
    /// All workloads.
    pub const ALL: &[Workload] = &[Workload::Decode, Workload::Small, Workload::Large];

    /// The workload of a problem.
    pub fn of(problem: &AttentionProblem) -> Self {
        match &problem.shape {
            shape if tile_table::decodes(shape) => Workload::Decode,
            shape if tile_table::is_small(shape) => Workload::Small,
            _ => Workload::Large,
        }
    }

    /// The name used in tuning files.
    pub const fn name(self) -> &'static str {
        match self {
            Workload::Decode => "decode",
            Workload::Small => "small",
            Workload::Large => "large",
        }
    }
}

/// Tiles that were the fastest for one kind of problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TunedTiles {
    /// The workload of the problem.
    pub workload: Workload,
    /// Its element.
    pub element: Element,
    /// The larger of its head_dim and head_dim_v. The tiles also serve narrower heads, down to the next measured width.
    pub head_dim: u32,
    /// The tiles.
    pub tiles: Tiles,
}

impl TunedTiles {
    /// Tiles for problems of this workload and element, with heads up to this width.
    pub const fn new(workload: Workload, element: Element, head_dim: u32, tiles: Tiles) -> Self {
        Self { workload, element, head_dim, tiles }
    }
}

/// What was measured on one device. The planner prefers it to its own table. The table decides where nothing was measured or
/// no measured tiles fit. `flash tune` makes one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
#[non_exhaustive]
pub struct Tuning {
    /// The fastest tiles of each kind of problem, the best first.
    pub tiles: Vec<TunedTiles>,
    /// Workgroups that keep the device busy. Keys are split if there are fewer. `None` is the planner's guess.
    pub workgroups: Option<u32>,
}

impl Tuning {
    /// The fastest tiles of each kind of problem, the best first.
    pub const fn new(tiles: Vec<TunedTiles>) -> Self {
        Self { tiles, workgroups: None }
    }

    /// Splits keys until this many workgroups keep the device busy.
    pub const fn with_workgroups(mut self, workgroups: u32) -> Self {
        self.workgroups = Some(workgroups);
        self
    }

    /// The tiles for problems like this one, the best first.
    pub(super) fn tiles_for(&self, problem: &AttentionProblem) -> impl Iterator<Item = Tiles> {
        let widest = problem.shape.head_dim.max(problem.shape.head_dim_v);
        let (workload, element) = (Workload::of(problem), problem.element);
        let alike = move |tuned: &&TunedTiles| {
            tuned.workload == workload && tuned.element == element && tuned.head_dim >= widest
        };
        let nearest = self.tiles.iter().filter(alike).map(|tuned| tuned.head_dim).min();
        let tiles = self.tiles.iter().filter(alike).filter(move |tuned| Some(tuned.head_dim) == nearest);
        tiles.map(|tuned| tuned.tiles)
    }
}

/// Tilings of all classes of devices, for any workload.
const WORTH_MEASURING: [Tiles; 16] = [
    Tiles::broadcasting(128, 32, 4, 8),
    Tiles::broadcasting(128, 32, 2, 8),
    Tiles::new(128, 32, 2, 2),
    Tiles::new(128, 32, 1, 1),
    Tiles::new(64, 32, 2, 1),
    Tiles::new(64, 16, 4, 4),
    Tiles::new(64, 16, 2, 4),
    Tiles::new(64, 16, 2, 8),
    Tiles::new(64, 16, 8, 8),
    Tiles::new(64, 16, 4, 8),
    Tiles::new(64, 8, 2, 4),
    Tiles::new(32, 32, 1, 2),
    Tiles::new(32, 32, 1, 4),
    Tiles::new(16, 32, 1, 8),
    Tiles::new(32, 16, 1, 8),
    Tiles::new(32, 16, 1, 16),
];

const WORTH_MEASURING_FOR_DECODING: [Tiles; 14] = [
    Tiles::decode(2, 64, 8, 16),
    Tiles::decode(2, 128, 8, 16),
    Tiles::decode(4, 32, 8, 8),
    Tiles::decode(4, 64, 8, 16),
    Tiles::decode(4, 64, 8, 8),
    Tiles::decode(4, 128, 8, 32),
    Tiles::decode(4, 128, 8, 16),
    Tiles::decode(4, 32, 16, 8),
    Tiles::decode(4, 64, 16, 16),
    Tiles::decode(4, 64, 16, 8),
    Tiles::decode(4, 64, 4, 16),
    Tiles::decode(8, 32, 8, 8),
    Tiles::decode(8, 32, 16, 8),
    Tiles::decode(8, 64, 16, 16),
];

const WORTH_MEASURING_ON_MATRICES: [Tiles; 7] = [
    Tiles::cooperative(128, 32, 32, 32, 16),
    Tiles::cooperative(64, 32, 32, 32, 16),
    Tiles::cooperative(128, 32, 16, 32, 16),
    Tiles::cooperative(64, 32, 16, 32, 16),
    Tiles::cooperative(128, 16, 32, 32, 16),
    Tiles::cooperative(32, 32, 8, 32, 8),
    Tiles::cooperative(64, 32, 16, 32, 8),
];

/// The tiles worth measuring for a problem of flash attention on a device, the table's choice first; none for a problem
/// that is refused.
pub(super) fn candidates(problem: &AttentionProblem, capabilities: &Capabilities) -> Vec<Tiles> {
    let tensors = tensors(problem, Direction::Forward);
    if check(problem, Direction::Forward, &tensors).is_err() {
        return Vec::new();
    }
    let mut candidates: Vec<Tiles> = Vec::new();
    let mut add = |kernel: Kernel, worth_measuring: &[Tiles]| {
        for tiles in (kernel.spec().candidates)(capabilities, problem).iter().chain(worth_measuring) {
            if fits(kernel, *tiles, problem, capabilities, &tensors) && !candidates.contains(tiles) {
                candidates.push(*tiles);
            }
        }
    };
    let decodes = Workload::of(problem) == Workload::Decode;
    if decodes {
        add(Kernel::FlashDecode, &WORTH_MEASURING_FOR_DECODING);
    }
    add(Kernel::FlashForwardCooperative, &WORTH_MEASURING_ON_MATRICES);
    add(Kernel::FlashForward, if decodes { &[] } else { &WORTH_MEASURING });
    candidates
}
