//! Sums of gradients, on the device.

use crate::error::Error;
use crate::gpu::{caught, storage, submit};
use wgpu_flash_attention::{FlashAttention, wgpu};

/// Bytes that one dispatch adds: a binding and a grid that every device has room for.
const PIECE: u64 = 32 << 20;

/// Invocations of a workgroup, as in the WGSL.
const INVOCATIONS: u64 = 256;

/// Adds what lies in staging memory to buffers of f32.
pub(super) struct Adder {
    pipeline: wgpu::ComputePipeline,
    /// A piece of the terms.
    terms: wgpu::Buffer,
}

impl Adder {
    /// For buffers of so many bytes at most.
    pub fn new(attention: &FlashAttention, longest: u64) -> Result<Self, Error> {
        let device = attention.device();
        let terms = storage(attention, "terms of gradients", longest.min(PIECE))?;
        let pipeline = caught(attention, "adding gradients", || {
            let source = wgpu::ShaderSource::Wgsl(include_str!("add.wgsl").into());
            let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label: Some("add"), source });
            device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some("add"),
                layout: None,
                module: &module,
                entry_point: Some("add"),
                compilation_options: Default::default(),
                cache: None,
            })
        })?;
        Ok(Self { pipeline, terms })
    }

    pub fn bytes(&self) -> u64 {
        self.terms.size()
    }

    /// Submits it, for pairs of terms and sums of one size.
    pub fn add<'a>(
        &self,
        attention: &FlashAttention,
        pairs: impl IntoIterator<Item = (&'a wgpu::Buffer, &'a wgpu::Buffer)>,
    ) -> Result<(), Error> {
        let added = submit(attention, "adding gradients", |encoder| {
            for (terms, sums) in pairs {
                for at in (0..sums.size()).step_by(PIECE as usize) {
                    self.encode(attention, encoder, terms, sums, at);
                }
            }
            Ok(())
        });
        added.map(drop)
    }

    /// One piece.
    fn encode(
        &self,
        attention: &FlashAttention,
        encoder: &mut wgpu::CommandEncoder,
        terms: &wgpu::Buffer,
        sums: &wgpu::Buffer,
        at: u64,
    ) {
        let bytes = (sums.size() - at).min(PIECE);
        encoder.copy_buffer_to_buffer(terms, at, &self.terms, 0, bytes);
        let entry = |binding, buffer, offset| {
            let resource = wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer,
                offset,
                size: std::num::NonZero::new(bytes),
            });
            wgpu::BindGroupEntry { binding, resource }
        };
        let group = attention.device().create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("add"),
            layout: &self.pipeline.get_bind_group_layout(0),
            entries: &[entry(0, &self.terms, 0), entry(1, sums, at)],
        });
        let mut pass = encoder.begin_compute_pass(&Default::default());
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &group, &[]);
        pass.dispatch_workgroups((bytes / 4).div_ceil(INVOCATIONS) as u32, 1, 1);
    }
}
