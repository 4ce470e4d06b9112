//! When a rank computed and when it exchanged, from the device's timestamps and the host's clock.

use crate::error::Error;
use crate::gpu::{buffer, caught, map, submit, wait};
use std::time::Instant;
use wgpu_flash_attention::{FlashAttention, wgpu};

/// What a rank did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// Kernels on the device.
    Compute,
    /// Waiting for bytes from the device, and passing them on.
    Transfer,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Event {
    /// Which.
    pub activity: Activity,
    /// The step of the ring.
    pub step: usize,
    /// Seconds from the start of the call.
    pub begin: f64,
    /// The same of its end.
    pub end: f64,
}

/// What a rank did in one call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timeline {
    /// In order of their beginning within each activity.
    pub events: Vec<Event>,
    /// Seconds from the barrier before the call to the end of its work on this rank.
    pub seconds: f64,
}

/// The clock of a call: timestamps where the device has them.
pub(crate) struct Clock {
    start: Instant,
    queries: Option<Queries>,
    events: Vec<Event>,
}

struct Queries {
    set: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    readback: wgpu::Buffer,
    steps: u32,
}

const FEATURES: wgpu::Features = wgpu::Features::TIMESTAMP_QUERY.union(wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS);

impl Queries {
    fn new(attention: &FlashAttention, steps: u32) -> Result<Option<Self>, Error> {
        let device = attention.device();
        // A query set holds 4096.
        if !device.features().contains(FEATURES) || 2 * steps + 1 > 4096 {
            return Ok(None);
        }
        let count = 2 * steps + 1;
        let descriptor = wgpu::QuerySetDescriptor { label: Some("steps"), ty: wgpu::QueryType::Timestamp, count };
        let bytes = 8 * u64::from(count);
        let resolve = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        let read = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        Ok(Some(Self {
            set: caught(attention, "timestamps", || device.create_query_set(&descriptor))?,
            resolved: buffer(attention, "timestamps", bytes, resolve)?,
            readback: buffer(attention, "timestamps", bytes, read)?,
            steps,
        }))
    }

    /// All timestamps, in seconds of the device's clock.
    fn read(&self, attention: &FlashAttention, count: u32) -> Result<Vec<f64>, Error> {
        let copied = submit(attention, "reading timestamps", |encoder| {
            encoder.resolve_query_set(&self.set, 0..count, &self.resolved, 0);
            encoder.copy_buffer_to_buffer(&self.resolved, 0, &self.readback, 0, 8 * u64::from(count));
            Ok(())
        })?;
        map(attention, &[(&self.readback, wgpu::MapMode::Read)], Some(copied))?;
        let view = self.readback.get_mapped_range(..).map_err(|error| Error::Gpu(error.to_string()))?;
        let period = f64::from(attention.queue().get_timestamp_period()) * 1e-9;
        let words = view.chunks_exact(8).take(count as usize);
        let read = words.map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()) as f64 * period).collect();
        drop(view);
        self.readback.unmap();
        Ok(read)
    }
}

impl Clock {
    /// For a call of so many steps, which starts now.
    pub fn new(attention: &FlashAttention, steps: usize) -> Result<Self, Error> {
        let queries = Queries::new(attention, steps as u32)?;
        Ok(Self { start: Instant::now(), queries, events: Vec::new() })
    }

    /// Marks where the kernels of a step begin in an encoder.
    pub fn begin(&self, encoder: &mut wgpu::CommandEncoder, step: usize) {
        self.mark(encoder, 2 * step as u32);
    }

    /// Marks where they end.
    pub fn end(&self, encoder: &mut wgpu::CommandEncoder, step: usize) {
        self.mark(encoder, 2 * step as u32 + 1);
    }

    fn mark(&self, encoder: &mut wgpu::CommandEncoder, index: u32) {
        if let Some(queries) = &self.queries {
            encoder.write_timestamp(&queries.set, index);
        }
    }

    /// Notes a transfer that began then, and ends now.
    pub fn transferred(&mut self, step: usize, begin: Instant) {
        let since = |instant: Instant| instant.saturating_duration_since(self.start).as_secs_f64();
        let event = Event { activity: Activity::Transfer, step, begin: since(begin), end: since(Instant::now()) };
        self.events.push(event);
    }

    /// Waits for all work; what happened.
    pub fn finish(self, attention: &FlashAttention) -> Result<Timeline, Error> {
        wait(attention, None)?;
        let mut timeline = Timeline { seconds: self.start.elapsed().as_secs_f64(), events: self.events };
        let Some(queries) = &self.queries else { return Ok(timeline) };
        // Both clocks at one moment: the last timestamp is taken at most a submission's time before the host reads its own.
        let marked = submit(attention, "a timestamp", |encoder| {
            encoder.write_timestamp(&queries.set, 2 * queries.steps);
            Ok(())
        })?;
        wait(attention, Some(marked))?;
        let now = self.start.elapsed().as_secs_f64();
        let seconds = queries.read(attention, 2 * queries.steps + 1)?;
        let last = seconds.last().copied().unwrap_or(0.0);
        for (step, pair) in seconds.chunks_exact(2).enumerate() {
            let [begin, end] = [pair[0], pair[1]].map(|second| now - (last - second));
            timeline.events.push(Event { activity: Activity::Compute, step, begin, end });
        }
        Ok(timeline)
    }
}
