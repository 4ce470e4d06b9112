//! Timings of the model with this library's attention and with Burn's, in one run, and whether both give the same answer.

use anyhow::{Result, ensure};
use burn::tensor::{Device, Tensor};
use serde::Serialize;

use crate::cache::{Attention, Storage};
use crate::model::{SmolLm, Text};
use crate::timing::timed;

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
    /// ‖logits − this library's‖ / ‖this library's‖ after the prefill, and after the last decoded token.
    prefill_difference: f64,
    decode_difference: f64,
}

/// Seconds, and the last logits.
type Timing = (f64, Vec<f32>);

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
        println!("attention  tokens   prefill ms  tokens/s   decode ms  tokens/s   difference of logits");
    }
    for &length in lengths {
        ensure!(length > steps, "--lengths {length} must be longer than --steps {steps}");
        let tokens: Vec<u32> = (0..length).map(|i| (i * 7919 % model.config.vocabulary) as u32).collect();
        let (first, last) = tokens.split_at(length - steps);
        let timings = |attention| -> Result<[Timing; 2]> {
            let start = || model.start(attention, storage_of(attention, storage), length);
            let prefill = timed(device, REPEATS, start, |mut text| logits(text.read(&tokens)?))?;
            let prepare = || -> Result<Text> {
                let mut text = start()?;
                text.read(first)?;
                Ok(text)
            };
            let decode = timed(device, REPEATS, prepare, |mut text| {
                let mut seen = Vec::new();
                for &token in last {
                    seen = logits(text.read(&[token])?)?;
                }
                Ok(seen)
            })?;
            Ok([prefill, (decode.0 / steps as f64, decode.1)])
        };
        let mut flash: Option<[Vec<f32>; 2]> = None;
        for attention in [Attention::Flash, Attention::Burn] {
            let [(prefill, after_prefill), (decode, after_decode)] = timings(attention)?;
            let flash = flash.get_or_insert_with(|| [after_prefill.clone(), after_decode.clone()]);
            let row = Row {
                attention,
                length,
                prefill_milliseconds: 1e3 * prefill,
                prefill_tokens_per_second: length as f64 / prefill,
                decode_milliseconds: 1e3 * decode,
                decode_tokens_per_second: 1.0 / decode,
                prefill_difference: difference(&after_prefill, &flash[0]),
                decode_difference: difference(&after_decode, &flash[1]),
            };
            if json {
                println!("{}", serde_json::to_string(&row)?);
                continue;
            }
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

fn logits(logits: Tensor<1>) -> Result<Vec<f32>> {
    Ok(logits.try_into_data()?.try_into_vec::<f32>()?)
}

/// ‖a − b‖ / ‖b‖
fn difference(a: &[f32], b: &[f32]) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let apart = square(&mut a.iter().zip(b).map(|(a, b)| f64::from(a - b)));
    (apart / square(&mut b.iter().map(|&b| f64::from(b)))).sqrt()
}
