//! Block masks: every pattern, in every kernel, alone and with other masks.

use std::sync::Arc;

use wgpu_flash_attention::{
    AttentionProblem, AttentionShape, BlockKind, BlockMask, Call, Element, EntryLayout, Error, FlashAttention,
    InvalidProblem, KeyMask, MAX_LENGTH, MaskWgsl, Plan, ProbabilitiesSlices, ScoreMod, reference,
};

use crate::support::{
    Inputs, Variant, adapter, check, check_both, check_gradients, gradient_inputs, inputs, library, limited,
    with_matrices,
};

fn shape() -> AttentionShape {
    AttentionShape::new(2, 4, 70, 8).with_num_heads_kv(2).with_seqlen_kv(85)
}

fn masked(problem: &AttentionProblem, mask: BlockMask) -> AttentionProblem {
    problem.clone().with_key_mask(KeyMask::Blocks(mask))
}

/// Blocks of these sides, of which about a third are seen; some rows of blocks see nothing.
fn blocks(shape: &AttentionShape, [batch, heads]: [u32; 2], sides: [u32; 2]) -> BlockMask {
    let counts = [batch, heads, shape.seqlen_q.div_ceil(sides[0]), shape.seqlen_kv.div_ceil(sides[1])];
    let kind = |n: u32| match (n.wrapping_mul(2_654_435_761) >> 20) % 7 {
        _ if n / counts[3] % 5 == 3 => BlockKind::Absent,
        0 | 1 => BlockKind::Partial,
        2 => BlockKind::Full,
        _ => BlockKind::Absent,
    };
    BlockMask::new(counts, sides, &(0..counts.iter().product()).map(kind).collect::<Vec<_>>())
}

fn documents(shape: &AttentionShape, batch: u32) -> BlockMask {
    // Documents of different lengths; the third comes again.
    let id = |n: u32| [1, 1, 5, 9, 9, 9, 5, 0][(n % shape.seqlen_kv / 12) as usize % 8] + n / shape.seqlen_kv;
    BlockMask::documents(batch, &(0..batch * shape.seqlen_kv).map(id).collect::<Vec<_>>())
}

fn patterns(shape: &AttentionShape) -> Vec<BlockMask> {
    vec![
        BlockMask::local(7),
        BlockMask::longformer(4, 9),
        BlockMask::strided(13),
        BlockMask::prefix(20),
        documents(shape, 1),
        documents(shape, shape.batch),
        blocks(shape, [1, 1], [16, 32]),
        blocks(shape, [shape.batch, shape.num_heads], [9, 11]),
    ]
}

#[test]
fn every_pattern_alone_and_under_a_causal_mask() {
    let problem = AttentionProblem::new(shape());
    for (seed, mask) in (1..).zip(patterns(&problem.shape)) {
        check_both(library(Variant::Full), &masked(&problem, mask.clone()), seed);
        let causal = problem.clone().with_causal().with_dropout(0.2, 3);
        check_both(library(Variant::SmallTiles), &masked(&causal, mask), seed);
    }
}

#[test]
fn other_lengths_elements_and_devices() {
    for (element, variant, [seqlen_q, seqlen_kv]) in [
        (Element::F16, Variant::NoSubgroups, [90, 40]),
        (Element::Bf16, Variant::WebGpuDefaults, [5, 300]),
        (Element::F32, Variant::Checked, [1, 200]),
    ] {
        let shape = AttentionShape::new(1, 4, seqlen_q, 8).with_num_heads_kv(2).with_seqlen_kv(seqlen_kv);
        let problem = AttentionProblem::new(shape).with_element(element);
        let window = problem.clone().with_causal_top_left().with_window(Some(60), None);
        check_both(library(variant), &masked(&problem, blocks(&shape, [1, 4], [16, 16])), 11);
        check_both(library(variant), &masked(&window, BlockMask::strided(9)), 12);
    }
}

#[test]
fn large_patterns_of_blocks() {
    let shape = AttentionShape::new(1, 2, 500, 8).with_seqlen_kv(460);
    let problem = AttentionProblem::new(shape);
    for mask in [BlockMask::butterfly(&shape), BlockMask::bigbird(&shape, 42)] {
        check_both(library(Variant::Full), &masked(&problem, mask), 21);
    }
}

#[test]
fn on_matrices() {
    let Some(library) = with_matrices() else { return };
    for (&element, mask) in Element::ALL.iter().zip([
        blocks(&shape(), [2, 4], [16, 32]),
        BlockMask::longformer(9, 5),
        documents(&shape(), 2),
    ]) {
        let problem = AttentionProblem::new(shape()).with_element(element);
        check_both(library, &masked(&problem.clone().with_causal().with_dropout(0.2, 3), mask.clone()), 31);
        check_both(library, &masked(&problem, mask), 32);
    }
}

/// With more rows than keys, the first rows stand before the first key. The oracle shares the pattern, so a window tells what is right.
#[test]
fn rows_before_the_first_key_see_what_a_window_shows() {
    let problem = AttentionProblem::new(shape().with_seqlen_kv(40));
    for width in [0, 7, 45] {
        let local = masked(&problem, BlockMask::local(width));
        let window = problem.clone().with_window(Some(width), Some(width));
        let Inputs { q, k, v, .. } = inputs(&problem, 48);
        let [by_mask, by_window] = [&local, &window].map(|problem| reference::forward(problem, &q, &k, &v));
        assert_eq!((by_mask.o, by_mask.lse), (by_window.o, by_window.lse), "{width}");
        check_both(library(Variant::Full), &local, 48);
    }
}

/// With every other thing that a problem may have.
#[test]
fn in_company() {
    let shape = shape();
    let problem = AttentionProblem::new(shape);
    let with_lengths = problem.clone().with_lengths(vec![70, 33], vec![50, 85]);
    let boolean = KeyMask::Boolean(EntryLayout::packed_bits([1, 4, 70, 85]));
    let bias = ScoreMod::Bias { layout: EntryLayout::contiguous([2, 1, 70, 85]), element: Element::F32 };
    let alibi = ScoreMod::Alibi(vec![0.1, 0.2, 0.3, 0.4]);
    let library = library(Variant::Full);
    check_both(library, &masked(&with_lengths.clone().with_causal(), BlockMask::longformer(5, 3)), 41);
    check_both(library, &masked(&with_lengths, documents(&shape, 1)).with_sink(), 42);
    check_both(library, &masked(&problem, blocks(&shape, [1, 4], [16, 16])).with_score(bias), 44);
    check_both(library, &masked(&problem.clone().with_causal(), BlockMask::local(30)).with_score(alibi), 45);
    let two = masked(&masked(&problem, BlockMask::strided(6)), documents(&shape, 2));
    check_both(library, &two, 46);
    if library.capabilities().max_storage_buffers > 9 {
        check_both(library, &masked(&problem, BlockMask::longformer(20, 9)).with_key_mask(boolean), 47);
    }
}

#[test]
fn splits_and_bounded_work() {
    let shape = AttentionShape::new(2, 2, 70, 8).with_seqlen_kv(300);
    let problem = AttentionProblem::new(shape);
    for mask in [BlockMask::longformer(20, 30), blocks(&shape, [2, 2], [16, 16])] {
        let problem = masked(&problem, mask);
        check(&library(Variant::Full).clone().splits(3), &problem, &inputs(&problem, 51));
        check_both(library(Variant::Full), &problem.with_bounded_work(1), 52);
    }
}

/// A mask by entries and its blocks: those that are full need no mask, and all sees the same.
#[test]
fn blocks_of_a_boolean_mask() {
    let problem = AttentionProblem::new(AttentionShape::new(1, 2, 70, 8).with_seqlen_kv(96));
    let layout = EntryLayout::packed_bits([1, 1, 70, 96]);
    let boolean = problem.clone().with_key_mask(KeyMask::Boolean(layout));
    let mut given = gradient_inputs(&boolean, 61);
    let sees = |i: u32, j: u32| i / 32 % 2 == j / 32 % 2 || (i / 32 == 0 && j / 32 == 1 && (i + j).is_multiple_of(3));
    let words =
        (0..70 * 3).map(|word| (0..32).fold(0, |bits, n| bits | u32::from(sees(word / 3, word % 3 * 32 + n)) << n));
    given.inputs.key_mask = words.collect();
    let mask = BlockMask::from_fn(&problem.shape, [1, 1], [32, 32], |_, _, i, j| sees(i, j));
    let both = masked(&boolean, mask);
    for library in [Some(library(Variant::SmallTiles)), with_matrices()].into_iter().flatten() {
        check(library, &both, &given.inputs);
        check_gradients(library, &both, &given);
    }
}

/// What no row sees reaches nothing, and a row that sees nothing is 0.
#[test]
fn hidden_blocks_may_hold_anything() {
    let problem = AttentionProblem::new(AttentionShape::new(1, 1, 64, 8).with_seqlen_kv(64));
    let kinds = [BlockKind::Partial, BlockKind::Absent, BlockKind::Absent, BlockKind::Absent].repeat(2);
    let problem = masked(&problem, BlockMask::new([1, 1, 2, 4], [32, 16], &kinds));
    for library in [Some(library(Variant::Full)), with_matrices()].into_iter().flatten() {
        let mut given = gradient_inputs(&problem, 71);
        for tensor in [&mut given.inputs.k, &mut given.inputs.v] {
            tensor[16 * 8..].fill(f64::NAN);
        }
        let output = check(library, &problem, &given.inputs);
        assert!(output.o().iter().all(|o| o.is_finite()));
        let gradients = check_gradients(library, &problem, &given);
        assert!(gradients.all().iter().all(|gradient| gradient.iter().all(|value| value.is_finite())));
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let problem = AttentionProblem::new(shape());
    let library = limited(|_| ());
    let refusal = |problem: &AttentionProblem| match Plan::forward(problem, library.capabilities()).build() {
        Err(Error::InvalidProblem(InvalidProblem::KeyMask { name, reason })) => (name, reason),
        other => panic!("{other:?}"),
    };
    let partial = |count| vec![BlockKind::Partial; count];
    for (mask, name, said) in [
        (BlockMask::strided(0), "strided", "its step is 0"),
        (BlockMask::documents(1, &[1, 2]), "documents", "2 ids are given; [batch or 1, seqlen_kv] has 85"),
        (BlockMask::documents(3, &[1; 255]), "documents", "it has 3 sequences of ids; the problem has 2"),
        (BlockMask::new([1, 1, 5, 6], [16, 16], &partial(29)), "blocks", "29 kinds are given for 30 blocks"),
        (BlockMask::new([1, 1, 5, 5], [16, 16], &partial(25)), "blocks", "5 blocks along the keys"),
        (BlockMask::new([1, 1, 5, 5], [16, 0], &partial(25)), "blocks", "0 keys"),
        (BlockMask::new([1, 3, 5, 6], [16, 16], &partial(90)), "blocks", "it has 3 heads; the problem has 4"),
    ] {
        let (found, reason) = refusal(&masked(&problem, mask));
        assert_eq!(found, name);
        assert!(reason.contains(said), "{reason}");
    }
    let twice = masked(&masked(&problem, BlockMask::local(1)), BlockMask::longformer(1, 2));
    assert!(refusal(&twice).1.contains("given twice"));
    let five =
        patterns(&problem.shape)[1..].iter().fold(problem.clone(), |problem, mask| masked(&problem, mask.clone()));
    assert!(refusal(&five).1.contains("one too many"));

    let endless = AttentionProblem::new(AttentionShape::new(1, 1, 1 << 22, 8));
    let mut unlimited = library.capabilities().clone();
    (unlimited.max_loop_turns, unlimited.max_binding, unlimited.max_buffer) = (None, u64::MAX, u64::MAX);
    let plan = |mask| Plan::forward(&masked(&endless, mask), &unlimited).build();
    assert_eq!(plan(BlockMask::local(99)).err(), None);
    let refused = plan(BlockMask::prefix(1));
    assert!(matches!(refused, Err(Error::Unsupported { feature: "lists of tiles this long", .. })), "{refused:?}");

    let prepared = Plan::forward(&masked(&problem, BlockMask::local(1)), library.capabilities()).build().unwrap();
    let refused = prepared.dispatches(&Call::new().with_seqlen_kv(80), &Default::default());
    assert!(matches!(refused, Err(Error::Unsupported { feature: "other lengths with a block mask", .. })));
}

/// The blocks of mask_mod are those that a function in Rust finds, and with them the answer is that of mask_mod alone.
#[test]
fn blocks_of_own_wgsl() {
    let attention = pollster::block_on(FlashAttention::from_adapter(adapter())).unwrap();
    // Sequence 1 sees nothing before `aux`, and head 0 no key that is far away.
    let text = "fn mask_mod(batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> bool {
        if batch == 1u && f32(kv_idx) < aux[0] { return false; }
        return head != 0u || max(q_idx, kv_idx) - min(q_idx, kv_idx) < 20u;
    }";
    let sees = |batch: u32, head: u32, i: u32, j: u32| !(batch == 1 && j < 33) && (head != 0 || i.abs_diff(j) < 20);
    let shape = AttentionShape::new(2, 2, 70, 8).with_seqlen_kv(85);
    let problem = AttentionProblem::new(shape).with_key_mask(KeyMask::Wgsl(MaskWgsl::new(text).unwrap())).with_aux(1);
    let aux = [33.0];
    let slices = ProbabilitiesSlices::new(&[], &[], &[]).with_aux(&aux);
    let block_mask = |counts, sides| pollster::block_on(attention.block_mask(&problem, counts, sides, &slices));
    for sides in [[16, 32], [7, 11], [128, 128]] {
        let found = block_mask([2, 2], sides).unwrap();
        assert_eq!(found, BlockMask::from_fn(&shape, [2, 2], sides, sees), "{sides:?}");
    }
    // Of the first sequence and head, for all.
    assert_eq!(block_mask([1, 1], [16, 32]), Ok(BlockMask::from_fn(&shape, [1, 1], [16, 32], sees)));
    for (counts, sides) in [([3, 1], [16, 16]), ([1, 1], [0, 16])] {
        let refused = block_mask(counts, sides);
        assert!(matches!(refused, Err(Error::InvalidProblem(InvalidProblem::KeyMask { .. }))), "{refused:?}");
    }

    let vast = AttentionProblem::new(AttentionShape::new(1, 1, MAX_LENGTH, 8));
    let nothing = ProbabilitiesSlices::new(&[], &[], &[]);
    for sides in [[1, 1], [MAX_LENGTH, MAX_LENGTH]] {
        let refused = pollster::block_on(attention.block_mask(&vast, [1, 1], sides, &nothing));
        assert!(matches!(refused, Err(Error::InvalidProblem(_) | Error::TooLarge { .. })), "{refused:?}");
    }

    let listed = masked(&problem, block_mask([2, 2], [16, 32]).unwrap()).with_causal();
    let mut given = gradient_inputs(&listed, 81);
    given.inputs.mask_mod = Some(Arc::new(move |[batch, head, i, j]: [u32; 4]| sees(batch, head, i, j)));
    given.inputs.aux = vec![33.0];
    for library in [Some(library(Variant::SmallTiles)), with_matrices()].into_iter().flatten() {
        check(library, &listed, &given.inputs);
        check_gradients(library, &listed, &given);
    }
}
