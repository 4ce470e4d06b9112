use std::io::Write;

use serde::Serialize;

use super::judge::{FromExact, FromTwin};
use crate::case::Problem;
use crate::ceilings::Ceilings;
use crate::failure::Result;
use crate::methods::{Cost, Exact};
use crate::text::{self, Column, Table, numbers, words};
use crate::timing::Timing;

/// How a method fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its answer is that of its twin.
    Good,
    /// It is not defined, or not written, for this problem.
    Undefined,
    /// It could not run to its end.
    Failed,
    /// Its answer is not that of its twin.
    Wrong,
}

/// One method on one problem. What could not be measured is null, and `error` says why. Where an answer was measured and is
/// not that of the twin, `error` says so: such a record counts nowhere.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    pub method: &'static str,
    pub input: String,
    pub seqlen: u32,
    pub batch: u32,
    pub heads: u32,
    pub heads_kv: u32,
    pub head_dim: u32,
    pub element: &'static str,
    pub causal: bool,
    pub seed: u64,
    pub adapter: String,
    pub ms_median: Option<f64>,
    pub ms_min: Option<f64>,
    /// The time divided by that of flash attention on the same problem.
    pub times_flash: Option<f64>,
    /// Floating-point operations of a run, counted from the algorithm; a multiply-add is two.
    pub flops: Option<f64>,
    /// Bytes of device memory that a run must read and write.
    pub bytes: Option<f64>,
    /// Bytes of device memory beyond Q, K, V and O.
    pub extra_bytes: Option<u64>,
    /// How long the adapter's ceilings (f32 multiply-adds, bandwidth of a copy) would allow it to take at best, in ms.
    pub roof_ms: Option<f64>,
    /// ‖O − exact‖ / ‖exact‖ in Frobenius norms.
    pub relative_error: Option<f64>,
    /// The largest ‖O_i − exact_i‖ / ‖exact_i‖ of a row i.
    pub largest_row_error: Option<f64>,
    /// What these errors are measured against: `attention`, or `attention with K = Q / ‖Q‖`.
    pub exact: &'static str,
    /// What the exact answer comes from.
    pub exact_by: &'static str,
    /// The largest |difference| from the f64 twin, as a share of the largest |O|, and what it may be.
    pub twin_error: Option<f64>,
    pub twin_bound: Option<f64>,
    pub twin_rows: Option<&'static str>,
    /// What else the method reports.
    pub notes: Vec<(String, String)>,
    /// Why there is no time, or why it does not count.
    pub error: Option<String>,
    #[serde(skip)]
    pub outcome: Outcome,
}

impl Record {
    /// The identity, without a measurement.
    pub fn new(method: &'static str, problem: &Problem, input: &str, seed: u64, adapter: String) -> Self {
        Self {
            method,
            input: input.to_owned(),
            seqlen: problem.seqlen,
            batch: problem.batch,
            heads: problem.num_heads,
            heads_kv: problem.num_heads_kv,
            head_dim: problem.head_dim,
            element: problem.element.name(),
            causal: problem.causal,
            seed,
            adapter,
            ms_median: None,
            ms_min: None,
            times_flash: None,
            flops: None,
            bytes: None,
            extra_bytes: None,
            roof_ms: None,
            relative_error: None,
            largest_row_error: None,
            exact: Exact::Attention.name(),
            exact_by: crate::exact::source(problem),
            twin_error: None,
            twin_bound: None,
            twin_rows: None,
            notes: Vec::new(),
            error: None,
            outcome: Outcome::Good,
        }
    }

    pub fn time(&mut self, time: &Timing, cost: &Cost, ceilings: Option<&Ceilings>) {
        self.ms_median = Some(time.median());
        self.ms_min = Some(time.min());
        self.flops = Some(cost.flops);
        self.bytes = Some(cost.bytes);
        self.extra_bytes = Some(cost.extra_bytes);
        let roof = |ceilings: &Ceilings| 1e3 * (cost.flops / ceilings.compute).max(cost.bytes / ceilings.bandwidth);
        self.roof_ms = ceilings.map(roof);
    }

    pub fn judge(&mut self, twin: &FromTwin, exact: &FromExact) {
        self.twin_error = Some(twin.error);
        self.twin_bound = Some(twin.bound);
        self.twin_rows = Some(twin.rows);
        self.relative_error = Some(exact.relative);
        self.largest_row_error = Some(exact.largest_row);
        if twin.error.is_nan() || twin.error > twin.bound {
            self.outcome = Outcome::Wrong;
            self.error = Some(format!(
                "differs from its twin by {} of the largest |O|, and {} is the most",
                text::error(twin.error),
                text::error(twin.bound)
            ));
        }
    }

    /// Whether it counts in figures and tables.
    pub fn is_good(&self) -> bool {
        self.outcome == Outcome::Good
    }

    pub fn columns() -> Vec<Column> {
        vec![
            numbers("seqlen", 6),
            words("type", 4),
            words("method", 14),
            numbers("time", 8),
            numbers("× flash", 7),
            numbers("extra memory", 12),
            numbers("speed", 13),
            numbers("of roof", 7),
            numbers("error", 8),
            numbers("largest row", 11),
            numbers("from twin", 9),
            words("", 0),
        ]
    }

    pub fn print(&self, table: &Table, out: &mut dyn Write) -> Result<()> {
        table.row(&self.cells(), out)
    }

    /// What the table shows.
    pub fn cells(&self) -> [String; 12] {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
        let speed = self.flops.zip(self.ms_median).map(|(flops, ms)| text::per_second(flops / ms * 1e3, "FLOP"));
        let of_roof = self.roof_ms.zip(self.ms_median).map(|(roof, ms)| format!("{:.0} %", 100.0 * roof / ms));
        let twin = match self.outcome {
            Outcome::Wrong => format!("{} WRONG", or_dash(self.twin_error.map(text::error))),
            _ => or_dash(self.twin_error.map(text::error)),
        };
        let notes: Vec<String> = self.notes.iter().map(|(name, value)| format!("{name} {value}")).collect();
        [
            self.seqlen.to_string(),
            self.element.to_owned(),
            self.method.to_owned(),
            or_dash(self.ms_median.map(text::milliseconds)),
            or_dash(self.times_flash.map(|times| format!("{times:.2}"))),
            or_dash(self.extra_bytes.map(text::bytes)),
            or_dash(speed),
            or_dash(of_roof),
            or_dash(self.relative_error.map(text::error)),
            or_dash(self.largest_row_error.map(text::error)),
            twin,
            self.error.clone().unwrap_or_else(|| notes.join(", ")),
        ]
    }

    /// A CSV file. Its header is the names of the JSON.
    pub fn csv(records: &[Record]) -> String {
        let mut csv = String::new();
        for record in records {
            let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(record) else { continue };
            if csv.is_empty() {
                csv = fields.keys().cloned().collect::<Vec<_>>().join(",") + "\n";
            }
            let cell = |value: &serde_json::Value| match value {
                serde_json::Value::Null => String::new(),
                serde_json::Value::String(text) => quoted(text),
                serde_json::Value::Array(notes) => {
                    let words =
                        notes.iter().filter_map(|note| Some(format!("{} {}", note[0].as_str()?, note[1].as_str()?)));
                    quoted(&words.collect::<Vec<_>>().join("; "))
                }
                other => other.to_string(),
            };
            csv += &(fields.values().map(cell).collect::<Vec<_>>().join(",") + "\n");
        }
        csv
    }
}

fn quoted(cell: &str) -> String {
    match cell.contains([',', '"', '\n']) {
        true => format!("\"{}\"", cell.replace('"', "\"\"")),
        false => cell.to_owned(),
    }
}
