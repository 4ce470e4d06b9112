//! Time and extra memory against seqlen, as SVG.

use plotters::prelude::*;

use super::axes::{LogAxis, SIZE, Series, legend, mesh, titled, undrawable};
use super::record::Record;
use crate::failure::Result;
use crate::text;

/// One series for each algorithm and head_dim, of the records that have both coordinates.
pub fn series(records: &[Record], point: impl Fn(&Record) -> Option<(f64, f64)>) -> Vec<Series> {
    const FLASH: [RGBColor; 4] =
        [RGBColor(0, 98, 204), RGBColor(0, 150, 170), RGBColor(88, 86, 214), RGBColor(64, 160, 255)];
    const STANDARD: [RGBColor; 4] =
        [RGBColor(214, 90, 20), RGBColor(190, 40, 60), RGBColor(160, 110, 0), RGBColor(240, 150, 80)];
    let mut head_dims: Vec<u32> = records.iter().map(|record| record.head_dim).collect();
    head_dims.dedup();
    let mut shades: Vec<(u32, &str)> = records.iter().map(|record| (record.head_dim, record.pass)).collect();
    shades.sort_unstable();
    shades.dedup();
    let mut series: Vec<Series> = Vec::new();
    for record in records {
        let Some(point) = point(record) else { continue };
        let mut name = record.algorithm.to_owned();
        if records.iter().any(|other| other.pass != record.pass) {
            name = format!("{name} {}", record.pass);
        }
        if head_dims.len() > 1 {
            name = format!("{name}, head_dim {}", record.head_dim);
        }
        match series.iter_mut().find(|series| series.name == name) {
            Some(series) => series.points.push(point),
            None => {
                let own = (record.head_dim, record.pass);
                let shade = shades.iter().position(|shade| *shade == own).unwrap_or(0) % FLASH.len();
                let color = if record.algorithm == "flash" { FLASH[shade] } else { STANDARD[shade] };
                series.push(Series { name, algorithm: record.algorithm, color, points: vec![point] });
            }
        }
    }
    series
}

/// Which passes the records are of.
pub fn title(records: &[Record]) -> String {
    let has = |pass| records.iter().any(|record| record.pass == pass);
    match (has("forward"), has("backward")) {
        (true, true) => "Attention forward and backward".to_owned(),
        (_, true) => "Attention backward".to_owned(),
        _ => "Attention forward".to_owned(),
    }
}

pub fn time(records: &[Record], subtitle: &str) -> Result<String> {
    let lines = series(records, |record| Some((f64::from(record.seqlen_q), record.ms_median?)));
    against_seqlen(&format!("{}: time", title(records)), subtitle, "median time", &lines, 10.0, &|ms| {
        plain_milliseconds(*ms)
    })
}

pub fn memory(records: &[Record], subtitle: &str) -> Result<String> {
    let mut lines = series(records, |record| {
        record.ms_median?;
        Some((f64::from(record.seqlen_q), record.extra_bytes? as f64))
    });
    // Memory that does not depend on head_dim is one line, not several on top of each other.
    let all = lines.len();
    let mut distinct: Vec<(&str, Vec<(f64, f64)>)> = Vec::new();
    lines.retain(|line| {
        let identity = (line.algorithm, line.points.clone());
        let is_new = !distinct.contains(&identity);
        distinct.push(identity);
        is_new
    });
    if lines.len() < all && lines.len() <= 2 {
        lines.iter_mut().for_each(|line| line.name = line.algorithm.to_owned());
    }
    let title = format!("{}: device memory beyond the tensors and their gradients", title(records));
    against_seqlen(&title, subtitle, "extra memory", &lines, 4.0, &|bytes| text::bytes(*bytes as u64))
}

/// A power of ten of milliseconds.
fn plain_milliseconds(ms: f64) -> String {
    match ms {
        ms if ms >= 999.0 => format!("{:.0} s", ms / 1e3),
        ms if ms >= 0.99 => format!("{ms:.0} ms"),
        ms => format!("{:.0} µs", ms * 1e3),
    }
}

fn against_seqlen(
    title: &str,
    subtitle: &str,
    y_name: &str,
    lines: &[Series],
    y_base: f64,
    y_label: &dyn Fn(&f64) -> String,
) -> Result<String> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let x = LogAxis::around(points().map(|point| point.0), 2.0);
    let y = LogAxis::around(points().map(|point| point.1), y_base);
    let mut svg = String::new();
    draw(&mut svg, title, subtitle, y_name, lines, (x, y), y_label).map_err(undrawable)?;
    Ok(svg)
}

type DrawResult = std::result::Result<(), DrawingAreaErrorKind<std::io::Error>>;

fn draw(
    svg: &mut String,
    title: &str,
    subtitle: &str,
    y_name: &str,
    lines: &[Series],
    (x, y): (LogAxis, LogAxis),
    y_label: &dyn Fn(&f64) -> String,
) -> DrawResult {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let area = titled(&root, title, subtitle)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(20)
        .margin_left(12)
        .margin_right(40)
        .x_label_area_size(52)
        .y_label_area_size(86)
        .build_cartesian_2d(x, y)?;
    mesh(&mut chart, ("seqlen (tokens)", &|seqlen| format!("{seqlen:.0}")), (y_name, y_label))?;
    for line in lines {
        let style = line.color.stroke_width(3);
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), style))?
            .label(line.name.as_str())
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 22, y)], style));
        chart.draw_series(line.points.iter().map(|point| Circle::new(*point, 5, line.color.filled())))?;
    }
    legend(&mut chart)?;
    root.present()
}
