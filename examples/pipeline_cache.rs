//! A program's second start: what the driver compiled is kept in a file, and found there.
//!
//! `cargo run --release --example pipeline_cache -- FILE`, twice. Prints how long it takes to prepare attention of head_dim 64 and 128
//! in f16, forward and backward, without and with what the file holds.

use std::path::Path;
use std::time::Instant;

use wgpu_flash_attention::{AttentionProblem, AttentionShape, Element, FlashAttention, wgpu};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: pipeline_cache FILE")?;
    pollster::block_on(prepared(Path::new(&path)))
}

async fn prepared(path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter = instance.request_adapter(&wgpu::RequestAdapterOptions::default()).await?;
    if !adapter.features().contains(wgpu::Features::PIPELINE_CACHE) {
        return Err("this adapter has no pipeline cache".into());
    }
    let mut descriptor = FlashAttention::device_descriptor(&adapter);
    descriptor.required_features |= wgpu::Features::PIPELINE_CACHE;
    let (device, queue) = adapter.request_device(&descriptor).await?;

    let kept = std::fs::read(path).ok();
    let (name, data) = (Some("attention"), kept.as_deref());
    // SAFETY: the file holds what `get_data` gave an earlier run of this program, or is empty. A file from another driver is not
    // taken: with `fallback`, wgpu begins with an empty cache then.
    let cache =
        unsafe { device.create_pipeline_cache(&wgpu::PipelineCacheDescriptor { label: name, data, fallback: true }) };
    let attention = FlashAttention::new(&adapter, &device, &queue).with_pipeline_cache(cache.clone());

    let start = Instant::now();
    for head_dim in [64, 128] {
        let shape = AttentionShape::new(2, 16, 4096, head_dim);
        let problem = AttentionProblem::new(shape).with_element(Element::F16).with_causal();
        attention.prepare_forward(&problem).await?;
        attention.prepare_backward(&problem).await?;
    }
    let milliseconds = 1e3 * start.elapsed().as_secs_f64();
    let made = attention.statistics().compilations;
    println!(
        "{}: {made} kernels were ready after {milliseconds:.0} ms; the file had {} bytes",
        adapter.get_info().name,
        kept.map_or(0, |kept| kept.len())
    );

    if let Some(data) = cache.get_data() {
        // Whole or not at all: another start may read it at any time.
        let part = path.with_extension("part");
        std::fs::write(&part, data)?;
        std::fs::rename(&part, path)?;
    }
    Ok(())
}
