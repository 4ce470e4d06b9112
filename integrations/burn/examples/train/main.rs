//! Trains a small GPT on this repository's own texts, once with this crate's attention and once with attention of Burn's own
//! operations: the same numbers to begin with, the same batches, dropout in both. Writes both curves into one SVG.
//!
//!     cargo run --release --example train -- --steps 300 --svg target/train.svg
//!
//! Or times the training step of attention alone, beside that of Burn's operations:
//!
//!     cargo run --release --features burn/autotune --example train -- \
//!         --bench --batch 2 --heads 16 --context 4096 --head-dim 64 --element f16

#[path = "../common/element.rs"]
mod element;
mod gpt;
mod step;
#[path = "../common/timing.rs"]
mod timing;

use anyhow::{Result, ensure};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Int, Shape, Tensor, TensorData};
use clap::Parser;
use element::Element;
use gpt::{By, Gpt, Sizes};
use plotters::prelude::*;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;
use step::{Attention, Problem};

#[derive(Parser)]
#[command(about = "Trains a small GPT with this crate's attention, and with Burn's own operations")]
struct Options {
    /// Steps of each training.
    #[arg(long, default_value_t = 200)]
    steps: usize,
    /// Sequences of a batch.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Bytes of a sequence.
    #[arg(long, default_value_t = 128)]
    context: usize,
    #[arg(long, default_value_t = 2)]
    layers: usize,
    #[arg(long, default_value_t = 4)]
    heads: usize,
    #[arg(long, default_value_t = 32)]
    head_dim: usize,
    /// The chance to drop a probability of attention.
    #[arg(long, default_value_t = 0.1)]
    dropout: f64,
    #[arg(long, default_value_t = 1e-3)]
    learning_rate: f64,
    /// Of the weights, the batches and dropout.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The folder of the repository, whose texts are learned.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))]
    text: PathBuf,
    /// Where the curves go.
    #[arg(long, default_value = "target/train.svg")]
    svg: PathBuf,
    /// Times the training step of attention alone, without a mask and without dropout.
    #[arg(long)]
    bench: bool,
    /// Of Q, K, V and O in the timings.
    #[arg(long, default_value = "f16", requires = "bench")]
    element: Element,
    /// The one attention to time, and to print as JSON.
    #[arg(long, requires = "bench")]
    only: Option<Attention>,
    /// Losses and times, or timings, as JSON: one line for each attention.
    #[arg(long)]
    json: bool,
}

/// Losses in nats, and the seconds of each step.
struct Training {
    losses: Vec<f32>,
    seconds: Vec<f64>,
}

impl Training {
    /// The mean of the last tenth of the losses.
    fn last_loss(&self) -> f32 {
        let last = &self.losses[self.losses.len() - self.losses.len().div_ceil(10)..];
        last.iter().sum::<f32>() / last.len() as f32
    }

    /// The median time of a step, without the first two, which compile.
    fn step_seconds(&self) -> f64 {
        let mut seconds = self.seconds[self.seconds.len().min(2)..].to_vec();
        seconds.sort_by(f64::total_cmp);
        seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    if options.bench {
        let &Options { batch, heads, context, head_dim, element, seed, .. } = &options;
        let problem = Problem { shape: [batch, heads, context, head_dim], element, seed };
        return options.only.map_or_else(|| step::run(options.json), |only| step::run_one(&problem, only));
    }
    let text = text(&options.text)?;
    let most = text.len().saturating_sub(2);
    ensure!(options.steps > 0 && (1..=most).contains(&options.context), "--steps from 1, --context from 1 to {most}");
    eprintln!("{} bytes of text, {} steps of {} x {} bytes", text.len(), options.steps, options.batch, options.context);
    let device = wgpu_flash_attention_burn::init()?.autodiff();
    let mut trainings = Vec::new();
    for by in [By::ThisCrate, By::Burn] {
        let training = train(&options, &text, by, &device)?;
        let (loss, milliseconds) = (training.last_loss(), 1e3 * training.step_seconds());
        if options.json {
            let losses = &training.losses;
            println!("{}", json!({ "attention": by.to_string(), "milliseconds": milliseconds, "losses": losses }));
        } else {
            println!("{by}: loss {loss:.3}, {milliseconds:.1} ms a step");
        }
        trainings.push((by, training));
    }
    draw(&options.svg, &trainings)?;
    eprintln!("wrote {}", options.svg.display());
    Ok(())
}

/// All texts in Markdown and WGSL of the repository's root, docs and shaders, in the order of their names.
fn text(root: &Path) -> Result<Vec<u8>> {
    let mut files = Vec::new();
    for folder in ["", "docs", "shaders"] {
        for entry in std::fs::read_dir(root.join(folder))? {
            let path = entry?.path();
            let is_text = path.extension().is_some_and(|extension| extension == "md" || extension == "wgsl");
            files.extend(is_text.then_some(path));
        }
    }
    files.sort();
    let mut text = Vec::new();
    for file in files {
        text.extend(std::fs::read(file)?);
    }
    Ok(text)
}

fn train(options: &Options, text: &[u8], by: By, device: &Device) -> Result<Training> {
    let &Options { batch, context, layers, heads, head_dim, dropout, .. } = options;
    device.seed(options.seed);
    let sizes = Sizes { context, layers, heads, head_dim };
    let mut model = Gpt::new(&sizes, device);
    let mut optimizer = AdamWConfig::new().init();
    let mut training = Training { losses: Vec::new(), seconds: Vec::new() };
    let mut place = options.seed;
    for step in 0..options.steps {
        let start = Instant::now();
        let mut numbers = Vec::with_capacity(batch * (context + 1));
        for _ in 0..batch {
            // Knuth's MMIX generator: the same places in both trainings.
            place = place.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let first = (place >> 33) as usize % (text.len() - context - 1);
            numbers.extend(text[first..=first + context].iter().map(|byte| i32::from(*byte)));
        }
        let data = TensorData::new(numbers, Shape::from([batch, context + 1]));
        let tokens = Tensor::<2, Int>::from_data(data, device);
        let inputs = tokens.clone().narrow(1, 0, context);
        let targets = tokens.narrow(1, 1, context).reshape([batch * context]);
        let loss = model.loss(inputs, targets, by, dropout, step as u64)?;
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(options.learning_rate, model, gradients);
        training.losses.push(loss.into_scalar());
        training.seconds.push(start.elapsed().as_secs_f64());
        if (step + 1) % 20 == 0 {
            eprintln!("{by}: step {}, loss {:.3}", step + 1, training.losses[step]);
        }
    }
    Ok(training)
}

fn draw(path: &Path, trainings: &[(By, Training)]) -> Result<()> {
    let steps = trainings.iter().map(|(_, training)| training.losses.len()).max().unwrap_or(1);
    let largest =
        trainings.iter().flat_map(|(_, training)| &training.losses).fold(0f32, |largest, loss| largest.max(*loss));
    let area = SVGBackend::new(path, (800, 500)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption("A small GPT, with dropout in attention", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(48)
        .build_cartesian_2d(0..steps, 0f32..largest * 1.05)?;
    chart.configure_mesh().max_light_lines(1).x_desc("step").y_desc("loss in nats per byte").draw()?;
    for ((by, training), colour) in trainings.iter().zip([BLUE, RED]) {
        let label = format!("{by}: {:.1} ms a step", 1e3 * training.step_seconds());
        chart
            .draw_series(LineSeries::new(training.losses.iter().copied().enumerate(), &colour))?
            .label(label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour));
    }
    let labels = &mut chart.configure_series_labels();
    labels.position(SeriesLabelPosition::UpperRight).background_style(WHITE).border_style(BLACK).draw()?;
    area.present()?;
    Ok(())
}
