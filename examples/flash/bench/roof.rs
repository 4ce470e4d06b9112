//! Speeds under the ceilings of an adapter, as SVG.

use plotters::prelude::*;

use super::axes::{self, FAINT, FONT, INK, LogAxis, SIZE, Series};
use super::ceilings::Ceilings;
use crate::failure::Result;

/// What the ceiling of matrices is called.
pub const OF_MATRICES: &str = "measured ceiling of matrices: f16 in, f32 summed";

/// A roof above that of plain arithmetic: what it is called, and operations a second.
pub type Roof = (&'static str, f64);

/// Lines of (FLOPs per byte, FLOPs a second), with sentences below.
pub fn figure(
    lines: &[Series],
    ceilings: &Ceilings,
    roofs: &[Roof],
    titles: (&str, &str),
    sentences: &[String],
) -> Result<String> {
    let mut svg = String::new();
    draw(&mut svg, lines, ceilings, roofs, titles, sentences).map_err(axes::undrawable)?;
    Ok(svg)
}

fn draw(
    svg: &mut String,
    lines: &[Series],
    ceilings: &Ceilings,
    roofs: &[Roof],
    (title, subtitle): (&str, &str),
    sentences: &[String],
) -> std::result::Result<(), DrawingAreaErrorKind<std::io::Error>> {
    const LINE: u32 = 22;
    let sentences: Vec<String> = sentences.iter().flat_map(|sentence| wrapped(sentence)).collect();
    let caption_height = LINE * sentences.len() as u32 + 18;
    let root = SVGBackend::with_string(svg, (SIZE.0, SIZE.1 + caption_height)).into_drawing_area();
    root.fill(&WHITE)?;
    let area = axes::titled(&root, title, subtitle)?;
    let (area, caption) = area.split_vertically(SIZE.1 as i32 - 68);

    // Nothing lies above the roof: the legend goes there.
    const HEADROOM: f64 = 12.0;
    let points = || lines.iter().flat_map(|line| &line.points);
    let ridge = ceilings.ridge();
    let top = roofs.iter().map(|roof| roof.1).fold(ceilings.compute, f64::max);
    let x = LogAxis::around(points().map(|point| point.0).chain([ridge / 3.0, 3.0 * top / ceilings.bandwidth]), 2.0);
    let y = LogAxis::around(points().map(|point| point.1).chain([top * HEADROOM, ceilings.compute / 12.0]), 10.0);
    let (x_from, x_to, y_from) = (x.start(), x.end(), y.start());
    let mut chart = ChartBuilder::on(&area)
        .margin(20)
        .margin_left(12)
        .margin_right(40)
        .x_label_area_size(52)
        .y_label_area_size(108)
        .build_cartesian_2d(x, y)?;
    let over_one = |x: &f64| if *x < 1.0 { format!("1/{:.0}", 1.0 / x) } else { format!("{x:.0}") };
    let x_name = "FLOPs per byte of device memory (counted from the plan)";
    axes::mesh(&mut chart, (x_name, &over_one), ("speed", &|y| plain_speed(*y)))?;

    // The slope starts where it enters the figure, on the left or from below.
    let slope_from = x_from.max(y_from / ceilings.bandwidth);
    let roof = [(slope_from, ceilings.bandwidth * slope_from), (ridge, ceilings.compute), (x_to, ceilings.compute)];
    let roof_style = INK.stroke_width(2);
    chart
        .draw_series(LineSeries::new(roof, roof_style))?
        .label("measured ceilings: copy bandwidth, f32 multiply-add")
        .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 22, y)], roof_style));
    chart.draw_series(DashedLineSeries::new(
        [(ridge, y_from), (ridge, ceilings.compute)],
        5,
        5,
        FAINT.stroke_width(1),
    ))?;
    for (label, matrices) in roofs.iter().copied() {
        let style = FAINT.stroke_width(2);
        let ridge = matrices / ceilings.bandwidth;
        // The slope is the same, so it goes on where that of plain arithmetic ends.
        let mut roof = vec![(ridge.max(x_from), matrices), (x_to, matrices)];
        if matrices > ceilings.compute {
            roof.insert(0, (ceilings.ridge(), ceilings.compute));
        }
        chart
            .draw_series(LineSeries::new(roof, style))?
            .label(label)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 22, y)], style));
    }
    for line in lines {
        let style = line.color.stroke_width(2);
        let color = line.color;
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), style))?
            .label(line.name.as_str())
            .legend(move |(x, y)| Circle::new((x + 11, y), 5, color.filled()));
        chart.draw_series(line.points.iter().map(|point| Circle::new(*point, 5, line.color.filled())))?;
    }
    axes::legend(&mut chart)?;

    for (i, sentence) in sentences.iter().enumerate() {
        caption.draw(&Text::new(
            sentence.clone(),
            (24, 4 + (LINE * i as u32) as i32),
            (FONT, 16).into_font().color(&INK),
        ))?;
    }
    root.present()
}

/// Lines that fit the width of the figure.
fn wrapped(sentence: &str) -> Vec<String> {
    const WIDTH: usize = 134;
    let mut lines = vec![String::new()];
    for word in sentence.split(' ') {
        let last = lines.len() - 1;
        if !lines[last].is_empty() && lines[last].chars().count() + word.chars().count() >= WIDTH {
            lines.push(word.to_owned());
        } else {
            let space = if lines[last].is_empty() { "" } else { " " };
            lines[last] += &format!("{space}{word}");
        }
    }
    lines
}

/// A power of ten of FLOP/s.
fn plain_speed(rate: f64) -> String {
    match rate {
        rate if rate >= 0.99e12 => format!("{:.0} TFLOP/s", rate / 1e12),
        rate if rate >= 0.99e9 => format!("{:.0} GFLOP/s", rate / 1e9),
        rate => format!("{:.0} MFLOP/s", rate / 1e6),
    }
}
