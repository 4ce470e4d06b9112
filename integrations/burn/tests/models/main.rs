//! The models of `examples/`. Small ones, made from a seed, are held to the same model in f64 on the CPU; this always runs. The
//! trained ones are held to answers that numpy gave from the same files; this runs where `make models` brought them.
//!
//! No tolerance is chosen. The model with this library's attention may err twice as much as with Burn's, and where K and V
//! are rounded, twice as much as this rounding costs in f64; plus 1e-6 of the largest logit, for f16 1e-5.

#[path = "../../examples/smollm/cache.rs"]
mod cache;
mod damaged;
mod files;
#[path = "../../examples/smollm/gguf.rs"]
mod gguf;
#[path = "../../examples/minilm/model.rs"]
mod minilm;
#[path = "../../examples/smollm/model.rs"]
mod model;
mod reference;
#[path = "../../examples/smollm/rotary.rs"]
mod rotary;
#[path = "../../examples/smollm/sampler.rs"]
mod sampler;
mod small_minilm;
mod small_smollm;
#[path = "../../examples/smollm/tokenizer.rs"]
mod tokenizer;
#[path = "../../examples/minilm/tokens.rs"]
mod tokens;
mod trained;

use std::io::Write;
use std::path::PathBuf;
use std::sync::OnceLock;

use burn::tensor::{Device, Tensor};

/// Burn's default device, with attention on it. A process can make it once.
fn device() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(|| wgpu_flash_attention_burn::init().expect("a test without an adapter fails")).clone()
}

/// A line that the test runner does not hold back.
fn say(line: &str) {
    writeln!(std::io::stderr(), "{line}").expect("stderr is open");
}

/// A file or folder that `make models` brings, if it is there.
fn brought(path: &str) -> Option<PathBuf> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/models")).join(path);
    if path.exists() {
        return Some(path);
    }
    say(&format!("skipped: {} is not there; `make models` brings it", path.display()));
    None
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.try_into_data().expect("the device works").try_into_vec::<f32>().expect("the values are f32")
}

/// The largest |a − b|. A NaN counts as infinite.
fn error(a: &[f32], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let apart = a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - b).abs());
    apart.fold(0.0, |most, apart| if apart.is_nan() { f64::INFINITY } else { most.max(apart) })
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |most, value| most.max(value.abs()))
}
