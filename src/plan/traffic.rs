//! What a plan moves through device memory.

use super::kernels::Traffic;
use super::passes::{Pass, Plan};
use super::visits::visits;

impl Plan {
    /// Bytes that the kernels read from and write to device memory. They are counted from the tiles: what each workgroup
    /// loads and stores, without reuse between workgroups, and of every sequence as if it had the largest length. Caches
    /// make the true number smaller. 2⁶⁴ − 1 if there are more.
    pub fn traffic_bytes(&self) -> u64 {
        let chosen = self.chosen.as_ref().map_or(self.problem.shape.num_heads, |(heads, _)| heads.len() as u32);
        let heads = u128::from(self.problem.shape.batch) * u128::from(chosen);
        let of_one_head: u128 =
            self.passes.iter().map(|pass| (pass.kernel.spec().traffic)(&self.traffic_of(pass))).sum();
        let of_all = of_one_head.saturating_mul(heads);
        // As if each row saw as many keys as the mean.
        let of_chosen = self.chosen.as_ref().map_or(of_all, |(_, rows)| {
            of_all.saturating_mul(rows.len() as u128) / u128::from(self.problem.shape.seqlen_q.max(1))
        });
        u64::try_from(of_chosen).unwrap_or(u64::MAX)
    }

    /// What a pass may move for one head.
    fn traffic_of(&self, pass: &Pass) -> Traffic {
        let shape = &self.problem.shape;
        let tiles = pass.specialization.tiles;
        let [rows, keys, head_dim, head_dim_v] =
            [shape.seqlen_q, shape.seqlen_kv, shape.head_dim, shape.head_dim_v].map(u128::from);
        let (tile_q, tile_kv) = (u128::from(tiles.tile_q), u128::from(tiles.tile_kv));
        let size = u128::from(self.problem.element.size());
        let gradient_size = u128::from(self.problem.gradient_element().size());
        let output_size = u128::from(self.problem.output_element().size());
        let visits = visits(&self.problem, tiles);
        let splits = u128::from(self.num_splits);
        // Decoding: the rows of a tile, and the heads that share its K and V.
        let group = u128::from(shape.heads_per_kv());
        Traffic {
            splits,
            q: rows * head_dim * size,
            o: rows * head_dim_v * output_size,
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
}
