//! The recipes of docs/caches.md: shared prefixes and trees of drafts.

use half::f16;
use wgpu_flash_attention::{
    AppendBuffers, AppendProblem, AttentionProblem, AttentionShape, AuxType, CacheElement, Element, ForwardBuffers,
    KeyMask, KvCache, MaskWgsl, MergeBuffers, MergeProblem, Operand, Rotary, WgslOptions,
};

use crate::support::{Guarded, Library, Variant, from_bytes, library, to_bytes, words};

const HEADS: u32 = 4;
const HEADS_KV: u32 = 2;
const DIM: usize = 32;

/// A number that stands for what a model would compute.
fn value(of: f64, index: usize) -> f64 {
    (index as f64 * of).sin() * 1.5
}

fn rows(of: f64, first: usize, count: usize, heads: u32) -> Vec<f64> {
    let row = heads as usize * DIM;
    (first * row..(first + count) * row).map(|index| value(of, index)).collect()
}

/// Attention of one row, `[HEADS, DIM]`, over these rows of K and V, `[HEADS_KV, DIM]` each.
fn attended(q: &[f64], keys: &[(&[f64], &[f64])]) -> Vec<f64> {
    let mut o = Vec::new();
    for head in 0..HEADS as usize {
        let in_kv = (head / (HEADS / HEADS_KV) as usize) * DIM..(head / (HEADS / HEADS_KV) as usize + 1) * DIM;
        let q = &q[head * DIM..][..DIM];
        let dot = |k: &[f64]| q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() / (DIM as f64).sqrt();
        let scores: Vec<f64> = keys.iter().map(|(k, _)| dot(&k[in_kv.clone()])).collect();
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
        let sum: f64 = weights.iter().sum();
        o.extend((0..DIM).map(|dim| {
            let weighted = weights.iter().zip(keys).map(|(weight, (_, v))| weight * v[in_kv.start + dim]);
            weighted.sum::<f64>() / sum
        }));
    }
    o
}

fn assert_near(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    let largest = expected.iter().fold(0f64, |largest, value| largest.max(value.abs()));
    assert_eq!(found.len(), expected.len(), "{what}");
    let error = found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0f64, |a, b| if b > a || b.is_nan() { b } else { a });
    assert!(error <= tolerance * largest, "{what}: {error} of {largest}");
}

fn buffer(library: &Library, bytes: u64) -> wgpu::Buffer {
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
    let descriptor = wgpu::BufferDescriptor { label: None, size: bytes, usage, mapped_at_creation: false };
    library.device().create_buffer(&descriptor)
}

/// Five sequences begin with the same 300 tokens. The prefix is read once, by the rows of all sequences.
#[test]
fn a_shared_prefix() {
    const PREFIX: usize = 300;
    const OWN: [usize; 5] = [0, 1, 9, 40, 64];
    let library = library(Variant::Full);
    for element in [Element::F32, Element::F16] {
        let rounded = |values: Vec<f64>| values.into_iter().map(|value| element.round(value)).collect::<Vec<_>>();
        let sequences = OWN.len() as u32;
        // All sequences' rows are rows of one sequence here. It has no mask: each row is behind the prefix.
        let shape = AttentionShape::new(1, HEADS, sequences, DIM as u32).with_num_heads_kv(HEADS_KV);
        let of_prefix = AttentionProblem::new(shape.with_seqlen_kv(PREFIX as u32)).with_element(element);
        // Packed rows, so that LSE is [heads, rows] as that of the prefix is.
        let shape = AttentionShape::new(sequences, HEADS, 1, DIM as u32).with_num_heads_kv(HEADS_KV).with_seqlen_kv(64);
        let cache = KvCache::contiguous(&shape, CacheElement::from(element));
        let own = AttentionProblem::new(shape).with_element(element).with_causal().with_cache(cache);
        let own = own.with_cu_seqlens_q_at_call(sequences).with_seqlens_kv_at_call();
        let row_bytes = u64::from(HEADS) * DIM as u64 * element.size();
        // Tensors start at multiples of 16 bytes.
        let stride = (u64::from(sequences) * row_bytes).next_multiple_of(16);
        let lse_stride = (u64::from(HEADS * sequences) * 4).next_multiple_of(16);
        let merge = MergeProblem::of(&of_prefix, 2).with_strides(stride / element.size(), lse_stride / 4);

        let q = rounded(rows(0.37, 0, OWN.len(), HEADS));
        let (k_prefix, v_prefix) = (rounded(rows(0.73, 0, PREFIX, HEADS_KV)), rounded(rows(0.91, 0, PREFIX, HEADS_KV)));
        let of_sequence = |of: f64, sequence: usize| rounded(rows(of, 1000 * (sequence + 1), OWN[sequence], HEADS_KV));
        let in_cache = |of: f64| -> Vec<f64> {
            let row = HEADS_KV as usize * DIM;
            let filled = |sequence| {
                let mut values = of_sequence(of, sequence);
                values.resize(64 * row, f64::NAN);
                values
            };
            (0..OWN.len()).flat_map(filled).collect()
        };
        let upload = |values: &[f64]| Guarded::new(library, &to_bytes(element, values));
        let [q_on_gpu, k_on_gpu, v_on_gpu] = [&q, &k_prefix, &v_prefix].map(|values| upload(values));
        let [k_cache, v_cache] = [0.73, 0.91].map(|of| upload(&in_cache(of)));
        let lengths = Guarded::at(library, 512, &words(&OWN.map(|length| length as u32)));
        let sums = Guarded::at(library, 512, &words(&[0, 1, 2, 3, 4, 5]));
        let (o_parts, lse_parts) = (buffer(library, 2 * stride), buffer(library, 2 * lse_stride));
        let o = Guarded::poisoned(library, u64::from(sequences) * row_bytes);
        let lse = Guarded::poisoned(library, u64::from(HEADS * sequences) * 4);

        let prepared = [&of_prefix, &own].map(|problem| library.prepare(problem).expect("it can be prepared"));
        let merge = pollster::block_on(library.prepare_merge(&merge)).expect("it can be prepared");
        let mut encoder = library.device().create_command_encoder(&Default::default());
        let part = |number: u64| (o_parts.slice(number * stride..), lse_parts.slice(number * lse_stride..));
        let (o_part, lse_part) = part(0);
        let buffers = ForwardBuffers::new(q_on_gpu.slice(), k_on_gpu.slice(), v_on_gpu.slice(), o_part, lse_part);
        prepared[0].encode(&mut encoder, &buffers).expect("it can be encoded");
        let (o_part, lse_part) = part(1);
        let buffers = ForwardBuffers::new(q_on_gpu.slice(), k_cache.slice(), v_cache.slice(), o_part, lse_part)
            .with(Operand::SeqlensKv, lengths.slice())
            .with(Operand::CuSeqlensQ, sums.slice());
        prepared[1].encode(&mut encoder, &buffers).expect("it can be encoded");
        let buffers = MergeBuffers::new(o_parts.slice(..), lse_parts.slice(..), o.slice(), lse.slice());
        merge.encode(&mut encoder, &buffers).expect("it can be encoded");
        library.queue().submit([encoder.finish()]);

        let found = from_bytes(element, &o.read(library));
        let row = HEADS_KV as usize * DIM;
        for sequence in 0..OWN.len() {
            let (k_own, v_own) = (of_sequence(0.73, sequence), of_sequence(0.91, sequence));
            let of_prefix = k_prefix.chunks(row).zip(v_prefix.chunks(row));
            let keys: Vec<_> = of_prefix.chain(k_own.chunks(row).zip(v_own.chunks(row))).collect();
            let len = HEADS as usize * DIM;
            let expected = attended(&q[sequence * len..][..len], &keys);
            // Parts in f16 are rounded before they are merged, and their sum once more.
            let tolerance = if element == Element::F32 { 1e-5 } else { 3.0 * f16::EPSILON.to_f64() };
            assert_near(&found[sequence * len..][..len], &expected, tolerance, &format!("{element:?}, {sequence}"));
        }
    }
}

/// A tree of drafts: the parent of each token, which comes before it. The first has none.
const PARENTS: [Option<usize>; 7] = [None, Some(0), Some(0), Some(1), Some(1), Some(2), Some(5)];

/// A token and those it follows from, the first one first.
fn path_to(token: usize) -> Vec<usize> {
    let mut path: Vec<usize> = std::iter::successors(Some(token), |token| PARENTS[*token]).collect();
    path.reverse();
    path
}

/// The mask of the document: what the cache held before, and the tokens that a row follows from.
const OF_TREE: &str = "
const SEQUENCES = 2u;

fn mask_mod(batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> bool {
  let length = aux[batch];
  if kv_idx < length { return true; }
  return (aux[SEQUENCES + q_idx - length] >> (kv_idx - length)) % 2u == 1u;
}
";

/// Rotates a row, the halves of each head, by a position.
fn rotated(mut row: Vec<f64>, position: usize) -> Vec<f64> {
    for head in row.chunks_mut(DIM) {
        for pair in 0..DIM / 2 {
            let (sin, cos) = angle(position, pair).sin_cos();
            let (x, y) = (head[pair], head[pair + DIM / 2]);
            (head[pair], head[pair + DIM / 2]) = (x * cos - y * sin, x * sin + y * cos);
        }
    }
    row
}

fn angle(position: usize, pair: usize) -> f64 {
    position as f64 / 100f64.powf(pair as f64 * 2.0 / DIM as f64)
}

/// Seven drafts behind two sequences in one call, then the next token behind those that were accepted.
#[test]
fn a_tree_of_drafts() {
    const LENGTHS: [usize; 2] = [20, 33];
    const ACCEPTED: usize = 5;
    let library = library(Variant::Full);
    let drafts = PARENTS.len();
    let shape = AttentionShape::new(2, HEADS, drafts as u32, DIM as u32).with_num_heads_kv(HEADS_KV);
    let shape = shape.with_seqlen_kv(64);
    let cache = KvCache::paged(&shape, CacheElement::F32, 40, 3);
    // Page p of the sequences: the table has an entry for each 3 positions.
    let table: Vec<u32> = (0..2 * 22).map(|entry| (entry * 7 + 2) % 40).collect();
    let page_of = |batch: usize, position: usize| table[batch * 22 + position / 3] as usize * 3 + position % 3;
    let used = (0..2).flat_map(|batch| (0..LENGTHS[batch] + drafts).map(move |position| (batch, position)));
    let mut places: Vec<usize> = used.map(|(batch, position)| page_of(batch, position)).collect();
    places.sort_unstable();
    assert!(places.windows(2).all(|pair| pair[0] != pair[1]), "the sequences share no page");

    let append = AppendProblem::new(shape, cache).with_rotary(Rotary::halves(DIM as u32, 0).per_token());
    let append_tree = append.clone().with_rotated_q_in_place();
    let append_accepted = append.with_slot_mapping();
    let mask = MaskWgsl::with_options(OF_TREE, WgslOptions::new().with_aux(AuxType::U32)).expect("the mask is sound");
    let over = |shape| AttentionProblem::new(shape).with_cache(cache).with_seqlens_kv_at_call();
    let tree = over(shape).with_key_mask(KeyMask::Wgsl(mask)).with_aux(2 + drafts as u32);
    let next = over(AttentionShape { seqlen_q: 1, ..shape }).with_causal();
    let [append_tree, append_accepted] = [append_tree, append_accepted]
        .map(|problem| pollster::block_on(library.prepare_append(&problem)).expect("it can be prepared"));
    let [tree, next] = [tree, next].map(|problem| library.prepare(&problem).expect("it can be prepared"));

    // What the cache holds before: rows that are rotated already.
    let row = |heads: u32| heads as usize * DIM;
    let past = |of: f64, batch: usize, position: usize| rows(of, 1000 * batch + position, 1, HEADS_KV);
    let mut caches = [0.73, 0.91].map(|_| vec![f64::NAN; 40 * 3 * row(HEADS_KV)]);
    for (values, of) in caches.iter_mut().zip([0.73, 0.91]) {
        for (batch, length) in LENGTHS.into_iter().enumerate() {
            for position in 0..length {
                values[page_of(batch, position) * row(HEADS_KV)..][..row(HEADS_KV)]
                    .copy_from_slice(&past(of, batch, position));
            }
        }
    }
    let draft = |of: f64, batch: usize, token: usize, heads: u32| rows(of, 5000 + 1000 * batch + token, 1, heads);
    let all_drafts = |of: f64, heads: u32| -> Vec<f64> {
        (0..2).flat_map(|batch| (0..drafts).flat_map(move |token| draft(of, batch, token, heads))).collect()
    };
    let upload = |values: &[f64]| Guarded::new(library, &to_bytes(Element::F32, values));
    let [k_cache, v_cache] = caches.each_ref().map(|values| upload(values));
    let [q, k, v] =
        [(0.37, HEADS), (0.59, HEADS_KV), (0.83, HEADS_KV)].map(|(of, heads)| upload(&all_drafts(of, heads)));
    // A token stands as far behind the cache as it is deep in the tree.
    let position_of = |batch: usize, token: usize| LENGTHS[batch] + path_to(token).len() - 1;
    let angles =
        || (0..2).flat_map(|b| (0..drafts).flat_map(move |t| (0..DIM / 2).map(move |p| angle(position_of(b, t), p))));
    let [cos, sin] =
        [upload(&angles().map(f64::cos).collect::<Vec<_>>()), upload(&angles().map(f64::sin).collect::<Vec<_>>())];
    let integers = |integers: &[u32]| Guarded::at(library, 512, &words(integers));
    let lengths = LENGTHS.map(|length| length as u32);
    let (before, with_drafts) = (integers(&lengths), integers(&lengths.map(|length| length + drafts as u32)));
    let ancestors = (0..drafts).map(|token| path_to(token).iter().fold(0, |bits, token| bits | 1 << token));
    let aux = integers(&lengths.into_iter().chain(ancestors).collect::<Vec<u32>>());
    let page_table = integers(&table);
    let o = Guarded::poisoned(library, tree.plan().required_bytes(Operand::O));
    let lse = Guarded::poisoned(library, tree.plan().required_bytes(Operand::Lse));

    // The tree. Lengths stay as they are: nothing of it counts yet.
    let mut encoder = library.device().create_command_encoder(&Default::default());
    let appended = AppendBuffers::new(k.slice(), v.slice(), k_cache.slice(), v_cache.slice())
        .with(Operand::RotaryCos, cos.slice())
        .with(Operand::RotarySin, sin.slice());
    let buffers = appended
        .with(Operand::Q, q.slice())
        .with(Operand::CacheSeqlens, before.slice())
        .with(Operand::PageTable, page_table.slice());
    append_tree.encode(&mut encoder, &buffers).expect("it can be encoded");
    let buffers = ForwardBuffers::new(q.slice(), k_cache.slice(), v_cache.slice(), o.slice(), lse.slice())
        .with(Operand::SeqlensKv, with_drafts.slice())
        .with(Operand::PageTable, page_table.slice())
        .with(Operand::Aux, aux.slice());
    tree.encode(&mut encoder, &buffers).expect("it can be encoded");
    library.queue().submit([encoder.finish()]);

    let found = from_bytes(Element::F32, &o.read(library));
    let of_path = |batch: usize, token: usize| -> Vec<(Vec<f64>, Vec<f64>)> {
        let before = (0..LENGTHS[batch]).map(|position| (past(0.73, batch, position), past(0.91, batch, position)));
        let of_tree = path_to(token).into_iter().map(|token| {
            let k = rotated(draft(0.59, batch, token, HEADS_KV), position_of(batch, token));
            (k, draft(0.83, batch, token, HEADS_KV))
        });
        before.chain(of_tree).collect()
    };
    let attend = |q: &[f64], keys: &[(Vec<f64>, Vec<f64>)]| {
        attended(q, &keys.iter().map(|(k, v)| (&k[..], &v[..])).collect::<Vec<_>>())
    };
    for (batch, token) in (0..2).flat_map(|batch| (0..drafts).map(move |token| (batch, token))) {
        let q = rotated(draft(0.37, batch, token, HEADS), position_of(batch, token));
        let expected = attend(&q, &of_path(batch, token));
        let row = &found[(batch * drafts + token) * row(HEADS)..][..row(HEADS)];
        assert_near(row, &expected, 1e-5, &format!("sequence {batch}, draft {token}"));
    }

    // The path to one draft is accepted: its tokens are appended again, each at its position, the others nowhere.
    let slot = |batch: usize, token: usize| match path_to(ACCEPTED).contains(&token) {
        true => page_of(batch, position_of(batch, token)) as u32,
        false => u32::MAX,
    };
    let slots: Vec<u32> = (0..2).flat_map(|batch| (0..drafts).map(move |token| slot(batch, token))).collect();
    let slots = integers(&slots);
    let depth = path_to(ACCEPTED).len() as u32;
    let accepted = integers(&lengths.map(|length| length + depth));
    let q_next = upload(&all_drafts(0.41, HEADS)[..2 * row(HEADS)]);
    let o = Guarded::poisoned(library, next.plan().required_bytes(Operand::O));
    let lse = Guarded::poisoned(library, next.plan().required_bytes(Operand::Lse));
    let mut encoder = library.device().create_command_encoder(&Default::default());
    append_accepted
        .encode(&mut encoder, &appended.with(Operand::SlotMapping, slots.slice()))
        .expect("it can be encoded");
    let buffers = ForwardBuffers::new(q_next.slice(), k_cache.slice(), v_cache.slice(), o.slice(), lse.slice())
        .with(Operand::SeqlensKv, accepted.slice())
        .with(Operand::PageTable, page_table.slice());
    next.encode(&mut encoder, &buffers).expect("it can be encoded");
    library.queue().submit([encoder.finish()]);
    let found = from_bytes(Element::F32, &o.read(library));
    for batch in 0..2 {
        let q = &all_drafts(0.41, HEADS)[batch * row(HEADS)..][..row(HEADS)];
        let expected = attend(q, &of_path(batch, ACCEPTED));
        assert_near(&found[batch * row(HEADS)..][..row(HEADS)], &expected, 1e-5, "the next token");
    }
}
