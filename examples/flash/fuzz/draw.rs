//! Which cases are drawn. What pipelines depend on is drawn for a whole batch of cases, a few kinds of it, because each costs a
//! compilation; all else for each case.

use wgpu_flash_attention::MAX_HEAD_DIM;

use super::case::Case;
use super::random::Random;

/// Cases that share their kinds, and how many kinds these are.
const BATCH: u64 = 512;
const KINDS: u64 = 6;

/// The same on a software driver, whose cases are fewer and whose kinds are no fewer.
const BATCH_ON_SOFTWARE: u64 = 64;
const KINDS_ON_SOFTWARE: u64 = 2;

/// What is drawn at all.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// Names of features; all if there are none.
    pub features: Vec<String>,
    /// Whether the device has cooperative matrices that are worth their compilation.
    pub matrices: bool,
    /// Cases are smaller on a software driver.
    pub software: bool,
}

impl Limits {
    /// Cases that share their kinds.
    pub fn batch(&self) -> u64 {
        if self.software { BATCH_ON_SOFTWARE } else { BATCH }
    }

    /// Case number `index` of a seed.
    pub fn case(&self, seed: u64, index: u64) -> Case {
        let mut random = Random::new(seed, index);
        let kinds = if self.software { KINDS_ON_SOFTWARE } else { KINDS };
        let kind = index / self.batch() * kinds + random.below(kinds);
        let mut case = self.kind(&mut Random::new(!seed, kind));
        self.fill(&mut case, &mut random);
        if !self.features.is_empty() {
            case.of_features(&self.features);
        }
        case
    }

    /// 0, or one of `values`: once in `rarity` times, but every second time where features are asked for.
    fn feature(&self, random: &mut Random, rarity: u64, values: &[u64]) -> u64 {
        let rarity = if self.features.is_empty() { rarity } else { 2 };
        let (is_there, value) = (random.one_in(rarity), random.of(values));
        if is_there { value } else { 0 }
    }

    /// What pipelines depend on.
    fn kind(&self, random: &mut Random) -> Case {
        let mut case = Case { element: random.below(3), ..Case::default() };
        let width = |random: &mut Random| match random.below(6) {
            0 | 1 => random.of(&[8, 16, 32, 64]),
            2 => random.of(&[24, 40, 80, 128]),
            3 => random.between(1, u64::from(MAX_HEAD_DIM)),
            _ => random.between(1, 64),
        };
        case.head_dim = width(random);
        case.head_dim_v = if random.one_in(2) { case.head_dim } else { width(random) };
        if self.software {
            (case.head_dim, case.head_dim_v) = (case.head_dim.min(72), case.head_dim_v.min(72));
        }
        match random.below(12) {
            0..4 => case.backward = 1,
            4 => case.append = 1,
            5 => case.probabilities = 1,
            6 | 7 => case.cache = random.between(1, 4),
            _ => {}
        }
        case.page_size = self.feature(random, 2, &[1, 3, 8, 16, 64]);
        case.cache_layout = self.feature(random, 3, &[1]);
        case.standard = self.feature(random, 6, &[1]);
        case.layout = self.feature(random, 2, &[1, 2, 3, 4, 5]);
        case.gradient_layout = self.feature(random, 3, &[1, 2, 3, 4]);
        case.f32_gradients = self.feature(random, 4, &[1]);
        case.causal = self.feature(random, 2, &[1, 2]);
        case.left = self.feature(random, 4, &[1]);
        case.right = self.feature(random, 5, &[1]);
        case.softcap = self.feature(random, 6, &[1]);
        case.alibi = self.feature(random, 6, &[1, 2]);
        case.bias = self.feature(random, 5, &[1]);
        case.bias_element = self.feature(random, 2, &[1]);
        case.bias_gradient = self.feature(random, 2, &[1]);
        case.mask = self.feature(random, 6, &[1]);
        case.sink = self.feature(random, 5, &[1]);
        case.blocks = self.feature(random, 5, &[1, 2, 3, 4, 5, 6, 7, 8]);
        case.score_mod = self.feature(random, 8, &[1, 2]);
        case.mask_mod = self.feature(random, 8, &[1, 2]);
        case.order = random.below(4);
        case.dropout = self.feature(random, 4, &[1]);
        case.seqlens_q = self.feature(random, 6, &[1, 2]);
        case.seqlens_kv = self.feature(random, 5, &[1, 2]);
        case.packed = self.feature(random, 4, &[1, 2, 3, 4]);
        case.splits = self.feature(random, 4, &[2, 3, 5]);
        case.tiles = self.feature(random, 3, &[1, 2, 3, 4, 5, 6, 7, 8]);
        case.matrices = u64::from(self.matrices && random.one_in(2));
        case.checked = self.feature(random, 8, &[1]);
        case.device = self.feature(random, 5, &[1, 2, 3, 4]);
        case.rotary = self.feature(random, 2, &[1, 2, 3, 4]);
        case.rotated_q = self.feature(random, 2, &[1, 2]);
        case.slots = self.feature(random, 3, &[1]);
        case
    }

    /// What may differ from case to case.
    fn fill(&self, case: &mut Case, random: &mut Random) {
        case.seed = random.word();
        case.heads_kv = random.between(1, 3);
        case.group = random.of(&[1, 1, 2, 3]);
        case.batch = random.of(&[1, 1, 2, 3, 4]);
        let most = if self.software { 70 } else { 140 };
        let few_rows = random.one_in(4);
        let length = |random: &mut Random, most: u64| match random.below(24) {
            0 => 0,
            1 => 1,
            2 | 3 => random.below(301),
            _ => random.between(1, most),
        };
        case.seqlen_q = if few_rows { random.between(1, 4) } else { length(random, most) };
        case.seqlen_kv = if case.layout == 4 { case.seqlen_q } else { length(random, most) };
        if random.one_in(400) {
            (case.seqlen_kv, case.batch, case.heads_kv, case.group) = (random.between(300, 6000), 1, 1, 1);
            case.seqlen_q = case.seqlen_q.min(40);
        }
        // The oracle's time is that of all scores.
        while case.batch * case.heads_kv * case.group * case.seqlen_q * case.seqlen_kv > 200_000 {
            case.batch = (case.batch / 2).max(1);
            case.heads_kv = (case.heads_kv / 2).max(1);
            case.seqlen_q = case.seqlen_q * 2 / 3;
            if case.layout == 4 {
                case.seqlen_kv = case.seqlen_q;
            }
        }
        let side = |random: &mut Random| if random.one_in(6) { u64::from(u32::MAX) } else { 1 + random.below(80) };
        for limit in [&mut case.left, &mut case.right] {
            *limit *= side(random);
        }
        case.scale = self.feature(random, 3, &[1]) * (1 + random.below(1000));
        case.softcap *= 1 + random.below(60);
        for entries in [&mut case.bias, &mut case.mask] {
            *entries *= 1 + random.below(16);
        }
        case.blocks_size = random.below(100);
        case.dropout *= random.of(&[1, 10, 50, 90, 99]);
        case.work = self.feature(random, 6, &[1]) * random.between(1, 200_000);
        case.more_calls = self.feature(random, 4, &[1, 2, 3]);
        case.shorter = random.below(2);
        case.apart = self.feature(random, 8, &[1]);
        case.d_lse = self.feature(random, 2, &[1]);
        case.values = self.feature(random, 2, &[1, 2, 3, 4, 5, 6, 7]);
    }
}
