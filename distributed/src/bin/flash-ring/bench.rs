//! Time per call.

use crate::arguments::BenchOptions;
use crate::inputs::Numbers;
use crate::launch::{Failure, Work, launch};
use crate::svg;
use serde_json::{Value, json};
use std::time::Instant;
use wgpu_flash_attention::{AttentionProblem, BackwardBuffers, FlashAttention, ForwardBuffers, Operand, wgpu};
use wgpu_flash_attention_distributed::{Activity, Error, Event, RingAttention, Timeline, Transport};

/// Rows that are made at once, so that a rank needs no memory of the host for its whole part.
const ROWS: usize = 4096;

/// What takes longer is told of as it ends, in seconds.
const LONG: f64 = 1.0;

/// Bytes in which a rank tells rank 0 of a call.
const RECORD: usize = 1 << 16;

pub fn bench(options: &BenchOptions) -> Result<(), Failure> {
    let Some(answer) = launch(&options.ranks, options)? else { return Ok(()) };
    if let Some(path) = &options.svg {
        let figure = svg::timeline(&answer);
        std::fs::write(path, figure).map_err(|error| Error::Transport(format!("{}: {error}", path.display())))?;
    }
    if options.json {
        println!("{answer}")
    } else {
        print_text(&answer)
    }
    Ok(())
}

impl Work for BenchOptions {
    type Answer = Value;

    fn rank<T: Transport>(&self, mut transport: T, device: FlashAttention) -> Result<Option<Value>, Error> {
        let problem = self.problem.problem();
        let rank = transport.rank();
        let alone = match self.one_device && rank == 0 {
            true => Some(one_device(self, &device, &problem)),
            false => None,
        };
        // The others wait for as long as the transport does.
        transport.barrier()?;
        let alone = alone.transpose().inspect_err(|error| transport.fail(&error.to_string()))?;
        let ranks = transport.ranks();
        let mut ring = RingAttention::new(transport, &device, self.problem.scheme.scheme(), &problem)?;
        let start = Instant::now();
        fill(self, &mut ring, &problem)?;
        if rank == 0 && start.elapsed().as_secs_f64() > LONG {
            let gib = ring.device_bytes() as f64 / f64::from(1 << 30);
            eprintln!("flash-ring: all ranks have their inputs, {gib:.1} GiB of device memory each");
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
        Ok((rank == 0).then(|| {
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
        }))
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
            for (span, rows) in spans.iter().enumerate() {
                for (sequence, first) in
                    (0..shape.batch).flat_map(|of| (0..rows.len).step_by(ROWS).map(move |at| (of, at)))
                {
                    let end = rows.len.min(first + ROWS as u32);
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
    for call in 0..options.warm_up + options.repeats.max(1) {
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
            let (pass, count) =
                (if backward { "backward" } else { "forward" }, options.warm_up + options.repeats.max(1));
            eprintln!("flash-ring: {pass} call {} of {count}: {slowest:.2} s", call + 1);
        }
        if call >= options.warm_up {
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
    let tensors = [
        (shape.num_heads * shape.head_dim, shape.seqlen_q),
        (shape.num_heads_kv * shape.head_dim, shape.seqlen_kv),
        (shape.num_heads_kv * shape.head_dim_v, shape.seqlen_kv),
        (shape.num_heads * shape.head_dim_v, shape.seqlen_q),
    ];
    let filled = (0..).zip(tensors).map(|(number, (width, length))| {
        Numbers::new(problem.element, options.problem.seed, number).all(shape.batch, length, width)
    });
    let given: Vec<wgpu::Buffer> = filled.map(|bytes| buffer(device, bytes.len() as u64, &bytes)).collect();
    let forward = pollster::block_on(device.prepare_forward(&problem))?;
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
    for call in 0..options.warm_up + options.repeats.max(1) {
        let start = Instant::now();
        let mut encoder = device.device().create_command_encoder(&Default::default());
        encode(&mut encoder)?;
        device.queue().submit([encoder.finish()]);
        let waited = device.device().poll(wgpu::PollType::wait_indefinitely());
        waited.map_err(|error| Error::Gpu(error.to_string()))?;
        if call >= options.warm_up {
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

fn print_text(answer: &Value) {
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    println!(
        "{} ranks ({}, {}), {} on {}, {} tokens, {} heads over {}, head_dim {}",
        answer["ranks"],
        text(&answer["scheme"]),
        text(&answer["transport"]),
        text(&answer["element"]),
        text(&answer["adapter"]),
        answer["seqlen"],
        answer["num_heads"],
        answer["num_heads_kv"],
        answer["head_dim"],
    );
    println!("  {:.2} GiB of device memory a rank", number(&answer["device_bytes"]) / f64::from(1 << 30));
    if let Some(efficiency) = answer["efficiency"].as_f64() {
        println!("  {efficiency:.3} of one device's speed times ranks, over all passes");
    }
    let empty = Vec::new();
    for pass in answer["passes"].as_array().unwrap_or(&empty) {
        let seconds = number(&pass["seconds"]);
        let flops = number(&answer[format!("{}_flops", text(&pass["pass"]))]);
        let efficiency = pass["efficiency"].as_f64().map_or(String::new(), |share| {
            format!(
                ", {:.3} of one device's speed times ranks ({:.2} ms)",
                share,
                1e3 * number(&pass["one_device_seconds"])
            )
        });
        println!(
            "  {}: {:.2} ms, {:.1} TFLOP/s{efficiency}",
            text(&pass["pass"]),
            1e3 * seconds,
            flops / seconds / 1e12
        );
        for (rank, record) in pass["ranks"].as_array().unwrap_or(&empty).iter().enumerate() {
            println!("    rank {rank}: {}", spans(record));
        }
    }
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
