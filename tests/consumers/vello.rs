//! Attention and drawing on one device: a row of O, computed in the program's own encoder, becomes a chart that vello draws.
use vello::kurbo::{Affine, Rect};
use vello::peniko::{Color, Fill};
use vello::wgpu;
use wgpu_flash_attention::{AttentionProblem, AttentionShape, FlashAttention, ForwardBuffers, Operand};

const SIDE: u32 = 64;
const KEYS: u32 = 32;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    pollster::block_on(async {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
        let adapter = instance.request_adapter(&wgpu::RequestAdapterOptions::default()).await?;
        let (device, queue) = adapter.request_device(&FlashAttention::device_descriptor(&adapter)).await?;
        let mut renderer = vello::Renderer::new(&device, vello::RendererOptions::default())?;

        // V holds the key's number, and all scores are alike: causal attention gives the mean of the numbers so far.
        let attention = FlashAttention::new(&adapter, &device, &queue);
        let problem = AttentionProblem::new(AttentionShape::new(1, 1, KEYS, 4)).with_causal();
        let forward = attention.prepare_forward(&problem).await?;
        let buffer = |operand: Operand| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(operand.name()),
                size: forward.plan().required_bytes(operand),
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            })
        };
        let [q, k, v, o, lse] = [Operand::Q, Operand::K, Operand::V, Operand::O, Operand::Lse].map(buffer);
        let numbers: Vec<f32> = (0..KEYS * 4).map(|i| (i / 4) as f32).collect();
        queue.write_buffer(&v, 0, bytemuck::cast_slice(&numbers));
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let buffers = ForwardBuffers::new(q.slice(..), k.slice(..), v.slice(..), o.slice(..), lse.slice(..));
        forward.encode(&mut encoder, &buffers)?;
        let bytes = read(&device, &queue, encoder, o.size(), |encoder, target| {
            encoder.copy_buffer_to_buffer(&o, 0, target, 0, None);
        })?;
        let means: Vec<f32> = bytemuck::pod_collect_to_vec::<u8, f32>(&bytes).into_iter().step_by(4).collect();
        for (i, mean) in means.iter().enumerate() {
            assert!((mean - i as f32 / 2.0).abs() < 1e-5, "row {i}: {mean}");
        }

        let mut scene = vello::Scene::new();
        for (i, mean) in means.iter().enumerate() {
            let bar = Rect::new(2.0 * i as f64, 0.0, 2.0 * i as f64 + 2.0, f64::from(*mean) * 4.0);
            scene.fill(Fill::NonZero, Affine::IDENTITY, Color::WHITE, None, &bar);
        }
        let texture = device.create_texture(&wgpu::TextureDescriptor {
            label: None,
            size: wgpu::Extent3d { width: SIDE, height: SIDE, depth_or_array_layers: 1 },
            mip_level_count: 1,
            sample_count: 1,
            dimension: wgpu::TextureDimension::D2,
            format: wgpu::TextureFormat::Rgba8Unorm,
            usage: wgpu::TextureUsages::STORAGE_BINDING | wgpu::TextureUsages::COPY_SRC,
            view_formats: &[],
        });
        let params = vello::RenderParams {
            base_color: Color::BLACK,
            width: SIDE,
            height: SIDE,
            antialiasing_method: vello::AaConfig::Area,
        };
        renderer.render_to_texture(&device, &queue, &scene, &texture.create_view(&Default::default()), &params)?;
        let encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let pixels = read(&device, &queue, encoder, u64::from(4 * SIDE * SIDE), |encoder, target| {
            let layout = wgpu::TexelCopyBufferLayout { offset: 0, bytes_per_row: Some(4 * SIDE), rows_per_image: None };
            let target = wgpu::TexelCopyBufferInfo { buffer: target, layout };
            encoder.copy_texture_to_buffer(texture.as_image_copy(), target, texture.size());
        })?;
        let is_white = |x: u32, y: u32| pixels[(4 * (y * SIDE + x)) as usize] > 128;
        // Bar i is 2 i high.
        for i in [1, 10, 31] {
            assert!(is_white(2 * i, 2 * i - 1) && !is_white(2 * i, 2 * i + 1), "bar {i} is not as high as its mean");
        }
        println!("attention and vello share {}", adapter.get_info().name);
        Ok(())
    })
}

/// Submits the encoder with a copy into a buffer of this size, and reads that.
fn read(
    device: &wgpu::Device,
    queue: &wgpu::Queue,
    mut encoder: wgpu::CommandEncoder,
    size: u64,
    copy: impl FnOnce(&mut wgpu::CommandEncoder, &wgpu::Buffer),
) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let target = device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size,
        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    copy(&mut encoder, &target);
    queue.submit([encoder.finish()]);
    target.map_async(wgpu::MapMode::Read, .., |result| result.expect("it can be read"));
    device.poll(wgpu::PollType::wait_indefinitely())?;
    Ok(target.get_mapped_range(..)?.to_vec())
}
