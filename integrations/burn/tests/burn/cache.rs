//! Generation over a cache against the oracle for all tokens at once.

use burn::tensor::{DType, Int, Tensor, TensorData};
use wgpu_flash_attention::AttentionProblem;
use wgpu_flash_attention_burn::{AttentionOptions, CacheElement, KvCache, Rotary, RotaryPairs};

use crate::support::{Oracle, device, normal, of_values, tensor, values};

/// A prompt and single tokens over a cache give what causal attention over all gives.
#[test]
fn token_by_token() {
    let device = device();
    for (element, dtype) in [(CacheElement::F32, DType::F32), (CacheElement::F16, DType::F16)] {
        let q: Tensor<4> = tensor([2, 4, 12, 32], 1, dtype, &device);
        let [k, v]: [Tensor<4>; 2] = [2, 3].map(|seed| tensor([2, 2, 12, 32], seed, dtype, &device));
        let options = AttentionOptions::new().with_causal();
        let [exact, _] = Oracle::new([&q, &k, &v]).with(AttentionProblem::with_causal).forward();
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
        exact.expect("tokens over a cache", &values(Tensor::cat(parts, 2)));
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

/// Sequences of their own lengths, in int8, of values that int8 holds: 127 of its units is the largest of each row.
#[test]
fn lengths_of_their_own() {
    let device = device();
    let rows = |seed| -> Tensor<4> {
        let mut values: Vec<f32> = normal(2 * 2 * 6 * 32, seed)
            .iter()
            .map(|value| (value * 40.0).round().clamp(-127.0, 127.0) / 32.0)
            .collect();
        values.iter_mut().step_by(32).for_each(|value| *value = 127.0 / 32.0);
        of_values([2, 2, 6, 32], values, &device)
    };
    let [k, v] = [2, 3].map(rows);
    let q: Tensor<4> = tensor([2, 2, 1, 32], 1, DType::F32, &device);
    let mut cache = KvCache::new(2, 2, 8, [32, 32], CacheElement::Int8, &device);
    cache.append(k.clone(), v.clone()).unwrap();
    cache.set_seqlens(Tensor::<1, Int>::from_data(TensorData::from([6, 2]), &device), 6).unwrap();
    let found = cache.attention(q.clone(), &AttentionOptions::new()).unwrap().o;
    for (sequence, len) in [(0, 6), (1, 2)] {
        let part = |tensor: &Tensor<4>, len| tensor.clone().narrow(0, sequence, 1).narrow(2, 0, len);
        let [exact, _] = Oracle::new([&part(&q, 1), &part(&k, len), &part(&v, len)]).forward();
        exact.expect("over int8", &values(part(&found, 1)));
    }
}

/// A table of the cosines and sines of angle(position, pair), `[16, 8]`.
fn rotary(pairs: RotaryPairs, angle: impl Fn(usize, usize) -> f32) -> Rotary {
    let table = |of: fn(f32) -> f32| {
        let angles = (0..16).flat_map(|position| (0..8).map(move |pair| (position, pair)));
        let device = device();
        of_values([16, 8], angles.map(|(position, pair)| of(angle(position, pair))).collect(), &device)
    };
    Rotary { cos: table(f32::cos), sin: table(f32::sin), pairs }
}

const PAIRS: [RotaryPairs; 2] = [RotaryPairs::Interleaved, RotaryPairs::Halves];

/// Of a pair (a, b), (a cos − b sin, b cos + a sin): two products and a sum, each rounded once.
#[test]
fn rotated_queries() {
    let rows = |seed| -> Tensor<4> { tensor([1, 2, 4, 16], seed, DType::F32, &device()) };
    for pairs in PAIRS {
        let rotary = rotary(pairs, |position, pair| position as f32 / 10f32.powf(pair as f32 / 8.0));
        let mut cache = KvCache::new(1, 2, 16, [16, 16], CacheElement::F32, &device());
        cache.append(rows(4), rows(5)).unwrap();
        let q = rows(1);
        let found = values(cache.append_rotated(q.clone(), rows(2), rows(3), &rotary).unwrap());
        let (q, cos, sin) = (values(q), values(rotary.cos), values(rotary.sin));
        for (index, found) in found.into_iter().enumerate() {
            // Four tokens are in the cache before.
            let (position, dim) = (4 + index / 16 % 4, index % 16);
            let (pair, is_second, other) = match pairs {
                RotaryPairs::Interleaved => (dim / 2, dim % 2 == 1, index ^ 1),
                _ => (dim % 8, dim >= 8, index ^ 8),
            };
            let [own, other, cos, sin] =
                [q[index], q[other], cos[position * 8 + pair], sin[position * 8 + pair]].map(f64::from);
            let products = [own * cos, if is_second { other * sin } else { -other * sin }];
            let bound = 2.0 * f64::from(f32::EPSILON / 2.0) * products.iter().map(|product| product.abs()).sum::<f64>();
            let apart = (f64::from(found) - products.iter().sum::<f64>()).abs();
            assert!(apart <= bound, "{pairs:?} {index}: {apart:e} apart, {bound:e} is allowed");
        }
    }
}

/// Scores depend on distances alone, so that a shift of all positions changes nothing. Quarter turns are exact.
#[test]
fn a_shift_of_positions() {
    let rows = |seed| -> Tensor<4> { tensor([1, 2, 4, 16], seed, DType::F32, &device()) };
    let options = AttentionOptions::new().with_window(Some(3), Some(0));
    for pairs in PAIRS {
        let mut rotary = rotary(pairs, |position, pair| (position * pair) as f32 * std::f32::consts::FRAC_PI_2);
        (rotary.cos, rotary.sin) = (rotary.cos.round(), rotary.sin.round());
        for shift in [0, 1, 5] {
            let mut cache = KvCache::new(1, 2, 16, [16, 16], CacheElement::F32, &device());
            for _ in 0..shift {
                let one = |seed| rows(seed).narrow(2, 0, 1);
                cache.append_rotated(one(7), one(8), one(9), &rotary).unwrap();
            }
            let q = cache.append_rotated(rows(1), rows(2), rows(3), &rotary).unwrap();
            let found = cache.attention(q, &options).unwrap().o.narrow(2, 3, 1);
            // As if the first of the four tokens stood at 0.
            let turned = |tensor: Tensor<4>| {
                let mut alone = KvCache::new(1, 2, 16, [16, 16], CacheElement::F32, &device());
                alone.append_rotated(tensor, rows(2), rows(3), &rotary).unwrap()
            };
            let (q, k) = (turned(rows(1)).narrow(2, 3, 1), turned(rows(2)));
            let [exact, _] = Oracle::new([&q, &k, &rows(3)]).forward();
            exact.expect("a shift of positions", &values(found));
        }
    }
}
