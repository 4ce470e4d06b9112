//! What a check found: a row for each kind of case, and the whole of each pass and element below them.

use std::io::Write;

use wgpu_flash_attention::{Algorithm, AttentionProblem, AttentionShape, Direction, Element, Plan, reference};

use super::plan;
use crate::arguments::Pass;
use crate::device::Gpu;
use crate::elements;
use crate::failure::Result;
use crate::text::{self, Table, numbers, words};

/// One table row: the cases of one option group with one element and the same kernels.
#[derive(Default)]
pub struct Row {
    group: &'static str,
    element: Element,
    kernels: String,
    pub cases: u32,
    /// Of O, LSE or a gradient.
    largest_error: f64,
    /// The largest share of its own bound that an element's error takes up; above 1 is a fault.
    largest_share: f64,
    /// Which case and tensor that is.
    worst_at: String,
    /// What went wrong first, if not a number.
    pub failure: Option<String>,
}

/// What both algorithms err by over the whole check, in one pass and element.
struct Suite {
    pass: Pass,
    element: Element,
    flash: f64,
    /// Standard attention in the same precision: where flash attention rounds P, it does too.
    standard: f64,
    /// The largest number of all answers.
    largest: f64,
}

/// The table, and the suites below it.
#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
    suites: Vec<Suite>,
}

impl Suite {
    /// How many times standard attention's error flash attention's may be: the rule of FlashAttention's authors.
    fn most(&self) -> f64 {
        if self.pass == Pass::Forward { 2.0 } else { 3.0 }
    }

    /// f32 on matrices passes in two parts of f16, 23 bits, which the last term allows for.
    fn is_good(&self) -> bool {
        let parts = if self.element == Element::F32 { F32_FLOOR * self.largest } else { 0.0 };
        self.flash <= self.most() * self.standard + parts
    }
}

/// Four units in the 23rd bit: each factor loses one half, a product and its sum as much.
pub const F32_FLOOR: f64 = 1e-6;

pub fn print(report: &Report, out: &mut dyn Write) -> Result<bool> {
    let widest = report.rows.iter().map(|row| row.kernels.chars().count()).max().unwrap_or(0).max(7);
    let columns = vec![
        words("options", 21),
        words("element", 7),
        words("kernels", widest),
        numbers("cases", 5),
        numbers("error", 7),
        numbers("of bound", 8),
        words("", 4),
    ];
    let table = Table::new("", columns, out)?;
    let mut bad = 0;
    for row in &report.rows {
        let good = row.failure.is_none() && row.largest_share <= 1.0;
        bad += u32::from(!good);
        let cells = [
            row.group.to_owned(),
            row.element.name().to_owned(),
            row.kernels.clone(),
            row.cases.to_string(),
            text::error(row.largest_error),
            format!("{:.2}", row.largest_share),
            match (&row.failure, good) {
                (Some(failure), _) => failure.clone(),
                (None, true) => "ok".to_owned(),
                (None, false) => format!("FAIL at {}", row.worst_at),
            },
        ];
        table.row(&cells, out)?;
    }
    writeln!(out)?;
    let mut bad_suites = 0;
    for suite in &report.suites {
        let name = if suite.pass == Pass::Forward { "forward" } else { "backward" };
        let (flash, standard) = (text::error(suite.flash), text::error(suite.standard));
        let (ratio, most) = (suite.flash / suite.standard, suite.most());
        let verdict = if suite.is_good() { "ok" } else { "FAIL" };
        bad_suites += u32::from(!suite.is_good());
        let element = suite.element.name();
        writeln!(
            out,
            "{element} {name}: flash errs by {flash}, standard by {standard}: {ratio:.2} of {most} times, {verdict}"
        )?;
    }
    writeln!(out)?;
    let compared: u32 = report.rows.iter().map(|row| row.cases).sum();
    match (bad, bad_suites) {
        (0, 0) => writeln!(out, "{compared} answers compared: all within their bounds")?,
        (0, bad) => {
            writeln!(out, "{compared} answers compared: flash errs too much beside standard in {bad} ways: FAIL")?
        }
        (bad, _) => writeln!(out, "{compared} answers compared: {bad} of {} rows FAIL", report.rows.len())?,
    }
    Ok(bad + bad_suites == 0)
}

impl Report {
    /// The row that this case belongs to.
    pub fn row(&mut self, gpu: &Gpu, group: &'static str, problem: &AttentionProblem, pass: Pass) -> &mut Row {
        let kernels = match plan(gpu, problem, pass) {
            Some(plan) => kernels(&plan),
            None => problem.algorithm.name().to_owned(),
        };
        self.row_of(Row { group, element: problem.element, kernels, ..Row::default() })
    }

    /// The row of the same group, element and kernels, which is this one where there is none.
    fn row_of(&mut self, empty: Row) -> &mut Row {
        let same = |row: &Row| (row.group, row.element, &row.kernels) == (empty.group, empty.element, &empty.kernels);
        let position = self.rows.iter().position(same).unwrap_or(self.rows.len());
        if position == self.rows.len() {
            self.rows.push(empty);
        }
        &mut self.rows[position]
    }

    fn suite_of(&mut self, pass: Pass, element: Element) -> &mut Suite {
        let same = |suite: &Suite| suite.pass == pass && suite.element == element;
        let position = self.suites.iter().position(same).unwrap_or(self.suites.len());
        if position == self.suites.len() {
            self.suites.push(Suite { pass, element, flash: 0.0, standard: 0.0, largest: 0.0 });
        }
        &mut self.suites[position]
    }

    /// Adds another report, whose cases come after those here.
    pub fn absorb(&mut self, other: Report) {
        for row in other.rows {
            let Row { group, element, ref kernels, .. } = row;
            self.row_of(Row { group, element, kernels: kernels.clone(), ..Row::default() }).absorb(row);
        }
        for suite in other.suites {
            let whole = self.suite_of(suite.pass, suite.element);
            whole.flash = whole.flash.max(suite.flash);
            whole.standard = whole.standard.max(suite.standard);
            whole.largest = whole.largest.max(suite.largest);
        }
    }

    /// Adds what an algorithm errs by to the whole of its pass and element.
    pub fn suite(&mut self, pass: Pass, element: Element, algorithm: Algorithm, (found, expected): (&[f64], &[f64])) {
        let suite = self.suite_of(pass, element);
        let error = elements::largest_error(found.iter().copied(), expected.iter().copied());
        let of_algorithm = if algorithm == Algorithm::Flash { &mut suite.flash } else { &mut suite.standard };
        *of_algorithm = of_algorithm.max(error);
        suite.largest = expected.iter().fold(suite.largest, |largest, value| largest.max(value.abs()));
    }
}

/// The kernels of a plan in few words.
fn kernels(plan: &Plan) -> String {
    match (plan.direction(), plan.problem().algorithm) {
        (Direction::Backward, Algorithm::Standard) => "standard backward".to_owned(),
        (Direction::Backward, Algorithm::Flash) => text::kernels(plan).replace("backward_preprocess,", ""),
        _ => text::kernels(plan),
    }
}

impl Row {
    fn absorb(&mut self, other: Row) {
        self.cases += other.cases;
        self.largest_error = self.largest_error.max(other.largest_error);
        if other.largest_share > self.largest_share {
            (self.largest_share, self.worst_at) = (other.largest_share, other.worst_at);
        }
        self.failure = self.failure.take().or(other.failure);
    }

    /// Holds a tensor's numbers to their bounds.
    pub fn add(
        &mut self,
        element: Element,
        (found, expected, bounds): (&[f64], &[f64], &[f64]),
        problem: &AttentionProblem,
        tensor: &str,
    ) {
        if found.len() != expected.len() {
            self.failure.get_or_insert_with(|| format!("{tensor} has another length than the oracle's"));
            return;
        }
        for ((found, expected), bound) in found.iter().zip(expected).zip(bounds) {
            self.largest_error = self.largest_error.max(elements::error(*found, *expected));
            let error = reference::error_before_storing(element, *found, *expected);
            let share = if error == 0.0 { 0.0 } else { error / bound };
            let share = if share.is_nan() { f64::INFINITY } else { share };
            if share > self.largest_share {
                self.largest_share = share;
                let AttentionShape { seqlen_q, seqlen_kv, head_dim, .. } = problem.shape;
                self.worst_at = format!("{tensor}, {seqlen_q} rows, {seqlen_kv} keys, head_dim {head_dim}");
            }
        }
    }
}
