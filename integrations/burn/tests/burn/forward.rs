//! Forward answers against the oracle in f64, and beside naive attention in Burn.

use burn::tensor::{Bool, DType, Int, Shape, Tensor, TensorData};
use wgpu_flash_attention::AttentionProblem;
use wgpu_flash_attention_burn::{AttentionOptions, CacheElement, Error, KvCache, ScoreMod, attention};

use crate::support::{Naive, Oracle, causal, device, naive, ours, tensor, values};

const GROUPED: [[usize; 4]; 3] = [[2, 4, 20, 32], [2, 2, 33, 32], [2, 2, 33, 40]];

fn inputs(dtype: DType) -> [Tensor<4>; 3] {
    [0, 1, 2].map(|index| tensor(GROUPED[index], 10 + index as u64, dtype, &device()))
}

/// Against the oracle, and beside naive attention in the same type.
fn check(
    name: &str,
    dtype: DType,
    options: &AttentionOptions,
    modified: &Naive,
    oracle: impl FnOnce(Oracle) -> Oracle,
) {
    let [q, k, v] = inputs(dtype);
    let [o, lse] = oracle(Oracle::new([&q, &k, &v])).forward();
    let found = ours(&q, &k, &v, options);
    assert_eq!(found.o.dtype(), dtype);
    let by_burn = naive(q, k, v, modified);
    o.expect_beside(&format!("{name}, O in {dtype:?}"), &values(found.o), &values(by_burn.o), 2.0);
    lse.expect(&format!("{name}, LSE in {dtype:?}"), &values(found.lse));
}

#[test]
fn dense() {
    for dtype in [DType::F32, DType::F16] {
        check("dense", dtype, &AttentionOptions::new(), &Naive::default(), |oracle| oracle);
    }
}

#[test]
fn masks_and_modifiers() {
    let device = device();
    let seen = causal(20, 33, &device);
    let options = AttentionOptions::new().with_causal().with_softcap(2.0);
    let modified = Naive { softcap: Some(2.0), seen: Some(seen.clone()), bias: None };
    check("causal, softcap", DType::F16, &options, &modified, |oracle| {
        oracle.with(|problem| problem.with_causal().with_score(ScoreMod::Softcap(2.0)))
    });

    // The mask is causal as a boolean one.
    let bias: Tensor<4> = tensor([1, 4, 20, 33], 5, DType::F32, &device);
    let options = AttentionOptions::new().with_bias(bias.clone()).with_key_mask(seen.clone());
    let modified = Naive { bias: Some(bias.clone()), seen: Some(seen), softcap: None };
    check("bias, mask", DType::F32, &options, &modified, |oracle| {
        oracle.with_bias(&bias).with(AttentionProblem::with_causal)
    });

    // One mask of keys for all rows, 33 of them.
    let shown: Vec<bool> = (0..66).map(|key| key % 3 != 1).collect();
    let of_keys = Tensor::<4, Bool>::from_data(TensorData::new(shown.clone(), Shape::from([2, 1, 1, 33])), &device);
    let options = AttentionOptions::new().with_key_mask(of_keys.clone());
    let modified = Naive { seen: Some(of_keys), ..Naive::default() };
    check("keys", DType::F32, &options, &modified, |oracle| oracle.with_key_mask([2, 1, 1, 33], &shown));
}

/// Views are read where they lie, and O lies as Q does.
#[test]
fn views() {
    let device = device();
    let qkv: Tensor<5> = tensor([2, 20, 3, 4, 32], 1, DType::F32, &device);
    let part = |index: usize| qkv.clone().narrow(2, index, 1).reshape([2, 20, 4, 32]).swap_dims(1, 2);
    let [q, k, v] = [0, 1, 2].map(part);
    let copy = |tensor: &Tensor<4>| {
        let data = tensor.clone().into_data();
        Tensor::<4>::from_data(data, &device)
    };
    let options = AttentionOptions::new().with_causal();
    let expected = values(ours(&copy(&q), &copy(&k), &copy(&v), &options).o);
    assert_eq!(values(ours(&q, &k, &v, &options).o), expected, "views of one tensor");
    // The last dimension is not contiguous: copied.
    let turned = copy(&q.clone().swap_dims(2, 3)).swap_dims(2, 3);
    assert_eq!(values(ours(&turned, &k, &v, &options).o), expected, "rows that are not contiguous");
    // It starts in the middle, and repeats.
    let longer: Tensor<4> = Tensor::cat(vec![q.clone().narrow(2, 0, 3), q.clone()], 2);
    assert_eq!(values(ours(&longer.narrow(2, 3, 20), &k, &v, &options).o), expected, "a slice");
    let one = q.clone().narrow(0, 0, 1);
    let repeated = values(ours(&one.clone().expand([2, 4, 20, 32]), &k, &v, &options).o);
    let cat = Tensor::cat(vec![one.clone(), one], 0);
    assert_eq!(repeated, values(ours(&cat, &k, &v, &options).o), "a batch that repeats");
}

/// Packed sequences give what each alone is.
#[test]
fn packed_sequences() {
    let device = device();
    let sums = [0usize, 7, 7, 30];
    let [q, k, v]: [Tensor<4>; 3] = [0, 1, 2].map(|seed| tensor([1, 2, 30, 32], seed, DType::F32, &device));
    let tensor = Tensor::<1, Int>::from_data(TensorData::from(sums.map(|sum| sum as i32)), &device);
    let options = AttentionOptions::new().with_causal();
    let packed = options.clone().with_cu_seqlens((tensor.clone(), 23), (tensor, 23));
    let found = ours(&q, &k, &v, &packed);
    for pair in sums.windows(2).filter(|pair| pair[0] < pair[1]) {
        let part = |tensor: &Tensor<4>| tensor.clone().narrow(2, pair[0], pair[1] - pair[0]);
        let [o, _] = Oracle::new([&part(&q), &part(&k), &part(&v)]).with(AttentionProblem::with_causal).forward();
        o.expect("packed", &values(part(&found.o)));
    }
}

/// Work that Burn records before and after goes in order, from several threads too.
#[test]
fn order() {
    let device = device();
    let options = AttentionOptions::new();
    let run = move |seed: u64| {
        let mut q: Tensor<4> = tensor([1, 2, 16, 32], seed, DType::F32, &device);
        for _ in 0..5 {
            q = ours(&(q.clone() * 2.0 - 1.0), &q, &(q.clone() + 0.5), &options).o * 3.0;
        }
        values(q)
    };
    let expected: Vec<_> = (0..4).map(&run).collect();
    let threads: Vec<_> = (0..4)
        .map(|seed| {
            std::thread::spawn({
                let run = run.clone();
                move || run(seed)
            })
        })
        .collect();
    for (thread, expected) in threads.into_iter().zip(expected) {
        assert_eq!(thread.join().unwrap(), expected);
    }
}

#[test]
fn refusals() {
    let device = device();
    let zeros = |shape: [usize; 4]| Tensor::<4>::zeros(shape, &device);
    let refused = |q, k, v, options: &AttentionOptions| attention(q, k, v, options).unwrap_err();
    let options = AttentionOptions::new();
    let q = || zeros([1, 4, 8, 16]);
    assert!(matches!(refused(q(), zeros([1, 4, 8, 8]), q(), &options), Error::Shape { tensor: "k", .. }));
    assert!(matches!(refused(q(), q(), zeros([1, 2, 8, 16]), &options), Error::Shape { tensor: "v", .. }));
    let three = zeros([1, 3, 8, 16]);
    assert!(matches!(refused(q(), three.clone(), three, &options), Error::Attention(_)));
    assert!(matches!(refused(q(), q(), q().cast(DType::F16), &options), Error::Type { tensor: "v", .. }));
    let bias = options.clone().with_bias(zeros([1, 4, 8, 7]));
    assert!(matches!(refused(q(), q(), q(), &bias), Error::Shape { tensor: "bias", .. }));
    let dropout = options.with_dropout(1.0, 1, 0);
    assert!(matches!(refused(q(), q(), q(), &dropout), Error::Attention(_)));
    let mut cache = KvCache::new(1, 4, 8, [16, 16], CacheElement::F32, &device);
    cache.append(q(), q()).unwrap();
    let one = zeros([1, 4, 1, 16]);
    let full = cache.append(one.clone(), one).unwrap_err();
    assert!(matches!(full, Error::CacheFull { len: 8, new: 1, capacity: 8 }), "{full}");
}
