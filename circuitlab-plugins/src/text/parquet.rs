//! `parquet`: a column of text, or of lists of token ids.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};

use circuitlab_core::{Construct, Content, Documents, Error, Piece, Result, TextInput, TextSource};
use parquet::basic::{ConvertedType, LogicalType, Type as Physical};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType};
use parquet::errors::ParquetError;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::schema::types::{ColumnDescPtr, ColumnDescriptor, SchemaDescriptor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::field;

register!(text_source "parquet" => ParquetConfig, "Parquet files (.parquet), the text or the lists of token ids in one of their columns");

/// Rows that are read at once. Text lies in pages of about a megabyte, of which a batch holds what it touches.
const BATCH_ROWS: usize = 64;

/// Config of the text source `parquet`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ParquetConfig {
    /// The column that holds the text, or lists of token ids; `a.b` is the column `b` of the group `a`. Default: `text`.
    pub field: String,
}

impl Default for ParquetConfig {
    fn default() -> Self {
        Self { field: "text".to_owned() }
    }
}

impl Construct for ParquetConfig {
    type Output = Parquet;

    fn construct(&self) -> Result<Parquet> {
        field::check("parquet", &self.field)?;
        Ok(Parquet { field: self.field.clone() })
    }
}

/// Parquet files. Rows that are null or empty are passed over.
#[derive(Debug, Clone)]
pub struct Parquet {
    field: String,
}

impl TextSource for Parquet {
    fn extensions(&self) -> Vec<String> {
        vec!["parquet".to_owned()]
    }

    fn documents(&self, input: TextInput) -> Result<Documents> {
        let path = input.path;
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        if extension != "parquet" && matches!(extension.as_str(), "gz" | "zst") {
            return Err(Error::format(&path, "a parquet file is read here and there, which a packed one does not allow; unpack it first"));
        }
        let file = File::open(&path).map_err(Error::io("read", &path))?;
        let file_bytes = file.metadata().map_err(Error::io("read", &path))?.len();
        let reader = SerializedFileReader::new(file).map_err(damaged(&path))?;
        let column = find(reader.metadata().file_metadata().schema_descr(), &self.field).map_err(|what| Error::format(&path, what))?;
        let shape = reader.metadata().file_metadata().schema_descr().column(column);
        let mut rows = Rows {
            path,
            file_bytes,
            reader,
            column,
            shape,
            field: self.field.clone(),
            next_group: 0,
            open: None,
            row: 0,
            ready: VecDeque::new(),
            over: false,
        };
        let documents = std::iter::from_fn(move || rows.next().transpose());
        Ok(Box::new(documents.flat_map(|document| {
            let (pieces, error) = match document {
                Ok(document) => (Some(Piece::cut(document)), None),
                Err(error) => (None, Some(Err(error))),
            };
            pieces.into_iter().flatten().map(Ok).chain(error)
        })))
    }
}

/// What the library says, in one line.
fn damaged(path: &Path) -> impl FnOnce(ParquetError) -> Error {
    let path = path.to_path_buf();
    move |error| match error {
        ParquetError::External(source) if source.is::<std::io::Error>() => {
            let kind = source.downcast_ref::<std::io::Error>().map_or(std::io::ErrorKind::Other, std::io::Error::kind);
            Error::io("read", path)(std::io::Error::new(kind, source.to_string()))
        }
        other => {
            let text = other.to_string();
            Error::format(path, format!("it is no whole parquet file: {}", text.lines().next().unwrap_or("no message")))
        }
    }
}

/// The column of a name, or what is wrong with it.
fn find(schema: &SchemaDescriptor, name: &str) -> Result<usize, String> {
    let wanted: Vec<&str> = name.split('.').collect();
    let found: Vec<usize> = (0..schema.num_columns())
        .filter(|index| {
            let parts = schema.columns()[*index].path().parts();
            parts.len() >= wanted.len() && parts.iter().zip(&wanted).all(|(part, wanted)| part == wanted)
        })
        .collect();
    let known = || {
        let names = schema.columns().iter().take(30).map(|column| format!("`{}` ({})", shown_name(column), type_of(column)));
        names.collect::<Vec<_>>().join(", ")
    };
    let [index] = found[..] else {
        let what = if found.is_empty() { "it has no column" } else { "several columns are below" };
        return Err(format!("{what} `{name}`; there are: {}", known()));
    };
    let column = &schema.columns()[index];
    let takes = match column.physical_type() {
        Physical::BYTE_ARRAY => column.max_rep_level() == 0 && column.path().parts().len() == wanted.len() && is_text(column),
        Physical::INT32 | Physical::INT64 => column.max_rep_level() == 1,
        _ => false,
    };
    if takes {
        return Ok(index);
    }
    Err(format!("the column `{name}` holds {}; expected text or lists of whole numbers; there are: {}", type_of(column), known()))
}

/// The name by which a column is asked for: without the groups that a list is made of.
fn shown_name(column: &ColumnDescriptor) -> String {
    let parts = column.path().parts();
    let list = if column.max_rep_level() > 0 && parts.len() > 2 { 2 } else { 0 };
    parts[..parts.len() - list].join(".").escape_debug().to_string()
}

/// Writers that set no annotation mean text more often than not; what is no UTF-8 is refused when it comes.
fn is_text(column: &ColumnDescriptor) -> bool {
    matches!(column.converted_type(), ConvertedType::UTF8 | ConvertedType::JSON | ConvertedType::ENUM | ConvertedType::NONE)
        && matches!(column.logical_type_ref(), None | Some(LogicalType::String | LogicalType::Json | LogicalType::Enum))
}

fn type_of(column: &ColumnDescriptor) -> String {
    let one = match column.physical_type() {
        Physical::BYTE_ARRAY if is_text(column) => "text".to_owned(),
        other => other.to_string().to_lowercase(),
    };
    if column.max_rep_level() == 0 { one } else { format!("lists of {one}") }
}

/// A file that is being read.
struct Rows {
    path: PathBuf,
    file_bytes: u64,
    reader: SerializedFileReader<File>,
    column: usize,
    shape: ColumnDescPtr,
    field: String,
    next_group: usize,
    /// The column in the current row group.
    open: Option<ColumnReader>,
    /// Rows so far.
    row: u64,
    ready: VecDeque<Content>,
    over: bool,
}

impl Rows {
    fn next(&mut self) -> Result<Option<Content>> {
        while !self.over {
            if let Some(document) = self.ready.pop_front() {
                return Ok(Some(document));
            }
            self.read_on().inspect_err(|_| self.over = true)?;
        }
        Ok(None)
    }

    /// Reads a batch of the current row group, or goes on to the next.
    fn read_on(&mut self) -> Result<()> {
        let Some(column) = &mut self.open else {
            self.over = self.next_group >= self.reader.num_row_groups();
            if !self.over {
                self.open = Some(self.open_group(self.next_group)?);
                self.next_group += 1;
            }
            return Ok(());
        };
        let first = self.row;
        let wrong =
            |row: usize, what: &str| Error::format(&self.path, format!("row {}, column `{}`: {what}", first + row as u64 + 1, self.field));
        let rows = match column {
            ColumnReader::ByteArrayColumnReader(column) => {
                let batch = Batch::read(column, &self.shape).map_err(damaged(&self.path))?;
                for (row, value) in batch.lists.iter().enumerate().filter_map(|(row, list)| Some((row, list.first()?))) {
                    let text = String::from_utf8(ByteArray::data(value).to_vec()).map_err(|_| wrong(row, "it is not UTF-8"))?;
                    self.ready.push_back(Content::Text(text));
                }
                batch.lists.len()
            }
            ColumnReader::Int32ColumnReader(column) => {
                let batch = Batch::read(column, &self.shape).map_err(damaged(&self.path))?;
                let unsigned = batch.unsigned;
                let id = |id: &i32| if unsigned { Some(id.cast_unsigned()) } else { u32::try_from(*id).ok() };
                batch.tokens(id, &mut self.ready).map_err(|(row, what)| wrong(row, what))?
            }
            ColumnReader::Int64ColumnReader(column) => {
                let batch = Batch::read(column, &self.shape).map_err(damaged(&self.path))?;
                batch.tokens(|id: &i64| u32::try_from(*id).ok(), &mut self.ready).map_err(|(row, what)| wrong(row, what))?
            }
            _ => return Err(wrong(0, "it holds neither text nor lists of whole numbers")),
        };
        if rows == 0 {
            self.open = None;
        }
        self.row += rows as u64;
        Ok(())
    }

    fn open_group(&self, group: usize) -> Result<ColumnReader> {
        let group_reader = self.reader.get_row_group(group).map_err(damaged(&self.path))?;
        if !lies_within(group_reader.metadata().column(self.column), self.file_bytes) {
            return Err(Error::format(&self.path, format!("it is no whole parquet file: row group {group} lies beyond its end")));
        }
        group_reader.get_column_reader(self.column).map_err(damaged(&self.path))
    }
}

/// The library believes what the file says of itself, and would ask for as much memory.
fn lies_within(column: &ColumnChunkMetaData, file_bytes: u64) -> bool {
    let begin = column.dictionary_page_offset().unwrap_or_else(|| column.data_page_offset());
    let end = begin.checked_add(column.compressed_size());
    begin >= 0 && column.compressed_size() >= 0 && end.is_some_and(|end| end as u64 <= file_bytes)
}

/// Some rows of a column. A row of a plain column is a list of one value, or of none for null.
struct Batch<T> {
    lists: Vec<Vec<T>>,
    /// Rows with a null among their values.
    holes: Vec<usize>,
    unsigned: bool,
}

impl<T: Clone> Batch<T> {
    fn read<D: DataType<T = T>>(column: &mut ColumnReaderImpl<D>, descriptor: &ColumnDescriptor) -> Result<Self, ParquetError> {
        let (most, optional) = (descriptor.max_def_level(), descriptor.self_type().is_optional());
        let listed = descriptor.max_rep_level() > 0;
        let unsigned = descriptor.converted_type() == ConvertedType::UINT_32;
        let (mut defined, mut repeated, mut values) = (Vec::new(), Vec::new(), Vec::new());
        let (rows, _, levels) = column.read_records(BATCH_ROWS, Some(&mut defined), Some(&mut repeated), &mut values)?;
        let (mut lists, mut holes): (Vec<Vec<T>>, _) = (Vec::with_capacity(rows), Vec::new());
        let mut values = values.into_iter();
        for level in 0..levels {
            if repeated.get(level).is_none_or(|repeated| *repeated == 0) {
                lists.push(Vec::new());
            }
            let depth = defined.get(level).copied().unwrap_or(most);
            let row = lists.len().saturating_sub(1);
            match lists.last_mut() {
                Some(list) if depth == most => list.extend(values.next()),
                Some(_) if listed && optional && depth + 1 == most => holes.push(row),
                _ => {}
            }
        }
        Ok(Self { lists, holes, unsigned })
    }

    /// The lists as documents of tokens; gives how many rows there were.
    fn tokens(self, id: impl Fn(&T) -> Option<u32>, ready: &mut VecDeque<Content>) -> Result<usize, (usize, &'static str)> {
        if let Some(row) = self.holes.first() {
            return Err((*row, "there is a null among the token ids"));
        }
        for (row, list) in self.lists.iter().enumerate() {
            let ids: Option<Vec<u32>> = list.iter().map(&id).collect();
            ready.push_back(Content::Tokens(ids.ok_or((row, "there is a number that is no token id; expected 0 to 4294967295"))?));
        }
        Ok(self.lists.len())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::data_type::{ByteArrayType, DoubleType, Int32Type, Int64Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use tempfile::TempDir;

    use super::*;

    const SCHEMA: &str = "message m { optional binary text (UTF8); required double score;
        optional group meta { optional binary body (UTF8); }
        optional group ids (LIST) { repeated group list { optional int32 element; } }
        optional group wide (LIST) { repeated group list { required int64 item; } } }";

    /// Two row groups of three rows: text, a null, text.
    fn file() -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.parquet");
        let schema = Arc::new(parse_message_type(SCHEMA).expect("a schema"));
        let properties = WriterProperties::builder().set_compression(parquet::basic::Compression::SNAPPY).build();
        let mut writer = SerializedFileWriter::new(File::create(&path).expect("creates"), schema, Arc::new(properties)).expect("begins");
        for group in 0..2_i32 {
            let mut rows = writer.next_row_group().expect("a group");
            let bytes = |text: &str| ByteArray::from(format!("{text}{group}").into_bytes());
            let mut column = rows.next_column().expect("good").expect("text");
            column.typed::<ByteArrayType>().write_batch(&[bytes("one"), bytes("Käfer")], Some(&[1, 0, 1]), None).expect("writes");
            column.close().expect("closes");
            let mut column = rows.next_column().expect("good").expect("score");
            column.typed::<DoubleType>().write_batch(&[0.5, 1.0, 2.0], None, None).expect("writes");
            column.close().expect("closes");
            let mut column = rows.next_column().expect("good").expect("body");
            column.typed::<ByteArrayType>().write_batch(&[bytes("deep")], Some(&[0, 1, 2]), None).expect("writes");
            column.close().expect("closes");
            // [5, 6], null, [group * -1]
            let mut column = rows.next_column().expect("good").expect("ids");
            column.typed::<Int32Type>().write_batch(&[5, 6, -group], Some(&[3, 3, 0, 3]), Some(&[0, 1, 0, 0])).expect("writes");
            column.close().expect("closes");
            // [], [7, 8, 9], [1]
            let mut column = rows.next_column().expect("good").expect("wide");
            column.typed::<Int64Type>().write_batch(&[7, 8, 9, 1], Some(&[1, 2, 2, 2, 2]), Some(&[0, 0, 1, 1, 0])).expect("writes");
            column.close().expect("closes");
            rows.close().expect("closes");
        }
        writer.close().expect("closes");
        (folder, path)
    }

    fn read(path: &Path, field: &str) -> Result<Vec<Content>> {
        let source = ParquetConfig { field: field.to_owned() }.construct()?;
        source.documents(TextInput::open(path)?)?.map(|piece| piece.map(|piece| piece.content)).collect()
    }

    #[test]
    fn columns_of_text_are_read_through_all_row_groups() {
        let (_folder, path) = file();
        assert_eq!(read(&path, "text").expect("good"), ["one0", "Käfer0", "one1", "Käfer1"].map(Content::from));
        assert_eq!(read(&path, "meta.body").expect("good"), ["deep0", "deep1"].map(Content::from));
    }

    #[test]
    fn lists_of_whole_numbers_are_tokens() {
        let (_folder, path) = file();
        let wide = [vec![7, 8, 9], vec![1], vec![7, 8, 9], vec![1]].map(Content::Tokens);
        assert_eq!(read(&path, "wide").expect("good"), wide);
        let error = read(&path, "ids").expect_err("a negative one").to_string();
        assert!(error.ends_with("row 6, column `ids`: there is a number that is no token id; expected 0 to 4294967295"), "{error}");
    }

    #[test]
    fn columns_that_are_missing_or_of_another_type_are_named_with_those_that_are_there() {
        let (_folder, path) = file();
        let there = "there are: `text` (text), `score` (double), `meta.body` (text), `ids` (lists of int32), `wide` (lists of int64)";
        let error = read(&path, "body").expect_err("missing").to_string();
        assert!(error.ends_with(&format!("a.parquet`: it has no column `body`; {there}")), "{error}");
        let error = read(&path, "score").expect_err("numbers").to_string();
        assert!(error.contains("the column `score` holds double; expected text or lists of whole numbers; there are"), "{error}");
        assert!(read(&path, "meta").is_err() && read(&path, "a..b").is_err());
    }

    #[test]
    fn damage_is_an_error_at_every_byte() {
        let (folder, path) = file();
        let whole = std::fs::read(&path).expect("reads");
        let spoilt = folder.path().join("b.parquet");
        for place in (0..whole.len()).step_by(3) {
            let mut bytes = whole.clone();
            bytes[place] ^= 0x55;
            circuitlab_core::files::write_atomic(&spoilt, |out| out.write_all(&bytes)).expect("writes");
            for field in ["text", "ids"] {
                // As the registry has it: a panic of the library is an error.
                let got = circuitlab_core::error::catch_panic("text-source `parquet`", || read(&spoilt, field));
                assert!(got.is_ok() || !got.expect_err("an error").to_string().contains('\n'));
            }
        }
    }
}
