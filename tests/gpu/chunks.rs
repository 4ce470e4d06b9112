//! K and V that are longer than one binding: keys in chunks, whose results are merged.

use wgpu_flash_attention::{
    AttentionLayout, AttentionProblem, AttentionShape, Call, Element, Error, Operand, Plan, ScoreMod, alibi_slopes,
};

use crate::support::{
    Answer, Library, Tensors, Variant, inputs, library, limited, problem_of, run, strided, with_matrices,
};

/// As if no binding were longer than this.
fn narrow(bytes: u64) -> Library {
    limited(|capabilities| {
        capabilities.max_binding = bytes;
        capabilities.binding_alignment = capabilities.binding_alignment.min(256);
    })
}

fn shape() -> AttentionShape {
    AttentionShape::new(2, 4, 20, 16).with_num_heads_kv(2).with_seqlen_kv(500).with_head_dim_v(24)
}

/// Within its bounds, by more than one dispatch over the keys.
fn check(library: &Library, problem: &AttentionProblem, seed: u64) {
    let given = inputs(problem, seed);
    let prepared = library.prepare(problem).expect("the problem can be prepared");
    let rows_and_merge = prepared.plan().passes().len();
    assert!(prepared.num_dispatches(&Call::new()).unwrap() > rows_and_merge, "one dispatch is enough: {problem:?}");
    let output = run(library, problem, &given);
    for (share, name) in Answer::new(problem, &given).shares("chunks", &output).iter().zip(["O", "LSE"]) {
        share.assert(name, problem);
    }
}

#[test]
fn every_mask_and_modifier() {
    let library = narrow(24 << 10);
    let problem = AttentionProblem::new(shape());
    let alibi = || ScoreMod::Alibi(alibi_slopes(4));
    for (seed, problem) in (1..).zip([
        problem.clone(),
        problem.clone().with_causal(),
        problem.clone().with_causal_top_left(),
        problem.clone().with_window(Some(30), Some(200)),
        problem.clone().with_window(Some(0), Some(0)),
        problem.clone().with_causal_top_left().with_window(Some(7), None),
        problem.clone().with_causal().with_score(ScoreMod::Softcap(2.0)).with_score(alibi()),
        problem.clone().with_causal_top_left().with_score(alibi()).with_sink(),
        problem.clone().with_softmax_scale(-0.3).with_sink(),
    ]) {
        check(&library, &problem, seed);
    }
}

#[test]
fn every_element_layout_and_kernel() {
    let shape = shape();
    let few = AttentionShape { seqlen_q: 2, ..shape };
    for (seed, &element) in (20..).zip(Element::ALL) {
        let library = narrow(if element == Element::F32 { 40 << 10 } else { 20 << 10 });
        for shape in [shape, few] {
            let problem = AttentionProblem::new(shape).with_element(element).with_causal();
            check(&library, &problem, seed);
            // Parts of a tile's 40 rows of two heads, on matrices, fit too.
            check(&narrow(36 << 10).splits(7), &problem, seed);
            check(&library, &problem.clone().with_layout(strided(&shape, true)), seed);
            check(&narrow(20 << 10), &problem.with_layout(AttentionLayout::bhsd(&shape)), seed);
        }
    }
    if let Some(library) = with_matrices() {
        // K and V of a sequence have 16,000 bytes.
        let mut library = library.clone().splits(1);
        let narrow = AttentionShape { head_dim: 8, head_dim_v: 8, ..shape };
        library.bind_at_most(12 << 10);
        check(&library, &AttentionProblem::new(narrow).with_element(Element::F16).with_causal(), 31);
    }
}

/// Calls with fewer keys have fewer chunks, or none.
#[test]
fn shorter_calls() {
    let library = narrow(24 << 10);
    let problem = AttentionProblem::new(shape()).with_causal();
    let given = inputs(&problem, 41);
    let prepared = library.prepare(&problem).unwrap();
    let calls = [(20, 500), (20, 128), (20, 129), (7, 1), (20, 0), (1, 300)];
    for (seqlen_q, seqlen_kv) in calls {
        let call = Call::new().with_seqlen_q(seqlen_q).with_seqlen_kv(seqlen_kv);
        let tensors = Tensors::new(&library, &problem, &given);
        let mut encoder = library.device().create_command_encoder(&Default::default());
        prepared.encode_call(&mut encoder, &tensors.buffers(), &call).unwrap();
        library.queue().submit([encoder.finish()]);
        let output = tensors.finish(&library, &problem, &call);
        let solved = problem_of(&problem, &call);
        for (share, name) in Answer::new(&solved, &given).shares("shorter", &output).iter().zip(["O", "LSE"]) {
            share.assert(name, &solved);
        }
    }
}

/// What tells keys apart by their numbers is refused as before, and gradients are.
#[test]
fn what_cannot_be_cut_is_refused() {
    let narrow = narrow(24 << 10);
    let problem = AttentionProblem::new(shape());
    let refused = [
        Plan::forward(&problem.clone().with_dropout(0.5, 1), narrow.capabilities()).build(),
        Plan::forward(&problem.clone().with_lengths(vec![20, 3], vec![500, 7]), narrow.capabilities()).build(),
        Plan::backward(&problem, narrow.capabilities()).build(),
    ];
    for plan in refused.map(|plan| plan.map(|_| ())) {
        assert!(matches!(plan, Err(Error::TooLarge { operand: Operand::K | Operand::V, .. })), "{plan:?}");
    }
    // On the whole device nothing is cut.
    let whole = library(Variant::Full).prepare(&problem).unwrap();
    assert_eq!(whole.num_dispatches(&Call::new()).unwrap(), whole.plan().passes().len());
}

/// WebGPU promises bindings of 128 MiB. Here each of K and V has 256 MiB, and so has what a head spans of it.
#[test]
fn webgpus_limits() {
    let capabilities = wgpu_flash_attention::Capabilities::webgpu_defaults();
    let problem = AttentionProblem::new(AttentionShape::new(1, 32, 16_384, 128)).with_causal();
    let plan = Plan::forward(&problem, &capabilities).build().expect("it is cut");
    assert!(plan.num_splits() >= 2, "{plan}");
}
