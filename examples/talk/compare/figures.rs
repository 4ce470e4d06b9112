//! Time and memory against seqlen, and error against time, as SVG.

use plotters::prelude::*;

use super::markdown::distinct;
use super::record::Record;
use crate::axes::{self, FONT, INK, LogAxis, SIZE, undrawable};
use crate::failure::Result;
use crate::methods;
use crate::text;

/// Dark enough on white, and unlike each other; flash and standard have those of `flash bench`.
const COLORS: [RGBColor; 13] = [
    RGBColor(0, 98, 204),
    RGBColor(214, 90, 20),
    RGBColor(18, 128, 70),
    RGBColor(150, 60, 170),
    RGBColor(190, 40, 60),
    RGBColor(140, 105, 0),
    RGBColor(0, 150, 170),
    RGBColor(235, 95, 150),
    RGBColor(90, 90, 90),
    RGBColor(110, 170, 40),
    RGBColor(88, 86, 214),
    RGBColor(120, 70, 40),
    RGBColor(0, 0, 0),
];

/// A method.
struct Line {
    name: &'static str,
    color: RGBColor,
    is_exact: bool,
    /// x and y, short problems first.
    points: Vec<(f64, f64)>,
}

/// One line for each method, of the records that have both coordinates and are right.
fn lines(records: &[&Record], point: impl Fn(&Record) -> Option<(f64, f64)>) -> Vec<Line> {
    let names = distinct(records.iter().map(|record| record.method));
    let all: Vec<&str> = methods::all().iter().map(|method| method.name()).collect();
    let line = |name: &'static str| {
        let own = records.iter().filter(|record| record.method == name && record.is_good());
        let points: Vec<_> = own.filter_map(|record| point(record)).collect();
        let is_exact = matches!(name, "flash" | "standard");
        // A method has its color in every figure, whichever others are there.
        let place = all.iter().position(|other| *other == name).unwrap_or_default();
        Line { name, color: COLORS[place % COLORS.len()], is_exact, points }
    };
    names.into_iter().map(line).filter(|line| !line.points.is_empty()).collect()
}

/// Time against seqlen, of records of one element.
pub fn time(records: &[&Record], subtitle: &str) -> Result<String> {
    let lines = lines(records, |record| Some((f64::from(record.seqlen), record.ms_median?)));
    figure(
        &lines,
        &Labels {
            title: "Exact and approximate attention: time",
            subtitle,
            x: ("seqlen (tokens)", 2.0, &plain_number),
            y: ("median time", 10.0, &plain_milliseconds),
            grows: false,
        },
    )
}

/// Extra memory against seqlen.
pub fn memory(records: &[&Record], subtitle: &str) -> Result<String> {
    let lines = lines(records, |record| Some((f64::from(record.seqlen), record.extra_bytes? as f64)));
    figure(
        &lines,
        &Labels {
            title: "Exact and approximate attention: device memory beyond Q, K, V and O",
            subtitle,
            x: ("seqlen (tokens)", 2.0, &plain_number),
            y: ("extra memory", 4.0, &|bytes| text::bytes(bytes as u64)),
            grows: false,
        },
    )
}

/// Error against time: each line is a method, each dot of it a seqlen.
pub fn error(records: &[&Record], subtitle: &str) -> Result<String> {
    let lines = lines(records, |record| Some((record.ms_median?, record.relative_error.filter(|error| *error > 0.0)?)));
    let lengths = distinct(records.iter().map(|record| record.seqlen));
    let range = match (lengths.iter().min(), lengths.iter().max()) {
        (Some(least), Some(most)) if least != most => format!("{subtitle} · dots grow with seqlen, {least} to {most}"),
        (Some(only), _) => format!("{subtitle} · seqlen {only}"),
        _ => subtitle.to_owned(),
    };
    figure(
        &lines,
        &Labels {
            title: "Exact and approximate attention: error against time",
            subtitle: &range,
            x: ("median time", 10.0, &plain_milliseconds),
            y: ("‖O − exact‖ / ‖exact‖", 10.0, &|error| format!("{error:.0e}")),
            grows: true,
        },
    )
}

/// Title, and of each axis its name, the base of its logarithm and how its numbers are written.
struct Labels<'a> {
    title: &'a str,
    subtitle: &'a str,
    x: (&'a str, f64, &'a dyn Fn(f64) -> String),
    y: (&'a str, f64, &'a dyn Fn(f64) -> String),
    /// Whether dots grow from the first to the last of a line.
    grows: bool,
}

fn figure(lines: &[Line], labels: &Labels) -> Result<String> {
    let mut svg = String::new();
    draw(&mut svg, lines, labels).map_err(undrawable)?;
    Ok(svg)
}

/// Width of the legend, which stands beside the chart: there are too many lines for a place inside.
const LEGEND: i32 = 190;

fn draw(
    svg: &mut String,
    lines: &[Line],
    labels: &Labels,
) -> std::result::Result<(), DrawingAreaErrorKind<std::io::Error>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let area = axes::titled(&root, labels.title, labels.subtitle)?;
    let (area, legend) = area.split_horizontally(SIZE.0 as i32 - LEGEND);
    let points = || lines.iter().flat_map(|line| &line.points);
    let x = LogAxis::around(points().map(|point| point.0), labels.x.1);
    let y = LogAxis::around(points().map(|point| point.1), labels.y.1);
    let mut chart = ChartBuilder::on(&area)
        .margin(20)
        .margin_left(12)
        .x_label_area_size(52)
        .y_label_area_size(92)
        .build_cartesian_2d(x, y)?;
    axes::mesh(&mut chart, (labels.x.0, &|x| (labels.x.2)(*x)), (labels.y.0, &|y| (labels.y.2)(*y)))?;
    for line in lines {
        let width = if line.is_exact { 4 } else { 2 };
        chart.draw_series(LineSeries::new(line.points.iter().copied(), line.color.stroke_width(width)))?;
        let size = |i: usize| if labels.grows { 3 + i as i32 } else { 4 };
        let dot = |(i, point): (usize, &(f64, f64))| Circle::new(*point, size(i), line.color.filled());
        chart.draw_series(line.points.iter().enumerate().map(dot))?;
    }
    for (line, y) in lines.iter().zip((30..).step_by(26)) {
        let width = if line.is_exact { 4 } else { 2 };
        legend.draw(&PathElement::new(vec![(4, y), (28, y)], line.color.stroke_width(width)))?;
        legend.draw(&Circle::new((16, y), 4, line.color.filled()))?;
        legend.draw(&Text::new(line.name, (36, y - 8), (FONT, 16).into_font().color(&INK)))?;
    }
    root.present()
}

fn plain_number(number: f64) -> String {
    format!("{number:.0}")
}

/// A power of ten of milliseconds.
fn plain_milliseconds(ms: f64) -> String {
    match ms {
        ms if ms >= 999.0 => format!("{:.0} s", ms / 1e3),
        ms if ms >= 0.99 => format!("{ms:.0} ms"),
        ms => format!("{:.0} µs", ms * 1e3),
    }
}
