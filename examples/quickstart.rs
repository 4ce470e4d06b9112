//! Attention on slices: five lines that matter.
//!
//! `cargo run --example quickstart`

use wgpu_flash_attention::{AttentionProblem, AttentionShape, FlashAttention};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    pollster::block_on(async {
        let shape = AttentionShape::new(1, 8, 1024, 64); // batch, num_heads, seqlen, head_dim
        let len = 8 * 1024 * 64;
        let tensor = |phase: f32| (0..len).map(|i| (i as f32 * 0.37 + phase).sin()).collect::<Vec<f32>>();

        let attention = FlashAttention::request().await?;
        let problem = AttentionProblem::new(shape).with_causal();
        let output = attention.forward(&problem, &tensor(0.0), &tensor(1.0), &tensor(2.0)).await?;

        println!("on {}", attention.capabilities().adapter_name);
        println!("O[0, 1023, 0, ..4] = {:?}", &output.o[1023 * 8 * 64..][..4]);
        println!("LSE[0, 0, 1023] = {}", output.lse[1023]);
        Ok(())
    })
}
