//! Lines to draw, taken from the records.

use plotters::style::RGBColor;

use super::super::{Record, names};

/// More points than this are averaged in groups: a plot is about 900 pixels wide.
const POINTS: usize = 1500;

/// Values beyond this are left out: they are overflows, and would flatten every other line.
const LARGEST: f64 = 1e30;

/// The line of a total, drawn thick.
const TOTAL: RGBColor = RGBColor(33, 33, 33);

/// Okabe and Ito's colours, which most colour-blind people can tell apart, without black and yellow.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

/// Viridis without its palest end: layers are ordered, and so are its colours.
const LAYERS: [RGBColor; 6] = [
    RGBColor(68, 1, 84),
    RGBColor(65, 68, 135),
    RGBColor(42, 120, 142),
    RGBColor(34, 168, 132),
    RGBColor(122, 209, 81),
    RGBColor(220, 200, 30),
];

/// One line with at least one point.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Series {
    /// What the legend calls it.
    pub(super) label: String,
    /// Step and value, all finite, by step.
    pub(super) points: Vec<(f64, f64)>,
    /// Its colour.
    pub(super) colour: RGBColor,
    /// Its width in pixels.
    pub(super) width: u32,
}

/// The figure of that name alone.
pub(super) fn single(records: &[Record], name: &str, label: &str) -> Option<Series> {
    line(records, name, label.to_owned(), TOTAL, 2)
}

/// All figures whose names begin with `prefix`, the total first.
pub(super) fn under(records: &[Record], prefix: &str, total: &str) -> Vec<Series> {
    let terms = found(records, |name| name.starts_with(prefix) && name != total);
    let label = |name: &str| name.strip_prefix(prefix).unwrap_or(name).replace('_', " ");
    let terms = terms.iter().enumerate().filter_map(|(i, name)| line(records, name, label(name), COLOURS[i % COLOURS.len()], 1));
    line(records, total, label(total), TOTAL, 2).into_iter().chain(terms).collect()
}

/// Every layer's share of a figure, by layer.
pub(super) fn layers(records: &[Record], whole: &str) -> Vec<Series> {
    let mut layers: Vec<(usize, &str)> = found(records, |name| names::layer_of(name, whole).is_some())
        .into_iter()
        .filter_map(|name| Some((names::layer_of(name, whole)?, name)))
        .collect();
    layers.sort_unstable();
    let last = layers.len().saturating_sub(1).max(1) as f64;
    let shade = |i: usize| between(&LAYERS, i as f64 / last);
    layers.iter().enumerate().filter_map(|(i, (layer, name))| line(records, name, format!("layer {layer}"), shade(i), 1)).collect()
}

/// Names that pass, in the order in which they first appear.
fn found(records: &[Record], pass: impl Fn(&str) -> bool) -> Vec<&str> {
    let mut names = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for (name, _) in records.iter().flat_map(Record::iter) {
        if seen.insert(name) && pass(name) {
            names.push(name);
        }
    }
    names
}

fn line(records: &[Record], name: &str, label: String, colour: RGBColor, width: u32) -> Option<Series> {
    let point = |record: &Record| Some((record.step as f64, record.get(name)?));
    let mut points: Vec<_> = records.iter().filter_map(point).filter(|(_, value)| value.abs() <= LARGEST).collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    (!points.is_empty()).then(|| Series { label, points: thin(points), colour, width })
}

/// Averages groups of points, so that no more than [`POINTS`] remain.
fn thin(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let group = points.len().div_ceil(POINTS);
    if group <= 1 {
        return points;
    }
    let mean = |group: &[(f64, f64)]| {
        let n = group.len() as f64;
        (group.iter().map(|(step, _)| step / n).sum(), group.iter().map(|(_, value)| value / n).sum())
    };
    points.chunks(group).map(mean).collect()
}

/// The colour a share `at` of the way along `colours`.
fn between(colours: &[RGBColor], at: f64) -> RGBColor {
    let place = at.clamp(0.0, 1.0) * (colours.len() - 1) as f64;
    let (low, rest) = (place.floor() as usize, place.fract());
    let (a, b) = (colours[low], colours[(low + 1).min(colours.len() - 1)]);
    let mix = |a: u8, b: u8| (f64::from(a) + (f64::from(b) - f64::from(a)) * rest).round() as u8;
    RGBColor(mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_come_in_order_and_without_their_holes() {
        let records = [
            Record::new(2).with("l0/layer_10", 5.0).with("l0/layer_2", 6.0),
            Record::new(1).with("l0/layer_10", 4.0).with("l0/layer_2", f64::NAN),
        ];
        let lines = layers(&records, names::L0);
        assert_eq!(lines.iter().map(|line| line.label.as_str()).collect::<Vec<_>>(), ["layer 2", "layer 10"]);
        assert_eq!(lines[0].points, [(2.0, 6.0)]);
        assert_eq!(lines[1].points, [(1.0, 4.0), (2.0, 5.0)]);
        assert_eq!((lines[0].colour, lines[1].colour), (LAYERS[0], LAYERS[5]));
    }

    #[test]
    fn long_lines_are_averaged() {
        let points = thin((0..10_000).map(|i| (f64::from(i), f64::from(i % 2))).collect());
        assert!(points.len() <= POINTS && points.len() > POINTS / 2, "{}", points.len());
        assert!(points.iter().all(|(_, value)| (value - 0.5).abs() < 0.1));
    }
}
