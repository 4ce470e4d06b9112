//! Plans run from texts of the test's choice: everything before wgpu is plain data, so a text can be changed on the way.

use std::cell::RefCell;
use std::collections::HashMap;

use wgpu_flash_attention::unstable::{Dialect, Dispatch, Kernel, Origins, Pass, ShaderSource, Usage};
use wgpu_flash_attention::{Call, Operand, Plan};

use super::device::Library;
use super::run::POISON;

/// Compiles each text once.
pub struct Texts<'a> {
    library: &'a Library,
    pipelines: RefCell<HashMap<String, (wgpu::ComputePipeline, wgpu::BindGroupLayout)>>,
}

/// The text of a pass as the library has it.
pub fn text_of(pass: &Pass) -> String {
    ShaderSource::new(&pass.specialization, Dialect::Naga).expect("the shader can be assembled").text().to_owned()
}

type Buffers = HashMap<Operand, wgpu::Buffer>;

impl<'a> Texts<'a> {
    pub fn new(library: &'a Library) -> Self {
        Self { library, pipelines: RefCell::default() }
    }

    /// Runs a plan with these texts for its passes on these inputs; the bytes of its outputs, which were poison before.
    pub fn run(
        &self,
        plan: &Plan,
        texts: &[String],
        inputs: &[(Operand, Vec<u8>)],
        outputs: &[Operand],
    ) -> Vec<Vec<u8>> {
        let (device, queue) = (self.library.device(), self.library.queue());
        let mut buffers = Buffers::new();
        let mut origins = Origins::default();
        let poison = outputs.iter().map(|&output| (output, vec![POISON; plan.required_bytes(output) as usize]));
        for (operand, bytes) in inputs.iter().cloned().chain(poison) {
            origins = origins.with(operand, 0);
            buffers.insert(operand, self.buffer(&bytes));
        }
        for &(operand, bytes) in plan.scratch() {
            buffers.insert(operand, self.buffer(&vec![0; bytes as usize]));
        }
        let dispatches = plan.dispatches(&Call::default(), &origins).expect("the call can be planned");
        let mut encoder = device.create_command_encoder(&Default::default());
        for dispatch in &dispatches {
            let kernel = plan.passes()[dispatch.pass].kernel;
            self.record(&mut encoder, kernel, &texts[dispatch.pass], dispatch, &buffers);
        }
        queue.submit([encoder.finish()]);
        outputs.iter().map(|output| self.read(&buffers[output], plan.required_bytes(*output))).collect()
    }

    fn buffer(&self, bytes: &[u8]) -> wgpu::Buffer {
        let size = (bytes.len() as u64).next_multiple_of(4).max(16);
        let usage = wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::UNIFORM
            | wgpu::BufferUsages::COPY_SRC
            | wgpu::BufferUsages::COPY_DST;
        let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
        let buffer = self.library.device().create_buffer(&descriptor);
        let mut padded = bytes.to_vec();
        padded.resize(size as usize, POISON);
        self.library.queue().write_buffer(&buffer, 0, &padded);
        buffer
    }

    fn record(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        kernel: Kernel,
        text: &str,
        dispatch: &Dispatch,
        buffers: &Buffers,
    ) {
        let uniform = self.buffer(bytemuck::bytes_of(&dispatch.params));
        let nothing = self.buffer(&[0; 16]);
        let mut entries = vec![entry(Operand::Params, &uniform, 0, size_of_val(&dispatch.params) as u64)];
        entries.extend(dispatch.windows.iter().map(|window| match buffers.get(&window.operand) {
            Some(buffer) if window.size > 0 => entry(window.operand, buffer, window.offset, window.size),
            _ => entry(window.operand, &nothing, 0, 16),
        }));
        let mut pipelines = self.pipelines.borrow_mut();
        let (pipeline, layout) = pipelines.entry(text.to_owned()).or_insert_with(|| self.compile(kernel, text));
        let descriptor = wgpu::BindGroupDescriptor { label: None, layout, entries: &entries };
        let group = self.library.device().create_bind_group(&descriptor);
        let mut pass = encoder.begin_compute_pass(&Default::default());
        pass.set_pipeline(pipeline);
        pass.set_bind_group(0, &group, &[]);
        pass.dispatch_workgroups(dispatch.grid[0], dispatch.grid[1], 1);
    }

    fn compile(&self, kernel: Kernel, text: &str) -> (wgpu::ComputePipeline, wgpu::BindGroupLayout) {
        let device = self.library.device();
        let entries: Vec<_> = kernel
            .operands()
            .iter()
            .map(|&(operand, usage)| wgpu::BindGroupLayoutEntry {
                binding: operand.binding(),
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: match usage {
                        Usage::Uniform => wgpu::BufferBindingType::Uniform,
                        Usage::Read => wgpu::BufferBindingType::Storage { read_only: true },
                        Usage::Write => wgpu::BufferBindingType::Storage { read_only: false },
                    },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let layout =
            device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries });
        let source = wgpu::ShaderSource::Wgsl(text.into());
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: Some(&pipeline_layout),
            module: &device.create_shader_module(wgpu::ShaderModuleDescriptor { label: None, source }),
            entry_point: Some("main"),
            compilation_options: Default::default(),
            cache: None,
        });
        (pipeline, layout)
    }

    fn read(&self, buffer: &wgpu::Buffer, bytes: u64) -> Vec<u8> {
        let (device, size) = (self.library.device(), buffer.size());
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let copy =
            device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false });
        let mut encoder = device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(buffer, 0, &copy, 0, size);
        self.library.queue().submit([encoder.finish()]);
        copy.slice(..).map_async(wgpu::MapMode::Read, |result| result.expect("the copy can be mapped"));
        device.poll(wgpu::PollType::wait_indefinitely()).expect("the GPU finishes");
        let all = copy.slice(..).get_mapped_range().expect("the copy is mapped").to_vec();
        all[..bytes as usize].to_vec()
    }
}

fn entry(operand: Operand, buffer: &wgpu::Buffer, offset: u64, size: u64) -> wgpu::BindGroupEntry<'_> {
    let size = std::num::NonZeroU64::new(size);
    let resource = wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size });
    wgpu::BindGroupEntry { binding: operand.binding(), resource }
}
