//! Taking a transcoder out of a run: its folder copied, file by file and a piece at a time, so that one process with little memory is
//! enough whatever its size.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use circuitlab_core::config::FloatKind;
use circuitlab_core::tensors::{FileLayout, PIECE_BYTES, TensorFile, TensorLayout, TensorWriter, WrittenRows};
use circuitlab_core::{Error as CoreError, files};
use serde::Serialize;
use tch::{Device, Kind};

use crate::formats::{self, Format, Target};
use crate::saved::{self, CARD};
use crate::train::{newest_checkpoint, written_files};
use crate::{Error, Progress, Result};

/// What to take out, and where to.
#[derive(Debug)]
pub struct ExportRequest<'a> {
    /// A run folder, whose `final` is taken or else its newest checkpoint; or a folder of a transcoder, such as a checkpoint.
    pub from: &'a Path,
    /// The new folder.
    pub out: &'a Path,
    /// The type of its numbers; as they are where none is given.
    pub dtype: Option<FloatKind>,
    /// Whose files to write; our own where none is given.
    pub format: Option<Format>,
    /// Told of every piece.
    pub progress: &'a dyn Progress,
}

/// What was taken out.
#[derive(Debug, Clone, Serialize)]
pub struct Exported {
    /// The folder that it was in.
    pub from: PathBuf,
    /// The folder that it is in now.
    pub out: PathBuf,
    /// Its tensor files.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Whether they were compared with checksums, which checkpoints have.
    pub checked: bool,
}

/// Copies a transcoder into a folder of its own, or writes it as another tool stores such; the folder is there when all of it is.
///
/// # Errors
/// [`Error::Exists`], a folder that holds no transcoder, files that are damaged, a transcoder that the format cannot hold, and what the file
/// system returns.
pub fn export(request: &ExportRequest<'_>) -> Result<Exported> {
    let from = transcoder_in(request.from)?;
    let card = saved::read_card(&from)?;
    let target = match request.format {
        None => return copy(request, from),
        Some(Format::CircuitTracer) => {
            formats::circuit_tracer_reads(&from, &card)?;
            return copy(request, from);
        }
        Some(Format::GemmaScope) => Target::GemmaScope,
        Some(Format::GemmaScope2) => Target::GemmaScope2,
        Some(Format::CltForge) => Target::CltForge,
    };
    let written = written_files(&from)?;
    for (name, ranges) in written.iter().flatten() {
        let file = TensorFile::open(&from.join(name))?;
        ranges.iter().try_for_each(|rows| file.check(rows))?;
    }
    let done = formats::convert(&from, &target, request.out, request.dtype, request.progress)?;
    Ok(Exported { out: request.out.to_path_buf(), from, files: done.files, bytes: done.bytes, checked: written.is_some() })
}

/// Copies a transcoder's files.
fn copy(request: &ExportRequest<'_>, from: PathBuf) -> Result<Exported> {
    if request.out.symlink_metadata().is_ok() {
        return Err(Error::Exists { path: request.out.to_path_buf(), hint: "choose another --out".to_owned() });
    }
    let names = tensor_files(&from)?;
    let written = written_files(&from)?;
    let length = |name: &PathBuf| fs::metadata(from.join(name)).map(|found| found.len()).map_err(CoreError::io("read", from.join(name)));
    let total = names.iter().map(length).sum::<Result<u64, _>>()?;
    request.progress.begin("export", total, "bytes");
    let mut bytes = 0;
    files::write_folder(request.out, |part| -> Result<()> {
        let mut copy = Copy { request, done: 0 };
        for name in &names {
            let ranges = written.as_ref().map(|files| files.get(name).map_or(&[][..], Vec::as_slice));
            copy.file(&from, part, name, ranges)?;
            bytes += fs::metadata(part.join(name)).map_err(CoreError::io("read", part.join(name)))?.len();
        }
        let card = from.join(CARD);
        let text = fs::read(&card).map_err(CoreError::io("read", &card))?;
        Ok(files::write_atomic(&part.join(CARD), |out| out.write_all(&text))?)
    })?;
    request.progress.end();
    Ok(Exported { from, out: request.out.to_path_buf(), files: names.len(), bytes, checked: written.is_some() })
}

/// The folder of a run's transcoder: its result, else its newest checkpoint; any other folder is one itself.
fn transcoder_in(folder: &Path) -> Result<PathBuf> {
    let result = folder.join("final");
    if folder.join(CARD).is_file() {
        return Ok(folder.to_path_buf());
    }
    if result.join(CARD).is_file() {
        return Ok(result);
    }
    if let Some(newest) = newest_checkpoint(folder)? {
        return Ok(newest);
    }
    let members = members(folder)?;
    if !members.is_empty() {
        let message = format!("a run of several transcoders; name one of them: {}", members.join(", "));
        return Err(CoreError::format(folder, message).into());
    }
    if folder.join("config.toml").is_file() {
        return Err(CoreError::format(folder, "a run without a checkpoint yet; there is nothing to export").into());
    }
    Ok(folder.to_path_buf())
}

/// The run folders in a run of several transcoders.
fn members(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(CoreError::io("read", folder))? {
        let path = entry.map_err(CoreError::io("read", folder))?.path();
        if path.join("config.toml").is_file() {
            found.push(format!("`{}`", path.display()));
        }
    }
    found.sort();
    Ok(found)
}

/// The names of the tensor files of a transcoder's folder.
fn tensor_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(CoreError::io("read", folder))? {
        let name = PathBuf::from(entry.map_err(CoreError::io("read", folder))?.file_name());
        if name.extension().is_some_and(|extension| extension == "safetensors") {
            names.push(name);
        }
    }
    if names.is_empty() {
        return Err(CoreError::format(folder, "it holds no tensor files").into());
    }
    names.sort();
    Ok(names)
}

struct Copy<'a> {
    request: &'a ExportRequest<'a>,
    /// Bytes that were read.
    done: u64,
}

impl Copy<'_> {
    /// Copies a file. Where it is known what was written into it, all of it must have been, and be so still.
    fn file(&mut self, from: &Path, to: &Path, name: &Path, written: Option<&[WrittenRows]>) -> Result<()> {
        let file = TensorFile::open(&from.join(name))?;
        let layouts = file.names()?.iter().map(|name| file.layout(name)).collect::<Result<Vec<_>, _>>()?;
        let kept = layouts.iter().map(|layout| TensorLayout { kind: self.kind(layout.kind), ..layout.clone() }).collect();
        let layout = FileLayout::new(name, kept);
        layout.create(to)?;
        let mut writer = layout.open(to)?;
        let mut known: BTreeMap<&str, Vec<&WrittenRows>> = BTreeMap::new();
        for rows in written.unwrap_or_default() {
            known.entry(&rows.tensor).or_default().push(rows);
        }
        for layout in &layouts {
            match written {
                None => self.rows(&file, layout, (0, layout.rows()), &mut writer).map(|_| ())?,
                Some(_) => self.checked(&file, layout, known.remove(layout.name.as_str()).unwrap_or_default(), &mut writer)?,
            }
        }
        writer.finish()?;
        Ok(())
    }

    fn checked(
        &mut self,
        file: &TensorFile,
        layout: &TensorLayout,
        mut ranges: Vec<&WrittenRows>,
        writer: &mut TensorWriter,
    ) -> Result<()> {
        ranges.sort_by_key(|rows| rows.first);
        let mut next = 0;
        for range in ranges {
            if range.first != next {
                break;
            }
            let found = self.rows(file, layout, (range.first, range.rows), writer)?;
            if found != range.crc32c {
                // The same words as at a resume.
                file.check(range)?;
            }
            next += range.rows;
        }
        if next != layout.rows() {
            let message = format!("nobody wrote row {next} of tensor `{}`, says `train/state.json`", layout.name);
            return Err(CoreError::format(file.path(), message).into());
        }
        Ok(())
    }

    /// Copies rows, and gives the checksum of what was read.
    fn rows(&mut self, file: &TensorFile, layout: &TensorLayout, (first, rows): (i64, i64), writer: &mut TensorWriter) -> Result<u32> {
        let (_, data) = file.raw(&layout.name)?;
        let row_bytes = layout.row_bytes();
        let at_a_time = (PIECE_BYTES / row_bytes.max(1)).max(1) as i64;
        let (mut crc, mut at, end) = (0, first, first.saturating_add(rows));
        while at < end {
            let until = (at + at_a_time).min(end);
            let piece = file.rows(&layout.name, at..until, Some(self.kind(layout.kind)), Device::Cpu)?;
            let bytes = &data[at as usize * row_bytes..until as usize * row_bytes];
            crc = crc32c::crc32c_append(crc, bytes);
            file.release(bytes);
            writer.rows(&layout.name, at, &piece)?;
            self.done += bytes.len() as u64;
            self.request.progress.at(self.done, "");
            at = until;
        }
        Ok(crc)
    }

    fn kind(&self, kept: Kind) -> Kind {
        let is_float = matches!(kept, Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16);
        self.request.dtype.filter(|_| is_float).map_or(kept, Kind::from)
    }
}

#[cfg(test)]
mod tests {
    use circuitlab_core::tensors;
    use tch::Tensor;

    use super::*;
    use crate::Silent;

    fn request<'a>(from: &'a Path, out: &'a Path) -> ExportRequest<'a> {
        ExportRequest { from, out, dtype: None, format: None, progress: &Silent }
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "folders as others may leave them")]
    fn folders_that_hold_no_transcoder_are_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let (from, out) = (folder.path().join("run"), folder.path().join("out"));
        let said = || export(&request(&from, &out)).expect_err("nothing to export").to_string();
        assert!(said().contains("cannot read"), "{}", said());
        fs::create_dir_all(from.join("checkpoints")).expect("a folder");
        assert!(said().contains("no transcoder: it holds no `config.yaml`"), "{}", said());
        fs::write(from.join("config.toml"), "").expect("writes");
        assert!(said().contains("without a checkpoint yet"), "{}", said());
        for member in ["wide", "deep"] {
            fs::create_dir_all(from.join(member)).expect("a folder");
            fs::write(from.join(member).join("config.toml"), "").expect("writes");
        }
        assert!(said().contains("run/deep`, `") && said().contains("run/wide`"), "{}", said());
        fs::remove_file(from.join("config.toml")).expect("removes");
        let card = "model_kind: transcoder_set\nfeature_input_hook: mlp.hook_in\nfeature_output_hook: hook_mlp_out\n";
        fs::write(from.join(CARD), card).expect("writes");
        assert!(said().contains("no tensor files"), "{}", said());
        assert!(!out.exists());
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "a folder of somebody else's")]
    fn a_folder_of_somebody_elses_is_copied_in_the_type_that_is_asked_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let (from, out) = (folder.path().join("theirs"), folder.path().join("out"));
        fs::create_dir_all(&from).expect("a folder");
        let card = "model_kind: transcoder_set\nfeature_input_hook: mlp.hook_in\nfeature_output_hook: hook_mlp_out\nmine: 3\n";
        fs::write(from.join(CARD), card).expect("writes");
        let weights = Tensor::arange(35, (Kind::Float, Device::Cpu)).view([5, 7]).sin();
        let count = Tensor::from_slice(&[3_i64]);
        let tensors = [("W_enc".to_owned(), weights.copy()), ("count".to_owned(), count.copy())];
        tensors::write(&from.join("layer_0.safetensors"), &tensors).expect("writes");
        let exported = export(&ExportRequest { dtype: Some(FloatKind::Bf16), ..request(&from, &out) }).expect("copies");
        assert_eq!((exported.files, exported.checked), (1, false));
        assert_eq!(fs::read_to_string(out.join(CARD)).expect("the card"), card, "what we do not know is kept");
        let copied = TensorFile::open(&out.join("layer_0.safetensors")).expect("opens");
        assert_eq!(copied.tensor("W_enc", None, Device::Cpu).expect("is there"), weights.to_kind(Kind::BFloat16));
        assert_eq!(copied.tensor("count", None, Device::Cpu).expect("is there"), count);
        let again = export(&request(&from, &out)).expect_err("taken").to_string();
        assert!(again.contains("exists already; choose another --out"), "{again}");
    }
}
