//! Tensors that have a name of `flash run` and that nothing would use: a file with one means something else than what would run.

use crate::failure::Result;
use crate::tensors::File;

/// Only a run over a cache uses them.
const OF_CACHES: &[&str] = &["v_cache", "cache_seqlens", "page_table", "slot_mapping", "cu_seqlens_kv_new"];

/// A run over a cache does not use them.
const OF_DENSE: &[&str] =
    &["cu_seqlens_kv", "seqlens_q", "seqlens_kv", "seqused_q", "seqused_kv", "block_mask", "document_ids", "d_lse"];

/// Over a cache, a tensor and one that it needs.
const NEEDS: &[(&str, &str)] =
    &[("k", "v"), ("v", "k"), ("slot_mapping", "k"), ("cu_seqlens_kv_new", "k"), ("cu_seqlens_kv_new", "cu_seqlens_q")];

/// Refuses a file that holds such a tensor.
pub fn refuse(file: &File, rotates: bool) -> Result<()> {
    let has = |name: &&&str| file.has(name);
    let over_cache = file.has("k_cache");
    let reason = match over_cache {
        true => {
            let alone = NEEDS.iter().find(|(name, needed)| file.has(name) && !file.has(needed));
            let dense = OF_DENSE.iter().find(has).map(|name| format!("{name}, which nothing uses over a cache"));
            dense.or(alone.map(|(name, needed)| format!("{name}, which nothing uses over a cache without {needed}")))
        }
        false => OF_CACHES.iter().find(has).map(|name| format!("{name}, which nothing uses without k_cache")),
    };
    let table = ["rotary_cos", "rotary_sin"].into_iter().find(|name| !rotates && file.has(name));
    match reason.or(table.map(|name| format!("{name}, which nothing uses without --rotary"))) {
        Some(reason) => Err(file.failure(format_args!("has {reason}"))),
        None => Ok(()),
    }
}
