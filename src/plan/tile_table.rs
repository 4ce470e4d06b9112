//! Which tiles to try for a kernel on a device, the best first, with the measurements. The last of each list without
//! matrices fits WebGPU's least limits.

use super::capabilities::{Capabilities, DeviceClass};
use super::kernels::{RowMaxima, Storage};
use super::tiles::Tiles;
use crate::problem::{AttentionProblem, AttentionShape, Element, KeyMask};

/// The wider of a shape's head dimensions.
fn widest(shape: &AttentionShape) -> u32 {
    shape.head_dim.max(shape.head_dim_v)
}

/// How many lanes meet by shuffles: as far as one subgroup reaches. Beyond, they meet in slow workgroup memory.
fn shuffling(capabilities: &Capabilities) -> u32 {
    if capabilities.subgroups { capabilities.subgroup_min_size } else { 1 }
}

/// Tiles on cooperative matrices with this side of 16, for subgroups of 32.
const fn of_16(tile_q: u32, tile_kv: u32, thread_rows: u32) -> Tiles {
    Tiles::cooperative(tile_q, tile_kv, thread_rows, 32, 16)
}

/// Whether tiles of more than 64 rows would span rows of blocks that see other keys. For BigBird a tile of 128 rows visits twelve
/// blocks of keys, of which eight are asked for each score; two tiles of 64 rows visit eight each, and ask none. f16, head_dim 64,
/// 16 heads of 16,384, ms on an NVIDIA H200: BigBird 0.75, 128 rows 2.93; butterfly 0.41, 1.22. head_dim 128: 1.46, 4.58; 1.05, 2.67.
/// f32, head_dim 64: 2.67, 6.28; 1.98, 2.68.
fn has_blocks_of_64(problem: &AttentionProblem) -> bool {
    problem.key_masks().iter().any(|mask| match mask {
        KeyMask::Blocks(mask) => mask.sides().is_some_and(|[rows, _]| rows % 128 == 64),
        KeyMask::Boolean(_) | KeyMask::Wgsl(_) => false,
    })
}

/// Tiles for the forward pass on cooperative matrices. They need f16 in shaders.
pub(super) fn forward_on_matrices(capabilities: &Capabilities, problem: &AttentionProblem) -> &'static [Tiles] {
    let shape = &problem.shape;
    let widest = widest(shape);
    let is_small = shape.lse_len() <= 8192 || has_blocks_of_64(problem);
    match (capabilities.matrix_side, capabilities.subgroup_min_size) {
        // lavapipe (Mesa 26) computes matrices one element at a time: 200 rows at head_dim 64 take 6.7 ms, and 3.0 ms
        // without them.
        _ if capabilities.device_class == DeviceClass::Cpu => &[],
        // TFLOP/s on an NVIDIA H200, 2×16×4096 rows and keys. What decides is, first, that the fragments of 32 rows
        // share each load of K and V; then, that registers (255 at most, no spills) and 48 KiB of workgroup memory leave
        // room for 8 subgroups on a core, at best in two workgroups, of which one computes while the other waits.
        (Some(16), 32) if problem.element == Element::F32 => f32_forward_on_matrices(shape, is_small),
        // bf16 head_dim 64: 0.97; 128 query rows 1.07.
        (Some(16), 32) if problem.element == Element::Bf16 && (33..=64).contains(&widest) && !is_small => {
            const { &[of_16(256, 32, 32), of_16(128, 32, 32)] }
        }
        // Few rows: 4 heads of 512 at head_dim 64 are 16 tiles of 128 rows; smaller ones use more of the GPU.
        (Some(16), 32) if widest <= 128 && is_small => const { &[of_16(64, 32, 16)] },
        // head_dim 32: 145; 32 keys 139.
        (Some(16), 32) if widest <= 32 => const { &[of_16(128, 64, 32), of_16(128, 32, 32)] },
        // head_dim 64: 212; 16 rows to a subgroup (16 subgroups) 185, 256 query rows 191, 16 keys 187, 64 query rows 141.
        (Some(16), 32) if widest <= 64 => const { &[of_16(128, 32, 32)] },
        // head_dim 80: 209; 32 keys 195, with 256 query rows 201, 16 rows to a subgroup 176.
        (Some(16), 32) if widest <= 80 => const { &[of_16(128, 16, 32)] },
        // f16, head_dim 96: 0.964 ms; 256 query rows 0.979.
        (Some(16), 32) if problem.element == Element::F16 && widest <= 96 => const { &[of_16(128, 16, 32)] },
        // bf16, head_dim 96; TFLOP/s of f16 in the same order: 216; 128 query rows 191, with 32 keys 194, 16 rows to a subgroup
        // 187.
        (Some(16), 32) if widest <= 96 => const { &[of_16(256, 16, 32), of_16(128, 16, 32)] },
        // f16, head_dim 128: 1.218 ms; 16 rows to a subgroup and 32 keys 1.271. A core runs two workgroups of it: with 128 of
        // them (512 rows of 32 heads) it takes 1.09 ms, the other 0.625.
        (Some(16), 32) if problem.element == Element::F16 && widest <= 128 && shape.lse_len() > 32_768 => {
            const { &[of_16(128, 16, 32), of_16(128, 32, 16)] }
        }
        // Rows wider than 128 are fetched in two parts where they have units. bf16, head_dim 192: 2.97 ms; 32 keys 3.80.
        (Some(16), 32) if problem.element == Element::Bf16 && (129..=192).contains(&widest) => {
            const { &[of_16(128, 16, 16)] }
        }
        // bf16, head_dim 128; TFLOP/s of f16 in the same order: 217 (112: 204, 160: 217, 192: 209); 32 rows to a subgroup and 16
        // keys 177, the registers spill.
        (Some(16), 32) if widest <= 192 => const { &[of_16(128, 32, 16), of_16(128, 16, 16)] },
        // head_dim 256: 166. bf16: 4.80 ms; 64 query rows 9.3; without matrices 23.3.
        (Some(16), 32) => const { &[of_16(128, 16, 16)] },
        // What other elements cost and gain on 8×8 matrices is not known: Metal's run on the units of plain arithmetic.
        (Some(8), _) if problem.element != Element::F16 => &[],
        // Not run on such a GPU: 8×8 matrices in subgroups of 32, as Metal has them.
        (Some(8), 32) => const { &[Tiles::cooperative(64, 32, 16, 32, 8), Tiles::cooperative(64, 32, 8, 32, 8)] },
        (Some(8), 8) => const { &[Tiles::cooperative(64, 8, 8, 8, 8)] },
        _ => &[],
    }
}

/// How the forward kernel on cooperative matrices keeps row maxima; `rows` of a subgroup. In ms on an NVIDIA H200, f16, 2×16×4096
/// rows and keys (causal 8192); in brackets with a maximum in each tile.
pub(super) fn row_maxima(storage: Storage, widest: u32, rows: u32) -> RowMaxima {
    match (storage, widest) {
        // head_dim 64: 0.595 (0.653), causal 1.209 (1.346); 80: 0.809 (0.847); 96: 0.907 (0.994). P first: 0.622 at 64.
        (Storage::F16, 0..=96) => RowMaxima::Lazy { takes_first: false },
        // head_dim 128: 1.218 (1.271), causal 2.590 (2.703). P last: 1.320.
        (Storage::F16, 97..=128) if rows == 32 => RowMaxima::Lazy { takes_first: true },
        // 16 rows to a subgroup: 1.34 to 1.39 (1.271; after the products with V 1.670). head_dim 160: 1.675 (1.583).
        (Storage::F16, 97..=160) => RowMaxima::Eager { is_early: true },
        // head_dim 192: 1.827 (2.195), P last 1.906.
        (Storage::F16, 161..=192) => RowMaxima::Lazy { takes_first: true },
        // head_dim 256: 2.429 (3.549). P first: 2.513.
        (Storage::F16, _) => RowMaxima::Lazy { takes_first: false },
        // Rows with units: P passes through f16 in units of V, which are not there yet when it would be taken. In an earlier
        // text this was not faster. bf16, head_dim 64: 0.955 (early 0.989), 128: 1.864 (1.986); f32 2.017 (2.037).
        (Storage::F32 | Storage::F16Packed | Storage::Bf16, _) => RowMaxima::Eager { is_early: false },
    }
}

/// Whether the rows of all heads that share a KV head, packed, fill at most three quarters of the tiles that they would fill
/// apart. Lists of tiles are those of single heads.
pub(super) fn packs_on_matrices(problem: &AttentionProblem) -> bool {
    let shape = &problem.shape;
    let (group, rows) = (u64::from(shape.heads_per_kv()), u64::from(shape.seqlen_q));
    let (packed, apart) = ((group * rows).div_ceil(64), group * rows.div_ceil(64));
    let is_packed = problem.lengths().is_some_and(|lengths| lengths.q.packed.is_some());
    4 * packed <= 3 * apart && !is_packed && !problem.key_masks().iter().any(|mask| matches!(mask, KeyMask::Blocks(_)))
}

/// Tiles for that.
pub(super) fn packed_on_matrices(capabilities: &Capabilities, problem: &AttentionProblem) -> &'static [Tiles] {
    match (capabilities.matrix_side, capabilities.subgroup_min_size) {
        _ if capabilities.device_class == DeviceClass::Cpu || problem.element == Element::F32 => &[],
        // Two workgroups of these fit a core of 48 KiB, and one computes while the other waits: 16 rows of 4 heads, 8192 keys,
        // head_dim 128, 0.088 ms on an NVIDIA H200; 32 keys 0.107, heads apart 0.274.
        (Some(16), 32) if widest(&problem.shape) <= 64 => const { &[of_16(64, 32, 16)] },
        (Some(16), 32) => const { &[of_16(64, 16, 16)] },
        (Some(8), _) if problem.element != Element::F16 => &[],
        (Some(8), 32) => const { &[Tiles::cooperative(64, 32, 8, 32, 8)] },
        (Some(8), 8) => const { &[Tiles::cooperative(64, 8, 8, 8, 8)] },
        _ => &[],
    }
}

/// The same for f32, in two parts of f16; ms on an NVIDIA H100, 2×16×4096. `is_small` asks for tiles of 64 rows.
fn f32_forward_on_matrices(shape: &AttentionShape, is_small: bool) -> &'static [Tiles] {
    let tiles_of_64 = AttentionShape { seqlen_q: shape.seqlen_q.div_ceil(64), ..*shape }.lse_len();
    // So few rows that tiles of 64 leave most of a large GPU idle are left to split keys: head_dim 64, 4 heads of 512 rows,
    // 0.033, on matrices 0.052; one of 2048 0.066 (0.131); 16 of 512 0.062 (0.052). head_dim 128, 8 heads of 512 rows, 0.074
    // (0.085).
    if tiles_of_64 < 96 {
        return &[];
    }
    match widest(shape) {
        // head_dim 160, on an NVIDIA H200: 6.9; 64 query rows 14.4, without matrices 16.1. 192: 128 query rows do not fit 48 KiB,
        // 64 take 17.8, no matrices 18.1; 256: 27.9, 23.8.
        129..=160 if !is_small => const { &[of_16(128, 16, 16)] },
        129.. => &[],
        0..=64 if is_small => const { &[of_16(64, 32, 16), of_16(64, 16, 16)] },
        _ if is_small => const { &[of_16(64, 16, 16)] },
        // 1.20; 16 keys 1.31.
        0..=32 => const { &[of_16(128, 32, 32), of_16(64, 16, 16)] },
        // head_dim 64: 1.95; 256 query rows 2.01, 16 rows to a subgroup and 32 keys 2.19; without matrices 4.20.
        33..=64 => const { &[of_16(128, 16, 32), of_16(64, 16, 16)] },
        // 2.82; 128 query rows, 16 to a subgroup 3.24.
        65..=80 => const { &[of_16(256, 16, 32), of_16(128, 16, 16), of_16(64, 16, 16)] },
        // head_dim 128: 4.08; 32 rows to a subgroup 6.5, the registers spill; 64 query rows 7.0; without matrices 11.3.
        _ => const { &[of_16(128, 16, 16), of_16(64, 16, 16)] },
    }
}

/// Tiles for standard attention.
pub(super) fn standard(_: &Capabilities, _: &AttentionProblem) -> &'static [Tiles] {
    const { &[Tiles::new(64, 32, 4, 8), Tiles::new(32, 16, 4, 4)] }
}

/// Fits WebGPU's least limits, for every problem.
const LEAST: Tiles = Tiles::new(32, 4, 1, 1);

/// Tiles for the forward pass without matrices.
pub(super) fn forward(capabilities: &Capabilities, problem: &AttentionProblem) -> &'static [Tiles] {
    let shape = &problem.shape;
    let widest = widest(shape);
    // One row to an invocation spreads few rows over more of the GPU.
    let is_small = is_small(shape);
    match shuffling(capabilities) {
        subgroup if capabilities.device_class == DeviceClass::Cpu => forward_on_cpu(subgroup, shape),
        // TFLOP/s on an NVIDIA H200, f32, 2×16×4096 (head_dim 256: 2048). What decides is how many invocations the
        // registers leave room for (workgroup memory too: about 48 KiB serve all workgroups of a core together), then
        // how many rows share one load of K or V. All fit the 16 KiB that WebGPU promises, or the next one does.
        //
        // Small problems first, in ms on an NVIDIA H100, keys split. head_dim 32, 4 heads of 512 rows: 0.026; 64 rows by 16 keys
        // 0.028, the tiles for large problems 0.034. head_dim 64, 4 heads of 128, 256, 512 rows: 0.021, 0.023, 0.033; one row by
        // 8 lanes 0.021, 0.024, 0.057, the tiles for large problems 0.030, 0.031, 0.033. head_dim 128: 0.027, 0.029, 0.054; one row
        // by 8 lanes 0.023, 0.029, 0.105.
        2.. if is_small && widest <= 32 => const { &[Tiles::new(32, 32, 1, 2), LEAST] },
        4.. if (is_small || has_blocks_of_64(problem)) && (33..=128).contains(&widest) => {
            const { &[Tiles::new(64, 16, 2, 4), LEAST] }
        }
        // head_dim 32: 25.2; 4 rows by 2 lanes 21.6, 4 by 4 21.0.
        1.. if widest <= 32 => const { &[Tiles::new(64, 32, 2, 1), LEAST] },
        // head_dim 64: 30.9; 256 invocations 24.3, one row to an invocation 26.8, 4 rows by 4 lanes 25.3.
        2.. if widest <= 64 => const { &[Tiles::new(128, 32, 2, 2), LEAST] },
        // head_dim 80: 26.1; 2 rows by 4 lanes 21.5, 4 rows by 8 lanes 16.2.
        4.. if widest <= 96 => const { &[Tiles::new(64, 16, 4, 4), LEAST] },
        // head_dim 128: 23.1; 4 rows by 8 lanes 22.1, 4 by 16 18.5.
        4.. if widest <= 128 => const { &[Tiles::new(64, 16, 2, 4), LEAST] },
        // head_dim 256: 20.6; 4 rows by 16 lanes 18.9.
        8.. => const { &[Tiles::new(64, 16, 2, 8), Tiles::new(64, 8, 2, 8), LEAST] },
        // Without shuffles, head_dim 64: 26.8, one row to an invocation as long as the registers hold it; 4 rows by 4
        // lanes in workgroup memory 12.0.
        _ if widest <= 64 => const { &[Tiles::new(128, 32, 1, 1), LEAST] },
        _ if widest <= 128 => const { &[Tiles::new(64, 8, 2, 4), LEAST] },
        _ => const { &[Tiles::new(32, 4, 2, 8), LEAST] },
    }
}

/// The same for a software driver whose invocations shuffle in groups of `subgroup`.
fn forward_on_cpu(subgroup: u32, shape: &AttentionShape) -> &'static [Tiles] {
    let widest = widest(shape);
    match subgroup {
        // lavapipe (Mesa 22.3.6, 2 cores) works on 8 invocations at a time and pays for each load, so many rows share
        // one; and it compiles slowly, so each invocation holds few quads. 1×1×256×head_dim f32 in ms, and compilation
        // in s: head_dim 64 11.2 and 0.9 (4 rows by 8 lanes 19.0 and 0.5, 8 by 4 slower to compile by half; one row to
        // an invocation 82 and 1.6); head_dim 256 24.5 and 4.3, 4 rows by 8 lanes 36.8 and 2.0.
        //
        // Best of all, 8 invocations load for each other and broadcast. Processor time of 1×4×512 f32 in ms, and
        // compilation in s: head_dim 64 18.5 and 2.3 (16 keys and 64 rows to a tile 21.6, 8 rows to an
        // invocation 18.5 and 7.1; 8 rows by 8 lanes
        // 41.4 and 0.9; Burn's kernel 26 and 12); head_dim 128, 2 heads, 19.3 and 7.6 (39.1 and 1.4). Few rows are not
        // worth the compilation.
        8.. if widest <= 128 && shape.seqlen_q >= 256 => {
            const { &[Tiles::broadcasting(128, 32, 4, 8), Tiles::new(64, 16, 8, 8), LEAST] }
        }
        8.. if widest <= 128 => const { &[Tiles::new(64, 16, 8, 8), LEAST] },
        8.. => const { &[Tiles::new(64, 16, 4, 8), Tiles::new(64, 8, 4, 8), LEAST] },
        // Without shuffles, head_dim 64: 26.8 and 1.0; 4 rows by 8 lanes 51.6, 2 rows of one invocation 34.0 and 2.5.
        _ if widest <= 128 => const { &[Tiles::new(64, 16, 4, 4), Tiles::new(32, 8, 4, 4), LEAST] },
        _ => const { &[Tiles::new(32, 8, 4, 8), Tiles::new(32, 4, 4, 8), LEAST] },
    }
}

/// The most rows, of all query heads that share a KV head, for which decoding is tried.
const DECODE_ROWS: u64 = 32;

/// Rows of all query heads that share a KV head.
fn rows_of_a_group(shape: &AttentionShape) -> u64 {
    u64::from(shape.num_heads.checked_div(shape.num_heads_kv).unwrap_or(0)) * u64::from(shape.seqlen_q)
}

pub(super) fn decodes(shape: &AttentionShape) -> bool {
    rows_of_a_group(shape) <= DECODE_ROWS
}

/// Whether so few rows leave most of a large GPU idle.
pub(super) fn is_small(shape: &AttentionShape) -> bool {
    shape.lse_len() <= 6144
}

/// Tiles for decoding; none where there are too many rows for it.
pub(super) fn decode(capabilities: &Capabilities, problem: &AttentionProblem) -> &'static [Tiles] {
    let shape = &problem.shape;
    if !decodes(shape) {
        return &[];
    }
    let (rows, widest) = (rows_of_a_group(shape), widest(shape));
    // Not yet measured on a GPU. What a lane holds of Q and of O, rows times quads, is kept at 16 registers four wide, and
    // the groups of a workgroup many enough for 128 invocations. lavapipe (Mesa 22.3.6), 8 heads over 2, 4096 keys, in ms:
    // head_dim 64 1.5, 128 5.4; with one row tile of 64 rows, as for more rows, 90 and 184.
    match (rows, shuffling(capabilities)) {
        (0..=2, 8..) if widest <= 128 => const { &[Tiles::decode(2, 64, 8, 16), Tiles::decode(2, 32, 8, 8)] },
        (0..=4, 8..) if widest <= 128 => const { &[Tiles::decode(4, 64, 8, 16), Tiles::decode(4, 32, 8, 8)] },
        (0..=4, 16..) => const { &[Tiles::decode(4, 32, 16, 8), Tiles::decode(4, 16, 16, 4)] },
        (_, 16..) if widest <= 128 => const { &[Tiles::decode(8, 32, 16, 8), Tiles::decode(8, 16, 16, 4)] },
        (_, 32..) => const { &[Tiles::decode(8, 16, 32, 4), Tiles::decode(4, 8, 32, 2)] },
        (_, 8..) if widest <= 64 => const { &[Tiles::decode(8, 32, 8, 8)] },
        (_, 4..) if widest <= 64 => const { &[Tiles::decode(4, 32, 4, 8)] },
        // Lanes that meet in workgroup memory.
        _ if widest <= 128 => const { &[Tiles::decode(4, 32, 8, 8), Tiles::decode(2, 32, 8, 8)] },
        _ => const { &[Tiles::decode(2, 16, 16, 4)] },
    }
}

/// Tiles for D = rowsum(dO ∘ O) − dLSE.
pub(super) fn preprocess(capabilities: &Capabilities, _: &AttentionProblem) -> &'static [Tiles] {
    match shuffling(capabilities) {
        4.. => const { &[Tiles::new(32, 4, 1, 4)] },
        _ => const { &[Tiles::new(64, 4, 1, 1)] },
    }
}

// Tiles of the backward pass were chosen by counting: a row that passes by costs 16 multiply-adds' time for each quad read
// from workgroup memory, and 4 for each shuffle, so two keys (or rows) share it, with as few lanes as leave their registers
// below 200. Without shuffles: one invocation to a row as long as the registers hold it.

/// Tiles for dK and dV without matrices.
pub(super) fn dkdv(capabilities: &Capabilities, problem: &AttentionProblem) -> &'static [Tiles] {
    let widest = widest(&problem.shape);
    match shuffling(capabilities) {
        8.. if capabilities.device_class == DeviceClass::Cpu => {
            const { &[Tiles::new(8, 32, 4, 8), Tiles::new(4, 32, 4, 8)] }
        }
        2.. if widest <= 32 => const { &[Tiles::new(16, 64, 2, 2)] },
        4.. if widest <= 64 => const { &[Tiles::new(16, 64, 2, 4)] },
        8.. if widest <= 128 => const { &[Tiles::new(8, 32, 2, 8)] },
        16.. => const { &[Tiles::new(4, 16, 2, 16)] },
        _ if widest <= 64 => const { &[Tiles::new(16, 32, 1, 1)] },
        _ => const { &[Tiles::new(4, 16, 1, 4)] },
    }
}

/// Tiles for dQ without matrices.
pub(super) fn dq(capabilities: &Capabilities, problem: &AttentionProblem) -> &'static [Tiles] {
    let widest = widest(&problem.shape);
    match shuffling(capabilities) {
        8.. if capabilities.device_class == DeviceClass::Cpu => {
            const { &[Tiles::new(32, 8, 4, 8), Tiles::new(32, 4, 4, 8)] }
        }
        2.. if widest <= 32 => const { &[Tiles::new(64, 16, 2, 2)] },
        4.. if widest <= 64 => const { &[Tiles::new(64, 16, 2, 4)] },
        8.. if widest <= 128 => const { &[Tiles::new(32, 8, 2, 8)] },
        16.. => const { &[Tiles::new(16, 4, 2, 16)] },
        _ if widest <= 64 => const { &[Tiles::new(32, 16, 1, 1)] },
        _ => const { &[Tiles::new(16, 4, 1, 4)] },
    }
}

/// Tiles for dK and dV on cooperative matrices.
pub(super) fn dkdv_on_matrices(capabilities: &Capabilities, problem: &AttentionProblem) -> &'static [Tiles] {
    match (capabilities.matrix_side, widest(&problem.shape)) {
        // As forward.
        _ if capabilities.device_class == DeviceClass::Cpu => &[],
        // f32 passes in two parts of f16, which take twice the registers. As below, head_dim 64: 6.8; 16 query rows 7.1, and 64
        // keys 8.4; 32 rows to a subgroup for dQ 9.0; without matrices 23.8. head_dim 80: 11.2; 64 keys 13.2. head_dim 128:
        // 18.4, though the registers of dK and dV spill; 64 keys 27.2; without matrices 57, and 34 with those for dQ alone.
        (Some(16), widest) if problem.element == Element::F32 => match widest {
            0..=64 => const { &[of_16(32, 128, 16), of_16(16, 64, 16)] },
            65..=128 => const { &[of_16(16, 128, 16), of_16(16, 64, 16)] },
            _ => &[],
        },
        // The whole backward pass on an NVIDIA H100, 2×16×4096, in ms, tiles of dK and dV and of dQ together. head_dim 64:
        // 2.83; 16 rows to a subgroup 3.81, of dK and dV alone 3.26; 64 keys by 16 rows with 64 query rows by 16 3.48.
        (Some(16), 0..=64) => const { &[of_16(32, 128, 32), of_16(16, 64, 16)] },
        // head_dim 128: 5.81; 64 keys, 64 query rows for dQ 6.86; 128 keys with 64 query rows by 16 keys for dQ 6.22, by 32
        // 7.13. 32 rows to a subgroup 9.5 and more, the registers spill.
        (Some(16), _) => const { &[of_16(16, 128, 16), of_16(16, 64, 16), of_16(16, 32, 16)] },
        _ => gradients_on_small_matrices(capabilities, problem),
    }
}

/// Tiles for dQ on cooperative matrices, measured with those for dK and dV.
pub(super) fn dq_on_matrices(capabilities: &Capabilities, problem: &AttentionProblem) -> &'static [Tiles] {
    match (capabilities.matrix_side, widest(&problem.shape)) {
        _ if capabilities.device_class == DeviceClass::Cpu => &[],
        (Some(16), widest) if problem.element == Element::F32 => match widest {
            0..=80 => const { &[of_16(128, 32, 16), of_16(64, 16, 16)] },
            81..=128 => const { &[of_16(128, 16, 16), of_16(64, 16, 16)] },
            _ => &[],
        },
        (Some(16), 0..=64) => const { &[of_16(128, 32, 32), of_16(64, 16, 16)] },
        (Some(16), _) => const { &[of_16(128, 32, 16), of_16(64, 16, 16), of_16(32, 16, 16)] },
        _ => gradients_on_small_matrices(capabilities, problem),
    }
}

fn gradients_on_small_matrices(capabilities: &Capabilities, problem: &AttentionProblem) -> &'static [Tiles] {
    match capabilities.matrix_side {
        Some(8) if problem.element == Element::F16 => {
            const { &[Tiles::cooperative(32, 32, 8, 8, 8), Tiles::cooperative(8, 8, 8, 8, 8)] }
        }
        _ => &[],
    }
}
