//! Numbers for people, and tables.

use std::io::Write;

use wgpu_flash_attention::unstable::Pass;
use wgpu_flash_attention::{Plan, Tiles};

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
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$} {prefix}{unit}/s")
}

/// An error as a power of ten.
pub fn error(error: f64) -> String {
    if error == 0.0 { "0".to_owned() } else { format!("{error:.1e}") }
}

/// The kernels of a plan and their tiles; what names share up to the first `_` is said once.
pub fn passes(plan: &Plan) -> String {
    format!("{} {}", kernels(plan), tiles(plan))
}

/// The tiles of a plan's kernels, each once.
pub fn tiles(plan: &Plan) -> String {
    let mut tiles: Vec<String> = Vec::new();
    // The first backward kernel walks over rows alone, and a merge has no tiles.
    let has_tiles = |pass: &&Pass| !matches!(pass.kernel.name(), "flash_backward_preprocess" | "combine");
    for pass in plan.passes().iter().filter(has_tiles) {
        let own = pass.specialization.tiles.to_string();
        if !tiles.contains(&own) {
            tiles.push(own);
        }
    }
    match plan.num_splits() {
        1 => tiles.join(" / "),
        splits => format!("{}, {splits} splits", tiles.join(" / ")),
    }
}

/// Tiles as `flash bench --tiles` takes them.
pub fn tiles_option(tiles: &Tiles) -> String {
    let Tiles { tile_q, tile_kv, thread_rows, lanes, key_lanes, broadcast, matrix_side, .. } = tiles;
    match matrix_side {
        Some(side) => format!("{tile_q}x{tile_kv}x{thread_rows}x{lanes}xm{side}"),
        None if *broadcast > 1 => format!("{tile_q}x{tile_kv}x{thread_rows}xb{broadcast}"),
        None if *key_lanes > 1 => format!("{tile_q}x{tile_kv}xd{lanes}x{key_lanes}"),
        None => format!("{tile_q}x{tile_kv}x{thread_rows}x{lanes}"),
    }
}

/// The kernels of a plan, such as `flash_forward` or `standard_{scores,softmax,output}`.
pub fn kernels(plan: &Plan) -> String {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for (prefix, rest) in plan.passes().iter().filter_map(|pass| pass.kernel.name().split_once('_')) {
        match groups.last_mut() {
            Some((last, names)) if *last == prefix => names.push(rest),
            _ => groups.push((prefix, vec![rest])),
        }
    }
    let name = |(prefix, names): (&str, Vec<&str>)| match names[..] {
        [only] => format!("{prefix}_{only}"),
        _ => format!("{prefix}_{{{}}}", names.join(",")),
    };
    groups.into_iter().map(name).collect::<Vec<_>>().join(", ")
}

/// One column of a table.
pub struct Column {
    name: &'static str,
    width: usize,
    words: bool,
}

/// A column of words, aligned left.
pub fn words(name: &'static str, width: usize) -> Column {
    Column { name, width, words: true }
}

/// A column of numbers, aligned right.
pub fn numbers(name: &'static str, width: usize) -> Column {
    Column { name, width, words: false }
}

/// Rows of fixed column widths, so that each can be printed when it is known.
pub struct Table {
    columns: Vec<Column>,
    indent: &'static str,
}

impl Table {
    /// Prints the header.
    pub fn new(indent: &'static str, columns: Vec<Column>, out: &mut dyn Write) -> Result<Self> {
        let mut table = Self { columns, indent };
        for column in &mut table.columns {
            column.width = column.width.max(column.name.chars().count());
        }
        table.row(&table.columns.iter().map(|column| column.name.to_owned()).collect::<Vec<_>>(), out)?;
        table.row(&table.columns.iter().map(|column| "─".repeat(column.width)).collect::<Vec<_>>(), out)?;
        Ok(table)
    }

    pub fn row(&self, cells: &[String], out: &mut dyn Write) -> Result<()> {
        let line: Vec<String> = cells
            .iter()
            .zip(&self.columns)
            .map(|(cell, &Column { width, words, .. })| match words {
                true => format!("{cell:<width$}"),
                false => format!("{cell:>width$}"),
            })
            .collect();
        writeln!(out, "{}{}", self.indent, line.join("  ").trim_end())?;
        Ok(())
    }
}
