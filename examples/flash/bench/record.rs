use std::io::Write;

use serde::Serialize;
use wgpu_flash_attention::{Algorithm, AttentionProblem, Mask, Plan};

use crate::arguments::Pass;
use crate::failure::Result;
use crate::text::{self, Column, Table, numbers, words};
use crate::timing::Timing;

/// One algorithm on one shape. What could not be measured is null, and `error` says why.
#[derive(Clone, Serialize)]
pub struct Record {
    pub pass: &'static str,
    pub algorithm: &'static str,
    pub batch: u32,
    pub heads: u32,
    pub heads_kv: u32,
    pub seqlen_q: u32,
    pub seqlen_kv: u32,
    pub head_dim: u32,
    pub element: &'static str,
    pub causal: bool,
    /// Which corner the diagonal is tied to, under a causal mask.
    pub alignment: Option<&'static str>,
    pub adapter: String,
    pub kernel: Option<String>,
    pub tiles: Option<String>,
    pub ms_median: Option<f64>,
    pub ms_min: Option<f64>,
    /// Planning, compiling, and the first run: what a program's first call costs. Less where kernels were compiled for an earlier
    /// record, or where the driver remembers them from an earlier program.
    pub ms_first_call: Option<f64>,
    /// 10¹² floating-point operations a second at the median time: 4·head_dim for each visible pair forward, 10·head_dim
    /// backward.
    pub tflops: Option<f64>,
    /// 10⁹ bytes a second, each of the caller's tensors read or written once, at the median time.
    pub gigabytes_per_second: Option<f64>,
    /// Device memory beyond Q, K, V, O and the gradients.
    pub extra_bytes: Option<u64>,
    /// Floating-point operations for each byte of device memory that the kernels read or write, counted from the plan.
    pub flops_per_byte: Option<f64>,
    /// The largest |error| of O, or of a gradient, over the sampled rows; none where the oracle cannot compute it.
    pub max_error: Option<f64>,
    /// What `max_error` may be.
    pub error_bound: Option<f64>,
    /// Why there is no time.
    pub error: Option<String>,
    /// Whether the device could not run it, which is an answer, or ran it wrongly, which is a failure.
    #[serde(skip)]
    pub wrong: bool,
}

impl Record {
    /// The identity, without a measurement.
    pub fn new(problem: &AttentionProblem, pass: Pass, adapter: String) -> Self {
        let shape = problem.shape;
        let alignment = match problem.mask {
            Mask { window_right: None, .. } => None,
            Mask { alignment: wgpu_flash_attention::Alignment::BottomRight, .. } => Some("bottom-right"),
            Mask { alignment: wgpu_flash_attention::Alignment::TopLeft, .. } => Some("top-left"),
        };
        Self {
            pass: pass.name(),
            algorithm: problem.algorithm.name(),
            batch: shape.batch,
            heads: shape.num_heads,
            heads_kv: shape.num_heads_kv,
            seqlen_q: shape.seqlen_q,
            seqlen_kv: shape.seqlen_kv,
            head_dim: shape.head_dim,
            element: problem.element.name(),
            causal: alignment.is_some(),
            alignment,
            adapter,
            kernel: None,
            tiles: None,
            ms_median: None,
            ms_min: None,
            ms_first_call: None,
            tflops: None,
            gigabytes_per_second: None,
            extra_bytes: None,
            flops_per_byte: None,
            max_error: None,
            error_bound: None,
            error: None,
            wrong: false,
        }
    }

    /// Fills in a time, that of so many operations.
    pub fn time(&mut self, time: &Timing, flops: f64, plan: &Plan) {
        self.ms_median = Some(time.median());
        self.ms_min = Some(time.min());
        self.ms_first_call = self.ms_first_call.map(|prepared| prepared + time.first);
        self.tflops = Some(flops / (time.median() / 1e3) / 1e12);
        let bytes: u64 = plan.operands().map(|operand| plan.required_bytes(operand)).sum();
        self.gigabytes_per_second = Some(bytes as f64 / (time.median() / 1e3) / 1e9);
        self.flops_per_byte = Some(flops / plan.traffic_bytes() as f64);
    }

    /// A refusal of the standard algorithm, whose matrix grows with the square, is an answer; anything else is not.
    pub fn is_good(&self) -> bool {
        self.error.is_none() || (!self.wrong && self.algorithm == Algorithm::Standard.name())
    }

    pub fn columns() -> Vec<Column> {
        vec![
            numbers("seqlen", 13),
            numbers("head_dim", 8),
            words("pass", 8),
            words("algorithm", 9),
            numbers("median", 8),
            numbers("fastest", 8),
            numbers("speed", 13),
            numbers("tensors", 9),
            numbers("extra memory", 12),
            numbers("max error", 9),
            words("kernels, tiles (query rows × keys)", 44),
        ]
    }

    pub fn print(&self, table: &Table, out: &mut dyn Write) -> Result<()> {
        let seqlen = match self.seqlen_q == self.seqlen_kv {
            true => self.seqlen_q.to_string(),
            false => format!("{} × {}", self.seqlen_q, self.seqlen_kv),
        };
        let time = |ms: Option<f64>| ms.map_or("–".to_owned(), text::milliseconds);
        let passes = match (&self.kernel, &self.tiles) {
            (Some(kernel), Some(tiles)) => format!("{kernel} {tiles}"),
            _ => String::new(),
        };
        table.row(
            &[
                seqlen,
                self.head_dim.to_string(),
                self.pass.to_owned(),
                self.algorithm.to_owned(),
                time(self.ms_median),
                time(self.ms_min),
                self.tflops.map_or("–".to_owned(), |tflops| text::per_second(tflops * 1e12, "FLOP")),
                self.gigabytes_per_second.map_or("–".to_owned(), |rate| text::per_second(rate * 1e9, "B")),
                self.extra_bytes.map_or("–".to_owned(), text::bytes),
                self.max_error.map_or("–".to_owned(), text::error),
                self.error.clone().unwrap_or(passes),
            ],
            out,
        )
    }

    /// The header and the lines of a CSV file.
    pub fn csv(records: &[Record]) -> String {
        let mut csv = String::from(
            "pass,algorithm,batch,heads,heads_kv,seqlen_q,seqlen_kv,head_dim,element,causal,alignment,adapter,kernel,tiles,ms_median,\
             ms_min,ms_first_call,tflops,gigabytes_per_second,extra_bytes,flops_per_byte,max_error,error_bound,error\n",
        );
        for record in records {
            let number = |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
            let text = |value: &Option<String>| value.clone().unwrap_or_default();
            let cells = [
                record.pass.to_owned(),
                record.algorithm.to_owned(),
                record.batch.to_string(),
                record.heads.to_string(),
                record.heads_kv.to_string(),
                record.seqlen_q.to_string(),
                record.seqlen_kv.to_string(),
                record.head_dim.to_string(),
                record.element.to_owned(),
                record.causal.to_string(),
                record.alignment.unwrap_or_default().to_owned(),
                record.adapter.clone(),
                text(&record.kernel),
                text(&record.tiles),
                number(record.ms_median),
                number(record.ms_min),
                number(record.ms_first_call),
                number(record.tflops),
                number(record.gigabytes_per_second),
                record.extra_bytes.map_or(String::new(), |bytes| bytes.to_string()),
                number(record.flops_per_byte),
                number(record.max_error),
                number(record.error_bound),
                text(&record.error),
            ];
            csv.push_str(&cells.map(|cell| quoted(&cell)).join(","));
            csv.push('\n');
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
