//! Ranges and the numbers beside them.

use std::ops::Range;

use super::series::Series;

/// A logarithmic axis shows no more than this many times its largest value's inverse.
const LOG_SPAN: f64 = 1e6;

/// Where largest and smallest positive value differ by this factor, a linear axis would hide the smaller ones.
const LOG_FROM: f64 = 30.0;

/// The steps of all series, with room around a single one.
pub(super) fn steps(series: &[Series]) -> Range<f64> {
    let (low, high) = extent(series.iter().flat_map(|line| line.points.iter().map(|point| point.0)));
    if high > low { low..high } else { padded(low, high, 0.5) }
}

/// The values of all series, with a little room.
pub(super) fn values(series: &[Series]) -> Range<f64> {
    let (low, high) = extent(series.iter().flat_map(|line| line.points.iter().map(|point| point.1)));
    let range = padded(low, high, 0.04);
    // What is never negative should stand on zero, not float above less than nothing.
    if low >= 0.0 && range.start < 0.0 { 0.0..range.end } else { range }
}

/// The positive values of all series for a logarithmic axis, if they are spread enough to deserve one.
pub(super) fn logarithmic(series: &[Series]) -> Option<Range<f64>> {
    if series.iter().flat_map(|line| &line.points).any(|point| point.1 < 0.0) {
        return None;
    }
    let positive = series.iter().flat_map(|line| line.points.iter().map(|point| point.1)).filter(|value| *value > 1e-30);
    let (low, high) = extent(positive);
    let low = low.max(high / LOG_SPAN);
    (high / low >= LOG_FROM).then(|| low / 1.2..high * 1.2)
}

fn extent(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
}

/// The range with a share of its width on both sides, and never empty.
fn padded(low: f64, high: f64, share: f64) -> Range<f64> {
    let width = high - low;
    let least = low.abs().max(high.abs()) * 1e-3;
    let pad = if width > least { width * share } else { least.max(1e-12) * 50.0 };
    low - pad..high + pad
}

/// A number as an axis shows it: `1.5M`, `20k`, `0.25`, `3e-5`.
pub(super) fn tick(value: f64) -> String {
    let size = value.abs();
    let short = |value: f64| trim(&format!("{value:.3}"));
    match size {
        0.0 => "0".to_owned(),
        _ if size >= 1e12 => format!("{value:.1e}"),
        _ if size >= 1e9 => short(value / 1e9) + "G",
        _ if size >= 1e6 => short(value / 1e6) + "M",
        _ if size >= 1e4 => short(value / 1e3) + "k",
        _ if size >= 0.01 => short(value),
        _ => {
            let text = format!("{value:.2e}");
            text.split_once('e').map_or_else(|| text.clone(), |(digits, power)| format!("{}e{power}", trim(digits)))
        }
    }
}

fn trim(digits: &str) -> String {
    if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.').to_owned() } else { digits.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_short() {
        let expected = [(0.0, "0"), (0.25, "0.25"), (1500.0, "1500"), (20_000.0, "20k"), (1.5e6, "1.5M"), (3e-5, "3e-5"), (-2.0, "-2")];
        for (value, text) in expected {
            assert_eq!(tick(value), text);
        }
    }

    #[test]
    fn no_range_is_empty() {
        for (low, high) in [(0.0, 0.0), (5.0, 5.0), (-1e30, 1e30), (1e-300, 1e-300), (1.8e19, 1.8e19)] {
            let range = padded(low, high, 0.04);
            assert!(range.start < range.end && range.end.is_finite(), "{range:?}");
        }
    }
}
