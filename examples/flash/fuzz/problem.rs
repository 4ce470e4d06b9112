//! The problem that a case stands for, and what each of its calls solves.

use wgpu_flash_attention::{
    Algorithm, Alignment, AttentionLayout, AttentionProblem, AttentionShape, BlockKind, BlockMask, CacheElement, Call,
    Dropout, Element, EntryLayout, KeyMask, KvCache, Mask, Operand, ScoreMod, TensorLayout,
};

use super::case::Case;
use super::functions::{self, AUX, Closures};
use super::random::Random;

/// What a case asks.
pub struct Question {
    /// What is prepared.
    pub prepared: AttentionProblem,
    pub calls: Vec<Asked>,
    pub closures: Closures,
    /// Whether Q, K and V are views of one buffer.
    pub one_buffer: bool,
}

/// One call of it.
pub struct Asked {
    pub call: Call,
    /// What it solves, for the oracle: all lengths are known, and K and V are tensors.
    pub solved: AttentionProblem,
    /// Lengths and sums that the call brings, and the page table.
    pub tables: Vec<(Operand, Vec<u32>)>,
}

impl Case {
    pub fn shape(&self) -> AttentionShape {
        let narrow = |number: u64| number as u32;
        AttentionShape::new(
            narrow(self.batch),
            narrow(self.heads_kv * self.group),
            narrow(self.seqlen_q),
            narrow(self.head_dim),
        )
        .with_num_heads_kv(narrow(self.heads_kv))
        .with_seqlen_kv(narrow(self.seqlen_kv))
        .with_head_dim_v(narrow(self.head_dim_v))
    }

    pub fn element(&self) -> Element {
        Element::ALL[self.element as usize % Element::ALL.len()]
    }

    /// Numbers that contradict others give way.
    pub fn settled(&self) -> Case {
        let mut case = *self;
        if case.append == 1 || case.probabilities == 1 {
            case.backward = 0;
        }
        if case.append == 1 {
            case.cache = case.cache.max(1);
        } else if case.backward + case.probabilities > 0 {
            case.cache = 0;
        }
        if case.cache > 0 {
            (case.standard, case.seqlens_kv) = (0, case.seqlens_kv.max(1));
            case.packed = [0, 1, 1, 3, 3][case.packed as usize % 5];
            case.layout %= 4;
        } else {
            case.page_size = 0;
        }
        // Lengths beside sums are known where these are.
        let beside = |sums: u64, lengths: u64| match (sums, lengths) {
            (1 | 2, 2) => 1,
            (3 | 4, 1) => 2,
            _ => lengths,
        };
        case.seqlens_q = beside(case.packed, case.seqlens_q);
        if case.packed == 2 || case.packed == 4 {
            case.seqlens_kv = beside(case.packed, case.seqlens_kv);
        }
        if case.packed == 3 && case.seqlens_kv == 1 {
            case.seqlens_q = 2;
        }
        let is_one_tensor = case.seqlen_q == case.seqlen_kv && case.head_dim == case.head_dim_v && case.packed == 0;
        if case.layout == 4 && !is_one_tensor {
            case.layout = 0;
        }
        if case.layout >= 4 && case.gradient_layout == 0 {
            case.gradient_layout = 1;
        }
        if case.bias == 0 || case.backward == 0 {
            case.bias_gradient = 0;
        }
        // Its gradient is 0 for what it hides, and to the oracle 0 times a NaN.
        if case.score_mod.is_multiple_of(2) && case.score_mod > 0 && case.values % 8 == 5 {
            case.values = 0;
        }
        // Lists of tiles and the gradient of a bias are for the lengths that were prepared.
        if case.blocks > 0 || case.bias_gradient == 1 || case.seqlens_q + case.seqlens_kv + case.packed > 0 {
            case.shorter = 0;
        }
        case
    }

    /// Of a settled case.
    pub fn question(&self) -> Result<Question, String> {
        let shape = self.shape();
        let mut closures = Closures::default();
        let base = self.decorated(AttentionProblem::new(shape), &mut closures)?;
        let calls = 1 + self.more_calls;
        let lengths: Vec<Lengths> = (0..calls).map(|call| Lengths::draw(self, call)).collect();
        let total = |of: fn(&Lengths) -> &Vec<u32>| {
            let most = lengths.iter().map(|lengths| of(lengths).iter().sum::<u32>()).max().unwrap_or(0);
            // Rows that no sequence has.
            if self.packed > 2 { most + self.seed as u32 % 4 } else { most }
        };
        let totals = [total(|lengths| &lengths.rooms_q), total(|lengths| &lengths.rooms_kv)];
        let base = self.laid_out(base, totals);
        let prepared = self.with_lengths(base.clone(), &lengths[0], totals, false);
        let prepared = self.with_cache(prepared);
        let mut random = Random::new(self.seed, 77);
        let mut asked = Vec::new();
        for (number, lengths) in lengths.iter().enumerate() {
            let mut solved = base.clone();
            let mut call = Call::new();
            if self.shorter == 1 && number > 0 {
                solved.shape.seqlen_q = random.below(u64::from(shape.seqlen_q) + 1) as u32;
                solved.shape.seqlen_kv = random.below(u64::from(shape.seqlen_kv) + 1) as u32;
                call = call.with_seqlen_q(solved.shape.seqlen_q).with_seqlen_kv(solved.shape.seqlen_kv);
            }
            if let Some(dropout) = solved.dropout.as_mut().filter(|_| number > 0) {
                (dropout.philox_seed, dropout.philox_offset) = (random.word(), random.word() as u32);
                call = call.with_philox_seed(dropout.philox_seed).with_philox_offset(dropout.philox_offset);
            }
            let solved = self.with_lengths(solved, lengths, totals, true);
            let mut tables = self.tables_of(lengths);
            tables.extend(prepared.cache().and_then(|cache| page_table(cache, &shape, lengths, self.seed)));
            asked.push(Asked { call, solved, tables });
        }
        Ok(Question { prepared, calls: asked, closures, one_buffer: self.layout == 4 })
    }

    /// With all but layouts, lengths and a cache.
    fn decorated(&self, mut problem: AttentionProblem, closures: &mut Closures) -> Result<AttentionProblem, String> {
        let shape = problem.shape;
        problem = problem.with_element(self.element());
        problem.algorithm = if self.standard == 1 { Algorithm::Standard } else { Algorithm::Flash };
        let side = |number: u64| number.checked_sub(1).map(|keys| keys as u32);
        problem.mask = Mask {
            alignment: if self.causal == 2 { Alignment::TopLeft } else { Alignment::BottomRight },
            window_left: side(self.left),
            window_right: if self.causal > 0 { Some(0) } else { side(self.right) },
        };
        problem.softmax_scale = side(self.scale).map(|scale| (f64::from(scale) - 500.0) / 250.0);
        if self.dropout > 0 {
            let dropout = Dropout::new(self.dropout.min(99) as f64 / 100.0, self.seed);
            problem.dropout = Some(dropout.with_philox_offset((self.seed >> 7) as u32));
        }
        problem.max_flops_per_dispatch = (self.work > 0).then_some(self.work);
        problem.gradient_element = (self.f32_gradients == 1).then_some(Element::F32);
        let mut scores = self.scores(&shape, closures)?;
        let turn = self.order as usize % scores.len().max(1);
        scores.rotate_left(turn);
        problem = scores.into_iter().fold(problem, AttentionProblem::with_score);
        let masks = self.masks(&shape, closures)?;
        problem = masks.into_iter().fold(problem, AttentionProblem::with_key_mask);
        if self.score_mod % 2 == 1 {
            problem = problem.with_aux(AUX);
        }
        if self.sink == 1 {
            problem = problem.with_sink();
        }
        Ok(if self.bias_gradient == 1 { problem.with_bias_gradient() } else { problem })
    }

    fn scores(&self, shape: &AttentionShape, closures: &mut Closures) -> Result<Vec<ScoreMod>, String> {
        let mut scores = Vec::new();
        if self.softcap > 0 {
            scores.push(ScoreMod::Softcap(self.softcap as f32 / 4.0));
        }
        if self.score_mod > 0 {
            let (wgsl, function) = functions::score_mod(self.score_mod)?;
            let aux = aux(self.seed);
            closures.score_mod = Some(std::sync::Arc::new(move |score, cell| function(&aux, score, cell)));
            scores.push(ScoreMod::Wgsl(wgsl));
        }
        if self.alibi > 0 {
            let heads = if self.alibi == 1 { shape.num_heads } else { shape.num_heads * shape.batch };
            scores.push(ScoreMod::Alibi((0..heads).map(|head| 0.5f32.powi(head as i32 % 7 + 1)).collect()));
        }
        if self.bias > 0 {
            let element = if self.bias_element == 1 { self.element() } else { Element::F32 };
            scores.push(ScoreMod::Bias { layout: self.entries(shape, self.bias - 1), element });
        }
        Ok(scores)
    }

    fn masks(&self, shape: &AttentionShape, closures: &mut Closures) -> Result<Vec<KeyMask>, String> {
        let mut masks = Vec::new();
        if self.mask > 0 {
            let mut layout = EntryLayout::packed_bits(own_counts(shape, self.mask - 1));
            layout.offset = self.seed % 3;
            masks.push(KeyMask::Boolean(layout));
        }
        if self.blocks > 0 {
            masks.push(KeyMask::Blocks(self.block_mask(shape)));
        }
        if self.mask_mod > 0 {
            let (wgsl, function) = functions::mask_mod(self.mask_mod)?;
            closures.mask_mod = Some(std::sync::Arc::new(function));
            masks.push(KeyMask::Wgsl(wgsl));
        }
        Ok(masks)
    }

    /// Of a bias whose dimensions repeat but for those of these bits.
    fn entries(&self, shape: &AttentionShape, bits: u64) -> EntryLayout {
        let mut counts = own_counts(shape, bits);
        let gap = self.seed % 3;
        if counts[3] > 1 {
            counts[3] += gap as u32;
        }
        EntryLayout { offset: gap, ..EntryLayout::contiguous(counts) }
    }

    fn block_mask(&self, shape: &AttentionShape) -> BlockMask {
        let size = self.blocks_size as u32;
        let mut random = Random::new(self.seed, 31);
        match self.blocks {
            1 => BlockMask::local(size),
            2 => BlockMask::strided(1 + size),
            3 => BlockMask::longformer(size, size / 3),
            4 => BlockMask::prefix(size),
            5 => {
                let batch = if random.one_in(2) { 1 } else { shape.batch };
                let ids: Vec<u32> = (0..batch * shape.seqlen_kv).map(|key| key / (1 + size) % 5).collect();
                BlockMask::documents(batch, &ids)
            }
            6 => BlockMask::butterfly(shape),
            7 => BlockMask::bigbird(shape, self.seed),
            _ => {
                let sides = [8 + 8 * (size % 9), 4 + 4 * (size % 13)];
                let [batch, heads] = [shape.batch, shape.num_heads].map(|all| if random.one_in(2) { 1 } else { all });
                let counts = [batch, heads, shape.seqlen_q.div_ceil(sides[0]), shape.seqlen_kv.div_ceil(sides[1])];
                // In full ones no other mask is asked.
                let is_alone = self.mask + self.mask_mod == 0;
                let kinds: Vec<_> = (0..counts.iter().product())
                    .map(|_| match random.below(4) {
                        0 | 1 => BlockKind::Absent,
                        2 if is_alone => BlockKind::Full,
                        _ => BlockKind::Partial,
                    })
                    .collect();
                BlockMask::new(counts, sides, &kinds)
            }
        }
    }

    /// With layouts for tensors of packed sequences, which have these rows, or of others.
    fn laid_out(&self, mut problem: AttentionProblem, totals: [u32; 2]) -> AttentionProblem {
        let mut shape = problem.shape;
        if self.packed > 0 {
            shape.seqlen_q = totals[0];
        }
        if self.packed == 2 || self.packed == 4 {
            shape.seqlen_kv = totals[1];
        }
        problem.layout = layout(self.layout, &shape);
        problem.gradient_layout = self.gradient_layout.checked_sub(1).map(|number| layout(number % 4, &shape));
        problem
    }

    /// With lengths, as the call brings them, or all known.
    fn with_lengths(
        &self,
        mut problem: AttentionProblem,
        lengths: &Lengths,
        totals: [u32; 2],
        known: bool,
    ) -> AttentionProblem {
        let is_packed_kv = self.packed == 2 || self.packed == 4;
        problem = match self.packed {
            0 => problem,
            2 | 4 if known || self.packed == 2 => {
                problem.with_cu_seqlens(sums(&lengths.rooms_q), sums(&lengths.rooms_kv))
            }
            4 => problem.with_cu_seqlens_at_call(totals[0], totals[1]),
            1 | 3 if known || self.packed == 1 => problem.with_cu_seqlens_q(sums(&lengths.rooms_q)),
            _ => problem.with_cu_seqlens_q_at_call(totals[0]),
        };
        let at_call = |lengths: u64| lengths == 2 && !known;
        let sums_at_call = self.packed > 2 && !known;
        if self.seqlens_q + self.seqlens_kv > 0 {
            let all_at_call = at_call(self.seqlens_q) && at_call(self.seqlens_kv) || sums_at_call && is_packed_kv;
            if !all_at_call {
                problem = problem.with_lengths(lengths.of_q.clone(), lengths.of_kv.clone());
            }
            if at_call(self.seqlens_q) || sums_at_call {
                problem = problem.with_seqlens_q_at_call();
            }
            if at_call(self.seqlens_kv) || sums_at_call && is_packed_kv {
                problem = problem.with_seqlens_kv_at_call();
            }
        }
        problem
    }

    /// The tables that a call brings: as `with_lengths` asks for them.
    fn tables_of(&self, lengths: &Lengths) -> Vec<(Operand, Vec<u32>)> {
        vec![
            (Operand::SeqlensQ, lengths.of_q.clone()),
            (Operand::SeqlensKv, lengths.of_kv.clone()),
            (Operand::CuSeqlensQ, sums(&lengths.rooms_q)),
            (Operand::CuSeqlensKv, sums(&lengths.rooms_kv)),
        ]
    }

    /// With its cache, if it has one.
    fn with_cache(&self, problem: AttentionProblem) -> AttentionProblem {
        if self.cache == 0 {
            return problem;
        }
        let cache = self.kv_cache(&problem.shape);
        problem.with_cache(cache)
    }

    pub fn kv_cache(&self, shape: &AttentionShape) -> KvCache {
        let element = CacheElement::ALL[(self.cache.max(1) - 1) as usize % CacheElement::ALL.len()];
        let page_size = self.page_size as u32;
        let cache = if page_size == 0 {
            KvCache::contiguous(shape, element)
        } else {
            let pages = shape.batch * shape.seqlen_kv.div_ceil(page_size) + 2;
            KvCache::paged(shape, element, pages, page_size)
        };
        if self.cache_layout == 0 {
            return cache;
        }
        let rows = if page_size == 0 { shape.seqlen_kv } else { page_size };
        let odd = self.seed % 2;
        let of = |dim| strided(rows, shape.num_heads_kv, element.row_len(dim), 2, odd);
        cache.with_layouts(of(shape.head_dim), of(shape.head_dim_v))
    }
}

/// Entries of aux.
pub fn aux(seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed, 23);
    (0..AUX).map(|_| random.below(1000) as f32 / 1000.0 - 0.4).collect()
}

/// Counts of entries of a problem: 1 for the dimensions without a bit.
fn own_counts(shape: &AttentionShape, bits: u64) -> [u32; 4] {
    let counts = [shape.batch, shape.num_heads, shape.seqlen_q, shape.seqlen_kv];
    std::array::from_fn(|dimension| if bits >> dimension & 1 == 1 { counts[dimension] } else { 1 })
}

/// Rows and keys of each sequence, and for how many there is room.
pub struct Lengths {
    pub rooms_q: Vec<u32>,
    pub rooms_kv: Vec<u32>,
    pub of_q: Vec<u32>,
    pub of_kv: Vec<u32>,
}

impl Lengths {
    /// Of a call; what is known is the same in each.
    fn draw(case: &Case, call: u64) -> Self {
        let draw = |stream: u64, is_at_call: bool, rooms: Vec<u32>| -> Vec<u32> {
            let mut random = Random::new(case.seed, stream + if is_at_call { 16 * call } else { 0 });
            let length = |room: u32| match random.below(6) {
                0 => 0,
                1 => room,
                _ => random.below(u64::from(room) + 1) as u32,
            };
            rooms.into_iter().map(length).collect()
        };
        let whole = |length: u64| vec![length as u32; case.batch as usize];
        let rooms = |stream, is_packed: bool, length| {
            if is_packed { draw(stream, case.packed > 2, whole(length)) } else { whole(length) }
        };
        let rooms_q = rooms(100, case.packed > 0, case.seqlen_q);
        let rooms_kv = rooms(101, case.packed == 2 || case.packed == 4, case.seqlen_kv);
        let used = |stream, kind: u64, sums_differ: bool, rooms: &Vec<u32>| {
            if kind == 0 { rooms.clone() } else { draw(stream, kind == 2 || sums_differ, rooms.clone()) }
        };
        let of_q = used(102, case.seqlens_q, case.packed > 2, &rooms_q);
        let of_kv = used(103, case.seqlens_kv, case.packed == 4, &rooms_kv);
        Self { rooms_q, rooms_kv, of_q, of_kv }
    }
}

/// Where each sequence begins, and the last one ends.
pub fn sums(lengths: &[u32]) -> Vec<u32> {
    let mut sums = vec![0];
    for length in lengths {
        sums.push(sums[sums.len() - 1] + length);
    }
    sums
}

/// Pages in an order that is no order. Entries that no position needs may hold anything.
fn page_table(cache: &KvCache, shape: &AttentionShape, lengths: &Lengths, seed: u64) -> Option<(Operand, Vec<u32>)> {
    let pages = cache.pages?;
    let mut random = Random::new(seed, 41);
    let mut order: Vec<u32> = (0..pages.num_pages).collect();
    for last in (1..order.len()).rev() {
        order.swap(last, random.below(last as u64 + 1) as usize);
    }
    let mut table = Vec::new();
    for batch in 0..shape.batch {
        let used = lengths.of_kv[batch as usize].div_ceil(pages.page_size);
        for entry in 0..pages.max_pages {
            let page = order[(batch * pages.max_pages + entry) as usize];
            table.push(if entry < used { page } else { u32::MAX - entry });
        }
    }
    Some((Operand::PageTable, table))
}

/// A layout by its number.
fn layout(number: u64, shape: &AttentionShape) -> AttentionLayout {
    let AttentionShape { seqlen_q, seqlen_kv, num_heads, num_heads_kv, head_dim, head_dim_v, .. } = *shape;
    let odd = number % 2;
    match number {
        0 => AttentionLayout::bshd(shape),
        1 => AttentionLayout::bhsd(shape),
        2 | 3 => AttentionLayout {
            q: strided(seqlen_q, num_heads, head_dim, 1, odd),
            k: strided(seqlen_kv, num_heads_kv, head_dim, 2, odd),
            v: strided(seqlen_kv, num_heads_kv, head_dim_v, 3, odd),
            o: strided(seqlen_q, num_heads, head_dim_v, 4, odd),
        },
        4 => AttentionLayout::packed_qkv(shape),
        // All sequences and heads have the same keys.
        _ => {
            let whole = AttentionLayout::bshd(shape);
            let k = TensorLayout { stride_batch: 0, ..whole.k };
            let v = TensorLayout { stride_head: 0, ..whole.v };
            AttentionLayout { k, v, ..whole }
        }
    }
}

/// A gap before the first element, and behind every head, row and sequence.
fn strided(rows: u32, heads: u32, dim: u32, offset: u64, odd: u64) -> TensorLayout {
    let stride_head = (u64::from(dim) + 4).next_multiple_of(2) + odd;
    let stride_row = (stride_head * u64::from(heads) + 6).next_multiple_of(2) + odd;
    let stride_batch = (stride_row * u64::from(rows) + 8).next_multiple_of(2) + odd;
    TensorLayout { offset: 2 * offset + odd, stride_batch, stride_row, stride_head }
}
