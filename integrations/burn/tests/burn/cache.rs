//! Generation over a cache against attention over all tokens at once.

use burn::tensor::{DType, Int, Tensor, TensorData};
use wgpu_flash_attention_burn::{AttentionOptions, CacheElement, KvCache, Rotary, RotaryPairs};

use crate::support::{close, device, error, ours, tensor, values};

/// A prompt and single tokens over a cache give what causal attention over all gives.
#[test]
fn token_by_token() {
    let device = device();
    for (element, dtype) in [(CacheElement::F32, DType::F32), (CacheElement::F16, DType::F16)] {
        let q: Tensor<4> = tensor([2, 4, 12, 32], 1, dtype, &device);
        let [k, v]: [Tensor<4>; 2] = [2, 3].map(|seed| tensor([2, 2, 12, 32], seed, dtype, &device));
        let options = AttentionOptions::new().with_causal();
        let exact = values(ours(&q, &k, &v, &options).o);
        let mut cache = KvCache::new(2, 2, 16, [32, 32], element, &device);
        let mut parts = Vec::new();
        let mut start = 0;
        for count in [5, 1, 1, 4, 1] {
            let part = |tensor: &Tensor<4>| tensor.clone().narrow(2, start, count);
            cache.append(part(&k), part(&v)).unwrap();
            parts.push(cache.attention(part(&q), &options).unwrap().o);
            start += count;
        }
        assert_eq!((cache.len(), cache.capacity()), (12, 16));
        let found = values(Tensor::cat(parts, 2));
        close("tokens over a cache", &found, &exact, &exact, 1.0);
        let seqlens: Vec<i32> = cache.seqlens().into_data().try_to_vec().unwrap();
        assert_eq!(seqlens, [12, 12]);
    }
}

/// A clone keeps what it had when the other goes on.
#[test]
fn clones_are_apart() {
    let device = device();
    let rows = |seed| -> Tensor<4> { tensor([1, 2, 3, 16], seed, DType::F32, &device) };
    let mut cache = KvCache::new(1, 2, 8, [16, 16], CacheElement::F32, &device);
    cache.append(rows(1), rows(2)).unwrap();
    let before = cache.clone();
    let options = AttentionOptions::new();
    let expected = values(before.attention(rows(3), &options).unwrap().o);
    cache.append(rows(4), rows(5)).unwrap();
    assert_eq!(values(before.attention(rows(3), &options).unwrap().o), expected);
    assert_ne!(values(cache.attention(rows(3), &options).unwrap().o), expected);
    // Back to where it was.
    cache.set_seqlens(before.seqlens(), 3).unwrap();
    assert_eq!(values(cache.attention(rows(3), &options).unwrap().o), expected);
}

/// Sequences of their own lengths, in int8.
#[test]
fn lengths_of_their_own() {
    let device = device();
    let [k, v]: [Tensor<4>; 2] = [2, 3].map(|seed| tensor([2, 2, 6, 32], seed, DType::F32, &device));
    let q: Tensor<4> = tensor([2, 2, 1, 32], 1, DType::F32, &device);
    let mut cache = KvCache::new(2, 2, 8, [32, 32], CacheElement::Int8, &device);
    cache.append(k.clone(), v.clone()).unwrap();
    cache.set_seqlens(Tensor::<1, Int>::from_data(TensorData::from([6, 2]), &device), 6).unwrap();
    let options = AttentionOptions::new();
    let found = values(cache.attention(q.clone(), &options).unwrap().o);
    let mut exact = Vec::new();
    for (sequence, len) in [(0, 6), (1, 2)] {
        let part = |tensor: &Tensor<4>, len| tensor.clone().narrow(0, sequence, 1).narrow(2, 0, len);
        exact.extend(values(ours(&part(&q, 1), &part(&k, len), &part(&v, len), &options).o));
    }
    // A byte has steps of a 127th of the largest of a row, which is about 3: half a step of V, and as much of the scores.
    let largest = 3.0 / 127.0;
    assert!(error(&found, &exact) <= 2.0 * largest, "{}", error(&found, &exact));
}

/// Rotary embeddings: scores depend on distances alone, so that a shift of all positions changes nothing.
#[test]
fn rotated() {
    let device = device();
    let angles: Vec<f32> =
        (0..16).flat_map(|position| (0..8).map(move |pair| position as f32 / 10f32.powf(pair as f32 / 8.0))).collect();
    let table = |of: fn(f32) -> f32| {
        let numbers = TensorData::new(angles.iter().map(|angle| of(*angle)).collect::<Vec<_>>(), [16, 8]);
        Tensor::<2>::from_data(numbers, &device)
    };
    for pairs in [RotaryPairs::Interleaved, RotaryPairs::Halves] {
        let rotary = Rotary { cos: table(f32::cos), sin: table(f32::sin), pairs };
        let rows = |seed| -> Tensor<4> { tensor([1, 2, 4, 16], seed, DType::F32, &device) };
        let mut from_start = KvCache::new(1, 2, 16, [16, 16], CacheElement::F32, &device);
        let q = from_start.append_rotated(rows(1), rows(2), rows(3), &rotary).unwrap();
        let options = AttentionOptions::new().with_window(Some(3), Some(0));
        let expected = values(from_start.attention(q, &options).unwrap().o.narrow(2, 3, 1));
        let mut shifted = KvCache::new(1, 2, 16, [16, 16], CacheElement::F32, &device);
        shifted.append_rotated(rows(7), rows(8), rows(9), &rotary).unwrap();
        let q = shifted.append_rotated(rows(1), rows(2), rows(3), &rotary).unwrap();
        let found = values(shifted.attention(q, &options).unwrap().o.narrow(2, 3, 1));
        close("a shift of positions", &found, &expected, &expected, 1.0);
    }
}
