//! Timings of the model with this library's attention and with Burn's, in one run, and whether both give the same answer.

use anyhow::{Result, ensure};
use burn::tensor::{Device, Tensor};
use serde::Serialize;

use crate::cache::{Attention, Storage};
use crate::model::{SmolLm, Text};
use crate::timing::timed;

/// Times one after another, fewer if they are long; the middle one counts.
const REPEATS: usize = 3;

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Phase {
    /// Reading `length` tokens at once.
    Prefill,
    /// Reading one more token and its logits, when nearly `length` tokens are there.
    Decode,
}

#[derive(Serialize)]
struct Row {
    phase: Phase,
    length: usize,
    attention: Attention,
    /// Of the prompt, or of each decoded token.
    milliseconds: f64,
    tokens_per_second: f64,
    /// ‖logits − this library's‖ / ‖this library's‖ after the last token.
    difference: f64,
}

/// Prints a row as soon as it is known, as JSON one line for each.
pub fn run(
    model: &SmolLm,
    device: &Device,
    storage: Storage,
    lengths: &[usize],
    steps: usize,
    json: bool,
) -> Result<()> {
    ensure!(steps > 0, "--steps is 0");
    if !json {
        println!("phase    tokens  attention           ms   tokens/s  difference of logits");
    }
    for &length in lengths {
        ensure!(length > steps, "--lengths {length} must be longer than --steps {steps}");
        let tokens: Vec<u32> = (0..length).map(|i| (i * 7919 % model.config.vocabulary) as u32).collect();
        let (first, last) = tokens.split_at(length - steps);
        // Seconds of the prompt or of a decoded token, and the last logits.
        let time = |phase, attention| -> Result<(f64, Vec<f32>)> {
            let start = || model.start(attention, storage_of(attention, storage), length);
            match phase {
                Phase::Prefill => timed(device, REPEATS, start, |mut text| logits(text.read(&tokens)?)),
                Phase::Decode => {
                    let prepare = || -> Result<Text> {
                        let mut text = start()?;
                        text.read(first)?;
                        Ok(text)
                    };
                    let (seconds, logits) = timed(device, REPEATS, prepare, |mut text| {
                        let mut seen = Vec::new();
                        for &token in last {
                            seen = logits(text.read(&[token])?)?;
                        }
                        Ok(seen)
                    })?;
                    Ok((seconds / steps as f64, logits))
                }
            }
        };
        // After the prefill, and after the last decoded token.
        let mut flash = Vec::new();
        for attention in [Attention::Flash, Attention::Burn] {
            for (index, (phase, count)) in [(Phase::Prefill, length), (Phase::Decode, 1)].into_iter().enumerate() {
                let (seconds, logits) = time(phase, attention)?;
                if attention == Attention::Flash {
                    flash.push(logits.clone());
                }
                let row = Row {
                    phase,
                    length,
                    attention,
                    milliseconds: 1e3 * seconds,
                    tokens_per_second: count as f64 / seconds,
                    difference: difference(&logits, &flash[index]),
                };
                if json {
                    println!("{}", serde_json::to_string(&row)?);
                    continue;
                }
                println!(
                    "{:<7} {:>7}  {:<9} {:>12.2} {:>10.1}  {:.1e}",
                    format!("{:?}", row.phase).to_lowercase(),
                    row.length,
                    format!("{:?}", row.attention).to_lowercase(),
                    row.milliseconds,
                    row.tokens_per_second,
                    row.difference,
                );
            }
        }
    }
    Ok(())
}

/// Burn's attention has no int8 cache: it is timed with f16.
fn storage_of(attention: Attention, storage: Storage) -> Storage {
    if attention == Attention::Burn && storage == Storage::Int8 { Storage::F16 } else { storage }
}

fn logits(logits: Tensor<1>) -> Result<Vec<f32>> {
    Ok(logits.try_into_data()?.try_into_vec::<f32>()?)
}

/// ‖a − b‖ / ‖b‖
fn difference(a: &[f32], b: &[f32]) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let apart = square(&mut a.iter().zip(b).map(|(a, b)| f64::from(a - b)));
    (apart / square(&mut b.iter().map(|&b| f64::from(b)))).sqrt()
}
