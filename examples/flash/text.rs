//! Numbers for people, and tables.

use std::io::Write;

use crate::failure::Result;

/// Milliseconds with three significant digits.
pub fn milliseconds(ms: f64) -> String {
    match ms {
        ms if ms >= 1e5 => format!("{:.0} s", ms / 1e3),
        ms if ms >= 1e4 => format!("{:.1} s", ms / 1e3),
        ms if ms >= 100.0 => format!("{ms:.0} ms"),
        ms if ms >= 10.0 => format!("{ms:.1} ms"),
        ms if ms >= 1.0 => format!("{ms:.2} ms"),
        ms => format!("{ms:.3} ms"),
    }
}

/// Bytes in binary units.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if value >= 100.0 || value.fract() == 0.0 { 0 } else { 1 };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// Operations or bytes per second with a prefix.
pub fn per_second(rate: f64, unit: &str) -> String {
    let (value, prefix) = match rate {
        rate if rate >= 1e12 => (rate / 1e12, "T"),
        rate if rate >= 1e9 => (rate / 1e9, "G"),
        rate => (rate / 1e6, "M"),
    };
    let digits = if value >= 100.0 { 0 } else if value >= 10.0 { 1 } else { 2 };
    format!("{value:.digits$} {prefix}{unit}/s")
}

/// An error as a power of ten.
pub fn error(error: f64) -> String {
    if error == 0.0 { "0".to_owned() } else { format!("{error:.1e}") }
}

/// Rows of fixed column widths, so that each can be printed when it is known. The first column is left-aligned.
pub struct Table {
    widths: Vec<usize>,
}

impl Table {
    /// Prints the header.
    pub fn new(columns: &[(&str, usize)], out: &mut dyn Write) -> Result<Self> {
        let table = Self { widths: columns.iter().map(|(name, width)| (*width).max(name.chars().count())).collect() };
        table.row(&columns.iter().map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>(), out)?;
        let rules: Vec<String> = table.widths.iter().map(|width| "─".repeat(*width)).collect();
        table.row(&rules, out)?;
        Ok(table)
    }

    pub fn row(&self, cells: &[String], out: &mut dyn Write) -> Result<()> {
        let line: Vec<String> = cells
            .iter()
            .zip(&self.widths)
            .enumerate()
            .map(|(column, (cell, &width))| if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") })
            .collect();
        writeln!(out, "{}", line.join("  ").trim_end())?;
        Ok(())
    }
}
