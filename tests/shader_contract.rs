//! What Rust and WGSL promise each other, held for every shader variant the planner can emit. No GPU needed.

use naga::valid::{Capabilities as NagaCapabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module, TypeInner};
use std::collections::{BTreeMap, HashMap, HashSet};
use wgpu_flash_attention::unstable::{
    Dialect, Kernel, Params, RowReduce, ShaderSource, Specialization, Storage, Usage,
};
use wgpu_flash_attention::{
    Algorithm, AppendProblem, AttentionLayout, AttentionProblem, AttentionShape, AuxType, BlockMask, CacheElement,
    Capabilities, DeviceClass, Element, EntryLayout, KeyMask, KvCache, MaskWgsl, MergeProblem, Operand, Plan,
    ProbabilitiesProblem, Rotary, ScoreMod, ScoreWgsl, Shard, TensorLayout, WgslOptions, alibi_slopes,
};

/// Devices that lead the planner to different tiles, elements and reductions.
fn devices() -> Vec<Capabilities> {
    let mut devices = Vec::new();
    for class in [DeviceClass::Discrete, DeviceClass::Integrated, DeviceClass::Cpu, DeviceClass::Other] {
        for storage in [16_384, 32_768, 49_152] {
            for subgroups in [None, Some(4), Some(8), Some(32)] {
                for (shader_f16, matrix_side) in [(false, None), (true, None), (true, Some(8)), (true, Some(16))] {
                    // Matrices need subgroups of one size.
                    let subgroup = matrix_side.map_or(subgroups.unwrap_or(4), |side| side * side / 8);
                    let mut device = Capabilities::webgpu_defaults();
                    device.device_class = class;
                    device.max_workgroup_storage = storage;
                    device.max_invocations = if storage == 16_384 { 256 } else { 1024 };
                    device.subgroups = subgroups.is_some();
                    device.subgroup_min_size = subgroup;
                    device.subgroup_max_size = matrix_side.map_or(128, |_| subgroup);
                    device.matrix_side = matrix_side;
                    device.shader_f16 = shader_f16;
                    devices.push(device);
                }
            }
        }
    }
    devices
}

/// Every variant that the planner emits for these devices over a grid of problems.
fn variants() -> Vec<Specialization> {
    let mut variants = HashSet::new();
    for device in devices() {
        for &element in Element::ALL {
            for algorithm in [Algorithm::Flash, Algorithm::Standard] {
                for (head_dim, head_dim_v) in [(1, 1), (40, 40), (64, 64), (59, 111), (128, 128), (256, 256), (64, 256)]
                {
                    // Few rows, and so many that the planner takes other tiles; decoding, with and without groups; sums so
                    // long that they are split.
                    let shape = |seqlen| AttentionShape::new(2, 4, seqlen, head_dim).with_head_dim_v(head_dim_v);
                    let decode = |num_heads_kv| shape(1).with_seqlen_kv(2000).with_num_heads_kv(num_heads_kv);
                    let mut many_heads = decode(1);
                    many_heads.num_heads = 24;
                    let busy = AttentionShape { batch: 600, ..decode(2) }.with_seqlen_kv(40);
                    let long = AttentionShape { batch: 1, ..shape(10_000) }.with_num_heads_kv(1).with_seqlen_kv(40_000);
                    let mut shapes = vec![shape(100), shape(5000), decode(4), decode(1), many_heads, busy];
                    // On matrices, few rows of heads that share keys, also with so many keys that they are split.
                    if device.matrix_side.is_some() {
                        shapes.extend([2000, 40].map(|keys| shape(20).with_num_heads_kv(2).with_seqlen_kv(keys)));
                    }
                    // Standard attention has no splits, and its scores would not fit.
                    shapes.extend((algorithm == Algorithm::Flash).then_some(long));
                    for shape in shapes {
                        let problem = AttentionProblem::new(shape).with_element(element).with_algorithm(algorithm);
                        let merge = MergeProblem::of(&problem, 3);
                        for merge in [merge.clone().with_parts_in_f32(), merge.clone().with_strides(1 << 20, 1 << 20)] {
                            let plan = Plan::merge(&merge, &device).build().expect("every device merges");
                            variants.extend(plan.passes().iter().map(|pass| pass.specialization.clone()));
                        }
                        for problem in
                            [problem.clone(), problem.clone().with_causal(), problem.with_causal().with_dropout(0.1, 7)]
                        {
                            let forward =
                                Plan::forward(&problem, &device).build().expect("every device runs every problem");
                            let backward = Plan::backward(&problem, &device).build().expect("backward too");
                            let in_f32 =
                                Plan::backward(&problem.with_f32_gradients(), &device).build().expect("in f32 too");
                            for plan in [forward, backward, in_f32] {
                                variants.extend(plan.passes().iter().map(|pass| pass.specialization.clone()));
                            }
                        }
                    }
                }
            }
        }
    }
    variants.extend(variants_of_probabilities(AttentionProblem::with_causal));
    // Its gradient is a kernel, which depends on nothing else.
    let with_sink = AttentionProblem::new(AttentionShape::new(1, 2, 3, 4)).with_sink();
    let of_sink = Plan::backward(&with_sink, &Capabilities::webgpu_defaults()).build().expect("a sink has a gradient");
    variants.extend(of_sink.passes().iter().map(|pass| pass.specialization.clone()));
    // So is the kernel that reads lengths at each call.
    let at_call: [fn(AttentionProblem) -> AttentionProblem; 5] = [
        AttentionProblem::with_seqlens_q_at_call,
        AttentionProblem::with_seqlens_kv_at_call,
        |problem| problem.with_seqlens_q_at_call().with_seqlens_kv_at_call(),
        |problem| problem.with_cu_seqlens_at_call(3, 3).with_seqlens_q_at_call().with_seqlens_kv_at_call(),
        |problem| problem.with_cu_seqlens_q_at_call(3).with_seqlens_kv_at_call(),
    ];
    for at_call in at_call {
        let problem = at_call(AttentionProblem::new(AttentionShape::new(1, 2, 3, 4)));
        let plan = Plan::forward(&problem, &Capabilities::webgpu_defaults()).build().expect("lengths come at the call");
        variants.extend(plan.passes().iter().map(|pass| pass.specialization.clone()).take(1));
    }
    variants.extend(variants_of_appends());
    variants.extend(variants_of_parts().into_iter().filter(|variant| variant.kernel == Kernel::Fold));
    // So is that of a bias, where one is asked for.
    variants.extend(variants_of_dbias(|problem| problem));
    let mut variants: Vec<_> = variants.into_iter().collect();
    variants.sort_by_key(|variant| format!("{variant:?}"));
    variants
}

/// Variants of appends to caches.
fn variants_of_appends() -> Vec<Specialization> {
    let mut variants = Vec::new();
    let rotations: [fn(AppendProblem) -> AppendProblem; 4] = [
        |append| append,
        |append| append.with_rotary(Rotary::interleaved(40, 9)).with_rotated_q(),
        |append| append.with_rotary(Rotary::halves(40, 9)).with_rotated_q_in_place().with_packed_tokens(9),
        |append| append.with_rotary(Rotary::halves(40, 9).per_token()).with_new_cache_seqlens().with_slot_mapping(),
    ];
    let sources = Element::ALL.iter().flat_map(|element| [(*element, 64), (*element, 59)]);
    for ((element, head_dim), cache_element) in
        sources.flat_map(|of| CacheElement::ALL.iter().map(move |cache| (of, *cache)))
    {
        let shape = AttentionShape::new(2, 4, 5, head_dim).with_num_heads_kv(2).with_seqlen_kv(100);
        let caches = [KvCache::contiguous(&shape, cache_element), KvCache::paged(&shape, cache_element, 9, 16)];
        for (cache, rotated) in caches.iter().flat_map(|cache| rotations.iter().map(move |rotated| (cache, rotated))) {
            let append = rotated(AppendProblem::new(shape, *cache).with_element(element));
            let plan = Plan::append(&append, &Capabilities::webgpu_defaults()).build().expect("every device appends");
            variants.extend(plan.passes().iter().map(|pass| pass.specialization.clone()));
        }
    }
    variants
}

/// Variants of parts of a larger problem, of some devices: O in f32, gradients that are added up, positions, folds.
fn variants_of_parts() -> Vec<Specialization> {
    let mut variants = HashSet::new();
    let few = |device: &Capabilities| {
        let is_usual = device.subgroups == device.shader_f16 && device.max_workgroup_storage != 32_768;
        is_usual && device.subgroup_min_size != 8 && device.device_class == DeviceClass::Discrete
    };
    for device in devices().into_iter().filter(few) {
        for (&element, head_dim) in Element::ALL.iter().flat_map(|element| [(element, 64), (element, 59)]) {
            // Few keys, which need no splits.
            for (seqlen_q, seqlen_kv, algorithm) in [
                (1, 2000, Algorithm::Flash),
                (1, 40, Algorithm::Flash),
                (1000, 2000, Algorithm::Flash),
                (1000, 2000, Algorithm::Standard),
            ] {
                let shape = AttentionShape::new(600.min(40_000 / seqlen_kv / seqlen_q).max(2), 4, seqlen_q, head_dim);
                let shape = shape.with_num_heads_kv(2).with_seqlen_kv(seqlen_kv);
                let problem = AttentionProblem::new(shape).with_element(element).with_algorithm(algorithm);
                let shard = Shard::of_lengths(9000, 9000).with_first_row(800).with_first_key(40);
                let plain = problem.with_causal().with_shard(shard);
                let own = with_mask_mod(plain.clone().with_score(score_mod(GRADIENT))).with_aux(9);
                for problem in [plain.clone(), plain.clone().with_dropout(0.1, 7), own] {
                    let plans = [
                        Plan::forward(&problem.clone().with_f32_output(), &device).build(),
                        Plan::backward(&problem.with_added_gradients(), &device).build(),
                        Plan::merge(&MergeProblem::of(&plain, 2).into_running(), &device).build(),
                    ];
                    for plan in plans {
                        let passes = plan.expect("every device has parts").passes().to_vec();
                        variants.extend(passes.into_iter().map(|pass| pass.specialization));
                    }
                }
            }
        }
    }
    let is_new = |v: &Specialization| v.f32_output || v.adds_gradients || v.has_place || v.kernel == Kernel::Fold;
    variants.into_iter().filter(is_new).collect()
}

/// Variants over caches, of some devices.
fn variants_over_caches() -> Vec<Specialization> {
    let mut variants = HashSet::new();
    let few = |device: &Capabilities| {
        let is_usual = device.subgroups == device.shader_f16 && device.max_workgroup_storage != 32_768;
        is_usual && device.subgroup_min_size != 8 && device.device_class == DeviceClass::Discrete
    };
    for device in devices().into_iter().filter(few) {
        for (&element, &cache_element) in
            Element::ALL.iter().flat_map(|element| CacheElement::ALL.iter().map(move |cache| (element, cache)))
        {
            for (head_dim, seqlen_q) in [(64, 1), (59, 1), (64, 1000), (59, 1000)] {
                let shape = AttentionShape::new(2, 4, seqlen_q, head_dim).with_num_heads_kv(2).with_seqlen_kv(2000);
                let caches =
                    [KvCache::contiguous(&shape, cache_element), KvCache::paged(&shape, cache_element, 300, 16)];
                for cache in caches {
                    let problem = AttentionProblem::new(shape).with_element(element).with_causal().with_cache(cache);
                    // Functions of the caller are told positions.
                    let own = with_mask_mod(problem.clone()).with_aux(99);
                    for (problem, splits) in [(problem.clone(), 1), (problem, 3), (own, 1)] {
                        let problem = problem.with_seqlens_kv_at_call();
                        let plan = Plan::forward(&problem, &device).with_splits(splits).build();
                        let passes = plan.expect("every device reads caches").passes().to_vec();
                        variants.extend(passes.into_iter().map(|pass| pass.specialization));
                    }
                }
            }
        }
    }
    variants.into_iter().collect()
}

/// Variants of the probabilities of such problems.
fn variants_of_probabilities(modified: fn(AttentionProblem) -> AttentionProblem) -> Vec<Specialization> {
    let mut variants = Vec::new();
    for (&element, head_dim) in Element::ALL.iter().flat_map(|element| [(element, 64), (element, 59)]) {
        let problem = AttentionProblem::new(AttentionShape::new(2, 4, 100, head_dim)).with_element(element);
        let chosen = ProbabilitiesProblem::new(modified(problem), 1..3, 5..77);
        let plan = Plan::probabilities(&chosen, &Capabilities::webgpu_defaults()).build();
        variants.extend(plan.expect("every device has them").passes().iter().map(|pass| pass.specialization.clone()));
    }
    variants
}

/// Variants of the gradient of a bias.
fn variants_of_dbias(modified: fn(AttentionProblem) -> AttentionProblem) -> Vec<Specialization> {
    let mut variants = Vec::new();
    for &element in Element::ALL {
        let problem = AttentionProblem::new(AttentionShape::new(2, 4, 100, 40)).with_element(element);
        let problem = with_bias(problem.with_score(alibi()), element).with_score(softcap()).with_bias_gradient();
        // dK and dV bind nine buffers.
        let mut device = Capabilities::webgpu_defaults();
        device.max_storage_buffers = 9;
        let plan = Plan::backward(&modified(problem), &device).build().expect("a bias has a gradient");
        let specializations = plan.passes().iter().map(|pass| pass.specialization.clone());
        variants.extend(specializations.filter(|variant| variant.kernel.name().contains("dbias")));
    }
    variants
}

/// Every variant with modifiers of the scores or masks by entries that the planner emits for some devices and problems.
fn variants_with_modifiers() -> Vec<Specialization> {
    type Modified = fn(AttentionProblem) -> AttentionProblem;
    let modifiers: [Modified; 19] = [
        |problem| problem.with_score(softcap()),
        |problem| problem.with_score(alibi()),
        |problem| problem.with_score(softcap()).with_score(alibi()),
        |problem| problem.with_score(alibi()).with_score(softcap()),
        |problem| with_bias(problem, Element::F32),
        |problem| {
            let element = problem.element;
            with_bias(problem, element)
        },
        |problem| with_bias(problem, Element::F32).with_bias_gradient(),
        |problem| {
            let element = problem.element;
            with_bias(problem, element).with_bias_gradient()
        },
        with_boolean_mask,
        with_patterns,
        with_blocks,
        AttentionProblem::with_sink,
        |problem| problem.with_lengths(vec![0, 1], vec![1900, 2000]),
        |problem| problem.with_lengths(vec![0, 1], vec![1900, 2000]).with_sink().with_score(alibi()),
        packed,
        |problem| problem.with_cu_seqlens_q(vec![0, 0, 1]).with_sink().with_score(alibi()),
        |problem| problem.with_score(score_mod(GRADIENT)).with_aux(9),
        |problem| with_mask_mod(problem).with_aux(9),
        |problem| with_mask_mod(problem.with_score(softcap())),
    ];
    let few = |device: &Capabilities| {
        device.max_workgroup_storage != 32_768 && device.device_class != DeviceClass::Integrated
    };
    let mut variants = HashSet::new();
    for device in devices().into_iter().filter(few) {
        for (element, head_dim) in [(Element::F32, 64), (Element::F16, 64), (Element::Bf16, 64), (Element::F32, 59)] {
            for (algorithm, modified) in
                modifiers.iter().flat_map(|list| [(Algorithm::Flash, list), (Algorithm::Standard, list)])
            {
                let shape =
                    |seqlen_q| AttentionShape::new(2, 4, seqlen_q, head_dim).with_num_heads_kv(2).with_seqlen_kv(2000);
                let mut shapes = vec![shape(1), shape(1000)];
                if device.matrix_side.is_some() {
                    shapes.push(shape(20));
                }
                shapes.extend((algorithm == Algorithm::Flash).then_some(shape(200).with_seqlen_kv(40_000)));
                for shape in shapes {
                    let problem = AttentionProblem::new(shape).with_element(element).with_algorithm(algorithm);
                    let problem = modified(problem);
                    for problem in [problem.clone(), problem.with_causal().with_dropout(0.1, 7)] {
                        let forward =
                            Plan::forward(&problem, &device).build().expect("every device runs every problem");
                        let backward = Plan::backward(&problem, &device).build().expect("backward too");
                        let whole = Plan::forward(&problem, &device).with_splits(1).build();
                        let whole = whole.iter().filter(|_| shape.seqlen_q == 20).flat_map(Plan::passes);
                        let passes = forward.passes().iter().chain(backward.passes()).chain(whole);
                        let specializations = passes.map(|pass| pass.specialization.clone());
                        variants.extend(specializations.filter(|v| {
                            v.has_sink || v.has_lengths || !(v.score_mods.is_empty() && v.key_masks.is_empty())
                        }));
                    }
                }
            }
        }
    }
    let with_all =
        |problem| with_boolean_mask(with_bias(problem, Element::F32)).with_score(softcap()).with_score(alibi());
    variants.extend(variants_of_probabilities(with_all));
    variants.extend(variants_of_probabilities(packed));
    variants.extend(variants_of_dbias(packed));
    // Without its gradient, a score_mod has forward kernels alone.
    let forward_alone =
        AttentionProblem::new(AttentionShape::new(2, 4, 1000, 64)).with_score(score_mod("")).with_aux(9);
    let plan = Plan::forward(&forward_alone, &Capabilities::webgpu_defaults()).build().expect("it has forward kernels");
    variants.extend(plan.passes().iter().map(|pass| pass.specialization.clone()));
    variants.into_iter().collect()
}

/// The caller's own functions, with a loop, a struct, a helper and data.
const OWN_SCORE: &str = "
struct Curve { bend: f32, bias: f32 }
fn curve(q_idx: u32, kv_idx: u32) -> Curve {
  var sum = 0.0;
  for (var i = 0u; i < 4u; i++) { sum += aux[(q_idx + i) % 9u]; }
  return Curve(sum, aux[kv_idx % arrayLength(&aux)]);
}
fn score_mod(score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32 {
  let c = curve(q_idx, kv_idx);
  return fma(c.bend * score, score, c.bias);
}
";
const GRADIENT: &str = "
fn score_mod_grad(grad: f32, score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32 {
  return grad * 2.0 * curve(q_idx, kv_idx).bend * score;
}
";

fn score_mod(gradient: &str) -> ScoreMod {
    ScoreMod::Wgsl(ScoreWgsl::new(&format!("{OWN_SCORE}{gradient}")).unwrap())
}

/// With data in u32, if the problem has no score modifiers.
fn with_mask_mod(problem: AttentionProblem) -> AttentionProblem {
    let entry = if problem.scores().is_empty() { "aux[kv_idx]" } else { "kv_idx" };
    let text =
        format!("fn mask_mod(batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> bool {{ return {entry} > q_idx; }}");
    let options = WgslOptions::new().with_aux(AuxType::U32);
    problem.with_key_mask(KeyMask::Wgsl(MaskWgsl::with_options(&text, options).unwrap()))
}

fn packed(problem: AttentionProblem) -> AttentionProblem {
    problem.with_cu_seqlens(vec![0, 0, 1], vec![0, 99, 100])
}

fn softcap() -> ScoreMod {
    ScoreMod::Softcap(30.0)
}

fn alibi() -> ScoreMod {
    ScoreMod::Alibi(alibi_slopes(4))
}

fn with_bias(problem: AttentionProblem, element: Element) -> AttentionProblem {
    let layout = EntryLayout::contiguous([1, 4, problem.shape.seqlen_q, problem.shape.seqlen_kv]);
    problem.with_score(ScoreMod::Bias { layout, element })
}

fn with_patterns(problem: AttentionProblem) -> AttentionProblem {
    let ids = vec![7; (problem.shape.batch * problem.shape.seqlen_kv) as usize];
    let masks = [
        BlockMask::longformer(100, 3),
        BlockMask::strided(40),
        BlockMask::prefix(500),
        BlockMask::documents(problem.shape.batch, &ids),
    ];
    masks.into_iter().fold(problem, |problem, mask| problem.with_key_mask(KeyMask::Blocks(mask)))
}

/// Lists for each head.
fn with_blocks(problem: AttentionProblem) -> AttentionProblem {
    let mask = BlockMask::bigbird(&problem.shape, 1);
    problem.with_key_mask(KeyMask::Blocks(mask))
}

fn with_boolean_mask(problem: AttentionProblem) -> AttentionProblem {
    let layout = EntryLayout::packed_bits([2, 1, problem.shape.seqlen_q, problem.shape.seqlen_kv]);
    problem.with_key_mask(KeyMask::Boolean(layout))
}

/// The naga capabilities that a variant may use: what the planner checked the device for, and nothing else.
fn claimed(variant: &Specialization) -> NagaCapabilities {
    let mut claimed = NagaCapabilities::empty();
    if variant.storage == Storage::F16 || variant.tiles.matrix_side.is_some() {
        claimed |= NagaCapabilities::SHADER_FLOAT16;
    }
    if variant.unpacks_f16() {
        // unpack2x16float and pack2x16float, which every WebGPU device has.
        claimed |= NagaCapabilities::SHADER_FLOAT16_IN_FLOAT32;
    }
    if variant.row_reduce == RowReduce::Subgroup {
        claimed |= NagaCapabilities::SUBGROUP;
    }
    if variant.tiles.matrix_side.is_some() {
        claimed |=
            NagaCapabilities::SUBGROUP | NagaCapabilities::SUBGROUP_BARRIER | NagaCapabilities::COOPERATIVE_MATRIX;
    }
    claimed
}

fn compile(variant: &Specialization) -> (Module, ModuleInfo, ShaderSource) {
    let source = ShaderSource::new(variant, Dialect::Naga).unwrap();
    let module = naga::front::wgsl::parse_str(source.text())
        .unwrap_or_else(|error| panic!("{variant:?}\n{}", error.emit_to_string(source.text())));
    let info = validate(variant, &module, source.text());
    (module, info, source)
}

fn validate(variant: &Specialization, module: &Module, text: &str) -> ModuleInfo {
    let mut validator = Validator::new(ValidationFlags::all(), claimed(variant));
    if claimed(variant).contains(NagaCapabilities::SUBGROUP) {
        validator
            .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
            .subgroup_operations(naga::valid::SubgroupOperationSet::all());
    }
    validator.validate(module).unwrap_or_else(|error| panic!("{variant:?}\n{}", error.emit_to_string(text)))
}

#[test]
fn every_variant_keeps_its_contracts_and_reaches_every_backend() {
    let variants = variants();
    for &kernel in Kernel::ALL {
        assert!(variants.iter().any(|variant| variant.kernel == kernel), "{kernel:?} is never planned");
    }
    for row_reduce in [RowReduce::Alone, RowReduce::Workgroup, RowReduce::Subgroup] {
        assert!(variants.iter().any(|variant| variant.row_reduce == row_reduce), "{row_reduce:?} is never planned");
    }
    check_all(&variants);
}

#[test]
fn every_variant_with_modifiers_does_so_too() {
    let variants = variants_with_modifiers();
    for kernel in Kernel::ALL {
        let is_plain = matches!(
            kernel,
            Kernel::Sequences
                | Kernel::AppendK
                | Kernel::AppendV
                | Kernel::RotateQ
                | Kernel::RotateQInPlace
                | Kernel::AppendSeqlens
                | Kernel::Fold
        );
        let is_planned = variants.iter().any(|variant| variant.kernel == *kernel);
        assert_eq!(is_planned, !is_plain, "{kernel:?}");
    }
    check_all(&variants);
}

#[test]
fn every_variant_of_parts_does_so_too() {
    let variants = variants_of_parts();
    for kernel in [Kernel::FlashDecode, Kernel::FlashForwardCooperative, Kernel::FlashBackwardDkdvCooperative] {
        assert!(variants.iter().any(|variant| variant.kernel == kernel), "{kernel:?}");
    }
    check_all(&variants);
}

#[test]
fn every_variant_over_caches_does_so_too() {
    check_all(&variants_over_caches());
}

/// Such variants differ from others in a word of each binding, so that some of each kernel are enough.
#[test]
fn variants_of_shared_buffers_do_so_too() {
    let mut of_kernels: HashMap<Kernel, Vec<Specialization>> = HashMap::new();
    let modified = variants_with_modifiers().into_iter().chain(variants_over_caches());
    for variant in variants().into_iter().chain(modified) {
        of_kernels.entry(variant.kernel).or_default().push(variant);
    }
    let shared = |mut variant: Specialization| {
        variant.shares_buffers = true;
        variant
    };
    let sampled = of_kernels.into_values().flat_map(|mut of_kernel| {
        of_kernel.sort_by_key(|variant| format!("{variant:?}"));
        let step = of_kernel.len().div_ceil(20);
        of_kernel.into_iter().step_by(step).map(shared)
    });
    check_all(&sampled.collect::<Vec<_>>());
}

fn check_all(variants: &[Specialization]) {
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
    std::thread::scope(|scope| {
        for part in variants.chunks(variants.len().div_ceil(threads)) {
            scope.spawn(move || part.iter().for_each(check));
        }
    });
    println!("{} variants parsed, validated, and written to SPIR-V, MSL and HLSL", variants.len());
}

fn check(variant: &Specialization) {
    let (module, info, source) = compile(variant);
    uniform_matches(&module);
    bindings_match(variant, &module);
    let bytes: u32 = module
        .global_variables
        .iter()
        .filter(|(_, variable)| variable.space == AddressSpace::WorkGroup)
        .map(|(_, variable)| module.types[variable.ty].inner.size(module.to_ctx()))
        .sum();
    assert_eq!(bytes, variant.workgroup_bytes(), "workgroup memory of {variant:?}");
    assert_eq!(module.entry_points[0].workgroup_size, [variant.invocations(), 1, 1], "{variant:?}");

    naga::back::spv::write_vec(
        &module,
        &info,
        &naga::back::spv::Options { lang_version: (1, 3), ..Default::default() },
        None,
    )
    .unwrap_or_else(|error| panic!("SPIR-V of {variant:?}: {error}"));
    // MSL knows 8x8 matrices alone.
    if variant.tiles.matrix_side != Some(16) {
        naga::back::msl::write_string(
            &module,
            &info,
            &naga::back::msl::Options { lang_version: (2, 4), ..Default::default() },
            &naga::back::msl::PipelineOptions::default(),
        )
        .unwrap_or_else(|error| panic!("MSL of {variant:?}: {error}"));
    }
    // HLSL has no cooperative matrices, so wgpu offers none on DX12.
    if variant.tiles.matrix_side.is_none() {
        zero_values_have_one_name(variant, &module);
        hlsl(variant, &module, &info);
    }
    line_map(variant, &source);
}

fn hlsl(variant: &Specialization, module: &Module, info: &ModuleInfo) -> String {
    let options = naga::back::hlsl::Options { shader_model: naga::back::hlsl::ShaderModel::V6_2, ..Default::default() };
    let pipeline_options = naga::back::hlsl::PipelineOptions::default();
    let mut text = String::new();
    naga::back::hlsl::Writer::new(&mut text, &options, &pipeline_options)
        .write(module, info, None)
        .unwrap_or_else(|error| panic!("HLSL of {variant:?}: {error}"));
    text
}

/// `A()` and `B()`, where A and B are aliases of one type, become one function defined twice in naga's HLSL, which DXC
/// refuses: a kernel takes the zero value of a type by one name alone.
fn zero_values_have_one_name(variant: &Specialization, module: &Module) {
    let entries = module.entry_points.iter().map(|entry| &entry.function);
    let functions = module.functions.iter().map(|(_, function)| function).chain(entries);
    let expressions = functions.flat_map(|function| function.expressions.iter());
    let handles: HashSet<_> = expressions
        .chain(module.global_expressions.iter())
        .filter_map(|(_, expression)| match expression {
            naga::Expression::ZeroValue(ty) => Some(*ty),
            _ => None,
        })
        .collect();
    let mut types: Vec<_> = handles.iter().map(|&ty| &module.types[ty].inner).collect();
    while let Some(inner) = types.pop() {
        assert!(!types.contains(&inner), "{variant:?} has two names for the zero value of {inner:?}");
    }
}

/// FNV-1a, 64 bits.
fn fnv(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// One number for all variants of each kernel, whatever their order, from one for each variant.
fn print_digests(digest: impl Fn(&Specialization) -> u64 + Sync) {
    let variants = variants();
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
    let digest = &digest;
    let mut digests = BTreeMap::new();
    std::thread::scope(|scope| {
        let parts = variants.chunks(variants.len().div_ceil(threads));
        let parts: Vec<_> = parts.map(|part| scope.spawn(move || part.iter().map(digest).collect())).collect();
        let numbers: Vec<Vec<u64>> = parts.into_iter().map(|part| part.join().unwrap()).collect();
        for (variant, number) in variants.iter().zip(numbers.iter().flatten()) {
            let (count, sum) = digests.entry(variant.kernel.name()).or_insert((0, 0u64));
            *count += 1;
            *sum = sum.wrapping_add(*number);
        }
    });
    for (kernel, (count, sum)) in &digests {
        println!("{kernel}: {count} variants, {sum:016x}");
    }
    println!("all: {:016x}", fnv(digests.values().flat_map(|(_, sum)| sum.to_le_bytes())));
}

/// Equal before and after a change that only moves things. Both dialects.
#[test]
#[ignore = "it tells numbers to compare and checks nothing; see CONTRIBUTING.md"]
fn digests_of_all_shaders() {
    print_digests(|variant| {
        let texts = [Dialect::Naga, Dialect::Tint].map(|dialect| ShaderSource::new(variant, dialect).unwrap());
        texts.iter().fold(0u64, |sum, source| sum.wrapping_add(fnv(source.text().bytes())))
    });
}

/// Equal before and after a change of names, white space, comments, or of what a shader does not use.
#[test]
#[ignore = "it tells numbers to compare and checks nothing; see CONTRIBUTING.md"]
fn digests_of_all_spirv() {
    print_digests(|variant| {
        let (mut module, _, source) = compile(variant);
        naga::compact::compact(&mut module, naga::compact::KeepUnused::No);
        let info = validate(variant, &module, source.text());
        let flags = naga::back::spv::WriterFlags::empty();
        let options = naga::back::spv::Options { lang_version: (1, 3), flags, ..Default::default() };
        let words = naga::back::spv::write_vec(&module, &info, &options, None)
            .unwrap_or_else(|error| panic!("SPIR-V of {variant:?}: {error}"));
        fnv(words.iter().flat_map(|word| word.to_le_bytes()))
    });
}

/// What Tint and DXC must take too, as files for them: `make web-test` hands them over. A name begins with its kernel's. Tint
/// gets every second variant of a kind; DXC, which takes a hundred times as long for one, the first of every fifth kind: variants
/// of a kind differ in tiles and head dimensions alone, and neighbouring kinds in how their tensors are stored.
#[test]
#[ignore = "it writes files for other compilers; make web-test calls it"]
fn write_variants_for_other_compilers() {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("variants");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    // Neither browsers nor HLSL have cooperative matrices.
    let variants: Vec<_> = variants().into_iter().filter(|variant| variant.tiles.matrix_side.is_none()).collect();
    let tiles = variants[0].tiles;
    let mut kinds = HashMap::new();
    for (number, variant) in variants.iter().enumerate() {
        let name = format!("{}-{number}", variant.kernel.name());
        let mut kind = variant.clone();
        (kind.tiles, kind.head_dim, kind.head_dim_v) = (tiles, 0, 0);
        let next = kinds.len();
        let (kind_number, of_kind) = kinds.entry(kind).or_insert((next, 0));
        if *of_kind % 2 == 0 {
            let tint = ShaderSource::new(variant, Dialect::Tint).unwrap();
            std::fs::write(folder.join(format!("{name}.wgsl")), tint.text()).unwrap();
        }
        // DXC needs a fifth of a second for each, and most kinds differ in how tensors are stored and declared.
        if *of_kind == 0 && *kind_number % 5 == 0 {
            let (module, info, _) = compile(variant);
            std::fs::write(folder.join(format!("{name}.hlsl")), hlsl(variant, &module, &info)).unwrap();
        }
        *of_kind += 1;
    }
    // naga has written HLSL of these; Tint is the stricter reader of WGSL. A third of them: many differ in little.
    let mut modified = variants_with_modifiers();
    modified.extend(variants_over_caches());
    modified.extend(variants_of_parts());
    modified.retain(|variant| variant.tiles.matrix_side.is_none());
    modified.sort_by_key(|variant| format!("{variant:?}"));
    let modified: Vec<_> = modified.into_iter().step_by(3).collect();
    for (number, variant) in modified.iter().enumerate() {
        let tint = ShaderSource::new(variant, Dialect::Tint).unwrap();
        std::fs::write(folder.join(format!("{}-modified-{number}.wgsl", variant.kernel.name())), tint.text()).unwrap();
    }
    println!(
        "variants of {} kinds, and {} modified ones, written to {}",
        kinds.len(),
        modified.len(),
        folder.display()
    );
}

/// The line map covers the text, and a line of the kernel file is where it says.
fn line_map(variant: &Specialization, source: &ShaderSource) {
    assert_eq!(source.origin(0), None);
    let lines: Vec<&str> = source.text().lines().collect();
    assert_eq!(source.origin(lines.len() as u32 + 1), None);
    let entry = 1 + lines.iter().position(|line| line.contains("@compute")).unwrap() as u32;
    let origin = source.origin(entry).unwrap();
    assert_eq!(origin.file, format!("{}.wgsl", variant.kernel.file()));
    let path = format!("{}/shaders/{}", env!("CARGO_MANIFEST_DIR"), origin.file);
    let file = std::fs::read_to_string(path).unwrap();
    assert!(file.lines().nth(origin.line as usize - 1).unwrap().contains("@compute"));
}

fn uniform_matches(module: &Module) {
    let (_, uniform) =
        module.global_variables.iter().find(|(_, variable)| variable.space == AddressSpace::Uniform).unwrap();
    let TypeInner::Struct { members, span } = &module.types[uniform.ty].inner else { panic!("params is no struct") };
    assert_eq!(*span as usize, size_of::<Params>());
    assert_eq!(*span % 16, 0);
    let found: Vec<(&str, usize)> =
        members.iter().map(|member| (member.name.as_deref().unwrap(), member.offset as usize)).collect();
    assert_eq!(found, Params::FIELDS);
}

fn bindings_match(variant: &Specialization, module: &Module) {
    let mut found: Vec<(String, u32, Usage)> = module
        .global_variables
        .iter()
        .filter_map(|(_, variable)| {
            let binding = variable.binding.as_ref()?;
            assert_eq!(binding.group, 0);
            let usage = match variable.space {
                AddressSpace::Uniform => Usage::Uniform,
                AddressSpace::Storage { access } if access.contains(naga::StorageAccess::STORE) => Usage::Write,
                _ => Usage::Read,
            };
            Some((variable.name.clone().unwrap(), binding.binding, usage))
        })
        .collect();
    found.sort_by_key(|(_, binding, _)| *binding);
    let mut operands: Vec<_> = variant.operands().collect();
    operands.sort_by_key(|(operand, _)| operand.binding());
    let declared = |operand, usage| match usage {
        Usage::Read if variant.is_declared_writable(operand) => Usage::Write,
        usage => usage,
    };
    let expected: Vec<_> =
        operands.iter().map(|(op, usage)| (op.name().to_string(), op.binding(), declared(*op, *usage))).collect();
    assert_eq!(found, expected, "{variant:?}");
    let storage = operands.iter().filter(|(_, usage)| *usage != Usage::Uniform).count();
    assert!(storage <= 8, "WebGPU promises 8 storage buffers, {variant:?} has {storage}");
}

#[test]
fn operands_have_distinct_numbers_and_names() {
    let numbers: HashSet<u32> = Operand::ALL.iter().map(|operand| operand.binding()).collect();
    let names: HashSet<&str> = Operand::ALL.iter().map(|operand| operand.name()).collect();
    assert_eq!((numbers.len(), names.len()), (Operand::ALL.len(), Operand::ALL.len()));
}

/// Names, below `shaders/`, and texts of all shader files.
fn shader_files() -> Vec<(String, String)> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/shaders");
    let mut folders = vec![std::path::PathBuf::from(root)];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "wgsl") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_string();
                files.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(files.len() > 10);
    files
}

/// A shader file holds plain WGSL: no directive but `// unroll`, no uninitialised `var` (Dawn does not zero variables
/// again in loops), and every file is used.
#[test]
fn shader_files_are_plain() {
    let used: HashSet<String> = variants()
        .iter()
        .chain(&variants_with_modifiers())
        .chain(&variants_over_caches())
        .chain(&variants_of_parts())
        .flat_map(|variant| {
            let source = ShaderSource::new(variant, Dialect::Naga).unwrap();
            let lines = source.text().lines().count() as u32;
            (1..=lines).map(|line| source.origin(line).unwrap().file.to_string()).collect::<HashSet<_>>()
        })
        .collect();
    for (name, text) in shader_files() {
        assert!(used.contains(&name), "{name} is in no shader");
        for (number, line) in (1..).zip(text.lines()) {
            let code = line.trim();
            assert!(!code.starts_with('#'), "{name}:{number}: a preprocessor directive");
            let local = code.starts_with("var ");
            assert!(!local || code.contains('='), "{name}:{number}: a var without an initialiser");
        }
    }
}

/// Lines have at most 120 characters, the body of an `// unroll` stands two spaces further in, and its `// }` below the
/// directive.
#[test]
fn shader_files_can_be_read() {
    for (name, text) in shader_files() {
        let mut directives = Vec::new();
        let mut opens = false;
        for (number, line) in (1..).zip(text.lines()) {
            assert!(line.chars().count() <= 120, "{name}:{number}: more than 120 characters");
            let code = line.trim_start();
            let indent = line.len() - code.len();
            if code == "// }" {
                assert_eq!(Some(indent), directives.pop(), "{name}:{number}: '// }}' stands below its directive");
            }
            let least = directives.last().map_or(0, |directive| directive + 2);
            let is_indented = if opens { indent == least } else { indent >= least };
            assert!(
                code.is_empty() || is_indented,
                "{name}:{number}: the body of an unroll stands two spaces further in"
            );
            opens = code.starts_with("// unroll ");
            if opens {
                directives.push(indent);
            }
        }
    }
}

/// Tint insists on `enable subgroups`, naga refuses it.
#[test]
fn dialects_differ_in_the_enable_line_alone() {
    let subgroup = variants().into_iter().find(|variant| variant.row_reduce == RowReduce::Subgroup).unwrap();
    let naga = ShaderSource::new(&subgroup, Dialect::Naga).unwrap();
    let tint = ShaderSource::new(&subgroup, Dialect::Tint).unwrap();
    assert!(!naga.text().contains("enable subgroups;"));
    let without: Vec<&str> = tint.text().lines().filter(|line| *line != "enable subgroups;").collect();
    assert_eq!(without, naga.text().lines().collect::<Vec<_>>());
}

/// Layouts whose rows are no whole numbers of quads are read element by element.
#[test]
fn odd_layouts_are_read_element_by_element() {
    use wgpu_flash_attention::unstable::Access;
    let device = Capabilities::webgpu_defaults();
    let access =
        |problem: &AttentionProblem| Plan::forward(problem, &device).build().unwrap().passes()[0].specialization.access;
    let shape = AttentionShape::new(2, 4, 100, 64);
    let aligned = AttentionProblem::new(shape);
    assert_eq!(access(&aligned), Access::Quad);
    assert_eq!(access(&AttentionProblem::new(AttentionShape::new(2, 4, 100, 63))), Access::Single);
    let q = TensorLayout { offset: 2, ..aligned.layout.q };
    assert_eq!(access(&aligned.clone().with_layout(AttentionLayout { q, ..aligned.layout })), Access::Single);
    let v = TensorLayout { stride_row: 4 * 64 + 1, ..aligned.layout.v };
    assert_eq!(access(&aligned.clone().with_layout(AttentionLayout { v, ..aligned.layout })), Access::Single);
}
