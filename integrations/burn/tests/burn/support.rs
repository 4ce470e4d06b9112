//! One device, random tensors, and attention written with Burn's own operations.

use burn::tensor::activation::softmax;
use burn::tensor::{Bool, DType, Device, Shape, Tensor, TensorData};
use std::sync::OnceLock;
use wgpu_flash_attention_burn::{AttentionOptions, AttentionOutput, attention};

/// The device of all tests, with Burn's default memory pools.
pub fn device() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(|| wgpu_flash_attention_burn::init().expect("there is an adapter")).clone()
}

/// Numbers of a normal distribution, the same for the same seed (splitmix64).
pub fn normal(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut unit = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    let pair = |u: f64, v: f64| ((-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32;
    (0..len).map(|_| pair(unit(), unit())).collect()
}

pub fn tensor<const D: usize>(shape: [usize; D], seed: u64, dtype: DType, device: &Device) -> Tensor<D> {
    let data = TensorData::new(normal(shape.iter().product(), seed), Shape::from(shape));
    Tensor::<D>::from_data(data, (device, DType::F32)).cast(dtype)
}

pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.cast(DType::F32).into_data().try_to_vec().expect("f32")
}

/// What naive attention adds to the scores and hides.
#[derive(Clone, Default)]
pub struct Naive {
    pub softcap: Option<f64>,
    pub bias: Option<Tensor<4>>,
    /// True where a row sees a key.
    pub seen: Option<Tensor<4, Bool>>,
}

/// softmax(Q Kᵀ / √head_dim) V and LSE, by Burn's operations. Rows without keys are not for it.
pub fn naive(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, naive: &Naive) -> AttentionOutput {
    let [batch, heads, rows, dim] = q.dims();
    let [_, heads_kv, keys, _] = k.dims();
    let repeat = |tensor: Tensor<4>| {
        let [batch, heads_kv, keys, dim] = tensor.dims();
        tensor
            .reshape([batch, heads_kv, 1, keys, dim])
            .expand([batch, heads_kv, heads / heads_kv, keys, dim])
            .reshape([batch, heads, keys, dim])
    };
    let _ = heads_kv;
    let mut scores = q.matmul(repeat(k).swap_dims(2, 3)) / (dim as f64).sqrt();
    if let Some(softcap) = naive.softcap {
        scores = (scores / softcap).tanh() * softcap;
    }
    if let Some(bias) = &naive.bias {
        scores = scores + bias.clone();
    }
    if let Some(seen) = &naive.seen {
        scores = scores.mask_fill(seen.clone().bool_not().expand([batch, heads, rows, keys]), f32::NEG_INFINITY);
    }
    let largest = scores.clone().detach().max_dim(3);
    let lse = (scores.clone() - largest.clone()).exp().sum_dim(3).log() + largest;
    let o = softmax(scores, 3).matmul(repeat(v));
    AttentionOutput { o, lse: lse.reshape([batch, heads, rows]) }
}

/// A causal mask, the last row at the last key.
pub fn causal(rows: usize, keys: usize, device: &Device) -> Tensor<4, Bool> {
    let seen: Vec<bool> = (0..rows).flat_map(|row| (0..keys).map(move |key| key + rows <= row + keys)).collect();
    Tensor::from_data(TensorData::new(seen, Shape::from([1, 1, rows, keys])), device)
}

/// The largest difference.
pub fn error(found: &[f32], exact: &[f32]) -> f32 {
    assert_eq!(found.len(), exact.len());
    let mut error = 0f32;
    for (index, (found, exact)) in found.iter().zip(exact).enumerate() {
        assert!(found.is_finite() && exact.is_finite(), "{index}: {found}, exactly {exact}");
        error = error.max((found - exact).abs());
    }
    error
}

/// That an answer errs at most so many times as much as naive attention in the same type does, both against naive attention in f32 of
/// the same inputs. f32 has no better one at hand: then a floor of some units in the last place stands for its error.
pub fn close(name: &str, found: &[f32], same_type: &[f32], exact: &[f32], times: f32) {
    let largest = exact.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    let (ours, theirs) = (error(found, exact), error(same_type, exact));
    let allowed = times * theirs + 1e-5 * largest.max(1.0);
    assert!(ours <= allowed, "{name}: errs by {ours}, {allowed} is allowed ({theirs} of naive attention)");
}

pub fn ours(q: &Tensor<4>, k: &Tensor<4>, v: &Tensor<4>, options: &AttentionOptions) -> AttentionOutput {
    attention(q.clone(), k.clone(), v.clone(), options).expect("the problem is sound")
}
