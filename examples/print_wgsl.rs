//! Prints the WGSL of the kernels that a problem gets on your adapter, for reading or for another compiler.
//!
//! `cargo run --example print_wgsl -- [HEAD_DIM] [f32|f16|bf16] [flash|standard]`

use wgpu_flash_attention::unstable::{Dialect, ShaderSource};
use wgpu_flash_attention::{Algorithm, AttentionProblem, AttentionShape, Element, FlashAttention};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let head_dim = arguments.next().map_or(Ok(64), |text| text.parse())?;
    let element = arguments.next().unwrap_or("f32".into());
    let element =
        Element::ALL.iter().copied().find(|e| e.name() == element).ok_or("the element is f32, f16 or bf16")?;
    let algorithm = match arguments.next().as_deref() {
        None | Some("flash") => Algorithm::Flash,
        Some("standard") => Algorithm::Standard,
        Some(_) => return Err("the algorithm is flash or standard".into()),
    };

    let attention = pollster::block_on(FlashAttention::request())?;
    let problem = AttentionProblem::new(AttentionShape::new(1, 1, 1024, head_dim))
        .with_element(element)
        .with_algorithm(algorithm);
    for pass in attention.plan_forward(&problem).build()?.passes() {
        println!("// ==== {} ====", pass.kernel.name());
        println!("{}", ShaderSource::new(&pass.specialization, Dialect::Naga)?.text());
    }
    Ok(())
}
