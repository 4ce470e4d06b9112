use std::io::Write;
use std::time::Instant;

use serde::Serialize;
use wgpu_flash_attention::{Algorithm, AttentionProblem, AttentionShape, Capabilities, Element, Plan, reference};

use crate::arguments::{RunAlgorithm, RunOptions};
use crate::elements;
use crate::failure::Result;
use crate::resident::{self, Resident};
use crate::tensors::{self, File, Inputs, Target};
use crate::timing::{self, Effort};
use crate::{device, text};

/// What was run, for people and for `--json`.
#[derive(Serialize)]
struct Summary {
    algorithm: &'static str,
    batch: u32,
    heads: u32,
    heads_kv: u32,
    seqlen_q: u32,
    seqlen_kv: u32,
    head_dim: u32,
    head_dim_v: u32,
    element: &'static str,
    causal: Option<&'static str>,
    adapter: Option<String>,
    kernel: String,
    tiles: Option<String>,
    ms_median: f64,
    ms_min: f64,
    extra_bytes: u64,
}

/// O and LSE as bytes, and how they came about.
struct Answer {
    o: Vec<u8>,
    lse: Vec<u8>,
    summary: Summary,
}

pub async fn run(options: &RunOptions, choice: device::Choice<'_>, out: &mut dyn Write) -> Result<bool> {
    let file = File::read(&options.input)?;
    let mut inputs = file.inputs(options.layout)?;
    let target = Target::new(&options.output)?;

    let element = options.element.unwrap_or(inputs.element);
    let converted = [inputs.q, inputs.k, inputs.v].map(|bytes| {
        (element != inputs.element).then(|| elements::encode(element, elements::decode(inputs.element, bytes)))
    });
    if let [Some(q), Some(k), Some(v)] = &converted {
        inputs = Inputs { element, q, k, v, ..inputs };
    }

    let mut problem = problem(options, &inputs);
    if options.algorithm == RunAlgorithm::Standard {
        problem = problem.algorithm(Algorithm::Standard);
    }
    let answer = match options.algorithm {
        RunAlgorithm::Flash | RunAlgorithm::Standard => on_gpu(options, &problem, &inputs, choice).await?,
        RunAlgorithm::Reference => on_cpu(options, &problem, &inputs)?,
    };

    target.write(&tensors::outputs(&problem.shape, options.layout, element, &answer.o, &answer.lse)?)?;
    if options.json {
        writeln!(out, "{}", json(&answer.summary))?;
    } else {
        answer.summary.print(out)?;
        writeln!(out, "wrote o and lse to {}", options.output.display())?;
    }
    Ok(true)
}

/// One line of JSON. Plain structs of numbers and strings always have one.
pub fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn problem(options: &RunOptions, inputs: &Inputs) -> AttentionProblem {
    let problem = AttentionProblem::new(inputs.shape).element(inputs.element).layout(options.layout.of(&inputs.shape));
    let mut problem = options.causal.apply(problem);
    if let Some(window) = options.window {
        problem = problem.window(window.left, window.right);
    }
    if let Some(scale) = options.scale {
        problem = problem.scale(scale);
    }
    if let Some(dropout_p) = options.dropout {
        problem = problem.dropout(dropout_p, options.seed);
    }
    problem
}

async fn on_gpu(
    options: &RunOptions,
    problem: &AttentionProblem,
    inputs: &Inputs<'_>,
    choice: device::Choice<'_>,
) -> Result<Answer> {
    let gpu = device::open(choice).await?;
    let prepared = gpu.attention.prepare_forward(problem).await?;
    let tensors = Resident::new(&gpu, problem).await?;
    for (buffer, bytes) in [(&tensors.q, inputs.q), (&tensors.k, inputs.k), (&tensors.v, inputs.v)] {
        resident::upload(&gpu, buffer, 0, bytes.to_vec())?;
    }
    let time = timing::measure(&gpu, Effort::ASIDE, |encoder| tensors.encode(&prepared, encoder))?;

    let shape = problem.shape;
    let o_len = shape.lse_len() * u64::from(shape.head_dim_v) * problem.element.size();
    let plan = prepared.plan();
    Ok(Answer {
        o: resident::read(&gpu, &tensors.o, 0, o_len)?,
        lse: resident::read(&gpu, &tensors.lse, 0, shape.lse_len() * 4)?,
        summary: Summary {
            adapter: Some(gpu.describe()),
            kernel: text::kernels(plan),
            tiles: Some(plan.tiles().to_string()),
            ms_median: time.median(),
            ms_min: time.min(),
            extra_bytes: plan.extra_bytes(),
            ..Summary::new(options, problem.algorithm.name(), &shape, problem.element)
        },
    })
}

fn on_cpu(options: &RunOptions, problem: &AttentionProblem, inputs: &Inputs) -> Result<Answer> {
    // The oracle panics on what the planner refuses, so the planner judges first, for a device without limits.
    let unlimited = Capabilities { max_buffer: u64::MAX, max_binding: u64::MAX, ..Capabilities::webgpu_defaults() };
    Plan::new(problem, &unlimited)?;
    let [q, k, v] =
        [inputs.q, inputs.k, inputs.v].map(|bytes| elements::decode(inputs.element, bytes).collect::<Vec<_>>());
    let start = Instant::now();
    let answer = reference::forward(problem, &q, &k, &v);
    let ms = start.elapsed().as_secs_f64() * 1e3;
    Ok(Answer {
        o: elements::encode(problem.element, answer.o.into_iter()),
        lse: elements::encode(Element::F32, answer.lse.into_iter()),
        summary: Summary {
            ms_median: ms,
            ms_min: ms,
            ..Summary::new(options, "reference", &problem.shape, problem.element)
        },
    })
}

impl Summary {
    fn new(options: &RunOptions, algorithm: &'static str, shape: &AttentionShape, element: Element) -> Self {
        Self {
            algorithm,
            batch: shape.batch,
            heads: shape.num_heads,
            heads_kv: shape.num_heads_kv,
            seqlen_q: shape.seqlen_q,
            seqlen_kv: shape.seqlen_kv,
            head_dim: shape.head_dim,
            head_dim_v: shape.head_dim_v,
            element: element.name(),
            causal: options.causal.causal.map(|causal| causal.name()),
            adapter: None,
            kernel: algorithm.to_owned(),
            tiles: None,
            ms_median: 0.0,
            ms_min: 0.0,
            extra_bytes: 0,
        }
    }

    fn print(&self, out: &mut dyn Write) -> Result<()> {
        writeln!(
            out,
            "batch {}, heads {} (kv {}), seqlen {} × {}, head_dim {} (v {}), {}",
            self.batch,
            self.heads,
            self.heads_kv,
            self.seqlen_q,
            self.seqlen_kv,
            self.head_dim,
            self.head_dim_v,
            self.element
        )?;
        match (&self.adapter, &self.tiles) {
            (Some(adapter), Some(tiles)) => {
                writeln!(out, "{adapter}")?;
                writeln!(out, "{} in tiles of {tiles}", self.kernel)?;
                writeln!(
                    out,
                    "{} on the GPU, {} beyond q, k, v and o",
                    text::milliseconds(self.ms_median),
                    text::bytes(self.extra_bytes)
                )?;
            }
            _ => writeln!(out, "f64 oracle on the CPU, {}", text::milliseconds(self.ms_median))?,
        }
        Ok(())
    }
}
