//! Records as tables in Markdown, one for each question, a row for each method and a column for each length.

use super::record::{Outcome, Record};
use crate::ceilings::Ceilings;
use crate::text;

/// What a table shows of a record.
type Cell<'a> = &'a dyn Fn(&Record) -> Option<String>;

/// All tables of all elements.
pub fn page(records: &[Record], adapter: &str, ceilings: Option<&Ceilings>) -> String {
    let mut page = format!("{adapter}.");
    if let Some(ceilings) = ceilings {
        page += &format!(
            " Measured ceilings: {} of f32 multiply-adds, {} of copying.",
            text::per_second(ceilings.compute, "FLOP"),
            text::per_second(ceilings.bandwidth, "B")
        );
    }
    page += "\n";
    let questions: [(&str, Cell); 6] = [
        ("Time, ms", &|record| record.ms_median.map(milliseconds)),
        ("Time of a method / time of flash", &|record| record.times_flash.map(|times| format!("{times:.2}"))),
        ("Extra memory", &|record| record.extra_bytes.map(text::bytes)),
        ("Error, ‖O − exact‖ / ‖exact‖", &|record| record.relative_error.map(percent)),
        ("Error of the worst row", &|record| record.largest_row_error.map(percent)),
        ("Share of its roof (f32 multiply-adds, copying)", &|record| {
            record.roof_ms.zip(record.ms_median).map(|(roof, ms)| format!("{:.0} %", 100.0 * roof / ms))
        }),
    ];
    for element in distinct(records.iter().map(|record| record.element)) {
        let own: Vec<&Record> = records.iter().filter(|record| record.element == element).collect();
        for (question, cell) in &questions {
            page += &format!("\n{question}, {element}:\n\n{}", table(&own, cell));
        }
    }
    page
}

/// A row for each method, a column for each length.
fn table(records: &[&Record], cell: Cell) -> String {
    let lengths = distinct(records.iter().map(|record| record.seqlen));
    let methods = distinct(records.iter().map(|record| record.method));
    let heads: Vec<String> = lengths.iter().map(|seqlen| format!(" N={seqlen} |")).collect();
    let mut table = format!("| |{}\n|---|{}\n", heads.concat(), "---|".repeat(lengths.len()));
    for method in methods {
        let of =
            |seqlen: &u32| records.iter().copied().find(|record| record.method == method && record.seqlen == *seqlen);
        let shown = |record: &Record| match record.outcome {
            Outcome::Wrong => Some("WRONG".to_owned()),
            _ => cell(record),
        };
        let cells = lengths.iter().map(|seqlen| of(seqlen).and_then(shown).unwrap_or("–".to_owned()));
        table += &format!("| {method} | {} |\n", cells.collect::<Vec<_>>().join(" | "));
    }
    table
}

/// Each value once, in the order of its first appearance.
pub fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut distinct = Vec::new();
    for value in values {
        if !distinct.contains(&value) {
            distinct.push(value);
        }
    }
    distinct
}

fn milliseconds(ms: f64) -> String {
    match ms {
        ms if ms >= 100.0 => format!("{ms:.0}"),
        ms if ms >= 10.0 => format!("{ms:.1}"),
        ms if ms >= 1.0 => format!("{ms:.2}"),
        ms => format!("{ms:.3}"),
    }
}

/// An error in percent, tiny ones as a power of ten.
fn percent(error: f64) -> String {
    match 100.0 * error {
        percent if percent >= 10.0 => format!("{percent:.0} %"),
        percent if percent >= 0.1 => format!("{percent:.1} %"),
        _ => text::error(error),
    }
}
