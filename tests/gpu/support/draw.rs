//! Problems drawn at random: a draw is a seed and a number, and the same on every machine.

use wgpu_flash_attention::{
    Alignment, AttentionLayout, AttentionProblem, AttentionShape, Dropout, Element, Mask, Tiles,
};

use super::data::{Inputs, Random, inputs, strided};
use super::device::{Library, limited, with_matrices};
use super::gradients::{GradientInputs, gradient_inputs};

/// What pipelines depend on: of all else there may be as many draws as one likes.
#[derive(Clone, Copy, Debug)]
struct Kind {
    element: Element,
    head_dims: (u32, u32),
    /// Whether rows may be loaded four elements at a time.
    by_quads: bool,
    masked: bool,
    dropped: bool,
}

/// How the forward pass is computed.
#[derive(Clone, Copy, Debug)]
enum Way {
    Planned,
    /// On small tiles, in this many splits of the keys.
    Split(u32),
    Decode(u32),
    /// On matrices, also where the planner would not take them.
    Matrices,
}

#[derive(Debug)]
pub struct Draw {
    pub problem: AttentionProblem,
    way: Way,
    inputs: Values,
    seed: u64,
}

/// What the inputs are like.
#[derive(Clone, Copy, Debug)]
enum Values {
    Normal,
    /// V without signs: nothing cancels.
    Positive,
    /// Large Q: rows see little but their best key.
    Peaked,
    /// Rows of V and dO of many sizes.
    Scaled,
    /// Keys that are all the same: errors do not differ.
    Repeated,
}

impl Random {
    /// One of 0, 1, …, count − 1.
    pub fn below(&mut self, count: u64) -> u64 {
        self.word() % count
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

impl Draw {
    /// Draw number `index` of a seed; on matrices if asked for, else on the kernels that the planner takes and some others.
    pub fn new(seed: u64, index: u64, on_matrices: bool) -> Self {
        let mut random = Random(Random(seed).word().wrapping_add(index.wrapping_mul(0xd1b5_4a32_d192_ed03)));
        let random = &mut random;
        let kind = Kind::draw(random);
        let way = match random.below(4) {
            _ if on_matrices => Way::Matrices,
            0 => Way::Split(random.below(4) as u32 + 2),
            1 => Way::Decode(random.below(3) as u32 + 1),
            _ => Way::Planned,
        };
        let shape = shape(random, kind.head_dims, matches!(way, Way::Decode(_)));
        let mut problem = AttentionProblem::new(shape).with_element(kind.element);
        problem.layout = layout(random, &shape, kind.by_quads);
        problem.gradient_layout = random.one_in(3).then(|| layout(random, &shape, kind.by_quads));
        problem.mask = if kind.masked { mask(random) } else { Mask::default() };
        problem.dropout = kind
            .dropped
            .then(|| Dropout::new(0.01 + 0.89 * random.unit(), random.word()).with_philox_offset(random.word() as u32));
        problem.softmax_scale = random.one_in(2).then(|| 2.0 * random.unit() - 1.0);
        problem.max_flops_per_dispatch = random.one_in(5).then(|| 1 + random.below(100_000));
        let inputs = match random.below(8) {
            0 => Values::Positive,
            1 => Values::Peaked,
            2 => Values::Scaled,
            3 => Values::Repeated,
            _ => Values::Normal,
        };
        Self { problem, way, inputs, seed: random.word() }
    }

    /// The library that answers it forward; `None` where matrices are asked for and the device has none.
    pub fn library(&self) -> Option<Library> {
        let standard = Tiles::new(64, 32, 4, 8);
        match self.way {
            Way::Planned => Some(limited(|_| ())),
            Way::Split(splits) => Some(limited(|_| ()).tiles(Tiles::new(16, 8, 2, 4), standard).splits(splits)),
            Way::Decode(splits) => Some(limited(|_| ()).tiles(Tiles::decode(4, 16, 4, 4), standard).splits(splits)),
            Way::Matrices => with_matrices().cloned(),
        }
    }

    /// The library that answers it backward.
    pub fn backward_library(&self) -> Option<Library> {
        if matches!(self.way, Way::Matrices) { with_matrices().cloned() } else { Some(limited(|_| ())) }
    }

    /// In few words: element, width and way.
    pub fn class(&self) -> String {
        let way = match self.way {
            Way::Planned => "planned",
            Way::Split(_) => "split",
            Way::Decode(_) => "decode",
            Way::Matrices => "matrices",
        };
        format!("{} {way}", self.problem.element.name())
    }

    pub fn inputs(&self) -> Inputs {
        let mut inputs = inputs(&self.problem, self.seed);
        let element = self.problem.element;
        match self.inputs {
            Values::Normal => {}
            Values::Positive => inputs.v.iter_mut().for_each(|v| *v = v.abs()),
            Values::Peaked => inputs.q.iter_mut().for_each(|q| *q = element.round(*q * 8.0)),
            Values::Scaled => self.scale_rows(&mut inputs.v),
            Values::Repeated => {
                let shape = self.problem.shape;
                let row = |values: &[f64], first: u64| values[first as usize..][..shape.head_dim as usize].to_vec();
                for batch in 0..shape.batch {
                    for head in 0..if shape.seqlen_kv > 0 { shape.num_heads_kv } else { 0 } {
                        let repeated = row(&inputs.k, self.problem.layout.k.index(batch, 0, head));
                        for key in 1..shape.seqlen_kv {
                            let first = self.problem.layout.k.index(batch, key, head) as usize;
                            inputs.k[first..first + repeated.len()].copy_from_slice(&repeated);
                        }
                    }
                }
            }
        }
        inputs
    }

    pub fn gradient_inputs(&self) -> GradientInputs {
        let mut given = GradientInputs { inputs: self.inputs(), ..gradient_inputs(&self.problem, self.seed) };
        match self.inputs {
            Values::Scaled => self.scale_rows(&mut given.d_o),
            Values::Positive => given.d_o.iter_mut().for_each(|d_o| *d_o = d_o.abs()),
            _ => {}
        }
        given
    }

    /// Runs of as many elements as a row has, each by a power of two, which rounds only what becomes subnormal.
    fn scale_rows(&self, values: &mut [f64]) {
        let mut random = Random(self.seed ^ 0x5ca1_ab1e);
        for row in values.chunks_mut(self.problem.shape.head_dim_v as usize) {
            let factor = 2f64.powi(random.below(9) as i32 - 4);
            row.iter_mut().for_each(|value| *value = self.problem.element.round(*value * factor));
        }
    }
}

impl Kind {
    fn draw(random: &mut Random) -> Self {
        let element = Element::ALL[random.below(3) as usize];
        let either = random.one_in(2);
        // Few kinds, for each compiles its own pipelines; together they have every pair of mask and dropout.
        match random.one_in(2) {
            true => Self { element, head_dims: (8, 8), by_quads: true, masked: either, dropped: either },
            false => Self { element, head_dims: (31, 20), by_quads: false, masked: either, dropped: !either },
        }
    }
}

fn shape(random: &mut Random, (head_dim, head_dim_v): (u32, u32), few_rows: bool) -> AttentionShape {
    let num_heads_kv = 1 + random.below(2) as u32;
    let length = |random: &mut Random, most: u64| match random.below(8) {
        0 => random.below(4) as u32,
        1 => random.below(4 * most + 1) as u32,
        _ => random.below(most + 1) as u32,
    };
    AttentionShape {
        batch: 1 + random.below(2) as u32,
        num_heads: num_heads_kv * (1 + random.below(3) as u32),
        num_heads_kv,
        seqlen_q: length(random, if few_rows { 4 } else { 70 }),
        seqlen_kv: length(random, 70),
        head_dim,
        head_dim_v,
    }
}

fn layout(random: &mut Random, shape: &AttentionShape, by_quads: bool) -> AttentionLayout {
    match random.below(if by_quads { 2 } else { 4 }) {
        0 => AttentionLayout::bshd(shape),
        1 => AttentionLayout::bhsd(shape),
        2 => strided(shape, false),
        _ => strided(shape, true),
    }
}

/// A mask with a limit on one side at least.
fn mask(random: &mut Random) -> Mask {
    let side = |random: &mut Random| match random.below(8) {
        0 => 0,
        1 => random.word() as u32,
        _ => random.below(80) as u32,
    };
    let (left, right) = (random.below(3) != 0, random.below(3) != 0);
    Mask {
        alignment: if random.one_in(2) { Alignment::BottomRight } else { Alignment::TopLeft },
        window_left: left.then(|| side(random)),
        window_right: (right || !left).then(|| side(random)),
    }
}
