//! How many pairs of tiles a mask lets through. It is counted without a loop over tiles, because there may be 2²⁹ rows.

use super::tiles::Tiles;
use crate::problem::AttentionProblem;

/// Pairs of a Q tile and a KV tile that are visited, in one head. A Q tile visits from the KV tile of the first key that
/// its first row sees to that of the last key that its last row sees.
pub(super) fn visits(problem: &AttentionProblem, tiles: Tiles) -> u128 {
    let shape = &problem.shape;
    if shape.seqlen_q == 0 {
        return 0;
    }
    let (rows, keys) = (i128::from(shape.seqlen_q), i128::from(shape.seqlen_kv));
    let (step, divisor) = (i128::from(tiles.tile_q), i128::from(tiles.tile_kv));
    let count = i128::from(shape.seqlen_q.div_ceil(tiles.tile_q));
    let offset = i128::from(problem.mask_offset(shape.seqlen_q, shape.seqlen_kv));
    let up = |key: i128| (key + divisor - 1) / divisor;
    let ends = problem.mask.window_right.map_or(count * up(keys), |right| {
        let start = offset + i128::from(right) + 1;
        // The last tile may hold fewer rows than the others.
        let of_last = up((start + rows - 1).clamp(0, keys));
        ramp_sum(count - 1, start + step - 1, step, keys, divisor, divisor - 1) + of_last
    });
    let first = |left: u32| ramp_sum(count, offset - i128::from(left), step, keys, divisor, 0);
    let firsts = problem.mask.window_left.map_or(0, first);
    (ends - firsts).max(0) as u128
}

/// Σ ⌊(clamp(start + step · t, 0, top) + add) / divisor⌋ over t in 0..count, with 0 ≤ add < divisor.
fn ramp_sum(count: i128, start: i128, step: i128, top: i128, divisor: i128, add: i128) -> i128 {
    // From where on start + step · t reaches a value.
    let reaches = |value: i128| (value - start + step - 1).div_euclid(step).clamp(0, count);
    let (rise, flat) = (reaches(0), reaches(top));
    let slope = floor_sum(flat - rise, divisor, step, start + step * rise + add);
    slope + (count - flat) * ((top + add) / divisor)
}

/// Σ ⌊(a · i + b) / m⌋ over i in 0..n, none of them negative: the points of a lattice below a line, counted as Euclid's
/// algorithm walks.
fn floor_sum(n: i128, m: i128, a: i128, b: i128) -> i128 {
    if n == 0 {
        return 0;
    }
    let whole = n * (n - 1) / 2 * (a / m) + n * (b / m);
    let (a, b) = (a % m, b % m);
    let top = a * n + b;
    if top < m { whole } else { whole + floor_sum(top / m, a, m, top % m) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::{Alignment, AttentionShape};

    #[test]
    fn counted_visits_are_those_of_the_tiles() {
        let windows = [None, Some(0), Some(1), Some(5), Some(40), Some(u32::MAX)];
        let mut cases = 0;
        for (seqlen_q, seqlen_kv) in [(0, 5), (5, 0), (1, 1), (7, 7), (9, 4), (4, 9), (1, 30), (30, 2), (61, 47)] {
            for (tile_q, tile_kv) in [(1, 4), (4, 4), (3, 8), (8, 16), (64, 32)] {
                for (window_left, window_right) in windows.iter().flat_map(|l| windows.map(|r| (*l, r))) {
                    let mut problem =
                        AttentionProblem::new(AttentionShape::new(1, 1, seqlen_q, 8).with_seqlen_kv(seqlen_kv));
                    (problem.mask.window_left, problem.mask.window_right) = (window_left, window_right);
                    for alignment in [Alignment::BottomRight, Alignment::TopLeft] {
                        problem.mask.alignment = alignment;
                        let expected: u64 = (0..seqlen_q)
                            .step_by(tile_q as usize)
                            .map(|row| {
                                let last = (row + tile_q).min(seqlen_q) - 1;
                                let end = problem.visible_keys(last).end;
                                u64::from(end.div_ceil(tile_kv) - problem.visible_keys(row).start / tile_kv)
                            })
                            .sum();
                        let found = visits(&problem, Tiles::new(tile_q, tile_kv, 1, 1));
                        assert_eq!(found, expected.into(), "{problem:?} {tile_q}x{tile_kv}");
                        cases += 1;
                    }
                }
            }
        }
        assert_eq!(cases, 9 * 5 * 36 * 2);
    }
}
