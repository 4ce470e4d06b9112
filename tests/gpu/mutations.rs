//! The bounds are tight: kernels with one deliberate fault each, and every fault passes the bound of some element. Unchanged,
//! the same kernels stay within all bounds on the same problem.

use std::cell::Cell;
use std::collections::HashMap;

use wgpu_flash_attention::unstable::Kernel;
use wgpu_flash_attention::{
    Algorithm, AttentionProblem, AttentionShape, Capabilities, Direction, Element, Operand, Plan, Tiles,
};

use crate::support::{
    Answer, GradientAnswer, GradientInputs, Gradients, Inputs, Library, Output, Texts, Variant, arithmetic_of,
    gradient_inputs, library, text_of, with_matrices,
};
use Kernel::{
    Combine, FlashBackwardDkdv, FlashBackwardDkdvCooperative, FlashBackwardDq, FlashBackwardDqCooperative,
    FlashBackwardPreprocess, FlashDecode, FlashForward, FlashForwardCooperative, FlashForwardSplit, StandardDs,
    StandardDv, StandardOutput, StandardSoftmax,
};

/// A fault: in the text of a kernel, one piece stands for another.
struct Mutation {
    name: &'static str,
    kernel: Kernel,
    /// Must occur.
    text: &'static str,
    replacement: &'static str,
    setup: Setup,
}

/// What a faulty kernel is run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Setup {
    Plain,
    F16,
    Bf16,
    Causal,
    Window,
    Dropout,
    /// Scores far apart, so that a row's maximum grows by more than 2⁸.
    Peaked,
    Split,
    Decode,
    Standard,
    StandardBackward,
    Backward,
    BackwardDropout,
    Matrices(Element),
    MatricesBackward(Element),
}

impl Setup {
    /// Grouped heads, and lengths that fill no tiles.
    fn problem(self) -> AttentionProblem {
        let problem = AttentionProblem::new(AttentionShape::new(1, 4, 37, 8).with_num_heads_kv(2).with_seqlen_kv(45));
        match self {
            Setup::F16 => problem.with_element(Element::F16),
            Setup::Bf16 => problem.with_element(Element::Bf16),
            Setup::Causal => problem.with_causal(),
            Setup::Window => problem.with_window(Some(7), Some(3)),
            Setup::Dropout | Setup::BackwardDropout => problem.with_dropout(0.3, 5),
            Setup::Standard => problem.with_algorithm(Algorithm::Standard),
            Setup::StandardBackward => problem.with_dropout(0.3, 5).with_algorithm(Algorithm::Standard),
            Setup::Matrices(element) | Setup::MatricesBackward(element) => problem.with_element(element),
            Setup::Plain | Setup::Peaked | Setup::Split | Setup::Decode | Setup::Backward => problem,
        }
    }

    fn is_backward(self) -> bool {
        use Setup::{Backward, BackwardDropout, MatricesBackward, StandardBackward};
        matches!(self, Backward | BackwardDropout | StandardBackward | MatricesBackward(_))
    }

    /// `None` without a device for it.
    fn library(self) -> Option<&'static Library> {
        match self {
            Setup::Matrices(_) | Setup::MatricesBackward(_) => with_matrices(),
            _ => Some(library(Variant::Full)),
        }
    }

    fn plan(self, library: &Library) -> Plan {
        match self {
            Setup::Matrices(_) => library.prepare(&self.problem()).expect("matrices").plan().clone(),
            Setup::MatricesBackward(_) => library.prepare_gradients(&self.problem()).expect("matrices").plan().clone(),
            _ => self.plan_on(library.capabilities()),
        }
    }

    /// On tiles whose invocations have one row each, so that unrolled names end in 0.
    fn plan_on(self, capabilities: &Capabilities) -> Plan {
        let problem = self.problem();
        let rows = Tiles::new(16, 8, 1, 2);
        let standard = Tiles::new(16, 8, 4, 2);
        let plan = match self {
            Setup::Split => Plan::forward(&problem, capabilities).with_tiles(&[rows]).with_splits(3).build(),
            Setup::Decode => {
                Plan::forward(&problem, capabilities).with_tiles(&[Tiles::decode(2, 16, 2, 4)]).with_splits(1).build()
            }
            Setup::Standard => Plan::forward(&problem, capabilities).with_tiles(&[standard]).build(),
            Setup::Backward | Setup::BackwardDropout => {
                Plan::backward(&problem, capabilities).with_tiles(&[Tiles::new(8, 16, 1, 2), rows]).build()
            }
            Setup::StandardBackward => Plan::backward(&problem, capabilities).with_tiles(&[standard]).build(),
            Setup::Matrices(_) => {
                Plan::forward(&problem, capabilities).with_tiles(&[Tiles::cooperative(64, 16, 16, 32, 16)]).build()
            }
            Setup::MatricesBackward(_) => {
                let [dkdv, dq] =
                    [(32, 64, 16), (64, 32, 32)].map(|(q, kv, rows)| Tiles::cooperative(q, kv, rows, 32, 16));
                Plan::backward(&problem, capabilities).with_tiles(&[dkdv, dq]).build()
            }
            _ => Plan::forward(&problem, capabilities).with_tiles(&[rows]).with_splits(1).build(),
        };
        plan.expect("the tiles fit")
    }

    /// With a gradient of LSE.
    fn given(self) -> GradientInputs {
        let problem = self.problem();
        let mut given = gradient_inputs(&problem, 3);
        if self == Setup::Peaked {
            given.inputs.q.iter_mut().for_each(|q| *q *= 8.0);
        }
        given
    }
}

/// What the tests of one setup share.
struct Bench {
    plan: Plan,
    texts: Texts<'static>,
    problem: AttentionProblem,
    given: GradientInputs,
    tensors: Vec<(Operand, Vec<u8>)>,
}

impl Bench {
    fn new(setup: Setup, library: &'static Library) -> Self {
        let (problem, given) = (setup.problem(), setup.given());
        let plan = setup.plan(library);
        let tensors = given.tensors(&problem, setup.is_backward());
        Self { plan, texts: Texts::new(library), problem, given, tensors }
    }

    /// The largest share of a bound that an error takes up, and of which tensor, where the kernel's text is changed.
    fn largest_share(&self, change: impl Fn(Kernel, String) -> String) -> (f64, &'static str) {
        let texts: Vec<_> = self.plan.passes().iter().map(|pass| change(pass.kernel, text_of(pass))).collect();
        let arithmetic = arithmetic_of(&self.plan);
        let run = |outputs: &[Operand]| self.texts.run(&self.plan, &texts, &self.tensors, outputs);
        let named = if self.plan.direction() == Direction::Backward {
            let bytes = run(&[Operand::Dq, Operand::Dk, Operand::Dv]).try_into().expect("three gradients");
            let gradients = Gradients::of(self.problem.gradient_element(), bytes, arithmetic);
            let shares = GradientAnswer::new(&self.problem, &self.given).shares(&gradients);
            shares.map(|share| share.share).into_iter().zip(["dQ", "dK", "dV"]).collect::<Vec<_>>()
        } else {
            let [o, lse] = run(&[Operand::O, Operand::Lse]).try_into().expect("O and LSE");
            let output = Output::of(self.problem.element, o, lse, arithmetic);
            let shares = Answer::new(&self.problem, self.inputs()).shares("mutated", &output);
            shares.map(|share| share.share).into_iter().zip(["O", "LSE"]).collect()
        };
        named.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).expect("there are tensors")
    }

    fn inputs(&self) -> &Inputs {
        &self.given.inputs
    }
}

const fn fault(
    name: &'static str,
    kernel: Kernel,
    text: &'static str,
    replacement: &'static str,
    setup: Setup,
) -> Mutation {
    Mutation { name, kernel, text, replacement, setup }
}

const DOT: &str = "return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, c))));";
const SHORT_DOT: &str = "return fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, c)));";
const P: &str = "exp2(s_0_0 - vec4<f32>(m_0))";

const MUTATIONS: &[Mutation] = &[
    // Scores and P.
    fault("a term left out of Q Kᵀ", FlashForward, DOT, SHORT_DOT, Setup::Plain),
    fault(
        "P to 8 bits",
        FlashForward,
        P,
        "bitcast<vec4<f32>>((bitcast<vec4<u32>>(exp2(s_0_0 - vec4<f32>(m_0))) + vec4<u32>(0x8000u)) & vec4<u32>(0xffff0000u))",
        Setup::Plain,
    ),
    fault(
        "P to 11 bits",
        FlashForward,
        P,
        "bitcast<vec4<f32>>((bitcast<vec4<u32>>(exp2(s_0_0 - vec4<f32>(m_0))) + vec4<u32>(0x1000u)) & vec4<u32>(0xffffe000u))",
        Setup::Plain,
    ),
    fault(
        "P to 16 bits",
        FlashForward,
        P,
        "bitcast<vec4<f32>>((bitcast<vec4<u32>>(exp2(s_0_0 - vec4<f32>(m_0))) + vec4<u32>(0x80u)) & vec4<u32>(0xffffff00u))",
        Setup::Plain,
    ),
    fault("a wrong KV head", FlashForward, "tile.head_kv = (", "tile.head_kv = 0u * (", Setup::Plain),
    fault(
        "the row before at the end of K",
        FlashForward,
        "min(key, params.seqlen_kv - 1u) * params.k_stride_row",
        "min(key, params.seqlen_kv - 2u) * params.k_stride_row",
        Setup::Plain,
    ),
    // Masks.
    fault("a KV tile too few", FlashForward, "(end + tile - 1) / tile", "end / tile", Setup::Plain),
    fault(
        "a key behind the last",
        FlashForward,
        "(keys < vec4<i32>(visible.y))",
        "(keys <= vec4<i32>(visible.y))",
        Setup::Plain,
    ),
    fault(
        "a key too many on the diagonal",
        FlashForward,
        "params.window_right + 1, i32",
        "params.window_right + 2, i32",
        Setup::Causal,
    ),
    fault(
        "a key too few on the left of a window",
        FlashForward,
        "max(diagonal - params.window_left, 0)",
        "max(diagonal - params.window_left + 1, 0)",
        Setup::Window,
    ),
    fault("one round of Philox too few", FlashForward, "round < 10u", "round < 9u", Setup::Dropout),
    // The online softmax.
    fault("l not rescaled", FlashForward, "l_0 *= alpha_0;", "", Setup::Peaked),
    fault("O not rescaled", FlashForward, "o_0_0_0 *= alpha_0;", "", Setup::Peaked),
    fault(
        "one lane not divided by l",
        FlashForward,
        "o_0_0_0 * factor",
        "o_0_0_0 * select(factor, 1.0, lane == 1u)",
        Setup::Plain,
    ),
    fault(
        "dropout's factor left out of O",
        FlashForward,
        "params.dropout_scale * end.share",
        "end.share",
        Setup::Dropout,
    ),
    fault(
        "O summed in 16 bits",
        FlashForward,
        "o_0_0_0 = fma(vec4<f32>(p_0_0[0u]), v_0_0_0_0, o_0_0_0);",
        "o_0_0_0 = bitcast<vec4<f32>>(bitcast<vec4<u32>>(fma(vec4<f32>(p_0_0[0u]), v_0_0_0_0, o_0_0_0)) & vec4<u32>(0xffffff00u));",
        Setup::Plain,
    ),
    fault("LSE in units of log2(e)", FlashForward, "log2(l)) * LN_2", "log2(l)) * 1.0", Setup::Plain),
    fault(
        "five digits of ln 2",
        FlashForward,
        "const LN_2 = 0.6931471805599453;",
        "const LN_2 = 0.69315;",
        Setup::Plain,
    ),
    // How O is stored.
    fault(
        "f16 cut off, not rounded",
        FlashForward,
        "return vec4<f16>(value);",
        "return vec4<f16>(bitcast<vec4<f32>>(bitcast<vec4<u32>>(value) & vec4<u32>(0xffffe000u)));",
        Setup::F16,
    ),
    fault(
        "bf16 cut off, not rounded",
        FlashForward,
        "(bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u",
        "bits >> 16u",
        Setup::Bf16,
    ),
    fault(
        "P to 8 bits in bf16",
        FlashForward,
        P,
        "bitcast<vec4<f32>>((bitcast<vec4<u32>>(exp2(s_0_0 - vec4<f32>(m_0))) + vec4<u32>(0x8000u)) & vec4<u32>(0xffff0000u))",
        Setup::Bf16,
    ),
    // Parts and their merge, decoding, standard attention.
    fault(
        "parts merged without weights",
        Combine,
        "let weight = exp2((lse_s - m) * LOG2_E);",
        "let weight = 1.0;",
        Setup::Split,
    ),
    fault("weights in the wrong unit", Combine, "exp2((lse_s - m) * LOG2_E)", "exp2(lse_s - m)", Setup::Split),
    fault("a part's LSE in units of log2(e)", FlashForwardSplit, "log2(l)) * LN_2", "log2(l)) * 1.0", Setup::Split),
    fault(
        "a group of keys left out",
        FlashDecode,
        "for (var g = 0u; g < KEY_LANES; g++) { o +=",
        "for (var g = 1u; g < KEY_LANES; g++) { o +=",
        Setup::Decode,
    ),
    fault("a group's O not rescaled", FlashDecode, "exp2(m_0 - m_all_0);", "1.0;", Setup::Decode),
    fault(
        "sums not corrected for the maximum",
        StandardSoftmax,
        "l = exp2(m - m_new) * l + exp2(m_other - m_new) * sums[invocation + distance];",
        "l = l + sums[invocation + distance];",
        Setup::Standard,
    ),
    fault(
        "the tile's last quad of keys left out",
        StandardOutput,
        "for (var quad = 0u; quad < LANES; quad++)",
        "for (var quad = 0u; quad < LANES - 1u; quad++)",
        Setup::Standard,
    ),
    // Backward.
    fault("a term left out of D", FlashBackwardPreprocess, DOT, SHORT_DOT, Setup::Backward),
    fault("dLSE with the wrong sign", FlashBackwardPreprocess, "sum -= d_lse", "sum += d_lse", Setup::Backward),
    fault("D left out of dS", FlashBackwardDq, "(gradient_0 - stats_0.y)", "gradient_0", Setup::Backward),
    fault(
        "dS to 11 bits",
        FlashBackwardDq,
        "vec4<f32>(ds_0), k_0, dq_0_0",
        "vec4<f32>(bitcast<f32>((bitcast<u32>(ds_0) + 0x1000u) & 0xffffe000u)), k_0, dq_0_0",
        Setup::Backward,
    ),
    fault(
        "softmax_scale left out of dQ",
        FlashBackwardDq,
        "dq_0_0 * (params.softmax_scale_log2 * LN_2)",
        "dq_0_0",
        Setup::Backward,
    ),
    fault(
        "softmax_scale left out of dK",
        FlashBackwardDkdv,
        "dk_0_0 * (params.softmax_scale_log2 * LN_2)",
        "dk_0_0",
        Setup::Backward,
    ),
    fault(
        "softmax_scale of dK in the wrong unit",
        FlashBackwardDkdv,
        "dk_0_0 * (params.softmax_scale_log2 * LN_2)",
        "dk_0_0 * params.softmax_scale_log2",
        Setup::Backward,
    ),
    fault("LSE in the wrong unit", FlashBackwardPreprocess, "lse_row * LOG2_E", "lse_row", Setup::Backward),
    fault(
        "five digits of log2(e)",
        FlashBackwardPreprocess,
        "const LOG2_E = 1.4426950408889634;",
        "const LOG2_E = 1.4427;",
        Setup::Backward,
    ),
    fault(
        "a grouped head left out",
        FlashBackwardDkdv,
        "* params.heads_per_kv; step++",
        "* (params.heads_per_kv - 1u); step++",
        Setup::Backward,
    ),
    fault(
        "dropout's factor left out of dP",
        FlashBackwardDkdv,
        "gradient_0 * params.dropout_scale",
        "gradient_0",
        Setup::BackwardDropout,
    ),
    fault(
        "dP not dropped",
        FlashBackwardDq,
        "gradient_0 * params.dropout_scale, keeps(",
        "gradient_0 * params.dropout_scale, true || keeps(",
        Setup::BackwardDropout,
    ),
    fault(
        "P not dropped in dV",
        FlashBackwardDkdv,
        "p_0 = select(0.0, p_0, keeps(row, key + 0u));",
        "",
        Setup::BackwardDropout,
    ),
    fault(
        "standard attention's dS without D",
        StandardDs,
        "gradient - vec4<f32>(stats.y)",
        "gradient",
        Setup::StandardBackward,
    ),
    fault(
        "standard attention's dV without dropout's factor",
        StandardDv,
        "invocation, params.dropout_scale)",
        "invocation, 1.0)",
        Setup::StandardBackward,
    ),
    // On matrices.
    fault(
        "the rest of P left out",
        FlashForwardCooperative,
        "return vec4<f16>(value - rounded(value));",
        "return vec4<f16>();",
        Setup::Matrices(Element::F32),
    ),
    fault(
        "the rest of K left out",
        FlashForwardCooperative,
        "s_rest_0_0_0 = coopMultiplyAdd(left_half(q_0.chunks[0u][0u]), k_rest_0_0_0_0, s_rest_0_0_0);",
        "",
        Setup::Matrices(Element::F32),
    ),
    fault(
        "P to 8 bits on matrices",
        FlashForwardCooperative,
        "fn as_half(value: vec4<f32>) -> vec4<f16> { return vec4<f16>(value); }",
        "fn as_half(value: vec4<f32>) -> vec4<f16> { return vec4<f16>(bitcast<vec4<f32>>((bitcast<vec4<u32>>(value) + vec4<u32>(0x8000u)) & vec4<u32>(0xffff0000u))); }",
        Setup::Matrices(Element::F16),
    ),
    fault(
        "the rest of dS left out",
        FlashBackwardDqCooperative,
        "return vec4<f16>(value - rounded(value));",
        "return vec4<f16>();",
        Setup::MatricesBackward(Element::F32),
    ),
    fault(
        "dS without D on matrices",
        FlashBackwardDkdvCooperative,
        "d_o_unit_0, stats_0.y)",
        "d_o_unit_0, 0.0)",
        Setup::MatricesBackward(Element::Bf16),
    ),
];

/// Also where no device has matrices: a fault whose text is gone would be found by their owners alone.
#[test]
fn every_fault_has_its_text() {
    let mut device = Capabilities::webgpu_defaults();
    device.max_invocations = 1024;
    device.max_workgroup_storage = 49_152;
    device.shader_f16 = true;
    device.subgroups = true;
    (device.subgroup_min_size, device.subgroup_max_size) = (32, 32);
    device.matrix_side = Some(16);
    for Mutation { name, kernel, text, setup, .. } in MUTATIONS {
        let plan = setup.plan_on(&device);
        let mut passes = plan.passes().iter().filter(|pass| pass.kernel == *kernel);
        assert!(passes.any(|pass| text_of(pass).contains(text)), "{name}: the text is not in {}", kernel.name());
    }
}

#[test]
fn every_fault_passes_a_bound() {
    let mut benches: HashMap<Setup, Bench> = HashMap::new();
    let mut missed = Vec::new();
    for Mutation { name, kernel, text, replacement, setup } in MUTATIONS {
        let Some(library) = setup.library() else { continue };
        let bench = benches.entry(*setup).or_insert_with(|| {
            let bench = Bench::new(*setup, library);
            let (share, tensor) = bench.largest_share(|_, text| text);
            println!("{share:12.3} of {tensor}'s bound: unchanged, {setup:?}");
            assert!(share <= 1.0, "{setup:?}: {tensor} passes its bound without a fault: {share}");
            bench
        });
        let occurs = Cell::new(false);
        let (share, tensor) = bench.largest_share(|of, original| {
            if of != *kernel {
                return original;
            }
            occurs.set(occurs.get() || original.contains(text));
            original.replace(text, replacement)
        });
        println!("{share:12.1} times {tensor}'s bound: {name} ({})", kernel.name());
        assert!(occurs.get(), "{name}: the text is not in {}", kernel.name());
        if share <= 1.0 {
            missed.push(name);
        }
    }
    assert!(missed.is_empty(), "within all bounds: {missed:?}");
}
