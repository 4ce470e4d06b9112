//! Time per call.

use crate::arguments::BenchOptions;
use crate::inputs::Numbers;
use crate::launch::{Failure, Work, launch, rows_at_once, spare, told};
use crate::svg;
use crate::unfinished::{Destination, Unfinished};
use crate::words::{answer, say};
use serde_json::{Value, json};
use std::fmt::Write;
use std::io;
use std::path::Path;
use std::time::Instant;
use wgpu_flash_attention::{AttentionProblem, BackwardBuffers, FlashAttention, ForwardBuffers, Operand, wgpu};
use wgpu_flash_attention_distributed::{Activity, Error, Event, RingAttention, Timeline, Transport};

/// What takes longer is told of as it ends, in seconds.
const LONG: f64 = 1.0;

/// Bytes in which a rank tells rank 0 of a call.
const RECORD: usize = 1 << 16;

pub fn bench(options: &BenchOptions) -> Result<(), Failure> {
    let Some(record) = launch(&options.ranks, options)? else { return Ok(()) };
    answer(&if options.json { record.to_string() } else { text_of(&record) })
}

/// Names the file of the figure.
fn at<T>(path: &Path, result: io::Result<T>) -> Result<T, Error> {
    result.map_err(|error| Error::Work(format!("{}: {error}", path.display())))
}

/// Makes the file of the figure, so that a run is not for nothing.
fn make(path: &Path) -> Result<Unfinished, Error> {
    let destination = at(path, Destination::new(path))?;
    at(destination.unfinished(), destination.create())
}

impl Work for BenchOptions {
    type Answer = Value;

    fn rank<T: Transport>(&self, mut transport: T, device: FlashAttention) -> Result<Option<Value>, Error> {
        let problem = self.problem.problem();
        let rank = transport.rank();
        let figure = self.svg.as_ref().filter(|_| rank == 0).map(|path| make(path)).transpose();
        if let Some(Ok(destination)) = self.svg.as_deref().map(Destination::new) {
            // If rank 0 dies, another removes it.
            destination.announce();
        }
        let figure = told(&mut transport, figure)?;
        let alone = match self.one_device && rank == 0 {
            true => Some(one_device(self, &device, &problem)),
            false => None,
        };
        let alone = told(&mut transport, alone.transpose())?;
        // The others wait for as long as the transport does.
        transport.barrier()?;
        let ranks = transport.ranks();
        let mut ring = RingAttention::new(transport, &device, self.problem.scheme.scheme(), &problem)?;
        let start = Instant::now();
        let filled = fill(self, &mut ring, &problem);
        told(ring.transport(), filled)?;
        if rank == 0 && start.elapsed().as_secs_f64() > LONG {
            let gib = ring.device_bytes() as f64 / f64::from(1 << 30);
            say(&format!("all ranks have their inputs, {gib:.1} GiB of device memory each"));
        }
        let mut passes = Vec::new();
        for backward in [false, true] {
            if backward && !self.backward {
                continue;
            }
            let calls = calls(self, &mut ring, backward)?;
            passes.push(json!({
                "pass": if backward { "backward" } else { "forward" },
                "seconds": calls.seconds,
                "all_seconds": calls.all,
                "ranks": calls.of_ranks,
                "one_device_seconds": alone.map(|alone| alone[usize::from(backward)]),
                "efficiency": alone.map(|alone| alone[usize::from(backward)] / calls.seconds / ranks as f64),
            }));
        }
        // Of a training step: both passes together.
        let of_both = |name: &str| passes.iter().map(|pass| pass[name].as_f64()).sum::<Option<f64>>();
        let (together, of_one) = (of_both("seconds"), of_both("one_device_seconds"));
        let efficiency = of_one.zip(together).map(|(one, all)| one / all / ranks as f64);
        let of_problem = &self.problem;
        let flops = [problem.forward_flops(), problem.backward_flops()];
        let record = (rank == 0).then(|| {
            json!({
                "ranks": ranks,
                "scheme": of_problem.scheme.scheme().name(),
                "transport": if self.ranks.in_process.is_some() { "in-process" } else { "mpi" },
                "adapter": device.capabilities().adapter_name,
                "batch": of_problem.batch,
                "seqlen": of_problem.seqlen,
                "num_heads": of_problem.num_heads,
                "num_heads_kv": of_problem.num_heads_kv,
                "head_dim": of_problem.head_dim,
                "element": problem.element.name(),
                "causal": of_problem.mask.causal,
                "forward_flops": flops[0],
                "backward_flops": flops[1],
                "device_bytes": ring.device_bytes(),
                "efficiency": efficiency,
                "passes": passes,
            })
        });
        if let (Some(record), Some(figure)) = (&record, figure) {
            let path = figure.path().to_owned();
            at(&path, std::fs::write(&path, svg::timeline(record)).and_then(|()| figure.finish()))?;
        }
        Ok(record)
    }
}

impl BenchOptions {
    /// With those before the first timed one.
    fn calls(&self) -> u64 {
        u64::from(self.warm_up) + u64::from(self.repeats)
    }
}

/// Numbers for a rank's part.
fn fill<T: Transport>(
    options: &BenchOptions,
    ring: &mut RingAttention<T>,
    problem: &AttentionProblem,
) -> Result<(), Error> {
    let shape = &problem.shape;
    let (rows, keys) = (ring.rows().to_vec(), ring.keys().to_vec());
    let tensors = [
        (Operand::Q, shape.num_heads * shape.head_dim, &rows),
        (Operand::K, shape.num_heads_kv * shape.head_dim, &keys),
        (Operand::V, shape.num_heads_kv * shape.head_dim_v, &keys),
        (Operand::DO, shape.num_heads * shape.head_dim_v, &rows),
    ];
    for (number, (operand, width, spans)) in (0..).zip(tensors) {
        if operand != Operand::DO || options.backward {
            let numbers = Numbers::new(problem.element, options.problem.seed, number);
            let step = rows_at_once(u64::from(width) * problem.element.size());
            // A rank without rows sets them too.
            ring.set_rows(operand, 0, 0, 0, &[])?;
            for (span, rows) in spans.iter().enumerate() {
                for (sequence, first) in
                    (0..shape.batch).flat_map(|of| (0..rows.len).step_by(step).map(move |at| (of, at)))
                {
                    let end = rows.len.min(first + step as u32);
                    let made = numbers.rows(sequence, rows.first + first..rows.first + end, width);
                    ring.set_rows(operand, span, sequence, first, &made)?;
                }
            }
        }
    }
    Ok(())
}

/// Calls of all ranks.
struct Calls {
    /// The median of the slowest rank's times.
    seconds: f64,
    all: Vec<f64>,
    /// What each rank did in that call.
    of_ranks: Vec<Value>,
}

fn calls<T: Transport>(options: &BenchOptions, ring: &mut RingAttention<T>, backward: bool) -> Result<Calls, Error> {
    let mut timed = Vec::new();
    for call in 0..options.calls() {
        let timeline = if backward { ring.backward()? } else { ring.forward()? };
        let mut record = serde_json::to_vec(&record(&timeline)).unwrap_or_default();
        if record.len() > RECORD {
            record = serde_json::to_vec(&json!({"seconds": timeline.seconds, "events": []})).unwrap_or_default();
        }
        record.resize(RECORD, b' ');
        let gathered = ring.transport().all_gather(&record)?;
        let of_ranks: Vec<Value> =
            gathered.iter().map(|bytes| serde_json::from_slice(bytes).unwrap_or_default()).collect();
        let slowest = of_ranks.iter().filter_map(|rank| rank["seconds"].as_f64()).fold(0.0, f64::max);
        if slowest > LONG && ring.transport().rank() == 0 {
            let (pass, count) = (if backward { "backward" } else { "forward" }, options.calls());
            say(&format!("{pass} call {} of {count}: {slowest:.2} s", call + 1));
        }
        if call >= options.warm_up.into() {
            timed.push((slowest, of_ranks));
        }
    }
    let all = timed.iter().map(|(seconds, _)| *seconds).collect();
    timed.sort_by(|one, other| one.0.total_cmp(&other.0));
    let (seconds, of_ranks) = timed.swap_remove(timed.len() / 2);
    Ok(Calls { seconds, all, of_ranks })
}

fn record(timeline: &Timeline) -> Value {
    let event = |event: &Event| {
        let activity = match event.activity {
            Activity::Compute => "compute",
            Activity::Transfer => "transfer",
        };
        json!({"activity": activity, "step": event.step, "begin": event.begin, "end": event.end})
    };
    json!({"seconds": timeline.seconds, "events": timeline.events.iter().map(event).collect::<Vec<_>>()})
}

/// Seconds of forward and backward calls of the whole problem on this device, by the same clock.
fn one_device(options: &BenchOptions, device: &FlashAttention, problem: &AttentionProblem) -> Result<[f64; 2], Error> {
    let shape = &problem.shape;
    let problem = problem.clone().with_f32_gradients();
    // Refuses what is no problem, before anything is made of its size.
    let forward = pollster::block_on(device.prepare_forward(&problem))?;
    let tensors = [
        (shape.num_heads * shape.head_dim, shape.seqlen_q),
        (shape.num_heads_kv * shape.head_dim, shape.seqlen_kv),
        (shape.num_heads_kv * shape.head_dim_v, shape.seqlen_kv),
        (shape.num_heads * shape.head_dim_v, shape.seqlen_q),
    ];
    let bytes = |(width, length): &(u32, u32)| {
        let rows = u64::from(shape.batch) * u64::from(*length);
        rows.checked_mul(u64::from(*width) * problem.element.size())
    };
    // One after another: each as it is made, and once more on its way to the device.
    let largest = tensors.iter().map(bytes).reduce(|one, other| one.zip(other).map(|(one, other)| one.max(other)));
    spare(&options.ranks, largest.flatten().and_then(|bytes| bytes.checked_mul(2)))?;
    let filled = (0..).zip(tensors).map(|(number, (width, length))| {
        Numbers::new(problem.element, options.problem.seed, number).all(shape.batch, length, width)
    });
    let given: Vec<wgpu::Buffer> = filled.map(|bytes| buffer(device, bytes.len() as u64, &bytes)).collect();
    let bytes = |operand| forward.plan().required_bytes(operand);
    let [o, lse] = [Operand::O, Operand::Lse].map(|operand| buffer(device, bytes(operand), &[]));
    let [q, k, v, d_o] = [0, 1, 2, 3].map(|tensor: usize| given[tensor].slice(..));
    let buffers = ForwardBuffers::new(q, k, v, o.slice(..), lse.slice(..));
    let of_forward = time(options, device, |encoder| forward.encode(encoder, &buffers))?;
    if !options.backward {
        return Ok([of_forward, 0.0]);
    }
    let backward = pollster::block_on(device.prepare_backward(&problem))?;
    let bytes = |operand| backward.plan().required_bytes(operand);
    let gradients = [Operand::Dq, Operand::Dk, Operand::Dv].map(|operand| buffer(device, bytes(operand), &[]));
    let [dq, dk, dv] = gradients.each_ref().map(|buffer| buffer.slice(..));
    let buffers = BackwardBuffers::new(buffers, d_o, dq, dk, dv);
    Ok([of_forward, time(options, device, |encoder| backward.encode(encoder, &buffers))?])
}

type Encoded = Result<(), wgpu_flash_attention::Error>;

/// The median time of a call.
fn time(
    options: &BenchOptions,
    device: &FlashAttention,
    encode: impl Fn(&mut wgpu::CommandEncoder) -> Encoded,
) -> Result<f64, Error> {
    let mut times = Vec::new();
    for call in 0..options.calls() {
        let start = Instant::now();
        let mut encoder = device.device().create_command_encoder(&Default::default());
        encode(&mut encoder)?;
        device.queue().submit([encoder.finish()]);
        let waited = device.device().poll(wgpu::PollType::wait_indefinitely());
        waited.map_err(|error| Error::Gpu(error.to_string()))?;
        if call >= options.warm_up.into() {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

fn buffer(device: &FlashAttention, size: u64, bytes: &[u8]) -> wgpu::Buffer {
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
    let size = size.max(16).next_multiple_of(4);
    let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
    let made = device.device().create_buffer(&descriptor);
    for (piece, bytes) in (0..).zip(bytes.chunks(32 << 20)) {
        device.queue().write_buffer(&made, piece * (32 << 20), bytes);
        device.queue().submit([]);
    }
    made
}

fn text_of(answer: &Value) -> String {
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    let mut out = format!(
        "{} ranks ({}, {}), {} on {}, {} tokens, {} heads over {}, head_dim {}\n  {:.2} GiB of device memory a rank",
        answer["ranks"],
        text(&answer["scheme"]),
        text(&answer["transport"]),
        text(&answer["element"]),
        text(&answer["adapter"]),
        answer["seqlen"],
        answer["num_heads"],
        answer["num_heads_kv"],
        answer["head_dim"],
        number(&answer["device_bytes"]) / f64::from(1 << 30),
    );
    if let Some(efficiency) = answer["efficiency"].as_f64() {
        let _ = write!(out, "\n  {efficiency:.3} of one device's speed times ranks, over all passes");
    }
    let empty = Vec::new();
    for pass in answer["passes"].as_array().unwrap_or(&empty) {
        let (name, seconds) = (text(&pass["pass"]), number(&pass["seconds"]));
        let speed = number(&answer[format!("{name}_flops")]) / seconds / 1e12;
        let _ = write!(out, "\n  {name}: {:.2} ms, {speed:.1} TFLOP/s", 1e3 * seconds);
        if let Some(share) = pass["efficiency"].as_f64() {
            let alone = 1e3 * number(&pass["one_device_seconds"]);
            let _ = write!(out, ", {share:.3} of one device's speed times ranks ({alone:.2} ms)");
        }
        for (rank, record) in pass["ranks"].as_array().unwrap_or(&empty).iter().enumerate() {
            let _ = write!(out, "\n    rank {rank}: {}", spans(record));
        }
    }
    out
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}

/// Each step's compute and transfer, in milliseconds.
fn spans(record: &Value) -> String {
    let empty = Vec::new();
    let events = record["events"].as_array().unwrap_or(&empty);
    let of = |event: &Value| {
        let [begin, end] = ["begin", "end"].map(|name| 1e3 * event[name].as_f64().unwrap_or(0.0));
        format!("{} {} {begin:.1}–{end:.1}", text(&event["activity"]), event["step"])
    };
    events.iter().map(of).collect::<Vec<_>>().join(", ")
}
