//! Heads for rows, and keys that stay where they are.

use crate::support::{Inputs, TIMEOUT, cut, device, from_bytes, on_one_device, paste, rms, to_bytes};
use wgpu_flash_attention::reference;
use wgpu_flash_attention::{
    AttentionProblem, AttentionShape, Element, EntryLayout, KeyMask, MaskWgsl, Operand, ScoreMod, alibi_slopes,
};
use wgpu_flash_attention_distributed::{DecodeAttention, Error, UlyssesAttention, run_in_process};

/// The same bits as one device's: every head sees the same whole sequence.
fn check_heads(ranks: usize, problem: &AttentionProblem, seed: u64) {
    let given = Inputs::new(problem, seed);
    let AttentionShape { batch, num_heads, num_heads_kv, seqlen_q, seqlen_kv, head_dim, head_dim_v } = problem.shape;
    let parts = run_in_process(vec![device(); ranks], TIMEOUT, |transport, device| {
        let mut heads = UlyssesAttention::new(transport, &device, problem)?;
        let (rows, keys) = (heads.rows(), heads.keys());
        let of = |whole, length, width, span| to_bytes(problem.element, &cut(whole, batch, length, width, &[span]));
        heads.set(Operand::Q, &of(&given.q, seqlen_q, num_heads * head_dim, rows))?;
        heads.set(Operand::K, &of(&given.k, seqlen_kv, num_heads_kv * head_dim, keys))?;
        heads.set(Operand::V, &of(&given.v, seqlen_kv, num_heads_kv * head_dim_v, keys))?;
        heads.set(Operand::DO, &of(&given.d_o, seqlen_q, num_heads * head_dim_v, rows))?;
        for (operand, bytes) in given.of_rows(problem, &[rows]) {
            heads.set(operand, &bytes)?;
        }
        heads.forward()?;
        heads.backward()?;
        let o = from_bytes(problem.element, &heads.get(Operand::O)?);
        let in_f32 = |operand| heads.get(operand).map(|bytes| from_bytes(Element::F32, &bytes));
        let [lse, dq, dk, dv] = [Operand::Lse, Operand::Dq, Operand::Dk, Operand::Dv].map(in_f32);
        let d_sink = from_bytes(Element::F32, &heads.get(Operand::DSink)?);
        Ok::<_, Error>((rows, keys, [o, lse?, dq?, dk?, dv?], d_sink))
    });
    let one = on_one_device(problem, &given, true);
    let [dq, dk, dv] = one.gradients.clone().unwrap();
    let whole = [one.o, one.lse, dq, dk, dv];
    let mut found = whole.each_ref().map(|tensor| vec![f64::NAN; tensor.len()]);
    let sides = [
        [batch, seqlen_q, num_heads * head_dim_v],
        [batch * num_heads, seqlen_q, 1],
        [batch, seqlen_q, num_heads * head_dim],
        [batch, seqlen_kv, num_heads_kv * head_dim],
        [batch, seqlen_kv, num_heads_kv * head_dim_v],
    ];
    for part in parts {
        let (rows, keys, tensors, d_sink) = part.unwrap_or_else(|error| panic!("{error}\n{problem:?}"));
        assert!(d_sink == one.d_sink, "dSink of {ranks} ranks\n{problem:?}");
        for (tensor, part) in tensors.iter().enumerate() {
            paste(&mut found[tensor], part, sides[tensor], &[if tensor < 3 { rows } else { keys }]);
        }
    }
    for (tensor, (found, whole)) in found.iter().zip(&whole).enumerate() {
        assert!(found == whole, "tensor {tensor} of {ranks} ranks\n{problem:?}");
    }
}

#[test]
fn heads_are_exchanged_for_rows() {
    let problem = |batch| AttentionProblem::new(AttentionShape::new(batch, 6, 61, 16).with_num_heads_kv(3));
    for ranks in 1..=3 {
        check_heads(ranks, &problem(2).with_causal().with_dropout(0.3, 77), 1);
        check_heads(ranks, &problem(1).with_element(Element::F16).with_window(Some(9), Some(5)), 2);
    }
    let modified = problem(2).with_score(ScoreMod::Softcap(9.0)).with_score(ScoreMod::Alibi(alibi_slopes(6)));
    check_heads(2, &modified.with_element(Element::Bf16), 3);
    let bias = |counts, element| ScoreMod::Bias { layout: EntryLayout::contiguous(counts), element };
    let mask = |counts| KeyMask::Boolean(EntryLayout::packed_bits(counts));
    let own =
        "fn mask_mod(batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> bool { return (kv_idx + head) % 3u != 0u; }";
    let own = KeyMask::Wgsl(MaskWgsl::new(own).unwrap());
    for (ranks, problem) in [
        (3, problem(2).with_causal().with_sink()),
        (2, problem(2).with_score(bias([2, 6, 61, 61], Element::F32)).with_key_mask(mask([1, 6, 1, 61]))),
        (3, problem(2).with_score(bias([1, 6, 1, 61], Element::F32)).with_key_mask(mask([2, 1, 61, 61])).with_sink()),
        (2, problem(1).with_element(Element::F16).with_score(bias([1, 1, 61, 61], Element::F16))),
        (3, problem(1).with_key_mask(own)),
    ] {
        check_heads(ranks, &problem, 4);
    }
    let refused = run_in_process(vec![device(); 4], TIMEOUT, |transport, device| {
        UlyssesAttention::new(transport, &device, &problem(1)).map(drop)
    });
    assert!(refused[0].as_ref().err().unwrap().to_string().contains("more ranks than KV heads"));
}

#[test]
fn keys_stay_where_they_are() {
    for (seqlen_q, ranks) in [(1, 1), (1, 3), (3, 4)] {
        for &element in Element::ALL {
            let shape = AttentionShape::new(2, 4, seqlen_q, 16).with_num_heads_kv(2).with_seqlen_kv(101);
            let problem = AttentionProblem::new(shape).with_element(element).with_causal().with_window(Some(60), None);
            check_decode(ranks, &problem, None);
        }
    }
}

/// A sink joins the sum once; each rank has the entries of its keys.
#[test]
fn decoding_takes_sinks_and_entries() {
    let shape = AttentionShape::new(2, 4, 3, 16).with_num_heads_kv(2).with_seqlen_kv(101);
    let bias = ScoreMod::Bias { layout: EntryLayout::contiguous([1, 4, 3, 101]), element: Element::F32 };
    for &element in Element::ALL {
        let problem = AttentionProblem::new(shape).with_element(element).with_sink();
        check_decode(3, &problem, None);
        check_decode(3, &problem.with_score(bias.clone()), Some(4));
    }
}

/// `groups` of sequences and heads have a bias.
fn check_decode(ranks: usize, problem: &AttentionProblem, groups: Option<u32>) {
    let (element, AttentionShape { batch, num_heads_kv, head_dim, seqlen_q, seqlen_kv, .. }) =
        (problem.element, problem.shape);
    let given = Inputs::new(problem, 4);
    let parts = run_in_process(vec![device(); ranks], TIMEOUT, |transport, device| {
        let mut decode = DecodeAttention::new(transport, &device, problem)?;
        let keys = decode.keys();
        let of = |whole| to_bytes(element, &cut(whole, batch, seqlen_kv, num_heads_kv * head_dim, &[keys]));
        decode.set(Operand::K, &of(&given.k))?;
        decode.set(Operand::V, &of(&given.v))?;
        if problem.has_sink() {
            decode.set(Operand::Sink, &to_bytes(Element::F32, &given.sink))?;
        }
        if let Some(groups) = groups {
            // Columns: a row of the whole after the other.
            let own = cut(&given.bias, groups * seqlen_q, seqlen_kv, 1, &[keys]);
            decode.set(Operand::Bias, &to_bytes(Element::F32, &own))?;
        }
        // Another Q than the first time must give another answer.
        decode.forward(&vec![0; given.q.len() * element.size() as usize])?;
        decode.forward(&to_bytes(element, &given.q))
    });
    let expected = reference::forward(given.case(problem), &given.q, &given.k, &given.v);
    let one = on_one_device(problem, &given, false);
    let most = if element == Element::F32 { 2.0 } else { 1.2 };
    let outputs: Vec<_> = parts.into_iter().map(|part| part.unwrap()).collect();
    assert!(outputs.iter().all(|output| *output == outputs[0]));
    let (o, lse) = (from_bytes(element, &outputs[0].0), from_bytes(Element::F32, &outputs[0].1));
    assert!(rms(&o, &expected.o) <= most * rms(&one.o, &expected.o), "{problem:?}");
    assert!(rms(&lse, &expected.lse) <= 1e-5);
}
