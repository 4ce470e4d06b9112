//! What a plan moves through device memory.

use super::kernels::Traffic;
use super::passes::{Pass, Plan};
use super::tiles::Tiles;

impl Plan {
    /// Bytes that the kernels read from and write to device memory, counted from the tiles: what one workgroup loads
    /// and stores, with no reuse between workgroups. Caches make the true number smaller.
    pub fn traffic_bytes(&self) -> u64 {
        let heads = u64::from(self.problem.shape.batch) * u64::from(self.problem.shape.num_heads);
        let of_one_head: u64 =
            self.passes.iter().map(|pass| (pass.kernel.spec().traffic)(&self.traffic_of(pass))).sum();
        of_one_head * heads
    }

    /// What a pass may move for one head.
    fn traffic_of(&self, pass: &Pass) -> Traffic {
        let shape = &self.problem.shape;
        let tiles = pass.specialization.tiles;
        let [rows, keys, head_dim, head_dim_v] =
            [shape.seqlen_q, shape.seqlen_kv, shape.head_dim, shape.head_dim_v].map(u64::from);
        let (tile_q, tile_kv) = (u64::from(tiles.tile_q), u64::from(tiles.tile_kv));
        let (size, gradient_size) = (self.problem.element.size(), self.problem.gradient_element_in_force().size());
        let visits = self.visits(tiles);
        let splits = u64::from(self.num_splits);
        // Decoding: the rows of a tile, and the heads that share its K and V.
        let group = u64::from(shape.heads_per_kv()).max(1);
        Traffic {
            splits,
            q: rows * head_dim * size,
            o: rows * head_dim_v * size,
            lse: rows * 4,
            dq: rows * head_dim * gradient_size,
            dk: keys * head_dim * gradient_size,
            dv: keys * head_dim_v * gradient_size,
            own_k: keys * head_dim * size,
            own_v: keys * head_dim_v * size,
            k: visits * tile_kv * head_dim * size,
            v: visits * tile_kv * head_dim_v * size,
            passing_q: visits * tile_q * head_dim * size,
            passing_o: visits * tile_q * head_dim_v * size,
            passing_stats: visits * tile_q * 8,
            shared: (rows * group).div_ceil(tile_q) * keys * (head_dim + head_dim_v) * size / group,
            s: visits * tile_q * tile_kv * 4,
            parts: splits * rows * (head_dim_v.next_multiple_of(4) + 1) * 4,
        }
    }

    /// Pairs of a Q tile and a KV tile that are visited, in one head.
    fn visits(&self, tiles: Tiles) -> u64 {
        let seqlen_q = self.problem.shape.seqlen_q;
        let tile_kv = u64::from(tiles.tile_kv);
        let mut visits = 0u64;
        let mut row = 0;
        while row < seqlen_q {
            let last = (row + tiles.tile_q).min(seqlen_q) - 1;
            let end = u64::from(self.problem.visible_keys(last).end);
            let first = u64::from(self.problem.visible_keys(row).start).min(end);
            visits += end.div_ceil(tile_kv) - first / tile_kv;
            row += tiles.tile_q;
        }
        visits
    }
}
