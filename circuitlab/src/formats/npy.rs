//! Headers of numpy arrays.
//!
//! ```text
//! magic `\x93NUMPY`, version (two bytes), length of the text (two bytes, or four from version 2 on), text, numbers
//! {'descr': '<f4', 'fortran_order': False, 'shape': (2304, 16384), }
//! ```

use tch::Kind;

use super::array::byte_count;

/// Text that a header may have. numpy's own reader takes 10 000 bytes.
const LONGEST: usize = 1 << 16;

/// Begins every array.
const MAGIC: &[u8] = b"\x93NUMPY";

/// What an array is, and where its numbers begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) shape: Vec<i64>,
    pub(super) kind: Kind,
    /// Whether the first axis lies in one piece.
    pub(super) turned: bool,
    /// Bytes of the header.
    pub(super) begin: usize,
}

/// How many bytes the header has, from its first twelve.
pub(super) fn length(start: &[u8]) -> Result<usize, String> {
    if !start.starts_with(MAGIC) {
        return Err("it is no numpy array".to_owned());
    }
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte));
    let (text, fixed) = match (start.get(6), start.get(8..10), start.get(8..12)) {
        (Some(1), Some(length), _) => (number(length), 10),
        (Some(2 | 3), _, Some(length)) => (number(length), 12),
        (Some(version), ..) => return Err(format!("it is of the numpy format {version}; expected 1, 2 or 3")),
        _ => return Err("it is cut short".to_owned()),
    };
    if text > LONGEST {
        return Err(format!("its header has {text} bytes; expected at most {LONGEST}"));
    }
    Ok(fixed + text)
}

/// Reads a whole header.
pub(super) fn parse(bytes: &[u8]) -> Result<Header, String> {
    let begin = length(bytes)?;
    let fixed = if bytes.get(6) == Some(&1) { 10 } else { 12 };
    let text = bytes.get(fixed..begin).ok_or("it is cut short")?;
    let text = std::str::from_utf8(text).map_err(|_| "its header is no text")?;
    let value = |key: &str| -> Result<&str, String> {
        let missing = || format!("its header has no `{key}`");
        let (_, rest) = text.split_once(&format!("'{key}'")).ok_or_else(missing)?;
        rest.trim_start().strip_prefix(':').map(str::trim_start).ok_or_else(missing)
    };
    let descr = value("descr")?.strip_prefix('\'').and_then(|rest| rest.split_once('\'')).map(|(descr, _)| descr);
    let kind = match descr {
        Some("<f4") => Kind::Float,
        Some("<f8") => Kind::Double,
        Some("<f2") => Kind::Half,
        Some(other) => return Err(format!("it is of type `{other}`; expected `<f4`, `<f8` or `<f2`")),
        None => return Err("it is of several types; expected one".to_owned()),
    };
    let turned = match value("fortran_order")? {
        value if value.starts_with("True") => true,
        value if value.starts_with("False") => false,
        _ => return Err("its header's `fortran_order` is neither True nor False".to_owned()),
    };
    let shape = value("shape")?.strip_prefix('(').and_then(|rest| rest.split_once(')')).map(|(shape, _)| shape);
    let shape = shape.ok_or("its header's `shape` is no tuple")?;
    let sizes = shape.split(',').map(str::trim).filter(|size| !size.is_empty());
    let size =
        |text: &str| text.trim_end_matches('L').parse::<u32>().map(i64::from).map_err(|_| format!("its header's size `{text}` is none"));
    let shape = sizes.map(size).collect::<Result<Vec<_>, _>>()?;
    if shape.len() > 8 || byte_count(&shape, kind).is_none() {
        return Err(format!("its shape {shape:?} is too large"));
    }
    Ok(Header { shape, kind, turned, begin })
}

/// The header of an array that is written, with the first axis slowest. The numbers begin at a multiple of 64.
pub(super) fn header(shape: &[i64], kind: Kind) -> Option<Vec<u8>> {
    let descr = match kind {
        Kind::Float => "<f4",
        Kind::Double => "<f8",
        Kind::Half => "<f2",
        _ => return None,
    };
    let sizes = shape.iter().fold(String::new(), |sizes, size| sizes + &size.to_string() + ", ");
    let sizes = if shape.len() == 1 { sizes.trim_end() } else { sizes.trim_end_matches(", ") };
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({sizes}), }}");
    while !(text.len() + 11).is_multiple_of(64) {
        text.push(' ');
    }
    text.push('\n');
    Some([MAGIC, &[1, 0], &u16::try_from(text.len()).ok()?.to_le_bytes(), text.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn headers_come_back(shape in prop::collection::vec(0_i64..5000, 0..5), kind in 0_usize..3) {
            let kind = [Kind::Float, Kind::Double, Kind::Half][kind];
            let bytes = header(&shape, kind).expect("floats");
            prop_assert!(bytes.len().is_multiple_of(64));
            prop_assert_eq!(length(&bytes), Ok(bytes.len()));
            prop_assert_eq!(parse(&bytes), Ok(Header { shape, kind, turned: false, begin: bytes.len() }));
        }

        #[test]
        fn any_bytes_are_a_header_or_an_error(mut bytes in prop::collection::vec(any::<u8>(), 0..200), magic: bool) {
            if magic && bytes.len() > 8 {
                bytes[..6].copy_from_slice(MAGIC);
                bytes[6] %= 4;
            }
            let _ = parse(&bytes);
        }

        #[test]
        fn any_text_is_a_header_or_an_error(text in "[{}'():, a-zA-Z0-9<]{0,60}('(descr|shape|fortran_order)': ?[(']?[0-9<f, )'TrueFals]{0,12}){0,4}") {
            let _ = parse(&[MAGIC, &[1, 0], &(text.len() as u16).to_le_bytes(), text.as_bytes()].concat());
        }
    }

    #[test]
    fn a_header_of_numpy_is_read() {
        let text = "{'descr': '<f4', 'fortran_order': True, 'shape': (3,), }      \n";
        let bytes = [MAGIC, &[1, 0], &(text.len() as u16).to_le_bytes(), text.as_bytes()].concat();
        assert_eq!(parse(&bytes), Ok(Header { shape: vec![3], kind: Kind::Float, turned: true, begin: bytes.len() }));
        for (from, to, why) in [("<f4", ">f4", "`>f4`"), ("(3,)", "(99999, 9999999, 999999, 99999)", "too large"), ("True", "1", "neither")]
        {
            let text = text.replace(from, to);
            let bytes = [MAGIC, &[2, 0], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
            let error = parse(&bytes).expect_err("wrong");
            assert!(error.contains(why), "{error}");
        }
    }
}
