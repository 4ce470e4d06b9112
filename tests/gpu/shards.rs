//! Parts of a larger problem: positions, O in f32, folds into a running result, gradients that are added up.

use wgpu_flash_attention::reference;
use wgpu_flash_attention::{
    Algorithm, AttentionProblem, AttentionShape, AuxType, BlockMask, Call, Element, Error, InvalidProblem, KeyMask,
    MaskWgsl, MergeBuffers, MergeProblem, Operand, ScoreMod, ScoreWgsl, Shard, WgslOptions, alibi_slopes,
};

use crate::support::{
    GradientInputs, GradientTensors, Guarded, Inputs, Library, Random, Variant, check, check_both, check_gradients,
    from_bytes, gradient_inputs, inputs, library, limited, run, run_backward, run_calls, to_bytes, with_matrices,
};

/// Rows 40 to 72 and keys 28 to 77 of 130 rows and 120 keys, of sequences 3 and 4 and heads 2 to 5 of nine.
fn part() -> AttentionProblem {
    let shape = AttentionShape::new(2, 4, 33, 16).with_num_heads_kv(2).with_seqlen_kv(50);
    let shard = Shard::of_lengths(130, 120).with_first_row(40).with_first_key(28).with_first_batch(3);
    AttentionProblem::new(shape).with_shard(shard.with_first_head(2, 9))
}

/// What positions matter to.
fn positioned() -> Vec<AttentionProblem> {
    vec![
        part().with_causal(),
        part().with_causal_top_left(),
        part().with_window(Some(9), Some(5)),
        part().with_causal().with_window(Some(20), None).with_dropout(0.3, 0xfeed_0000_0001),
        part().with_dropout(0.5, 5),
        part().with_causal().with_score(ScoreMod::Alibi(alibi_slopes(4))),
    ]
}

#[test]
fn the_oracle_takes_positions_of_the_whole() {
    for part in positioned().into_iter().filter(|part| part.scores().is_empty()) {
        let mut whole = part.clone();
        whole.shard = None;
        whole.shape = AttentionShape::new(5, 9, 130, 16).with_seqlen_kv(120);
        let mut kept = 0;
        for row in 0..33 {
            let seen = |key: &u32| whole.visible_keys(row + 40).contains(&(key + 28));
            let expected: Vec<u32> = (0..50).filter(seen).collect();
            assert_eq!(part.visible_keys(row).collect::<Vec<_>>(), expected, "{part:?}");
            for (batch, head, key) in (0..2).flat_map(|b| (0..4).flat_map(move |h| (0..50).map(move |key| (b, h, key))))
            {
                let of_part = reference::keeps(&part, batch, head, row, key);
                assert_eq!(of_part, reference::keeps(&whole, batch + 3, head + 2, row + 40, key + 28));
                kept += u32::from(of_part);
            }
        }
        assert_eq!(part.dropout.is_some(), kept < 2 * 4 * 33 * 50);
        let pairs: u64 = (0..33).map(|row| part.visible_keys(row).len() as u64).sum();
        assert_eq!(part.visible_pairs(), 8 * pairs);
    }
}

#[test]
fn parts_have_positions_of_the_whole() {
    for variant in [Variant::Full, Variant::WebGpuDefaults] {
        for part in positioned() {
            check_both(library(variant), &part, 5);
        }
    }
    for &element in Element::ALL {
        check_both(library(Variant::Full), &positioned()[3].clone().with_element(element), 7);
    }
}

#[test]
fn parts_on_matrices_have_positions_of_the_whole() {
    let Some(library) = with_matrices() else { return };
    for part in positioned() {
        check_both(library, &part.with_element(Element::F16), 5);
    }
}

/// One row, which the decoding kernel takes.
#[test]
fn rows_of_a_step_have_positions_of_the_whole() {
    for part in positioned() {
        let mut part = part.with_f32_output().with_element(Element::F16);
        part.shape.seqlen_q = 1;
        for splits in [1, 3] {
            check(&library(Variant::Full).clone().splits(splits), &part, &inputs(&part, 3));
        }
    }
}

#[test]
fn own_wgsl_has_positions_of_the_whole() {
    let score = "fn score_mod(score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32 {
        return score + aux[(batch * 7u + head * 3u + q_idx + 2u * kv_idx) % 31u];
    }
    fn score_mod_grad(grad: f32, score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32 { return grad; }";
    let mask = "fn mask_mod(batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> bool {
        return (batch + head + q_idx + kv_idx) % 3u != 0u;
    }";
    let problem = part()
        .with_score(ScoreMod::Wgsl(ScoreWgsl::with_options(score, WgslOptions::new().with_aux(AuxType::F32)).unwrap()))
        .with_key_mask(KeyMask::Wgsl(MaskWgsl::new(mask).unwrap()))
        .with_aux(31);
    let aux: Vec<f32> = (0..31).map(|n| n as f32 / 8.0 - 2.0).collect();
    let values = aux.clone();
    let score_mod = move |score: f64, [batch, head, row, key]: [u32; 4]| {
        let value = score + f64::from(values[((batch * 7 + head * 3 + row + 2 * key) % 31) as usize]);
        reference::Score { value, slope: 1.0, bend: 0.0, rounding: value.abs(), slope_rounding: 0.0 }
    };
    let mut given = gradient_inputs(&problem, 4);
    given.inputs.aux = aux;
    given.inputs.score_mod = Some(std::sync::Arc::new(score_mod));
    given.inputs.mask_mod =
        Some(std::sync::Arc::new(|[batch, head, row, key]: [u32; 4]| (batch + head + row + key) % 3 != 0));
    check(library(Variant::Full), &problem, &given.inputs);
    check_gradients(library(Variant::Full), &problem, &given);
}

#[test]
fn a_call_places_its_part() {
    let library = library(Variant::Full);
    let problem = part().with_causal().with_dropout(0.4, 9);
    let given = inputs(&problem, 6);
    let calls = [Call::new(), Call::new().with_place(0, 0), Call::new().with_place(97, 68).with_seqlen_q(20)];
    let answers = run_calls(library, &problem, &given, &calls);
    assert!(answers[0] == run(library, &problem, &given));
    let mut first = problem.clone();
    first.shard = problem.shard.map(|shard| shard.with_first_row(0).with_first_key(0));
    assert!(answers[1] == run(library, &first, &given));
    let mut last = problem.clone();
    last.shard = problem.shard.map(|shard| shard.with_first_row(97).with_first_key(68));
    assert!(answers[2] == run_calls(library, &last, &given, &[Call::new().with_seqlen_q(20)])[0]);

    let prepared = library.prepare(&problem).unwrap();
    let refusal = |call| prepared.num_dispatches(&call).unwrap_err().to_string();
    assert_eq!(
        refusal(Call::new().with_place(98, 0)),
        "invalid problem: shard: rows 98..131 are outside the whole, which has rows 0..130"
    );
    assert_eq!(
        refusal(Call::new().with_place(0, 71)),
        "invalid problem: shard: keys 71..121 are outside the whole, which has keys 0..120"
    );
    assert!(refusal(Call::new().with_place(0, 2)).contains("multiple of 4"));
    let whole = library.prepare(&AttentionProblem::new(problem.shape)).unwrap();
    assert!(whole.num_dispatches(&Call::new().with_place(0, 0)).unwrap_err().to_string().contains("with_shard"));
}

#[test]
fn o_is_stored_in_f32() {
    for variant in [Variant::Full, Variant::WebGpuDefaults] {
        for element in [Element::F16, Element::Bf16] {
            for head_dim in [16, 13] {
                let shape = AttentionShape::new(2, 2, 37, head_dim).with_seqlen_kv(90);
                let problem = AttentionProblem::new(shape).with_element(element).with_causal().with_f32_output();
                let whole = check(library(variant), &problem, &inputs(&problem, 2));
                let split = library(variant).clone().splits(3);
                check(&split, &problem, &inputs(&problem, 2));
                // The same, rounded.
                let mut rounded = problem.clone();
                rounded.output_element = None;
                let rounded = run(library(variant), &rounded, &inputs(&problem, 2)).o();
                let found = whole.o().iter().map(|o| element.round(*o)).collect::<Vec<_>>();
                assert!(found.iter().zip(&rounded).all(|(one, other)| one == other || one.is_nan()));
            }
        }
    }
}

#[test]
fn o_is_stored_in_f32_on_matrices() {
    let Some(library) = with_matrices() else { return };
    for element in [Element::F16, Element::Bf16] {
        let shape = AttentionShape::new(1, 2, 40, 32).with_seqlen_kv(70);
        let problem = AttentionProblem::new(shape).with_element(element).with_causal().with_f32_output();
        check(library, &problem, &inputs(&problem, 2));
    }
}

/// From 0, gradients that are added are those that are stored; twice, they are twice as large.
#[test]
fn gradients_are_added() {
    let mut libraries = vec![library(Variant::Full), library(Variant::WebGpuDefaults)];
    libraries.extend(with_matrices());
    for library in libraries {
        for (&element, head_dim) in Element::ALL.iter().flat_map(|element| [(element, 16), (element, 13)]) {
            let shape = AttentionShape::new(2, 4, 37, head_dim).with_num_heads_kv(2).with_seqlen_kv(45);
            let stored = AttentionProblem::new(shape).with_element(element).with_causal().with_dropout(0.2, 3);
            let stored = stored.with_f32_gradients();
            let added = stored.clone().with_added_gradients();
            let given = gradient_inputs(&stored, 7);
            for algorithm in [Algorithm::Flash, Algorithm::Standard] {
                let [stored, added] = [&stored, &added].map(|problem| problem.clone().with_algorithm(algorithm));
                let once = run_backward(library, &stored, &given).all();
                assert_eq!(bits(&run_backward(library, &added, &given).all()), bits(&once));
                let twice = once.each_ref().map(|tensor| tensor.iter().map(|x| 2.0 * x).collect());
                assert_eq!(bits(&added_twice(library, &added, &given)), bits(&twice));
            }
        }
    }
}

fn bits(tensors: &[Vec<f64>; 3]) -> Vec<u32> {
    // −0 and 0 are one sum.
    tensors.iter().flatten().map(|value| (*value as f32 + 0.0).to_bits()).collect()
}

fn added_twice(library: &Library, problem: &AttentionProblem, given: &GradientInputs) -> [Vec<f64>; 3] {
    let prepared = library.prepare_gradients(problem).unwrap();
    let tensors = GradientTensors::new(library, problem, given);
    let mut encoder = library.device().create_command_encoder(&Default::default());
    for _ in 0..2 {
        prepared.encode(&mut encoder, &tensors.buffers()).unwrap();
    }
    library.queue().submit([encoder.finish()]);
    tensors.finish(library, problem, &Call::new()).all()
}

/// Rows of `[rows, heads, dim]`, of one sequence.
fn rows(values: &[f64], width: u32, from: u32, to: u32) -> Vec<f64> {
    values[(from * width) as usize..(to * width) as usize].to_vec()
}

/// A whole problem, and it in four parts of rows and keys, each at its place; folds and sums of them.
#[test]
fn parts_give_the_whole() {
    let library = library(Variant::Full);
    let (num_heads, num_heads_kv, dim, n) = (4, 2, 16, 92);
    for &element in Element::ALL {
        let shape = AttentionShape::new(1, num_heads, n, dim).with_num_heads_kv(num_heads_kv);
        let whole = AttentionProblem::new(shape).with_element(element).with_causal().with_dropout(0.2, 77);
        let whole = whole.with_score(ScoreMod::Alibi(alibi_slopes(num_heads)));
        let given = gradient_inputs(&whole, 8);
        let expected = check(library, &whole.clone().with_f32_output(), &given.inputs);
        let mut lse = vec![0.0; (num_heads * n) as usize];
        let mut o = Vec::new();
        for (from, to) in [(0, 40), (40, n)] {
            let (part, part_inputs) = part_of(&whole, &given.inputs, (from, to), (0, 40));
            let outputs = [(0, 40), (40, n)].map(|keys| {
                let (part, inputs) = part_of(&whole, &given.inputs, (from, to), keys);
                run(library, &part, &inputs)
            });
            let folded = fold(library, &part, &outputs.each_ref().map(|output| (output.o(), output.lse())));
            assert_eq!(part_inputs.q.len(), folded.0.len());
            o.extend(folded.0);
            for head in 0..num_heads {
                let (first, count) = ((head * n + from) as usize, (to - from) as usize);
                let of_head = &folded.1[head as usize * count..][..count];
                lse[first..first + count].copy_from_slice(of_head);
            }
        }
        // On matrices P passes through f16: each of two answers is off by half a unit of it at most, 2⁻¹¹ of |P| |V|.
        let largest = |values: &[f64]| values.iter().fold(0.0f64, |most, value| most.max(value.abs()));
        let kernel = library.prepare(&whole).unwrap().plan().passes()[0].kernel.name();
        let allowed = match kernel.contains("cooperative") && element != Element::F32 {
            true => 2f64.powi(-10) * largest(&given.inputs.v) / 0.8,
            false => 4e-6 * largest(&expected.o()),
        };
        for (found, wanted) in o.iter().zip(expected.o()) {
            assert!((found - wanted).abs() <= allowed, "{element:?}: {found}, not {wanted}");
        }
        for (found, wanted) in lse.iter().zip(expected.lse()) {
            assert!((found - wanted).abs() <= 4e-6 * wanted.abs().max(1.0), "{element:?}: {found}, not {wanted}");
        }
    }
}

/// A part of a problem of one sequence, with its inputs.
fn part_of(
    whole: &AttentionProblem,
    given: &Inputs,
    (row, end): (u32, u32),
    (key, key_end): (u32, u32),
) -> (AttentionProblem, Inputs) {
    let AttentionShape { num_heads, num_heads_kv, head_dim, seqlen_q, seqlen_kv, .. } = whole.shape;
    let shape = AttentionShape::new(1, num_heads, end - row, head_dim).with_num_heads_kv(num_heads_kv);
    let mut part = whole.clone().with_f32_output();
    part.shape = shape.with_seqlen_kv(key_end - key);
    part.layout = wgpu_flash_attention::AttentionLayout::bshd(&part.shape);
    let part = part.with_shard(Shard::of_lengths(seqlen_q, seqlen_kv).with_first_row(row).with_first_key(key));
    let inputs = Inputs {
        q: rows(&given.q, num_heads * head_dim, row, end),
        k: rows(&given.k, num_heads_kv * head_dim, key, key_end),
        v: rows(&given.v, num_heads_kv * head_dim, key, key_end),
        ..given.clone()
    };
    (part, inputs)
}

/// Folds parts of a problem into a running result, one after another.
fn fold(library: &Library, part: &AttentionProblem, parts: &[PartOf]) -> PartOf {
    let prepared = pollster::block_on(library.prepare_merge(&MergeProblem::of(part, 1).into_running())).unwrap();
    let upload = |values: &[f64]| Guarded::new(library, &to_bytes(Element::F32, values));
    // Nothing yet, whatever O is.
    let o = upload(&vec![f64::NAN; parts[0].0.len()]);
    let lse = upload(&vec![f64::NEG_INFINITY; parts[0].1.len()]);
    let mut encoder = library.device().create_command_encoder(&Default::default());
    for (o_part, lse_part) in parts {
        let (o_part, lse_part) = (upload(o_part), upload(lse_part));
        let buffers = MergeBuffers::new(o_part.slice(), lse_part.slice(), o.slice(), lse.slice());
        prepared.encode(&mut encoder, &buffers).unwrap();
    }
    library.queue().submit([encoder.finish()]);
    (from_bytes(Element::F32, &o.read(library)), from_bytes(Element::F32, &lse.read(library)))
}

/// O and LSE of a part.
type PartOf = (Vec<f64>, Vec<f64>);

/// Folded one by one or two at a time, in a device that binds little: what the merge of all gives.
#[test]
fn folds_are_merges() {
    let library_of_merges = library(Variant::Full);
    for (library, head_dim) in [
        (library(Variant::Full).clone(), 16),
        (library(Variant::WebGpuDefaults).clone(), 13),
        (limited(|capabilities| capabilities.max_binding = 5120), 256),
    ] {
        let part = AttentionProblem::new(AttentionShape::new(2, 3, 7, head_dim));
        let mut random = Random(4);
        let (len, rows) = (2 * 7 * 3 * head_dim as usize, 2 * 3 * 7);
        let mut draw = |count: usize| (0..count).map(|_| f64::from(random.normal() as f32)).collect::<Vec<_>>();
        let mut parts: Vec<_> = (0..3).map(|_| (draw(len), draw(rows))).collect();
        // A row that the first part does not see, one that no part sees, one that is not a number.
        (parts[0].1[1], parts[1].1[5]) = (f64::NEG_INFINITY, f64::NAN);
        parts.iter_mut().for_each(|part| part.1[2] = f64::NEG_INFINITY);
        let flat = |of: fn(&PartOf) -> &Vec<f64>| -> Vec<f32> {
            parts.iter().flat_map(|part| of(part).iter().map(|value| *value as f32)).collect()
        };
        let merge = MergeProblem::of(&part, 3);
        let (all_o, all_lse) = (flat(|p| &p.0), flat(|p| &p.1));
        let expected = pollster::block_on(library_of_merges.merge::<f32, f32>(&merge, &all_o, &all_lse)).unwrap();
        let (o, lse) = fold(&library, &part, &parts);
        let close = |found: &f64, wanted: &f32| {
            let wanted = f64::from(*wanted);
            *found == wanted || (found - wanted).abs() < 1e-5 || found.is_nan() && wanted.is_nan()
        };
        assert!(o.iter().zip(&expected.o).all(|(found, wanted)| close(found, wanted)));
        assert!(lse.iter().zip(&expected.lse).all(|(found, wanted)| close(found, wanted)));
        assert!(lse[2] == f64::NEG_INFINITY && lse[5].is_nan() && lse[1].is_finite());
    }
}

#[test]
fn parts_are_refused() {
    let attention = library(Variant::Full);
    let refusal = |problem: &AttentionProblem| attention.plan_forward(problem).build().unwrap_err().to_string();
    let shard = |first_row, first_key| Shard::of_lengths(60, 50).with_first_row(first_row).with_first_key(first_key);
    let problem = AttentionProblem::new(AttentionShape::new(1, 2, 10, 8));
    assert!(refusal(&problem.clone().with_shard(shard(51, 0))).contains("rows 51..61 are outside the whole"));
    assert!(refusal(&problem.clone().with_shard(shard(0, 41))).contains("keys 41..51 are outside the whole"));
    assert!(refusal(&problem.clone().with_shard(shard(0, 0).with_first_head(3, 4))).contains("heads 3..5"));
    assert!(refusal(&problem.clone().with_shard(shard(u32::MAX, u32::MAX))).contains("rows 4294967295..4294967305"));
    assert!(refusal(&problem.clone().with_shard(Shard::of_lengths(u32::MAX, 50))).contains("seqlen_q of the whole"));
    assert!(refusal(&problem.clone().with_shard(shard(0, 2)).with_dropout(0.1, 1)).contains("multiple of 4"));
    let lengths = problem.clone().with_shard(shard(0, 0)).with_lengths(vec![3], vec![4]);
    assert!(refusal(&lengths).contains("lengths of their own"));
    let blocks = problem.clone().with_shard(shard(0, 0)).with_key_mask(KeyMask::Blocks(BlockMask::prefix(3)));
    assert!(refusal(&blocks).contains("a block mask"));

    let f16 = problem.clone().with_element(Element::F16);
    let backward = attention.plan_backward(&f16.clone().with_f32_output()).build().unwrap_err();
    assert!(backward.to_string().contains("the backward pass reads O in the type of the inputs"), "{backward}");
    let mut other = f16.clone();
    other.output_element = Some(Element::Bf16);
    assert!(refusal(&other).contains("in the inputs' type or in F32"));
    let mut added = f16.clone().with_added_gradients();
    added.gradient_element = None;
    let error = attention.plan_backward(&added).build().unwrap_err();
    assert_eq!(error, InvalidProblem::AddedGradients(Element::F16).into());
    let mut running = MergeProblem::of(&f16, 1).into_running();
    running.element = Element::F16;
    let error = attention.plan_merge(&running).build().unwrap_err();
    assert_eq!(error, Error::from(InvalidProblem::RunningElement(Element::F16)));
    assert!(attention.plan_merge(&MergeProblem::of(&f16, 1).into_running()).build().is_ok());
    let plan = attention.plan_merge(&MergeProblem::of(&f16.with_f32_output(), 1)).build().unwrap();
    assert_eq!((plan.element(Operand::O), plan.element(Operand::OParts)), (Some(Element::F16), Some(Element::F32)));
}
