//! A score modifier in WGSL: relative positions. Each head has a table with a number for each distance from a row to a key, and
//! adds it to the score, as T5 and Swin do. The table is `aux`: 2 · REACH + 1 numbers a head, where a bias would hold
//! seqlen × seqlen.
//!
//! `cargo run --release --example custom_score_mod` computes attention and its gradients, and compares them with those of a bias.

use wgpu_flash_attention::{
    AttentionProblem, AttentionShape, BackwardSlices, Element, EntryLayout, Error, FlashAttention, ForwardSlices,
    ScoreMod, ScoreWgsl,
};

const REACH: i32 = 15;

const RELATIVE: &str = "
const REACH = 15;

fn score_mod(score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32 {
  let distance = clamp(i32(q_idx) - i32(kv_idx), -REACH, REACH);
  return score + aux[i32(head) * (2 * REACH + 1) + REACH + distance];
}

// What is added changes no gradient.
fn score_mod_grad(grad: f32, score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32 {
  return grad;
}
";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (largest_o, largest_dq) = pollster::block_on(differences())?;
    println!("relative positions by score_mod and by a bias differ by {largest_o:.1e} in O, {largest_dq:.1e} in dQ");
    let agree = [largest_o, largest_dq].iter().all(|largest| *largest <= 1e-4);
    if !agree {
        return Err("the two do not agree".into());
    }
    Ok(())
}

/// How far O and dQ are from those of a bias, at most.
async fn differences() -> Result<(f32, f32), Error> {
    let (num_heads, seqlen, head_dim) = (2, 64, 32);
    let table: Vec<f32> = (0..num_heads as i32 * (2 * REACH + 1)).map(|n| (n as f32 * 0.7).sin()).collect();
    let plain = AttentionProblem::new(AttentionShape::new(1, num_heads, seqlen, head_dim)).with_causal();

    let score_mod = ScoreMod::Wgsl(ScoreWgsl::new(RELATIVE)?);
    let relative = plain.clone().with_score(score_mod).with_aux(table.len() as u32);

    // The same as a tensor with a number for each head, row and key.
    let layout = EntryLayout::contiguous([1, num_heads, seqlen, seqlen]);
    let biased = plain.with_score(ScoreMod::Bias { layout, element: Element::F32 });
    let mut bias = Vec::new();
    for head in 0..num_heads as i32 {
        for (row, key) in (0..seqlen as i32).flat_map(|row| (0..seqlen as i32).map(move |key| (row, key))) {
            bias.push(table[(head * (2 * REACH + 1) + REACH + (row - key).clamp(-REACH, REACH)) as usize]);
        }
    }

    let values = |step: f32| (0..num_heads * seqlen * head_dim).map(|n| (n as f32 * step).sin()).collect::<Vec<f32>>();
    let [q, k, v, d_o] = [0.37, 0.73, 0.91, 1.13].map(values);
    let attention = FlashAttention::request().await?;
    let mut answers = Vec::new();
    for (problem, by_table) in [(&relative, true), (&biased, false)] {
        let slices = ForwardSlices::new(&q, &k, &v);
        let slices = if by_table { slices.with_aux(&table) } else { slices.with_bias(&bias) };
        let forward = attention.forward_with(problem, &slices).await?;
        let slices = BackwardSlices::new(&q, &k, &v, &forward.o, &forward.lse, &d_o);
        let slices = if by_table { slices.with_aux(&table) } else { slices.with_bias(&bias) };
        let dq = attention.backward(problem, &slices).await?.dq;
        answers.push((forward.o, dq));
    }
    // NaN is the largest difference of all.
    let larger = |largest: f32, next: f32| if next > largest || next.is_nan() { next } else { largest };
    let largest = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, larger);
    Ok((largest(&answers[0].0, &answers[1].0), largest(&answers[0].1, &answers[1].1)))
}
