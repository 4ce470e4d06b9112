//! The lists of tiles that the kernels visit under block masks: `shaders/slots/visits/blocks.wgsl` reads them.

use super::kernels::Specialization;
use super::tiles::Owns;
use crate::problem::{Area, AttentionProblem, BlockKind, BlockMask, KeyMask, ListsOf};
use std::ops::Range;
use std::sync::Arc;

/// Lists of a kernel, and words of them all. So they are made in a second or two.
pub(super) const MOST_LISTS: u64 = 1 << 18;
pub(super) const MOST_WORDS: usize = 1 << 24;

/// Lists of kernels, by the number of their table.
pub(super) type TileLists = Vec<(usize, Arc<[u32]>)>;

/// Kernels fetch tiles ahead of the one that they visit: so many words behind the last list may be read.
const READ_AHEAD: usize = 4;

/// The block masks of a problem.
fn block_masks(problem: &AttentionProblem) -> impl Iterator<Item = &BlockMask> {
    problem.key_masks().iter().filter_map(|mask| match mask {
        KeyMask::Blocks(mask) => Some(mask),
        KeyMask::Boolean(_) | KeyMask::Wgsl(_) => None,
    })
}

/// The words of the lists of a kernel, or `None` if they are too many. For each tile of rows that it owns the KV tiles, for
/// each tile of keys the Q tiles: distances of sequences and heads in tiles, then for each tile where its list starts, how many
/// tiles of it are whole, and how many there are; then the lists, whole tiles first.
pub(super) fn block_lists(problem: &AttentionProblem, specialization: &Specialization) -> Option<Arc<[u32]>> {
    let mask = block_masks(problem).next()?;
    let of = ListsOf {
        shape: problem.shape,
        mask: problem.mask,
        lengths: problem.lengths().cloned(),
        is_alone: block_masks(problem).count() == problem.key_masks().len(),
        sides: [specialization.tiles.tile_q, specialization.tiles.tile_kv],
        by_keys: specialization.kernel.spec().owns == Owns::Keys,
    };
    let make = || Lists { problem, of: &of }.words().map(Arc::from);
    // One mask's lists depend on nothing else.
    if block_masks(problem).count() == 1 { mask.kept(&of, make) } else { make() }
}

/// KV tiles that a Q tile visits at most, where a problem has one block mask and its lists are not too many.
pub(super) fn most_listed(problem: &AttentionProblem, specialization: &Specialization) -> Option<u64> {
    // The lists of several masks are not kept.
    let is_kept = specialization.has_lists && block_masks(problem).count() == 1;
    let words = is_kept.then(|| block_lists(problem, specialization)).flatten()?;
    // Two strides, then three words a list, and the first list starts behind them.
    let end = words.get(2).map_or(2, |first| *first as usize);
    words.get(2..end)?.chunks_exact(3).map(|list| u64::from(list[2])).max()
}

/// Sequences and query heads whose lists differ.
fn counts(problem: &AttentionProblem) -> [u32; 2] {
    let of_masks = block_masks(problem).map(BlockMask::counts);
    let [batch, heads] = of_masks.fold([1, 1], |[a, b], [c, d]| [a.max(c), b.max(d)]);
    [if problem.has_lengths() { problem.shape.batch } else { batch }, heads]
}

/// A workgroup's tile of some heads that share a list.
struct Owner {
    batch: u32,
    heads: Range<u32>,
    tile: u32,
}

/// What makes the lists.
struct Lists<'a> {
    problem: &'a AttentionProblem,
    of: &'a ListsOf,
}

impl Lists<'_> {
    fn words(&self) -> Option<Vec<u32>> {
        let shape = &self.of.shape;
        let [batches, heads] = counts(self.problem);
        // Query heads that share keys are listed together where a tile of keys is owned.
        let group = if self.of.by_keys && heads > 1 { shape.heads_per_kv() } else { 1 };
        let groups = heads / group;
        let [q_tiles, kv_tiles] = self.tiles();
        let [tiles, others] = if self.of.by_keys { [kv_tiles, q_tiles] } else { [q_tiles, kv_tiles] };
        let stride = |count: u32, tiles: u64| if count == 1 { 0 } else { tiles as u32 };
        let num_lists = u64::from(tiles) * u64::from(groups) * u64::from(batches);
        let first = 3 * Some(num_lists).filter(|lists| *lists <= MOST_LISTS)? + 2;
        let mut words = vec![stride(batches, u64::from(groups) * u64::from(tiles)), stride(groups, tiles.into())];
        let mut lists = Vec::new();
        for batch in 0..batches {
            for head in 0..groups {
                for tile in 0..tiles {
                    let owner = Owner { batch, heads: head * group..(head + 1) * group, tile };
                    let mut list = [Vec::new(), Vec::new()];
                    self.list(&owner, 0..others, &mut list);
                    let [whole, partial] = list;
                    let start = first as u32 + lists.len() as u32;
                    words.extend([start, whole.len() as u32, (whole.len() + partial.len()) as u32]);
                    lists.extend(whole);
                    lists.extend(partial);
                    if lists.len() > MOST_WORDS {
                        return None;
                    }
                }
            }
        }
        words.extend(lists);
        words.extend([0; READ_AHEAD]);
        Some(words)
    }

    /// Tiles of rows and of keys.
    fn tiles(&self) -> [u32; 2] {
        let [side_q, side_kv] = self.of.sides;
        [self.of.shape.seqlen_q.div_ceil(side_q), self.of.shape.seqlen_kv.div_ceil(side_kv)]
    }

    /// Adds those of some tiles that the owner visits: those that all rows see whole, and the others. Halves of which nothing is
    /// seen are left out at once.
    fn list(&self, owner: &Owner, others: Range<u32>, list: &mut [Vec<u32>; 2]) {
        let [side_q, side_kv] = self.of.sides;
        let clipped =
            |tiles: Range<u32>, side: u32, end: u32| tiles.start * side..tiles.end.saturating_mul(side).min(end);
        let owned = owner.tile..owner.tile + 1;
        let [q_tiles, kv_tiles] = if self.of.by_keys { [others.clone(), owned] } else { [owned, others.clone()] };
        let rows = clipped(q_tiles, side_q, self.of.shape.seqlen_q);
        let keys = clipped(kv_tiles, side_kv, self.of.shape.seqlen_kv);
        if rows.is_empty() || keys.is_empty() {
            return;
        }
        let of_ranges = self.kind_of_ranges(owner.batch, &rows, &keys);
        let kind = match of_ranges {
            BlockKind::Absent => BlockKind::Absent,
            seen => self.kind_of_masks(owner, &rows, &keys).min(seen),
        };
        // The passing tile must be full of rows, or keys: loops over whole tiles do not ask.
        let is_full = |tile: u32| match self.of.by_keys {
            true => (tile + 1).saturating_mul(side_q) <= self.of.shape.seqlen_q,
            false => (tile + 1).saturating_mul(side_kv) <= self.of.shape.seqlen_kv,
        };
        match kind {
            BlockKind::Absent => {}
            BlockKind::Full => others.for_each(|tile| list[usize::from(!is_full(tile))].push(tile)),
            BlockKind::Partial if others.len() == 1 => list[1].push(others.start),
            BlockKind::Partial => {
                let middle = others.start + others.len() as u32 / 2;
                self.list(owner, others.start..middle, list);
                self.list(owner, middle..others.end, list);
            }
        }
    }

    /// What causal, window and lengths show of some rows and keys.
    fn kind_of_ranges(&self, batch: u32, rows: &Range<u32>, keys: &Range<u32>) -> BlockKind {
        let (seqlen_q, seqlen_kv) = self.problem.lengths_of(batch);
        let existing = rows.start..rows.end.min(seqlen_q);
        if existing.is_empty() || keys.start >= seqlen_kv {
            return BlockKind::Absent;
        }
        let of_row = |i: u32| self.of.mask.visible_keys(i, seqlen_q, seqlen_kv);
        let (top, bottom) = (of_row(existing.start), of_row(existing.end - 1));
        // From row to row, the range of keys never goes back.
        if top.start >= keys.end || bottom.end <= keys.start || bottom.is_empty() && top.is_empty() {
            return BlockKind::Absent;
        }
        let is_whole = existing == *rows && bottom.start <= keys.start && top.end >= keys.end;
        if is_whole { BlockKind::Full } else { BlockKind::Partial }
    }

    /// What all masks show of some rows and keys, of several heads.
    fn kind_of_masks(&self, owner: &Owner, rows: &Range<u32>, keys: &Range<u32>) -> BlockKind {
        let batch = owner.batch;
        let (seqlen_q, seqlen_kv) = self.problem.lengths_of(batch);
        let offset = i64::from(seqlen_kv) - i64::from(seqlen_q);
        let of_head = |head: u32| {
            let area = Area { batch, head, rows: rows.clone(), keys: keys.clone(), offset };
            block_masks(self.problem).map(|mask| mask.kind_of(&area, self.of.is_alone)).min()
        };
        let kinds: Vec<_> = owner.heads.clone().filter_map(of_head).collect();
        match (kinds.iter().min(), kinds.iter().max()) {
            (Some(BlockKind::Full), _) => BlockKind::Full,
            (_, Some(BlockKind::Absent) | None) => BlockKind::Absent,
            _ => BlockKind::Partial,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::AttentionShape;

    /// Every list has the tiles in which some row sees some key, and calls those whole in which all rows see all keys.
    #[test]
    fn lists_hold_what_is_seen() {
        let shape = AttentionShape::new(2, 4, 50, 8).with_num_heads_kv(2).with_seqlen_kv(61);
        let ids: Vec<u32> = (0..122).map(|n| n * n / 700).collect();
        let kinds: Vec<_> =
            (0..7 * 6 * 4).map(|n| [BlockKind::Absent, BlockKind::Partial][(n * n + n / 5) % 2]).collect();
        for mask in [
            BlockMask::local(6),
            BlockMask::longformer(3, 10),
            BlockMask::strided(9),
            BlockMask::prefix(11),
            BlockMask::documents(2, &ids),
            BlockMask::new([1, 4, 7, 6], [8, 12], &kinds),
        ] {
            let problem = AttentionProblem::new(shape).with_key_mask(KeyMask::Blocks(mask.clone()));
            let causal = problem.clone().with_causal();
            let short = problem.clone().with_lengths(vec![50, 20], vec![33, 61]);
            for problem in [problem, causal, short] {
                for (by_keys, sides) in [(false, [16, 8]), (true, [8, 16]), (false, [1, 4]), (true, [4, 4])] {
                    check(&problem, &mask, by_keys, sides);
                }
            }
        }
    }

    fn check(problem: &AttentionProblem, mask: &BlockMask, by_keys: bool, sides: [u32; 2]) {
        let of = ListsOf {
            shape: problem.shape,
            mask: problem.mask,
            lengths: problem.lengths().cloned(),
            is_alone: true,
            sides,
            by_keys,
        };
        let words = Lists { problem, of: &of }.words().unwrap();
        let shape = problem.shape;
        let heads = if by_keys { shape.num_heads_kv } else { shape.num_heads };
        let per_list = if by_keys { shape.heads_per_kv() } else { 1 };
        let counts = [shape.seqlen_q.div_ceil(sides[0]), shape.seqlen_kv.div_ceil(sides[1])];
        let [owned, passing] = if by_keys { [counts[1], counts[0]] } else { counts };
        for (batch, head, tile) in (0..shape.batch)
            .flat_map(|batch| (0..heads).flat_map(move |head| (0..owned).map(move |tile| (batch, head, tile))))
        {
            let at = 2 + 3 * (batch * words[0] + head * words[1] + tile) as usize;
            let [start, num_whole, count] = [0, 1, 2].map(|n| words[at + n] as usize);
            let listed = &words[start..start + count];
            for other in 0..passing {
                let [q_tile, kv_tile] = if by_keys { [other, tile] } else { [tile, other] };
                let mut seen = 0;
                for head in head * per_list..(head + 1) * per_list {
                    for i in (q_tile * sides[0]..(q_tile + 1) * sides[0]).filter(|i| *i < shape.seqlen_q) {
                        let (seqlen_q, seqlen_kv) = problem.lengths_of(batch);
                        let offset = i64::from(seqlen_kv) - i64::from(seqlen_q);
                        let keys = problem.visible_keys_of(batch, i);
                        let of_tile = kv_tile * sides[1]..(kv_tile + 1) * sides[1];
                        seen += of_tile.filter(|j| keys.contains(j) && mask.sees(batch, head, i, *j, offset)).count();
                    }
                }
                let place = listed.iter().position(|found| *found == other);
                let all = per_list * sides[0] * sides[1];
                assert!(seen == 0 || place.is_some(), "{problem:?} {of:?}: tile {other} is missing in {tile}");
                if place.is_some_and(|place| place < num_whole) {
                    let rows = sides[0].min(shape.seqlen_q - q_tile * sides[0]);
                    let keys = sides[1].min(shape.seqlen_kv - kv_tile * sides[1]);
                    assert_eq!(seen as u32, per_list * rows * keys, "{problem:?} {of:?}: {tile}, {other}");
                }
                // Both conditions of these patterns together may show all of a tile that neither shows.
                let is_exact = mask.name() != "strided" && *mask != BlockMask::longformer(3, 10);
                let is_whole = place.is_some_and(|place| place < num_whole);
                assert!(seen as u32 != all || is_whole || !is_exact, "{of:?}: {tile}, {other}");
            }
        }
    }
}
