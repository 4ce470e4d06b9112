//! Timings of batches with this library's attention and with Burn's, in one run, and whether both give the same embeddings.

use anyhow::{Result, ensure};
use burn::tensor::Device;
use serde::Serialize;

use crate::model::{Attention, MiniLm};
use crate::timing::timed;

/// Times one after another; the middle one counts.
const REPEATS: usize = 5;

#[derive(Serialize)]
struct Row {
    attention: Attention,
    sentences: usize,
    tokens: usize,
    milliseconds: f64,
    sentences_per_second: f64,
    /// The largest difference of a number in an embedding from that with this library's attention.
    difference: f32,
}

/// Prints a row as soon as it is known, as JSON one line for each.
pub fn run(model: &MiniLm, device: &Device, batches: &[usize], json: bool) -> Result<()> {
    if !json {
        println!("attention  sentences  tokens        ms  sentences/s  difference of embeddings");
    }
    for &count in batches {
        ensure!(count > 0, "--batches 0");
        let sentences = sentences(count, model.config.vocab_size);
        let tokens = sentences.iter().map(Vec::len).sum();
        let mut flash: Option<Vec<f32>> = None;
        for attention in [Attention::Flash, Attention::Burn] {
            let embed = |()| -> Result<Vec<f32>> {
                Ok(model.embed(&sentences, attention)?.try_into_data()?.try_into_vec::<f32>()?)
            };
            let (seconds, embeddings) = timed(device, REPEATS, || Ok(()), embed)?;
            let flash = flash.get_or_insert_with(|| embeddings.clone());
            let row = Row {
                attention,
                sentences: count,
                tokens,
                milliseconds: 1e3 * seconds,
                sentences_per_second: count as f64 / seconds,
                difference: embeddings.iter().zip(flash).map(|(a, b)| (a - *b).abs()).fold(0.0, f32::max),
            };
            if json {
                println!("{}", serde_json::to_string(&row)?);
                continue;
            }
            println!(
                "{:<9} {:>10} {:>7} {:>9.2} {:>12.1}  {:.1e}",
                format!("{:?}", row.attention).to_lowercase(),
                row.sentences,
                row.tokens,
                row.milliseconds,
                row.sentences_per_second,
                row.difference,
            );
        }
    }
    Ok(())
}

/// Lists of tokens whose lengths go evenly from 8 to 128, in mixed order.
fn sentences(count: usize, vocabulary: usize) -> Vec<Vec<u32>> {
    let length = |number: usize| 8 + number * 37 % 121;
    let token = |number: usize, place: usize| ((number * 131 + place) * 7919 % vocabulary) as u32;
    (0..count).map(|number| (0..length(number)).map(|place| token(number, place)).collect()).collect()
}
