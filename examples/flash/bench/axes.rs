//! What the figures share: colours, logarithmic axes, a title, grid and legend.

use plotters::coord::cartesian::Cartesian2d;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::prelude::*;

use crate::failure::Failure;

pub const SIZE: (u32, u32) = (960, 600);
pub const INK: RGBColor = RGBColor(40, 44, 52);
pub const FAINT: RGBColor = RGBColor(110, 116, 128);
pub const GRID: RGBColor = RGBColor(222, 225, 230);
pub const FAINT_GRID: RGBColor = RGBColor(243, 244, 246);
pub const FONT: &str = "sans-serif";

/// One line of a figure.
pub struct Series {
    pub name: String,
    pub algorithm: &'static str,
    pub color: RGBColor,
    pub points: Vec<(f64, f64)>,
}

/// A logarithmic axis with a label at each power of its base, from one to the next.
#[derive(Clone)]
pub struct LogAxis {
    from: f64,
    to: f64,
    base: f64,
}

impl LogAxis {
    /// From the power of `base` at or below the smallest value to the one at or above the largest.
    pub fn around(values: impl Iterator<Item = f64>, base: f64) -> Self {
        let (mut least, mut most) = (f64::INFINITY, 0.0f64);
        for value in values.filter(|value| *value > 0.0 && value.is_finite()) {
            least = least.min(value);
            most = most.max(value);
        }
        if least > most {
            (least, most) = (1.0, base);
        }
        let from = (least.log(base) + 1e-9).floor();
        let to = (most.log(base) - 1e-9).ceil().max(from + 1.0);
        Self { from, to, base }
    }

    pub fn start(&self) -> f64 {
        self.base.powf(self.from)
    }

    pub fn end(&self) -> f64 {
        self.base.powf(self.to)
    }
}

impl Ranged for LogAxis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (first, last): (i32, i32)) -> i32 {
        let share = (value.log(self.base) - self.from) / (self.to - self.from);
        first + (share * f64::from(last - first)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        let powers = (self.to - self.from).round() as usize;
        let step = powers.div_ceil(hint.bold_points().clamp(1, 12)).max(1);
        // Light lines between powers of ten: 2 to 9 times each.
        let between = if hint.weight().allow_light_points() && self.base == 10.0 && powers <= 6 { 9 } else { 1 };
        (0..=powers)
            .step_by(step)
            .map(|power| self.base.powf(self.from + power as f64))
            .flat_map(|power| (1..=between).map(move |times| f64::from(times) * power))
            .filter(|value| *value <= self.end())
            .collect()
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.start()..self.end()
    }
}

pub fn undrawable(error: impl std::fmt::Display) -> Failure {
    Failure::new(format_args!("a figure cannot be drawn: {error}"))
}

/// Title and subtitle at the top; the rest.
pub fn titled<DB: DrawingBackend>(
    root: &DrawingArea<DB, plotters::coord::Shift>,
    title: &str,
    subtitle: &str,
) -> Result<DrawingArea<DB, plotters::coord::Shift>, DrawingAreaErrorKind<DB::ErrorType>> {
    let (head, rest) = root.split_vertically(68);
    head.draw(&Text::new(title.to_owned(), (24, 16), (FONT, 25).into_font().color(&INK)))?;
    head.draw(&Text::new(subtitle.to_owned(), (24, 46), (FONT, 16).into_font().color(&FAINT)))?;
    Ok(rest)
}

/// A chart on two logarithmic axes.
type Chart<'a, DB> = ChartContext<'a, DB, Cartesian2d<LogAxis, LogAxis>>;

/// How an axis writes its values.
type Label<'a> = &'a dyn Fn(&f64) -> String;

/// The grid of a chart, with the name of each axis and how it writes its values.
pub fn mesh<DB: DrawingBackend>(
    chart: &mut Chart<DB>,
    x: (&str, Label),
    y: (&str, Label),
) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
    chart
        .configure_mesh()
        .x_desc(x.0)
        .y_desc(y.0)
        .x_label_formatter(&x.1)
        .y_label_formatter(&y.1)
        .bold_line_style(GRID)
        .light_line_style(FAINT_GRID)
        .axis_style(FAINT)
        .label_style((FONT, 16).into_font().color(&INK))
        .axis_desc_style((FONT, 17).into_font().color(&INK))
        .draw()
}

/// The names of the lines, inside the chart.
pub fn legend<'a, DB: DrawingBackend + 'a>(
    chart: &mut Chart<'a, DB>,
) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .margin(14)
        .legend_area_size(30)
        .label_font((FONT, 17).into_font().color(&INK))
        .background_style(WHITE.mix(0.9))
        .border_style(GRID)
        .draw()
}
