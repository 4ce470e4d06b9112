//! The attention of a layer over all tokens that were read so far, computed by this library or by Burn.

use anyhow::{Result, bail};
use burn::tensor::module::attention as burn_attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{DType, Device, Tensor};
use wgpu_flash_attention_burn::{AttentionOptions, CacheElement, KvCache, attention};

use crate::rotary::AnglesOfRows;

/// Whose attention the model calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Attention {
    /// This library's.
    Flash,
    /// Burn's own.
    Burn,
}

/// How K and V of past tokens are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Storage {
    F32,
    F16,
    Int8,
}

/// K and V of a layer.
pub enum Cache {
    Flash(KvCache),
    Burn(BurnCache),
}

impl Cache {
    /// An empty cache of K and V, each `[heads_kv, capacity, head_dim]`.
    pub fn new(attention: Attention, storage: Storage, shape: [usize; 3], device: &Device) -> Result<Self> {
        let [heads_kv, capacity, head_dim] = shape;
        let element = match storage {
            Storage::F32 => CacheElement::F32,
            Storage::F16 => CacheElement::F16,
            Storage::Int8 => CacheElement::Int8,
        };
        Ok(match attention {
            Attention::Flash => Self::Flash(KvCache::new(1, heads_kv, capacity, [head_dim, head_dim], element, device)),
            Attention::Burn => Self::Burn(BurnCache::new(storage, shape, device)?),
        })
    }

    /// Stores K and V `[rows, heads_kv, head_dim]` of new tokens, and returns the attention of their Q `[rows, heads, head_dim]`
    /// over all tokens, each of which sees itself and those before it: `[rows, heads, head_dim]`. Q and K are turned by their
    /// positions first.
    pub fn attend(&mut self, q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, angles: &AnglesOfRows) -> Result<Tensor<3>> {
        // `[1, heads, rows, head_dim]`, a view.
        let of_heads = |tensor: Tensor<3>| tensor.swap_dims(0, 1).unsqueeze::<4>();
        match self {
            Self::Flash(cache) => {
                let causal = AttentionOptions::new().with_causal();
                let output = if cache.is_empty() {
                    // The first tokens need not be read back from the cache.
                    let [q, k, v] = [angles.turn(q), angles.turn(k), v].map(of_heads);
                    cache.append(k.clone(), v.clone())?;
                    attention(q, k, v, &causal)?
                } else {
                    let q = cache.append_rotated(of_heads(q), of_heads(k), of_heads(v), angles.of_pairs)?;
                    cache.attention(q, &causal)?
                };
                Ok(output.o.squeeze_dim::<3>(0).swap_dims(0, 1))
            }
            Self::Burn(cache) => cache.attend(angles.turn(q), angles.turn(k), v),
        }
    }
}

/// Burn has no cache. This one is written as well as its tensors allow: room for all tokens, new ones written in place.
pub struct BurnCache {
    /// K and V, `[1, heads_kv, capacity, head_dim]`. Taken out while they are written, so that Burn need not copy them.
    stored: Option<[Tensor<4>; 2]>,
    length: usize,
}

impl BurnCache {
    fn new(storage: Storage, [heads_kv, capacity, head_dim]: [usize; 3], device: &Device) -> Result<Self> {
        let element = match storage {
            Storage::F32 => DType::F32,
            Storage::F16 => DType::F16,
            Storage::Int8 => bail!("Burn's own attention has no int8 cache"),
        };
        let empty = || Tensor::zeros([1, heads_kv, capacity, head_dim], (device, element));
        Ok(Self { stored: Some([empty(), empty()]), length: 0 })
    }

    fn attend(&mut self, q: Tensor<3>, k: Tensor<3>, v: Tensor<3>) -> Result<Tensor<3>> {
        let [rows, heads, head_dim] = q.dims();
        let heads_kv = k.dims()[1];
        let (start, end) = (self.length, self.length + rows);
        self.length = end;

        let [k_stored, v_stored] = self.stored.take().expect("a cache that failed is not used again");
        let element = k_stored.dtype();
        let write = |stored: Tensor<4>, new: Tensor<3>| {
            let new = new.cast(element).swap_dims(0, 1).unsqueeze::<4>();
            stored.slice_assign([0..1, 0..heads_kv, start..end, 0..head_dim], new)
        };
        let (k_stored, v_stored) = (write(k_stored, k), write(v_stored, v));
        let seen = |stored: &Tensor<4>| stored.clone().slice([0..1, 0..heads_kv, 0..end, 0..head_dim]);
        let (keys, values) = (seen(&k_stored), seen(&v_stored));
        self.stored = Some([k_stored, v_stored]);

        let (q_element, group) = (q.dtype(), heads / heads_kv);
        let q = q.cast(element);
        let o = if rows == 1 {
            // The query heads that share K and V are rows of one head.
            let q = q.reshape([1, heads_kv, group, head_dim]);
            burn_attention(q, keys, values, None, None, AttentionModuleOptions::default()).reshape([1, heads, head_dim])
        } else {
            // Burn wants as many heads of K and V as of Q.
            let repeated = |tensor: Tensor<4>| {
                let shape = [1, heads_kv, group, end, head_dim];
                tensor.unsqueeze_dim::<5>(2).expand(shape).reshape([1, heads, end, head_dim])
            };
            let causal = AttentionModuleOptions { is_causal: true, ..Default::default() };
            let q = q.swap_dims(0, 1).unsqueeze::<4>();
            let o = burn_attention(q, repeated(keys), repeated(values), None, None, causal);
            o.squeeze_dim::<3>(0).swap_dims(0, 1)
        };
        Ok(o.cast(q_element))
    }
}
