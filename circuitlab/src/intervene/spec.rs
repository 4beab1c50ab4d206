//! Features and positions as people write them: `3/5/120`, `3/2:/120`, `3/5/120=4.5`.

use std::str::FromStr;

use super::{Positions, Site};
use crate::{Error, Result};

impl FromStr for Positions {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong =
            || Error::Invalid(format!("`{text}` is no position; expected one such as `5`, or several such as `2:`, `2:5`, `:5` or `:`"));
        let number = |text: &str| text.parse::<usize>().map_err(|_| wrong());
        match text.split_once(':') {
            None => Ok(Self::At(number(text)?)),
            Some(("", "")) => Ok(Self::ALL),
            Some((first, "")) => Ok(Self::From(number(first)?)),
            Some(("", end)) => Ok(Self::Range(0..number(end)?)),
            Some((first, end)) => Ok(Self::Range(number(first)?..number(end)?)),
        }
    }
}

impl FromStr for Site {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match feature_at(text)? {
            (layer, Positions::At(position), feature) => Ok(Self { layer, position, feature }),
            (_, positions, _) => Err(Error::Invalid(format!("`{text}` names positions `{positions}`; expected one, such as `3/5/120`"))),
        }
    }
}

/// Reads `LAYER/POSITIONS/FEATURE`, or the id of a graph's node, `LAYER_FEATURE_POSITION`.
///
/// # Errors
/// Anything else.
pub fn feature_at(text: &str) -> Result<(usize, Positions, usize)> {
    let wrong = || {
        let known = "LAYER/POSITION/FEATURE, such as `3/5/120` or `3/2:/120`, or a graph's node LAYER_FEATURE_POSITION, such as `3_120_5`";
        Error::Invalid(format!("`{text}` is no feature; expected {known}"))
    };
    let id: Vec<Option<usize>> = text.trim().split('_').map(|part| part.parse().ok()).collect();
    if let [Some(layer), Some(feature), Some(position)] = id[..] {
        return Ok((layer, Positions::At(position), feature));
    }
    let parts: Vec<&str> = text.split('/').map(str::trim).collect();
    let [layer, positions, feature] = parts[..] else { return Err(wrong()) };
    let number = |text: &str| text.parse::<usize>().map_err(|_| wrong());
    Ok((number(layer)?, positions.parse()?, number(feature)?))
}

/// Reads `WHAT=NUMBER`, such as `3/5/120=4.5`.
///
/// # Errors
/// Anything else, and numbers that are infinite or none.
pub fn assignment(text: &str) -> Result<(&str, f64)> {
    let (what, number) = text
        .rsplit_once('=')
        .ok_or_else(|| Error::Invalid(format!("`{text}` says no number; expected one after a `=`, such as `3/5/120=4.5`")))?;
    match number.trim().parse::<f64>() {
        Ok(value) if value.is_finite() => Ok((what.trim(), value)),
        _ => Err(Error::Invalid(format!("`{text}`: `{number}` is not a number to intervene with"))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn features_are_read_as_they_are_written() {
        for (text, positions) in [
            ("3/5/120", Positions::At(5)),
            ("3/2:/120", Positions::From(2)),
            ("3/2:5/120", Positions::Range(2..5)),
            ("3/:/120", Positions::ALL),
            ("3_120_5", Positions::At(5)),
        ] {
            assert_eq!(feature_at(text).expect("a feature"), (3, positions.clone(), 120));
            assert_eq!(positions.to_string().parse::<Positions>().expect("its own text"), positions);
        }
        assert_eq!(feature_at("3/:5/120").expect("a feature").1, Positions::Range(0..5));
        assert_eq!("3/5/120".parse::<Site>().expect("a site").to_string(), "3/5/120");
        let (what, number) = assignment("3/5/120=-4.5").expect("a number");
        assert_eq!((what, number), ("3/5/120", -4.5));
    }

    #[test]
    fn what_is_no_feature_is_named() {
        for (text, says) in [
            ("3/5", "LAYER/POSITION/FEATURE"),
            ("3/5/x", "`3/5/x`"),
            ("3/-1/7", "`-1` is no position"),
            ("3/1:2:3/7", "`1:2:3` is no position"),
            ("", "`` is no feature"),
        ] {
            assert!(feature_at(text).expect_err("no feature").to_string().contains(says), "{text}");
        }
        for text in ["3/5/7", "3/5/7=", "3/5/7=nan", "3/5/7=inf", "3/5/7=1e999", "3/5/7=x"] {
            assert!(assignment(text).is_err(), "{text}");
        }
        assert!("3/5:/7".parse::<Site>().is_err());
    }

    proptest! {
        #[test]
        fn no_text_is_too_odd(text in ".{0,40}") {
            let _ = (feature_at(&text), assignment(&text), text.parse::<Site>());
        }
    }
}
