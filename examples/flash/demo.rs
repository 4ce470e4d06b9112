use std::io::Write;
use std::path::Path;

use wgpu_flash_attention::{Algorithm, AttentionProblem, PreparedForward};

use crate::arguments::Layout;
use crate::device::{self, Gpu};
use crate::elements;
use crate::failure::Result;
use crate::resident::{self, Resident};
use crate::tensors::{File, Inputs};
use crate::text::{self, Table, numbers, words};
use crate::timing::{self, Effort, Timing};

const INPUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/flash/data/minilm_layer0.safetensors");

/// The largest error of O that f32 may have, relative to the largest |O|, and of LSE relative to max(1, |LSE|).
const BOUND: f64 = 1e-5;

/// One algorithm on one mask.
struct Outcome {
    prepared: PreparedForward,
    time: Timing,
    o: Vec<f64>,
    lse: Vec<f64>,
}

pub async fn demo(choice: device::Choice<'_>, out: &mut dyn Write) -> Result<bool> {
    let file = File::read(Path::new(INPUT))?;
    let inputs = file.inputs(Layout::Bhsd)?;
    let values = |name: &str| -> Result<Vec<f64>> {
        let tensor = file.tensor(name)?;
        Ok(elements::decode(tensor.element, tensor.bytes).collect())
    };
    let (o, o_causal, lse) = (values("o")?, values("o_causal")?, values("lse")?);

    let gpu = device::open(choice).await?;
    let shape = inputs.shape;
    writeln!(out, "{}", gpu.describe())?;
    writeln!(
        out,
        "Attention of all-MiniLM-L6-v2, layer 0: {} heads, {} tokens, head_dim {}, {}.",
        shape.num_heads,
        shape.seqlen_q,
        shape.head_dim,
        inputs.element.name()
    )?;
    writeln!(out, "Errors are the largest ones against answers computed in float64.")?;
    writeln!(out)?;

    let columns = vec![
        words("", 16),
        numbers("largest error of O", 18),
        numbers("of LSE", 7),
        numbers("time", 8),
        numbers("extra memory", 12),
        words("kernels, tiles (query rows × keys)", 44),
    ];
    let table = Table::new("", columns, out)?;
    let mut worst: f64 = 0.0;
    let mut plain = Vec::new();
    for causal in [false, true] {
        for algorithm in [Algorithm::Flash, Algorithm::Standard] {
            let problem = AttentionProblem::new(shape).with_layout(Layout::Bhsd.of(&shape)).with_algorithm(algorithm);
            let problem = if causal { problem.with_causal() } else { problem };
            let outcome = compute(&gpu, &problem, &inputs).await?;

            let expected = if causal { &o_causal } else { &o };
            let largest = expected.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
            let o_error = elements::largest_error(outcome.o.iter().copied(), expected.iter().copied());
            // The file has no causal log-sum-exp; there, the row that sees every key must have the plain one.
            let rows = shape.seqlen_q as usize;
            let lse_error = outcome.lse.iter().zip(&lse).enumerate().filter(|(i, _)| !causal || i % rows == rows - 1);
            let lse_error = lse_error
                .map(|(_, (found, expected))| elements::error(*found, *expected) / expected.abs().max(1.0))
                .fold(0.0, f64::max);
            worst = worst.max(o_error / largest).max(lse_error);

            let plan = outcome.prepared.plan();
            let row = [
                format!("{}{}", algorithm.name(), if causal { ", causal" } else { "" }),
                text::error(o_error),
                text::error(lse_error),
                text::milliseconds(outcome.time.median()),
                text::bytes(plan.extra_bytes()),
                text::passes(plan),
            ];
            table.row(&row, out)?;
            if !causal {
                plain.push((outcome.time.median(), plan.extra_bytes()));
            }
        }
    }

    writeln!(out)?;
    if let [(flash_ms, flash_bytes), (standard_ms, standard_bytes)] = plain[..] {
        writeln!(
            out,
            "Flash takes {:.2} of standard attention's time and {:.4} of its extra memory.",
            flash_ms / standard_ms,
            flash_bytes as f64 / standard_bytes as f64
        )?;
    }
    let good = worst <= BOUND;
    writeln!(
        out,
        "Largest error {} of the largest |O| (or of LSE), bound {}: {}",
        text::error(worst),
        text::error(BOUND),
        if good { "ok" } else { "TOO LARGE" }
    )?;
    Ok(good)
}

async fn compute(gpu: &Gpu, problem: &AttentionProblem, inputs: &Inputs<'_>) -> Result<Outcome> {
    let prepared = gpu.attention.prepare_forward(problem).await?;
    let tensors = Resident::new(gpu, problem).await?;
    for (buffer, bytes) in [(&tensors.q, inputs.q), (&tensors.k, inputs.k), (&tensors.v, inputs.v)] {
        resident::upload(gpu, buffer, 0, bytes.to_vec())?;
    }
    tensors.poison(gpu)?;
    let time = timing::measure(gpu, Effort::GLANCE, |encoder| tensors.encode(&prepared, encoder))?;
    let read = |buffer: &wgpu::Buffer| -> Result<Vec<f64>> {
        Ok(elements::decode(problem.element, &resident::read(gpu, buffer, 0, buffer.size())?).collect())
    };
    let (o, lse) = (read(&tensors.o)?, read(&tensors.lse)?);
    Ok(Outcome { prepared, time, o, lse })
}
