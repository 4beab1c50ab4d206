//! Panels stacked in one SVG picture.

use std::fmt::Display;

use circuitlab_core::Error as CoreError;
use plotters::backend::SVGBackend;
use plotters::chart::{ChartBuilder, ChartContext};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{Ranged, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::{Cartesian2d, Circle, IntoFont, IntoLogRange, PathElement, Text};
use plotters::series::LineSeries;
use plotters::style::{Color, RGBColor, WHITE};
use plotters::{drawing::DrawingArea, drawing::IntoDrawingArea};

use super::axis;
use super::series::Series;
use crate::Result;

/// Pixels.
const WIDTH: u32 = 960;
const PANEL_HEIGHT: u32 = 400;
const LEGEND_WIDTH: u32 = 170;
const LEGEND_LINE: i32 = 20;

/// The legend names no more lines than this: of many layers it shows every second, third ..
const LEGEND_LINES: usize = 16;

const INK: RGBColor = RGBColor(60, 60, 60);
const GRID: RGBColor = RGBColor(225, 225, 225);
const FINE_GRID: RGBColor = RGBColor(244, 244, 244);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// One pair of axes with its lines.
#[derive(Debug)]
pub(super) struct Panel {
    /// The headline.
    pub(super) title: &'static str,
    /// What the vertical axis counts.
    pub(super) unit: &'static str,
    /// Whether the vertical axis is logarithmic where values are spread widely.
    pub(super) logarithmic: bool,
    /// The lines.
    pub(super) series: Vec<Series>,
}

/// Draws the panels below each other.
pub(super) fn svg(panels: &[Panel]) -> Result<String> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (WIDTH, PANEL_HEIGHT * panels.len() as u32)).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        for (panel, area) in panels.iter().zip(root.split_evenly((panels.len(), 1))) {
            draw(panel, &area)?;
        }
        root.present().map_err(failed)?;
    }
    Ok(text)
}

fn draw(panel: &Panel, area: &Area) -> Result<()> {
    let (plot, side) = area.split_horizontally(WIDTH - LEGEND_WIDTH);
    let steps = axis::steps(&panel.series);
    let mut builder = ChartBuilder::on(&plot);
    builder.caption(panel.title, ("sans-serif", 20).into_font().color(&INK)).margin(12).x_label_area_size(44).y_label_area_size(72);
    match axis::logarithmic(&panel.series).filter(|_| panel.logarithmic) {
        Some(values) => lines(panel, builder.build_cartesian_2d(steps, values.clone().log_scale()).map_err(failed)?, Some(values.start)),
        None => lines(panel, builder.build_cartesian_2d(steps, axis::values(&panel.series)).map_err(failed)?, None),
    }?;
    legend(panel, &side)
}

/// Draws grid, axes and lines; with a floor, what lies below it is left out.
fn lines<'a, Y>(
    panel: &Panel,
    mut chart: ChartContext<'a, SVGBackend<'a>, Cartesian2d<RangedCoordf64, Y>>,
    floor: Option<f64>,
) -> Result<()>
where
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc(panel.unit)
        .x_labels(8)
        .y_labels(8)
        .x_label_formatter(&|value| axis::tick(*value))
        .y_label_formatter(&|value| axis::tick(*value))
        .label_style(("sans-serif", 14).into_font().color(&INK))
        .axis_desc_style(("sans-serif", 15).into_font().color(&INK))
        .axis_style(INK)
        .bold_line_style(GRID)
        .light_line_style(FINE_GRID)
        .max_light_lines(2)
        .draw()
        .map_err(failed)?;
    for line in &panel.series {
        let points: Vec<_> = line.points.iter().copied().filter(|point| floor.is_none_or(|floor| point.1 >= floor)).collect();
        let style = line.colour.stroke_width(line.width);
        if let [point] = points[..] {
            chart.draw_series([Circle::new(point, 3, line.colour.filled())]).map_err(failed)?;
        } else {
            chart.draw_series(LineSeries::new(points, style)).map_err(failed)?;
        }
    }
    Ok(())
}

/// Names the lines to the right of the axes, a total first.
fn legend(panel: &Panel, area: &Area) -> Result<()> {
    let every = panel.series.len().div_ceil(LEGEND_LINES).max(1);
    let last = panel.series.len().saturating_sub(1);
    let named = panel.series.iter().enumerate().filter(|(i, line)| i % every == 0 || *i == last || line.width > 1);
    let mut named: Vec<_> = named.map(|(_, line)| line).collect();
    named.sort_by_key(|line| std::cmp::Reverse(line.width));
    for (row, line) in named.into_iter().enumerate() {
        let y = 52 + row as i32 * LEGEND_LINE;
        area.draw(&PathElement::new([(4, y), (30, y)], line.colour.stroke_width(line.width + 1))).map_err(failed)?;
        area.draw(&Text::new(short(&line.label), (38, y - 8), ("sans-serif", 14).into_font().color(&INK))).map_err(failed)?;
    }
    Ok(())
}

/// What fits beside the axes.
fn short(label: &str) -> String {
    if label.chars().count() <= 20 { label.to_owned() } else { label.chars().take(19).chain(['\u{2026}']).collect() }
}

/// The library's errors speak of a backend that only fills a string.
fn failed(error: impl Display) -> crate::Error {
    CoreError::Invalid(format!("cannot draw a plot: {error}")).into()
}
