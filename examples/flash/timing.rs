//! GPU time by timestamps where the device has them, else the time from submission to completion.

use std::time::{Duration, Instant};

use wgpu_flash_attention::DeviceClass;

use crate::device::Gpu;
use crate::failure::Result;
use crate::resident;

/// How often to run.
#[derive(Clone, Copy)]
pub struct Effort {
    /// At least so many timed runs; with 0, one long warm-up run is answer enough.
    pub least: u32,
    /// At most so many.
    pub most: u32,
    /// Stop between the two when this is spent.
    pub budget: Duration,
    /// Run at least so long before the first timed run: idle GPUs take a second to reach their clocks.
    pub warm_up: Duration,
}

impl Effort {
    pub const BENCH: Effort =
        Effort { least: 3, most: 20, budget: Duration::from_secs(2), warm_up: Duration::from_secs(1) };
    /// For a glance.
    pub const GLANCE: Effort =
        Effort { least: 3, most: 20, budget: Duration::from_millis(300), warm_up: Duration::from_millis(100) };
    /// For a command whose purpose is the answer.
    pub const ASIDE: Effort =
        Effort { least: 0, most: 5, budget: Duration::from_millis(500), warm_up: Duration::from_millis(100) };
}

/// Sorted times in milliseconds.
pub struct Timing {
    times: Vec<f64>,
    /// The first run by the wall clock, with what a driver puts off until then.
    pub first: f64,
}

impl Timing {
    pub fn median(&self) -> f64 {
        let middle = self.times.len() / 2;
        if self.times.len().is_multiple_of(2) {
            (self.times[middle - 1] + self.times[middle]) / 2.0
        } else {
            self.times[middle]
        }
    }

    pub fn min(&self) -> f64 {
        self.times[0]
    }
}

/// What timestamps around commands of an encoder need.
pub const CLOCK_FEATURES: wgpu::Features =
    wgpu::Features::TIMESTAMP_QUERY.union(wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS);

/// Whether times come from the GPU.
pub fn has_clock(gpu: &Gpu) -> bool {
    gpu.attention.device().features().contains(CLOCK_FEATURES)
}

/// Two timestamps and the buffers to read them back.
struct Clock {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    readback: wgpu::Buffer,
}

/// Runs what `encode` records: a warm-up, then as often as `effort` says.
pub fn measure(gpu: &Gpu, effort: Effort, encode: impl Fn(&mut wgpu::CommandEncoder) -> Result<()>) -> Result<Timing> {
    let clock = Clock::new(gpu.attention.device());
    // The first run pays for lazy allocations.
    let start = Instant::now();
    let mut last = run(gpu, clock.as_ref(), 1, &encode)?;
    let first = start.elapsed().as_secs_f64() * 1e3;
    // A software driver has no clocks to bring up.
    let is_gpu = gpu.attention.capabilities().device_class != DeviceClass::Cpu;
    let mut runs = 0;
    while start.elapsed() < effort.warm_up && (is_gpu || runs < 10) {
        last = run(gpu, clock.as_ref(), 1, &encode)?;
        runs += 1;
    }

    // By the wall clock a short run drowns in the cost of submitting it: several share one submission.
    let together = if clock.is_some() { 1 } else { (10.0 / last).ceil().clamp(1.0, 100.0) as u32 };
    let mut times = Vec::new();
    if effort.least == 0 && start.elapsed() > effort.budget {
        times.push(last);
    }
    let start = Instant::now();
    while times.is_empty()
        || (times.len() as u32) < effort.least
        || ((times.len() as u32) < effort.most && start.elapsed() < effort.budget)
    {
        times.push(run(gpu, clock.as_ref(), together, &encode)?);
        if effort.least == 0 && start.elapsed() > effort.budget {
            break;
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(Timing { times, first })
}

/// Milliseconds of one of `count` runs in one submission.
fn run(
    gpu: &Gpu,
    clock: Option<&Clock>,
    count: u32,
    encode: &impl Fn(&mut wgpu::CommandEncoder) -> Result<()>,
) -> Result<f64> {
    let mut encoder = gpu.attention.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    if let Some(clock) = clock {
        encoder.write_timestamp(&clock.queries, 0);
    }
    for _ in 0..count {
        encode(&mut encoder)?;
    }
    if let Some(clock) = clock {
        encoder.write_timestamp(&clock.queries, 1);
        encoder.resolve_query_set(&clock.queries, 0..2, &clock.resolved, 0);
        encoder.copy_buffer_to_buffer(&clock.resolved, 0, &clock.readback, 0, 16);
    }
    let commands = encoder.finish();
    let start = Instant::now();
    gpu.attention.queue().submit([commands]);
    gpu.wait()?;
    let wall = start.elapsed().as_secs_f64() * 1e3 / f64::from(count);

    let Some(clock) = clock else { return Ok(wall) };
    let stamps = resident::mapped(gpu, &clock.readback)?;
    let stamp = |i: usize| stamps[8 * i..8 * i + 8].iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
    let ticks = stamp(1).saturating_sub(stamp(0)) as f64;
    let ms = ticks * f64::from(gpu.attention.queue().get_timestamp_period()) / 1e6 / f64::from(count);
    // Some drivers announce timestamps and leave them at zero.
    Ok(if ms > 0.0 { ms } else { wall })
}

impl Clock {
    fn new(device: &wgpu::Device) -> Option<Self> {
        if !device.features().contains(CLOCK_FEATURES) {
            return None;
        }
        let buffer = |usage| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("timestamps"),
                size: 16,
                usage,
                mapped_at_creation: false,
            })
        };
        Some(Self {
            queries: device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("timestamps"),
                ty: wgpu::QueryType::Timestamp,
                count: 2,
            }),
            resolved: buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC),
            readback: buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST),
        })
    }
}
