//! Masks that hide whole blocks: what of the score matrix is visited at all.

use super::lengths::Lengths;
use super::mask::Mask;
use super::philox::philox4x32_10;
use super::shape::AttentionShape;
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// The side of the blocks of [`BlockMask::butterfly`] and [`BlockMask::bigbird`].
const SIDE: u32 = 64;

/// Documents of so many places are compared; of more, nothing is known.
const MOST_IDS: usize = 512;

/// Places whose ids are bounded together.
const RUN: usize = 64;

/// The most blocks that constructors make.
pub(crate) const MOST_BLOCKS: u64 = 1 << 24;

/// Positions and parameters stay below this, so that their sums are within i32.
const MOST: u32 = 1 << 29;

/// A mask with structure: block-sparse attention. Kernels visit only the tiles in which some row sees some key, and mask only
/// those in which some row does not see all keys. So it costs what is visited.
///
/// The position of row i is `p = i + seqlen_kv − seqlen_q`, with the lengths of its sequence: the last row stands at the last
/// key. All other masks still apply. The lists of tiles are made once and kept: give clones of one `BlockMask` to many problems.
///
/// ```
/// use wgpu_flash_attention::{AttentionProblem, AttentionShape, BlockMask, KeyMask};
///
/// // Each row sees 256 keys on both sides, and everything sees the first 16 positions and is seen by them.
/// let mask = KeyMask::Blocks(BlockMask::longformer(256, 16));
/// let problem = AttentionProblem::new(AttentionShape::new(1, 8, 8192, 64)).with_key_mask(mask).with_causal();
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct BlockMask {
    pattern: Pattern,
    lists: Kept,
}

/// What a row sees.
#[derive(Clone, Debug, PartialEq)]
enum Pattern {
    /// |p − j| ≤ window, or j < global, or p < global.
    Longformer { window: u32, global: u32 },
    /// |p − j| < step, or (p − j) mod step = 0.
    Strided(u32),
    /// j < len or j ≤ p.
    Prefix(u32),
    /// Equal ids at p and j: `[batch or 1, seqlen_kv]`.
    Documents {
        ids: Arc<[u32]>,
        batch: u32,
        /// The least and the largest id of every [`RUN`] places of a sequence.
        bounds: Arc<[[u32; 2]]>,
    },
    /// By blocks.
    Blocks(Blocks),
}

/// A kind for each block: `[batch or 1, num_heads or 1, rows / side_q, keys / side_kv]`, the last blocks perhaps not full.
#[derive(Clone, Debug, PartialEq)]
struct Blocks {
    counts: [u32; 4],
    sides: [u32; 2],
    kinds: Arc<[BlockKind]>,
}

/// How much of a block is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BlockKind {
    /// Nothing: it is not visited.
    Absent,
    /// What the other masks show.
    Partial,
    /// All that causal, window and lengths show: the problem's other [`KeyMask`](super::KeyMask)s hide nothing in it, and
    /// kernels do not ask them.
    Full,
}

/// Some rows and keys of a sequence and head.
pub(crate) struct Area {
    pub batch: u32,
    pub head: u32,
    /// Not empty, like `keys`.
    pub rows: Range<u32>,
    pub keys: Range<u32>,
    /// The position of row 0.
    pub offset: i64,
}

/// How many places each of the sequences of these ids has.
fn places_of_each(ids: &[u32], sequences: u32) -> usize {
    ids.len() / sequences.max(1) as usize
}

impl BlockMask {
    fn of(pattern: Pattern) -> Self {
        Self { pattern, lists: Kept::default() }
    }

    /// Local attention: |p − j| ≤ `window`.
    pub fn local(window: u32) -> Self {
        Self::longformer(window, 0)
    }

    /// Longformer: |p − j| ≤ `window`, or j < `global`, or p < `global`; with a `global` of 0 the window alone.
    pub fn longformer(window: u32, global: u32) -> Self {
        Self::of(Pattern::Longformer { window: window.min(MOST), global: global.min(MOST) })
    }

    /// Strided (Sparse Transformer): |p − j| < `step`, or p − j is a multiple of `step`, which must not be 0.
    pub fn strided(step: u32) -> Self {
        Self::of(Pattern::Strided(step.min(MOST)))
    }

    /// Prefix LM: all rows see the first `len` keys, and those up to their position.
    pub fn prefix(len: u32) -> Self {
        Self::of(Pattern::Prefix(len.min(MOST)))
    }

    /// Documents in one sequence: a row sees the keys with the id of its position. `ids` is `[batch or 1, seqlen_kv]`, with
    /// `batch` sequences or 1 for all. Add a causal mask for language models.
    pub fn documents(batch: u32, ids: &[u32]) -> Self {
        let of_each = places_of_each(ids, batch).max(1);
        let bounds_of =
            |run: &[u32]| run.iter().fold([u32::MAX, 0], |[least, most], id| [least.min(*id), most.max(*id)]);
        let bounds = ids.chunks_exact(of_each).flat_map(|ids| ids.chunks(RUN)).map(bounds_of).collect();
        Self::of(Pattern::Documents { ids: ids.into(), batch, bounds })
    }

    /// Butterfly (Pixelated Butterfly) on blocks of 64 × 64: a row of blocks sees itself, and those whose number differs in
    /// one bit.
    pub fn butterfly(shape: &AttentionShape) -> Self {
        let sees = |row: u32, column: u32| (row ^ column).count_ones() <= 1;
        Self::by_blocks(shape, [1, 1], &mut |_, _, row, column| sees(row, column))
    }

    /// BigBird on blocks of 64 × 64. Each row of blocks sees its neighbours and itself, the first and the last column, and three
    /// others that `seed` draws for each head. The first and the last row see everything. With fewer than six columns
    /// everything is seen. Word k of `philox4x32_10([seed, seed >> 32], [row, head, 0, 0])` picks entry ⌊word · n / 2³²⌋ of
    /// the n columns that are left, in rising order.
    pub fn bigbird(shape: &AttentionShape, seed: u64) -> Self {
        let [rows, columns] = [shape.seqlen_q.div_ceil(SIDE), shape.seqlen_kv.div_ceil(SIDE)];
        let mut seen = Vec::new();
        Self::by_blocks(shape, [1, shape.num_heads], &mut |_, head, row, column| {
            if column == 0 {
                seen = bigbird_row(seed, [rows, columns], head, row);
            }
            seen[column as usize]
        })
    }

    /// Blocks of `sides` = (rows, keys) each, of these kinds: `[batch or 1, num_heads or 1, ⌈seqlen_q / rows⌉, ⌈seqlen_kv / keys⌉]`,
    /// with these `counts`. Planning refuses counts that do not fit the problem.
    pub fn new(counts: [u32; 4], sides: [u32; 2], kinds: &[BlockKind]) -> Self {
        Self::of(Pattern::Blocks(Blocks { counts, sides, kinds: kinds.into() }))
    }

    /// The blocks of a mask by entries, which `sees(batch, head, i, j)` tells: absent where it shows nothing, full where it shows
    /// everything. `batch` and `heads` are those of the problem or 1. It asks for every entry, once. Give the problem the
    /// mask itself too: [`KeyMask::Boolean`](super::KeyMask::Boolean), for example.
    pub fn from_fn(
        shape: &AttentionShape,
        [batch, heads]: [u32; 2],
        sides: [u32; 2],
        mut sees: impl FnMut(u32, u32, u32, u32) -> bool,
    ) -> Self {
        let [side_q, side_kv] = sides.map(|side| side.max(1));
        let mut kind = |batch: u32, head: u32, row: u32, column: u32| {
            let rows = row * side_q..(row * side_q).saturating_add(side_q).min(shape.seqlen_q);
            let keys = column * side_kv..(column * side_kv).saturating_add(side_kv).min(shape.seqlen_kv);
            let entries = u64::from(rows.end - rows.start) * u64::from(keys.end - keys.start);
            let seen = rows.map(|i| keys.clone().filter(|&j| sees(batch, head, i, j)).count() as u64).sum::<u64>();
            match seen {
                0 => BlockKind::Absent,
                all if all == entries => BlockKind::Full,
                _ => BlockKind::Partial,
            }
        };
        let counts = [batch, heads, shape.seqlen_q.div_ceil(side_q), shape.seqlen_kv.div_ceil(side_kv)];
        Self::new(counts, [side_q, side_kv], &each(counts, &mut kind))
    }

    fn by_blocks(
        shape: &AttentionShape,
        [batch, heads]: [u32; 2],
        sees: &mut impl FnMut(u32, u32, u32, u32) -> bool,
    ) -> Self {
        let counts = [batch, heads, shape.seqlen_q.div_ceil(SIDE), shape.seqlen_kv.div_ceil(SIDE)];
        let mut kind = |batch: u32, head: u32, row: u32, column: u32| match sees(batch, head, row, column) {
            true => BlockKind::Partial,
            false => BlockKind::Absent,
        };
        Self::new(counts, [SIDE; 2], &each(counts, &mut kind))
    }

    /// The name used in WGSL and by the CLI.
    pub const fn name(&self) -> &'static str {
        match self.pattern {
            Pattern::Longformer { .. } => "longformer",
            Pattern::Strided(_) => "strided",
            Pattern::Prefix(_) => "prefix",
            Pattern::Documents { .. } => "documents",
            Pattern::Blocks(_) => "blocks",
        }
    }

    /// Whether row i of a sequence and head sees key j; `offset` is the position of row 0.
    pub fn sees(&self, batch: u32, head: u32, i: u32, j: u32, offset: i64) -> bool {
        let distance = |p: i64| (p - i64::from(j)).unsigned_abs();
        let position = i64::from(i) + offset;
        match &self.pattern {
            Pattern::Longformer { window, global } => {
                let is_global = *global > 0 && i64::from(j).min(position) < i64::from(*global);
                distance(position) <= u64::from(*window) || is_global
            }
            Pattern::Strided(step) => {
                let (distance, step) = (distance(position), u64::from(*step).max(1));
                distance < step || distance.is_multiple_of(step)
            }
            Pattern::Prefix(len) => j < *len || i64::from(j) <= position,
            Pattern::Documents { .. } => {
                let [of_row, of_key] = [position, j.into()].map(|place| self.id(batch, place));
                of_row.is_some() && of_row == of_key
            }
            Pattern::Blocks(blocks) => {
                let [side_q, side_kv] = blocks.sides.map(|side| side.max(1));
                blocks.kind(batch, head, i / side_q, j / side_kv) != BlockKind::Absent
            }
        }
    }

    /// The document at a place of a sequence, if there is such a place.
    fn id(&self, batch: u32, place: i64) -> Option<u32> {
        let Pattern::Documents { ids, batch: sequences, .. } = &self.pattern else { return None };
        let of_each = places_of_each(ids, *sequences);
        let batch = if *sequences == 1 { 0 } else { batch as usize };
        let place = usize::try_from(place).ok().filter(|place| *place < of_each)?;
        ids.get(batch * of_each + place).copied()
    }

    /// How much of an area is seen, as far as this mask is concerned: never less than what is, and [`BlockKind::Full`] only if
    /// all is. It is [`BlockKind::Partial`] where other masks must be asked.
    pub(crate) fn kind_of(&self, area: &Area, is_alone: bool) -> BlockKind {
        let [first, last] = [area.rows.start, area.rows.end - 1].map(|i| i64::from(i) + area.offset);
        let [from, to] = [area.keys.start, area.keys.end - 1].map(i64::from);
        let (least, most) = (first - to, last - from);
        let farthest = least.abs().max(most.abs());
        let nearest = if least <= 0 && most >= 0 { 0 } else { least.abs().min(most.abs()) };
        let (any, all) = match &self.pattern {
            Pattern::Longformer { window, global } => {
                // Without global tokens, rows before the first key have none either.
                let global = if *global == 0 { i64::MIN } else { i64::from(*global) };
                let window = i64::from(*window);
                (nearest <= window || from.min(first) < global, farthest <= window || to < global || last < global)
            }
            Pattern::Strided(step) => {
                let step = i64::from(*step).max(1);
                let has_multiple = most.div_euclid(step) * step >= least;
                (nearest < step || has_multiple, farthest < step || step == 1)
            }
            Pattern::Prefix(len) => (from < i64::from(*len) || from <= last, to < i64::from(*len) || to <= first),
            Pattern::Documents { .. } => self.documents_of(area),
            Pattern::Blocks(blocks) => return blocks.kind_of(area, is_alone),
        };
        match (any, all && is_alone) {
            (false, _) => BlockKind::Absent,
            (true, false) => BlockKind::Partial,
            (true, true) => BlockKind::Full,
        }
    }

    /// No id of these places is less or more than this; `None` if there are no such places.
    fn bounds_of_ids(&self, batch: u32, places: Range<i64>) -> Option<[u32; 2]> {
        let Pattern::Documents { ids, batch: sequences, bounds } = &self.pattern else { return None };
        let of_each = places_of_each(ids, *sequences);
        let [first, end] = [places.start, places.end].map(|place| place.clamp(0, of_each as i64) as usize);
        let of_sequence = if *sequences == 1 { 0 } else { batch as usize * of_each.div_ceil(RUN) };
        let runs = bounds.get(of_sequence + first / RUN..of_sequence + end.div_ceil(RUN)).filter(|_| first < end)?;
        runs.iter().copied().reduce(|[least, most], [a, b]| [least.min(a), most.max(b)])
    }

    /// Whether some row sees some key, and whether all see all.
    fn documents_of(&self, area: &Area) -> (bool, bool) {
        // Where documents lie one behind the other, this leaves most areas out at once.
        let bounds = |range: &Range<u32>, offset: i64| {
            self.bounds_of_ids(area.batch, i64::from(range.start) + offset..i64::from(range.end) + offset)
        };
        match (bounds(&area.rows, area.offset), bounds(&area.keys, 0)) {
            (Some(of_rows), Some(of_keys)) if of_rows[0] <= of_keys[1] && of_keys[0] <= of_rows[1] => {}
            _ => return (false, false),
        }
        if area.rows.len().max(area.keys.len()) > MOST_IDS {
            return (true, false);
        }
        let places = |range: &Range<u32>, offset: i64| {
            let mut ids: Vec<_> = range.clone().map(|n| self.id(area.batch, i64::from(n) + offset)).collect();
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        let (of_rows, of_keys) = (places(&area.rows, area.offset), places(&area.keys, 0));
        let any = of_rows.iter().flatten().any(|id| of_keys.binary_search(&Some(*id)).is_ok());
        (any, any && of_rows.len() == 1 && of_keys.len() == 1)
    }

    /// Sequences and heads that have lists of their own, where that is not 1.
    pub(crate) fn counts(&self) -> [u32; 2] {
        match &self.pattern {
            Pattern::Documents { batch, .. } => [*batch, 1],
            Pattern::Blocks(blocks) => [blocks.counts[0], blocks.counts[1]],
            Pattern::Longformer { .. } | Pattern::Strided(_) | Pattern::Prefix(_) => [1, 1],
        }
    }

    /// Rows and keys of its blocks, if it is made of blocks.
    pub(crate) fn sides(&self) -> Option<[u32; 2]> {
        match &self.pattern {
            Pattern::Blocks(blocks) => Some(blocks.sides),
            Pattern::Longformer { .. } | Pattern::Strided(_) | Pattern::Prefix(_) | Pattern::Documents { .. } => None,
        }
    }

    /// The words that its WGSL reads from [`Operand::Tables`](crate::Operand::Tables).
    pub(super) fn table(&self) -> Vec<u32> {
        match &self.pattern {
            Pattern::Longformer { window, global } => vec![*window, *global],
            Pattern::Strided(step) => vec![*step],
            Pattern::Prefix(len) => vec![*len],
            Pattern::Documents { ids, batch, .. } => {
                let stride = if *batch == 1 { 0 } else { places_of_each(ids, *batch) as u32 };
                [stride].into_iter().chain(ids.iter().copied()).collect()
            }
            Pattern::Blocks(blocks) => blocks.table(),
        }
    }

    /// What makes it no mask for a problem of this shape, if anything does.
    pub(super) fn fault(&self, shape: &AttentionShape) -> Option<String> {
        match &self.pattern {
            Pattern::Strided(0) => Some("its step is 0".into()),
            Pattern::Documents { ids, batch, .. } => is_one_or("sequences of ids", *batch, shape.batch).or_else(|| {
                let needed = u64::from(*batch) * u64::from(shape.seqlen_kv);
                let found = ids.len();
                (found as u64 != needed).then(|| format!("{found} ids are given; [batch or 1, seqlen_kv] has {needed}"))
            }),
            Pattern::Blocks(blocks) => blocks.fault(shape),
            Pattern::Longformer { .. } | Pattern::Strided(_) | Pattern::Prefix(_) => None,
        }
    }

    /// The lists for `of`, made once.
    pub(crate) fn kept(&self, of: &ListsOf, make: impl FnOnce() -> Option<Arc<[u32]>>) -> Option<Arc<[u32]>> {
        // Poisoned or not, each entry is whole.
        let mut kept = self.lists.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some((_, lists)) = kept.iter().find(|(other, _)| other == of) {
            return Some(lists.clone());
        }
        let lists = make()?;
        if kept.len() == MOST_KEPT {
            kept.remove(0);
        }
        kept.push((of.clone(), lists.clone()));
        Some(lists)
    }
}

/// What lists of tiles depend on, beside the mask.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ListsOf {
    pub shape: AttentionShape,
    pub mask: Mask,
    pub lengths: Option<Lengths>,
    pub is_alone: bool,
    /// Rows and keys of a tile.
    pub sides: [u32; 2],
    /// Whether tiles of keys list rows.
    pub by_keys: bool,
}

/// Lists that a mask keeps: those of both directions for some problems.
const MOST_KEPT: usize = 8;

/// Lists that were made. All clones of a mask have them, and masks are equal whatever they keep.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<Made>>>);

/// Lists, and what they were made of.
type Made = (ListsOf, Arc<[u32]>);

impl PartialEq for Kept {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("..")
    }
}

impl Blocks {
    fn kind(&self, batch: u32, head: u32, row: u32, column: u32) -> BlockKind {
        let [batches, heads, rows, columns] = self.counts.map(|count| count as usize);
        let batch = if batches == 1 { 0 } else { batch as usize };
        let head = if heads == 1 { 0 } else { head as usize };
        let at = ((batch * heads + head) * rows + row as usize) * columns + column as usize;
        self.kinds.get(at).copied().unwrap_or(BlockKind::Absent)
    }

    /// As [`BlockMask::kind_of`].
    fn kind_of(&self, area: &Area, is_alone: bool) -> BlockKind {
        let [side_q, side_kv] = self.sides.map(|side| side.max(1));
        let rows = area.rows.start / side_q..area.rows.end.div_ceil(side_q);
        let columns = area.keys.start / side_kv..area.keys.end.div_ceil(side_kv);
        let kinds = rows.flat_map(|row| columns.clone().map(move |column| (row, column)));
        let (mut least, mut most) = (BlockKind::Full, BlockKind::Absent);
        for kind in kinds.map(|(row, column)| self.kind(area.batch, area.head, row, column)) {
            (least, most) = (least.min(kind), most.max(kind));
            if least == BlockKind::Absent && most != BlockKind::Absent {
                return BlockKind::Partial;
            }
        }
        let is_whole = least == BlockKind::Full || (least == BlockKind::Partial && is_alone);
        match most {
            BlockKind::Absent => BlockKind::Absent,
            _ if is_whole => BlockKind::Full,
            _ => BlockKind::Partial,
        }
    }

    /// Sides, distances of sequences, heads and rows of blocks in words, and a bit for each block that is not absent.
    fn table(&self) -> Vec<u32> {
        let [batch, heads, rows, columns] = self.counts;
        let words = columns.div_ceil(32);
        let stride = |count: u32, words: u32| if count == 1 { 0 } else { words };
        let of_head = rows.saturating_mul(words);
        let head =
            [self.sides[0], self.sides[1], stride(batch, of_head.saturating_mul(heads)), stride(heads, of_head), words];
        let word = |kinds: &[BlockKind]| {
            kinds.iter().rev().fold(0, |word, kind| word << 1 | u32::from(*kind != BlockKind::Absent))
        };
        let rows = self.kinds.chunks(columns.max(1) as usize);
        head.into_iter().chain(rows.flat_map(|row| row.chunks(32).map(word))).collect()
    }

    fn fault(&self, shape: &AttentionShape) -> Option<String> {
        let needed = self.counts.iter().fold(1u64, |all, count| all.saturating_mul((*count).into()));
        let found = self.kinds.len();
        let of_kinds = || (found as u64 != needed).then(|| format!("{found} kinds are given for {needed} blocks"));
        fault_of_counts(shape, self.counts, self.sides).or_else(of_kinds)
    }
}

/// What makes blocks of these counts and sides no blocks for a problem of this shape, if anything does.
pub(crate) fn fault_of_counts(shape: &AttentionShape, counts: [u32; 4], sides: [u32; 2]) -> Option<String> {
    let [batch, heads, rows, columns] = counts;
    let of_sides = || {
        let all = [("rows", shape.seqlen_q, rows, sides[0]), ("keys", shape.seqlen_kv, columns, sides[1])];
        all.into_iter().find_map(|(name, length, found, side)| match length.checked_div(side) {
            None => Some(format!("its blocks have 0 {name}")),
            Some(_) if found == length.div_ceil(side) => None,
            Some(_) => Some(format!(
                "it has {found} blocks along the {name}; {length} in blocks of {side} have {}",
                length.div_ceil(side)
            )),
        })
    };
    is_one_or("sequences", batch, shape.batch).or_else(|| is_one_or("heads", heads, shape.num_heads)).or_else(of_sides)
}

/// A count that neither is 1 nor all.
fn is_one_or(name: &str, found: u32, all: u32) -> Option<String> {
    let fits = found == 1 || found == all;
    (!fits).then(|| format!("it has {found} {name}; the problem has {all}, and 1 is for all of them"))
}

/// How many blocks there are, if the library makes as many.
pub(crate) fn number_of_blocks(counts: [u32; 4]) -> Option<u64> {
    let number = counts.iter().fold(1u64, |all, count| all.saturating_mul((*count).into()));
    (number <= MOST_BLOCKS).then_some(number)
}

/// A kind for each block; none if they are too many, which planning refuses.
fn each(counts: [u32; 4], kind: &mut impl FnMut(u32, u32, u32, u32) -> BlockKind) -> Vec<BlockKind> {
    let [batches, heads, rows, columns] = counts;
    let mut kinds = Vec::new();
    if number_of_blocks(counts).unwrap_or(0) == 0 {
        return kinds;
    }
    for batch in 0..batches {
        for head in 0..heads {
            for row in 0..rows {
                kinds.extend((0..columns).map(|column| kind(batch, head, row, column)));
            }
        }
    }
    kinds
}

/// The columns that a row of blocks sees.
fn bigbird_row(seed: u64, [rows, columns]: [u32; 2], head: u32, row: u32) -> Vec<bool> {
    if columns < 6 || row == 0 || row + 1 == rows {
        return vec![true; columns as usize];
    }
    let is_seen = |column: u32| column.abs_diff(row) <= 1 || column == 0 || column + 1 == columns;
    let mut seen: Vec<bool> = (0..columns).map(is_seen).collect();
    let mut left: Vec<u32> = (0..columns).filter(|column| !is_seen(*column)).collect();
    for word in philox4x32_10([seed as u32, (seed >> 32) as u32], [row, head, 0, 0]).into_iter().take(3) {
        if !left.is_empty() {
            let pick = (u64::from(word) * left.len() as u64) >> 32;
            seen[left.remove(pick as usize) as usize] = true;
        }
    }
    seen
}
