//! Is attention bound by compute or by memory? FLOPs per byte against speed, under the adapter's two ceilings.

use super::axes::Series;
use super::ceilings::Ceilings;
use super::figures;
use super::record::Record;
use super::roof;
use crate::failure::Result;
use crate::text;

/// FLOPs per byte and FLOPs a second.
fn point(record: &Record) -> Option<(f64, f64)> {
    Some((record.flops_per_byte?, record.tflops? * 1e12))
}

/// The answer in words, first the ceilings and then one sentence for each algorithm (and head_dim).
pub fn sentences(records: &[Record], ceilings: &Ceilings) -> Vec<String> {
    let mut sentences = vec![format!(
        "Ceilings measured on this adapter: {} of f32 multiply-adds, {} of copying; they meet at {:.1} FLOPs per byte.{}",
        text::per_second(ceilings.compute, "FLOP"),
        text::per_second(ceilings.bandwidth, "B"),
        ceilings.ridge(),
        ceilings
            .matrices
            .map_or(String::new(), |rate| format!(" Matrices of f16: {}.", text::per_second(rate, "FLOP")))
    )];
    for series in figures::series(records, point) {
        sentences.push(sentence(records, &series, ceilings));
    }
    sentences
}

fn sentence(records: &[Record], series: &Series, ceilings: &Ceilings) -> String {
    let (mut least, mut most) = (f64::INFINITY, 0.0f64);
    for &(flops_per_byte, _) in &series.points {
        least = least.min(flops_per_byte);
        most = most.max(flops_per_byte);
    }
    let ridge = ceilings.ridge();
    let side = match (least >= ridge, most >= ridge) {
        (true, true) => "right of the ridge: compute-bound".to_owned(),
        (false, false) => "left of the ridge: memory-bound".to_owned(),
        _ => {
            let mine = |record: &&Record| point(record).is_some_and(|at| series.points.contains(&at) && at.0 < ridge);
            let left: Vec<String> = records
                .iter()
                .filter(|record| record.algorithm == series.algorithm)
                .filter(mine)
                .map(|record| record.seqlen_q.to_string())
                .collect();
            format!("memory-bound (left of the ridge) at seqlen {}, else compute-bound", left.join(", "))
        }
    };
    let best = series.points.iter().map(|(x, y)| y / ceilings.at(*x)).fold(0.0, f64::max);
    format!(
        "{}: {} FLOPs per byte of device memory, {side}; at best {:.0} % of the roof.",
        series.name,
        if most - least < 0.5 { format!("{most:.1}") } else { format!("{least:.1} to {most:.1}") },
        100.0 * best
    )
}

pub fn figure(records: &[Record], ceilings: &Ceilings, subtitle: &str) -> Result<String> {
    let lines = figures::series(records, point);
    let title = format!("{}: compute-bound or memory-bound?", figures::title(records));
    let roofs: Vec<roof::Roof> = ceilings.matrices.map(|rate| (roof::OF_MATRICES, rate)).into_iter().collect();
    roof::figure(&lines, ceilings, &roofs, (&title, subtitle), &sentences(records, ceilings))
}
