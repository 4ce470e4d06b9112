//! Attention inside your own wgpu program: your device, your buffers, your command encoder, no wait.
//!
//! `cargo run --example own_device`

use wgpu_flash_attention::{AttentionProblem, AttentionShape, Call, FlashAttention, ForwardBuffers, Operand};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    pollster::block_on(async {
        // Your program's device. `device_descriptor` names the features and limits that let the library run everything
        // it has; add your own before you ask for the device.
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
        let adapter = instance.request_adapter(&wgpu::RequestAdapterOptions::default()).await?;
        let (device, queue) = adapter.request_device(&FlashAttention::device_descriptor(&adapter)).await?;

        // Once: every refusal of the problem comes from here.
        let attention = FlashAttention::new(&adapter, &device, &queue);
        let shape = AttentionShape::new(1, 8, 512, 64).with_num_heads_kv(2);
        let problem = AttentionProblem::new(shape).with_causal().with_dropout(0.1, 1);
        let forward = attention.prepare_forward(&problem).await?;

        // Your buffers: the plan says how large they must be.
        let buffer = |operand: Operand| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(operand.name()),
                size: forward.plan().required_bytes(operand),
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            })
        };
        let [q, k, v] = [Operand::Q, Operand::K, Operand::V].map(|operand| {
            let buffer = buffer(operand);
            let values: Vec<f32> = (0..buffer.size() / 4).map(|i| (i as f32 * 0.37).sin()).collect();
            queue.write_buffer(&buffer, 0, bytemuck::cast_slice(&values));
            buffer
        });
        let [(o_1, lse_1), (o_2, lse_2)] = [(); 2].map(|()| (buffer(Operand::O), buffer(Operand::Lse)));

        // Many times: two calls with different dropout seeds in one encoder, one submission.
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let inputs = (q.slice(..), k.slice(..), v.slice(..));
        let buffers = |o, lse| ForwardBuffers::new(inputs.0, inputs.1, inputs.2, o, lse);
        forward.encode(&mut encoder, &buffers(o_1.slice(..), lse_1.slice(..)))?;
        let call = Call::new().with_philox_seed(2);
        forward.encode_call(&mut encoder, &buffers(o_2.slice(..), lse_2.slice(..)), &call)?;

        // The rest is plain wgpu: read both results back.
        let readback = |source: &wgpu::Buffer, encoder: &mut wgpu::CommandEncoder| {
            let target = device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: source.size(),
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            });
            encoder.copy_buffer_to_buffer(source, 0, &target, 0, None);
            target
        };
        let results = [readback(&o_1, &mut encoder), readback(&o_2, &mut encoder)];
        queue.submit([encoder.finish()]);
        for (seed, result) in (1..).zip(&results) {
            result.map_async(wgpu::MapMode::Read, .., |result| result.expect("the results can be read"));
            device.poll(wgpu::PollType::wait_indefinitely())?;
            let range = result.get_mapped_range(..)?;
            let o: &[f32] = bytemuck::cast_slice(&range);
            println!("seed {seed}: the last row of head 0 starts with {:?}", &o[511 * 8 * 64..][..4]);
        }
        Ok(())
    })
}
