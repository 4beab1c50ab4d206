//! `tensorboard`: TensorBoard event files, that is `TFRecord` frames that hold `Event` messages of protobuf.
//!
//! A frame is the length (u64), the length's checksum (u32), the message and the message's checksum (u32), all little
//! endian; a checksum is a CRC-32C, rotated and shifted. Only the few fields that scalars need are written:
//! `Event { wall_time = 1, step = 2, file_version = 3, summary = 5, session_log = 7 }`, `Summary { value = 1 }`,
//! `Value { tag = 1, simple_value = 2 }` and `SessionLog { status = 1 }`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use circuitlab_core::{Construct, Error, MetricSink, Record, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::append::{AppendFile, not_open, taken};

register!(metric_sink "tensorboard" => TensorBoardConfig, "TensorBoard event files");

/// Protobuf's wire types.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

/// `SessionLog.status`: a program (re)starts, and what the files hold of this step and later ones is void.
const SESSION_START: u64 = 1;

/// What the names of all event files begin and end with; between them stand the second and a number.
const PREFIX: &str = "events.out.tfevents.";
const SUFFIX: &str = ".circuitlab";

/// Config of the metric sink `tensorboard`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TensorBoardConfig {}

impl Construct for TensorBoardConfig {
    type Output = TensorBoard;

    fn construct(&self) -> Result<TensorBoard> {
        Ok(TensorBoard::default())
    }
}

/// Appends to a new event file. A run that goes on opens another beside the old ones, whose first event makes TensorBoard forget
/// the figures of later steps.
#[derive(Debug, Default)]
pub struct TensorBoard {
    file: Option<AppendFile>,
}

impl MetricSink for TensorBoard {
    fn open(&mut self, run: &Path, after_step: Option<u64>) -> Result<()> {
        let newest = event_files(run)?.into_iter().max();
        if after_step.is_none()
            && let Some((_, old)) = newest
        {
            return Err(taken(&old));
        }
        let mut file = new_file(run, newest.map(|(second, _)| second))?;
        let mut version = event(0);
        field_bytes(&mut version, 3, b"brain.Event:2");
        file.append(&framed(&version))?;
        if let Some(step) = after_step {
            let mut status = Vec::new();
            field_varint(&mut status, 1, SESSION_START);
            let mut start = event(step.saturating_add(1));
            field_bytes(&mut start, 7, &status);
            file.append(&framed(&start))?;
        }
        self.file = Some(file);
        Ok(())
    }

    fn write(&mut self, record: &Record) -> Result<()> {
        let file = self.file.as_mut().ok_or_else(|| not_open("tensorboard"))?;
        let mut summary = Vec::new();
        for (name, figure) in record.iter() {
            let mut value = Vec::with_capacity(name.len() + 8);
            field_bytes(&mut value, 1, name.as_bytes());
            varint(&mut value, 2 << 3 | FIXED32);
            value.extend_from_slice(&(figure as f32).to_le_bytes());
            field_bytes(&mut summary, 1, &value);
        }
        let mut event = event(record.step);
        field_bytes(&mut event, 5, &summary);
        file.append(&framed(&event))
    }

    fn sync(&mut self) -> Result<()> {
        self.file.as_ref().ok_or_else(|| not_open("tensorboard"))?.sync()
    }
}

/// The event files of ours that are there, each after the second in its name.
fn event_files(run: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let ours = |path: PathBuf| {
        let name = path.file_name()?.to_str()?.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
        let second = name.split('.').next()?.parse().ok()?;
        Some((second, path))
    };
    let entries = fs::read_dir(run).map_err(Error::io("read", run))?;
    Ok(entries.filter_map(|entry| ours(entry.ok()?.path())).collect())
}

/// A file whose name no other has and which sorts after the older ones, whatever the clock says: TensorBoard reads them in that order.
fn new_file(run: &Path, newest: Option<u64>) -> Result<AppendFile> {
    let second = now().as_secs().max(newest.map_or(0, |newest| newest.saturating_add(1)));
    for number in 0..1000 {
        if let Some(file) = AppendFile::try_begin(&run.join(format!("{PREFIX}{second:010}.{number:03}{SUFFIX}")))? {
            return Ok(file);
        }
    }
    Err(Error::format(run, "it is full of event files; remove some"))
}

/// A message with its length and both checksums.
fn framed(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    let mut frame = Vec::with_capacity(message.len() + 16);
    frame.extend_from_slice(&length);
    frame.extend_from_slice(&masked_crc(&length).to_le_bytes());
    frame.extend_from_slice(message);
    frame.extend_from_slice(&masked_crc(message).to_le_bytes());
    frame
}

/// The time since 1970; a clock before that counts as 1970.
fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// The fields that every event has.
fn event(step: u64) -> Vec<u8> {
    let mut event = Vec::new();
    varint(&mut event, 1 << 3 | FIXED64);
    event.extend_from_slice(&now().as_secs_f64().to_le_bytes());
    field_varint(&mut event, 2, step);
    event
}

fn field_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    varint(out, field << 3 | BYTES);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn field_varint(out: &mut Vec<u8>, field: u64, value: u64) {
    varint(out, field << 3 | VARINT);
    varint(out, value);
}

/// Seven bits to a byte, the lowest first; the top bit says that more follow.
fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// `TFRecord`'s checksum.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// One bit at a time, from the polynomial alone.
    fn bitwise_crc(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0_u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
        })
    }

    fn check(bytes: &[u8], masked: &[u8]) {
        let crc = bitwise_crc(bytes);
        let expected = crc.rotate_right(15).wrapping_add(0xa282_ead8);
        assert_eq!(masked, expected.to_le_bytes());
    }

    fn frames(mut bytes: &[u8]) -> Vec<&[u8]> {
        let mut frames = Vec::new();
        while !bytes.is_empty() {
            let (head, rest) = bytes.split_at(12);
            check(&head[..8], &head[8..]);
            let length = u64::from_le_bytes(head[..8].try_into().expect("eight bytes")) as usize;
            let (message, rest) = rest.split_at(length);
            check(message, &rest[..4]);
            frames.push(message);
            bytes = &rest[4..];
        }
        frames
    }

    fn take_varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }

    /// The last value of each field, as bytes; and all values of field 1.
    fn fields(mut bytes: &[u8]) -> (BTreeMap<u64, Vec<u8>>, Vec<Vec<u8>>) {
        let (mut last, mut first_field) = (BTreeMap::new(), Vec::new());
        while !bytes.is_empty() {
            let key = take_varint(&mut bytes);
            let length = match key & 7 {
                0 => {
                    last.insert(key >> 3, take_varint(&mut bytes).to_le_bytes().to_vec());
                    continue;
                }
                1 => 8,
                2 => take_varint(&mut bytes) as usize,
                5 => 4,
                other => panic!("wire type {other}"),
            };
            let (value, rest) = bytes.split_at(length);
            bytes = rest;
            if key >> 3 == 1 {
                first_field.push(value.to_vec());
            }
            last.insert(key >> 3, value.to_vec());
        }
        (last, first_field)
    }

    #[test]
    fn crc_agrees_with_the_published_check_value() {
        assert_eq!(bitwise_crc(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
    }

    fn opened(run: &Path, after_step: Option<u64>) -> TensorBoard {
        let mut sink = TensorBoard::default();
        sink.open(run, after_step).expect("opens");
        sink
    }

    fn path(sink: &TensorBoard) -> &Path {
        sink.file.as_ref().expect("open").path()
    }

    #[test]
    fn an_independent_reader_finds_every_figure() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut sink = opened(folder.path(), None);
        let record = Record::new(300).with("loss/total", 0.25).with("explained_variance/layer_3", f64::NAN);
        sink.write(&record).expect("writes");
        sink.sync().expect("a working disk");
        let bytes = fs::read(path(&sink)).expect("reads");
        let frames = frames(&bytes);
        assert_eq!(frames.len(), 2);
        assert_eq!(fields(frames[0]).0[&3], b"brain.Event:2");
        let (event, times) = fields(frames[1]);
        assert!(f64::from_le_bytes(times[0].as_slice().try_into().expect("eight bytes")) > 1.7e9);
        assert_eq!(event[&2], 300_u64.to_le_bytes());
        let values: Vec<_> = fields(&event[&5]).1.iter().map(|value| fields(value).0).collect();
        assert_eq!(values.len(), 2);
        assert_eq!((values[0][&1].as_slice(), values[0][&2].as_slice()), (b"loss/total".as_slice(), 0.25_f32.to_le_bytes().as_slice()));
        assert_eq!(values[1][&1], b"explained_variance/layer_3");
        assert!(f32::from_le_bytes(values[1][&2].as_slice().try_into().expect("four bytes")).is_nan());
    }

    #[test]
    fn a_resumed_run_opens_a_later_file_that_voids_later_steps() {
        let folder = tempfile::tempdir().expect("a folder");
        let (first, second) = (opened(folder.path(), None), opened(folder.path(), Some(40)));
        assert!(path(&second) > path(&first), "{second:?} sorts after {first:?}");
        // A clock that was set back, or that was an hour ahead on another machine.
        let ahead = now().as_secs() + 3600;
        AppendFile::try_begin(&folder.path().join(format!("{PREFIX}{ahead:010}.000{SUFFIX}"))).expect("writes");
        let third = opened(folder.path(), Some(40));
        assert!(path(&third).ends_with(format!("{PREFIX}{:010}.000{SUFFIX}", ahead + 1)), "{third:?}");
        let bytes = fs::read(path(&second)).expect("reads");
        let (event, _) = fields(frames(&bytes)[1]);
        assert_eq!(event[&2], 41_u64.to_le_bytes());
        assert_eq!(fields(&event[&7]).0[&1], SESSION_START.to_le_bytes());
    }
}
