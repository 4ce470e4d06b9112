//! Timings of the model with this library's attention and with Burn's, in one run, and whether both give the same answer.

use std::time::Instant;

use anyhow::{Result, ensure};
use burn::tensor::Device;
use serde::Serialize;

use crate::cache::{Attention, Storage};
use crate::model::SmolLm;

/// Times one after another; the middle one counts.
const REPEATS: usize = 3;

#[derive(Serialize)]
struct Row {
    attention: Attention,
    length: usize,
    /// Reading `length` tokens at once.
    prefill_milliseconds: f64,
    prefill_tokens_per_second: f64,
    /// Reading one more token and its logits, when nearly `length` tokens are there.
    decode_milliseconds: f64,
    decode_tokens_per_second: f64,
    /// ‖logits − Burn's‖ / ‖Burn's‖ after the prefill, and after the last decoded token.
    prefill_difference: f64,
    decode_difference: f64,
}

struct Timing {
    seconds: f64,
    logits: Vec<f32>,
}

pub fn run(
    model: &SmolLm,
    device: &Device,
    storage: Storage,
    lengths: &[usize],
    steps: usize,
    json: bool,
) -> Result<()> {
    ensure!(steps > 0, "--steps is 0");
    let mut rows = Vec::new();
    for &length in lengths {
        ensure!(length > steps, "--lengths {length} must be longer than --steps {steps}");
        let tokens: Vec<u32> = (0..length).map(|i| (i * 7919 % model.config.vocabulary) as u32).collect();
        let timed = |attention| -> Result<[Timing; 2]> {
            let storage = storage_of(attention, storage);
            Ok([
                prefill(model, device, attention, storage, &tokens)?,
                decode(model, device, attention, storage, &tokens, steps)?,
            ])
        };
        let (burn, flash) = (timed(Attention::Burn)?, timed(Attention::Flash)?);
        for (attention, [prefill, decode]) in [(Attention::Burn, &burn), (Attention::Flash, &flash)] {
            rows.push(Row {
                attention,
                length,
                prefill_milliseconds: 1e3 * prefill.seconds,
                prefill_tokens_per_second: length as f64 / prefill.seconds,
                decode_milliseconds: 1e3 * decode.seconds,
                decode_tokens_per_second: 1.0 / decode.seconds,
                prefill_difference: difference(&prefill.logits, &burn[0].logits),
                decode_difference: difference(&decode.logits, &burn[1].logits),
            });
        }
    }
    if json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        println!("attention  tokens   prefill ms  tokens/s   decode ms  tokens/s   difference of logits");
        for row in rows {
            println!(
                "{:<9} {:>7} {:>12.1} {:>9.0} {:>11.2} {:>9.1}   {:.1e} {:.1e}",
                format!("{:?}", row.attention).to_lowercase(),
                row.length,
                row.prefill_milliseconds,
                row.prefill_tokens_per_second,
                row.decode_milliseconds,
                row.decode_tokens_per_second,
                row.prefill_difference,
                row.decode_difference,
            );
        }
    }
    Ok(())
}

/// Burn's attention has no int8 cache: it is timed with f16.
fn storage_of(attention: Attention, storage: Storage) -> Storage {
    if attention == Attention::Burn && storage == Storage::Int8 { Storage::F16 } else { storage }
}

fn prefill(model: &SmolLm, device: &Device, attention: Attention, storage: Storage, tokens: &[u32]) -> Result<Timing> {
    let mut seconds = Vec::new();
    let mut logits = Vec::new();
    // The first time is for pipelines and memory.
    for repeat in 0..=REPEATS {
        let mut text = model.start(attention, storage, tokens.len())?;
        device.sync()?;
        let start = Instant::now();
        logits = text.read(tokens)?.try_into_data()?.try_into_vec::<f32>()?;
        if repeat > 0 {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    Ok(Timing { seconds: middle(seconds), logits })
}

/// The last `steps` tokens, one by one, after all others.
fn decode(
    model: &SmolLm,
    device: &Device,
    attention: Attention,
    storage: Storage,
    tokens: &[u32],
    steps: usize,
) -> Result<Timing> {
    let (first, last) = tokens.split_at(tokens.len() - steps);
    let mut seconds = Vec::new();
    let mut logits = Vec::new();
    for repeat in 0..=REPEATS {
        let mut text = model.start(attention, storage, tokens.len())?;
        text.read(first)?;
        device.sync()?;
        let start = Instant::now();
        for &token in last {
            logits = text.read(&[token])?.try_into_data()?.try_into_vec::<f32>()?;
        }
        if repeat > 0 {
            seconds.push(start.elapsed().as_secs_f64() / steps as f64);
        }
    }
    Ok(Timing { seconds: middle(seconds), logits })
}

fn middle(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// ‖a − b‖ / ‖b‖
fn difference(a: &[f32], b: &[f32]) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let apart = square(&mut a.iter().zip(b).map(|(a, b)| f64::from(a - b)));
    (apart / square(&mut b.iter().map(|&b| f64::from(b)))).sqrt()
}
