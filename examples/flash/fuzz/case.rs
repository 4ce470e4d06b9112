//! A case is a list of named numbers. So it fits one line, and anything can be made simpler number by number.

use std::fmt;
use std::str::FromStr;

macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident: $simplest:literal,)*) => {
        /// A problem, its inputs and its calls. Every value of every number means something.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Case {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Default for Case {
            /// The simplest.
            fn default() -> Self {
                Self { $($name: $simplest,)* }
            }
        }

        impl Case {
            /// The names of all numbers.
            pub const NAMES: &[&str] = &[$(stringify!($name),)*];

            /// Name, value and simplest value of each.
            fn values(&self) -> impl Iterator<Item = (&'static str, u64, u64)> {
                [$((stringify!($name), self.$name, $simplest),)*].into_iter()
            }

            fn number(&mut self, name: &str) -> Option<&mut u64> {
                match name {
                    $(stringify!($name) => Some(&mut self.$name),)*
                    _ => None,
                }
            }
        }
    };
}

fields! {
    /// Of the values of tensors, lengths and tables.
    seed: 0,
    /// 1 for gradients.
    backward: 0,
    /// 1 for an append to a cache.
    append: 0,
    /// 1 for probabilities of some heads and rows.
    probabilities: 0,
    /// 1 for standard attention.
    standard: 0,
    /// f32, f16 or bf16.
    element: 0,
    batch: 1,
    heads_kv: 1,
    /// Query heads that share a KV head.
    group: 1,
    seqlen_q: 1,
    seqlen_kv: 1,
    head_dim: 1,
    head_dim_v: 1,
    /// bshd, bhsd, gaps that keep pairs of elements together, other gaps, one buffer for Q, K and V, inputs that broadcast.
    layout: 0,
    /// Of gradients: as of the inputs; else 1 more than above.
    gradient_layout: 0,
    /// 1 for gradients in f32.
    f32_gradients: 0,
    /// 1 for bottom-right, 2 for top-left.
    causal: 0,
    /// 0 for none; else 1 more than the keys on this side.
    left: 0,
    right: 0,
    /// 0 for the usual; else (n − 500) / 250.
    scale: 0,
    /// 0 for none; else n / 4.
    softcap: 0,
    /// Slopes: none, for each head, for each sequence and head.
    alibi: 0,
    /// 0 for none; else 1 more than the bits of the dimensions that do not repeat.
    bias: 0,
    /// 1 for a bias in the problem's element.
    bias_element: 0,
    bias_gradient: 0,
    /// As bias, of a boolean mask.
    mask: 0,
    sink: 0,
    /// none, local, strided, longformer, prefix, documents, butterfly, bigbird, by blocks.
    blocks: 0,
    /// A number that belongs to it.
    blocks_size: 0,
    /// Which function in WGSL, if any.
    score_mod: 0,
    mask_mod: 0,
    /// By how much the order of score modifiers is turned.
    order: 0,
    /// In percent.
    dropout: 0,
    /// Of each sequence: none, known, at the call.
    seqlens_q: 0,
    seqlens_kv: 0,
    /// Packed sequences: none, Q, all, Q by sums at the call, all by sums at the call.
    packed: 0,
    /// 0 for none; else the most operations of a dispatch.
    work: 0,
    /// 0 for the planner's.
    splits: 0,
    /// 0 for the planner's; else 1 more than the number of a candidate.
    tiles: 0,
    /// 1 for cooperative matrices, where there are some.
    matrices: 0,
    /// 1 for shaders with bounds checks.
    checked: 0,
    /// All that it has, without f16, without subgroups, WebGPU's least, short bindings.
    device: 0,
    /// 0 for none; else 1 more than its type: f32, f16, bf16, int8.
    cache: 0,
    /// 0 for a cache without pages.
    page_size: 0,
    /// 1 for gaps in the cache.
    cache_layout: 0,
    /// Of an append: none, interleaved, halves; with tables for tokens 3 and 4.
    rotary: 0,
    /// Of an append: none, in place, apart.
    rotated_q: 0,
    /// 1 for an append by slots.
    slots: 0,
    /// Calls of the prepared operation beside the first.
    more_calls: 0,
    /// 1 for calls with shorter lengths.
    shorter: 0,
    /// 1 for each dispatch in a submission by itself.
    apart: 0,
    /// 1 for a gradient of LSE.
    d_lse: 0,
    /// normal, V and dO without signs, large Q, rows of many sizes, equal keys, a NaN, zeros, −∞ in the bias.
    values: 0,
}

impl fmt::Display for Case {
    /// Numbers that are not the simplest.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let mut others = self.values().filter(|(_, value, simplest)| value != simplest);
        if let Some((name, value, _)) = others.next() {
            write!(f, "{name}={value}")?;
        }
        others.try_for_each(|(name, value, _)| write!(f, " {name}={value}"))
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let mut case = Self::default();
        for word in line.split_whitespace() {
            let (name, value) = word.split_once('=').ok_or_else(|| format!("'{word}' is not NAME=NUMBER"))?;
            let number = case.number(name).ok_or_else(|| format!("a case has no number '{name}'"))?;
            *number = value.parse().map_err(|_| format!("'{value}' of {name} is not a whole number"))?;
        }
        Ok(case)
    }
}

impl Case {
    /// The simplest one that still is `bad`, one number after the other, asking at most `most` times.
    pub fn shrunk(&self, most: usize, mut bad: impl FnMut(&Case) -> bool) -> Case {
        let (mut best, mut left) = (*self, most);
        loop {
            let before = best;
            for name in Self::NAMES {
                let all: Vec<_> = best.values().collect();
                let Some(&(_, value, simplest)) = all.iter().find(|(other, ..)| other == name) else { continue };
                let between = simplest + value.saturating_sub(simplest) / 2;
                for candidate in [simplest, between, value.saturating_sub(1)] {
                    let mut simpler = best;
                    match simpler.number(name) {
                        Some(number) if value != simplest && candidate != value => *number = candidate,
                        _ => continue,
                    }
                    if left == 0 {
                        return best;
                    }
                    left -= 1;
                    if bad(&simpler) {
                        best = simpler;
                        break;
                    }
                }
            }
            if best == before {
                return best;
            }
        }
    }

    /// The same, with only those features that are named; shapes and types stay.
    pub fn of_features(&mut self, features: &[String]) {
        for name in Self::NAMES.iter().filter(|name| !SHAPE.contains(name)) {
            if !features.iter().any(|feature| feature == name) {
                let simplest =
                    Self::default().values().find(|(other, ..)| other == name).map_or(0, |(_, _, value)| value);
                self.number(name).into_iter().for_each(|number| *number = simplest);
            }
        }
    }

    /// The names that `--features` takes.
    pub fn features() -> impl Iterator<Item = &'static str> {
        Self::NAMES.iter().copied().filter(|name| !SHAPE.contains(name))
    }
}

/// Numbers that every case has.
const SHAPE: &[&str] =
    &["seed", "element", "batch", "heads_kv", "group", "seqlen_q", "seqlen_kv", "head_dim", "head_dim_v"];
