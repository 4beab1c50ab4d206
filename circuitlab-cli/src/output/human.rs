//! Numbers as people read them.

use std::time::Duration;

/// `0 B`, `512 B`, `1.50 KiB`, `12.3 GiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let (mut value, mut unit) = (bytes as f64 / 1024.0, 0);
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{} {}", three_digits(value), UNITS[unit])
}

/// `950`, `12.3k`, `4.00M`, `1.25G`: for large counts and rates. Counts below 10 000 stay whole.
pub fn count(count: f64) -> String {
    const UNITS: [&str; 4] = ["k", "M", "G", "T"];
    if !count.is_finite() {
        return "-".to_owned();
    }
    if count.abs() < 9999.5 {
        return if count.abs() >= 100.0 || count.fract() == 0.0 { format!("{count:.0}") } else { three_digits(count) };
    }
    let (mut value, mut unit) = (count / 1e3, 0);
    while value.abs() >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1e3;
        unit += 1;
    }
    format!("{}{}", three_digits(value), UNITS[unit])
}

/// `1 234 567`: every digit, in groups of three.
pub fn whole(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// `0.4 s`, `12 s`, `3 min 05 s`, `2 h 14 min`, `3 d 04 h`.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 0.001 {
        return format!("{:.0} us", seconds * 1e6);
    }
    if seconds < 0.1 {
        return format!("{:.1} ms", seconds * 1e3);
    }
    if seconds < 9.95 {
        return format!("{seconds:.1} s");
    }
    let whole = duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() >= 500_000_000));
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        3600..86_400 => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
        _ => format!("{} d {:02} h", whole / 86_400, whole / 3600 % 24),
    }
}

fn three_digits(value: f64) -> String {
    match value.abs() {
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_three_digits_and_a_unit() {
        for (value, text) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.50 KiB"), (1023 * 1024, "1.00 MiB"), (u64::MAX, "16.0 EiB")] {
            assert_eq!(bytes(value), text);
        }
    }

    #[test]
    fn counts_are_short() {
        let expected = [(0.0, "0"), (3.5, "3.50"), (950.4, "950"), (9999.0, "9999"), (12_340.0, "12.3k"), (4e6, "4.00M"), (-2e9, "-2.00G")];
        for (value, text) in expected {
            assert_eq!(count(value), text);
        }
        assert_eq!((count(f64::NAN), whole(1_234_567), whole(12)), ("-".to_owned(), "1 234 567".to_owned(), "12".to_owned()));
    }

    #[test]
    fn durations_carry_their_units() {
        for (ms, text) in
            [(0, "0 us"), (40, "40.0 ms"), (400, "0.4 s"), (12_000, "12 s"), (59_800, "1 min 00 s"), (8_040_000, "2 h 14 min")]
        {
            assert_eq!(duration(Duration::from_millis(ms)), text);
        }
        assert_eq!(duration(Duration::from_hours(3 * 24 + 4)), "3 d 04 h");
        assert!(duration(Duration::MAX).ends_with('h'));
    }
}
