//! Is attention bound by compute or by memory? FLOPs per byte against speed, under the adapter's two ceilings.

use plotters::prelude::*;

use super::ceilings::Ceilings;
use super::figures::{self, FAINT, FAINT_GRID, FONT, GRID, INK, LogAxis, SIZE, Series};
use super::record::Record;
use crate::failure::Result;
use crate::text;

/// FLOPs per byte and FLOPs a second.
fn point(record: &Record) -> Option<(f64, f64)> {
    Some((record.flops_per_byte?, record.tflops? * 1e12))
}

/// The answer in words, first the ceilings and then one sentence for each algorithm (and head_dim).
pub fn sentences(records: &[Record], ceilings: &Ceilings) -> Vec<String> {
    let mut sentences = vec![format!(
        "Ceilings measured on this adapter: {} of f32 multiply-adds, {} of copying; they meet at {:.1} FLOPs per byte.",
        text::per_second(ceilings.compute, "FLOP"),
        text::per_second(ceilings.bandwidth, "B"),
        ceilings.ridge()
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
    let mut svg = String::new();
    let title = format!("{}: compute-bound or memory-bound?", figures::title(records));
    draw(&mut svg, &lines, ceilings, (&title, subtitle), &sentences(records, ceilings)).map_err(figures::undrawable)?;
    Ok(svg)
}

fn draw(
    svg: &mut String,
    lines: &[Series],
    ceilings: &Ceilings,
    (title, subtitle): (&str, &str),
    sentences: &[String],
) -> std::result::Result<(), DrawingAreaErrorKind<std::io::Error>> {
    const LINE: u32 = 22;
    let sentences: Vec<String> = sentences.iter().flat_map(|sentence| wrapped(sentence)).collect();
    let caption_height = LINE * sentences.len() as u32 + 18;
    let root = SVGBackend::with_string(svg, (SIZE.0, SIZE.1 + caption_height)).into_drawing_area();
    root.fill(&WHITE)?;
    let area = figures::titled(&root, title, subtitle)?;
    let (area, caption) = area.split_vertically(SIZE.1 as i32 - 68);

    // Nothing lies above the roof: the legend goes there.
    const HEADROOM: f64 = 12.0;
    let points = || lines.iter().flat_map(|line| &line.points);
    let ridge = ceilings.ridge();
    let x = LogAxis::around(points().map(|point| point.0).chain([ridge / 3.0, ridge * 3.0]), 2.0);
    let y = LogAxis::around(
        points().map(|point| point.1).chain([ceilings.compute * HEADROOM, ceilings.compute / 12.0]),
        10.0,
    );
    let (x_from, x_to, y_from) = (x.start(), x.end(), y.start());
    let mut chart = ChartBuilder::on(&area)
        .margin(20)
        .margin_left(12)
        .margin_right(40)
        .x_label_area_size(52)
        .y_label_area_size(108)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .x_desc("FLOPs per byte of device memory (counted from the plan)")
        .y_desc("speed")
        .x_label_formatter(&|x| if *x < 1.0 { format!("1/{:.0}", 1.0 / x) } else { format!("{x:.0}") })
        .y_label_formatter(&|y| plain_speed(*y))
        .bold_line_style(GRID)
        .light_line_style(FAINT_GRID)
        .axis_style(FAINT)
        .label_style((FONT, 16).into_font().color(&INK))
        .axis_desc_style((FONT, 17).into_font().color(&INK))
        .draw()?;

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
    for line in lines {
        let style = line.color.stroke_width(2);
        let color = line.color;
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), style))?
            .label(line.name.as_str())
            .legend(move |(x, y)| Circle::new((x + 11, y), 5, color.filled()));
        chart.draw_series(line.points.iter().map(|point| Circle::new(*point, 5, line.color.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .margin(14)
        .legend_area_size(30)
        .label_font((FONT, 17).into_font().color(&INK))
        .background_style(WHITE.mix(0.9))
        .border_style(GRID)
        .draw()?;

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
