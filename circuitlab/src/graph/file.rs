//! Graphs on disk: one safetensors file, written a row at a time in any order, and read a row at a time.

use std::fs;
use std::path::{Path, PathBuf};

use circuitlab_core::tensors::{FileLayout, TensorFile, TensorLayout, TensorWriter};
use circuitlab_core::{Error as CoreError, files};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::{ActiveFeature, LogitNode, Nodes};
use crate::{Error, Result};

/// The version of the format that is written, and the newest that is read.
const VERSION: u32 = 1;
/// Where the header has all that is no tensor.
const NOTE: &str = "circuitlab_graph";
const MATRIX: &str = "adjacency_matrix";
/// Systems map what lies around a page that is read as well, in blocks of so many bytes: 90 MB of 3,000 rows of 30,000 nodes, unless that is
/// given back too.
const AROUND: usize = 1 << 16;

/// What a graph was made of.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct GraphMeta {
    /// Its name, which names its files.
    pub slug: String,
    /// Where viewers look for its features.
    pub scan: String,
    /// Transcoders of each layer, where they come from several places.
    #[serde(default)]
    pub transcoder_list: Vec<String>,
    /// The prompt, the text of special tokens included.
    pub prompt: String,
    /// Each token's text.
    pub prompt_tokens: Vec<String>,
    /// The language model's name.
    pub model_name: String,
    /// Tells the language model's weights from others.
    pub model_fingerprint: String,
    /// Tokens of the vocabulary; logits with ids from there on are directions of the user.
    pub vocabulary: usize,
    /// What it was computed with, an object.
    #[serde(default)]
    pub generation_settings: serde_json::Value,
}

/// The header's text: what a graph was made of, and what of its nodes is no number.
#[derive(Serialize, Deserialize)]
struct Note {
    version: u32,
    #[serde(flatten)]
    meta: GraphMeta,
    layers: usize,
    special_positions: Vec<u32>,
    closing: bool,
    logit_labels: Vec<String>,
}

/// Rows of a graph, wherever they are.
pub trait Rows {
    /// The nodes that rows and columns stand for.
    fn nodes(&self) -> &Nodes;

    /// Reads the row of a feature or logit: what each of all nodes adds to it.
    ///
    /// # Errors
    /// Rows that cannot be read, numbers that are not finite, and a feature that depends on one of its own layer or a later one.
    fn read(&self, node: usize, row: &mut Vec<f32>) -> Result<()>;
}

/// A graph's file that is being written: beside its place, and renamed by [`finish`](Self::finish). Dropped before that, it leaves nothing.
#[derive(Debug)]
pub struct GraphWriter {
    path: PathBuf,
    nodes: Nodes,
    file: Option<TensorWriter>,
    /// Which nodes have their rows.
    written: Vec<bool>,
}

impl GraphWriter {
    /// Begins a file with all but the rows, and with further tensors of the caller's.
    ///
    /// # Errors
    /// Nodes that [`Nodes::check`] refuses, tokens without texts, tensors of a name that graphs have already, and what the file system
    /// returns.
    pub fn create(path: &Path, nodes: &Nodes, meta: &GraphMeta, further: &[(String, Tensor)]) -> Result<Self> {
        nodes.check()?;
        check_meta(nodes, meta).map_err(Error::Invalid)?;
        let note = Note {
            version: VERSION,
            meta: meta.clone(),
            layers: nodes.layers,
            special_positions: nodes.special.clone(),
            closing: nodes.closing,
            logit_labels: nodes.logits.iter().map(|logit| logit.label.clone()).collect(),
        };
        let note = serde_json::to_string(&note).map_err(|error| Error::Invalid(format!("cannot describe the graph: {error}")))?;
        let count = nodes.count() as i64;
        let own = own_tensors(nodes)?;
        let tensors = || own.iter().chain(further);
        let layouts = tensors().map(|(name, tensor)| TensorLayout::of(name, tensor));
        let layouts = std::iter::once(TensorLayout::new(MATRIX, &[count, count], Kind::Float)).chain(layouts).collect();
        let part = files::part_path(path);
        let layout = FileLayout::new(&part, layouts).with_metadata(NOTE, note);
        let written = vec![false; nodes.count()];
        let mut writer = Self { path: path.to_path_buf(), nodes: nodes.clone(), file: None, written };
        // Both take their file as seen from a folder; this one has its own.
        layout.create(Path::new("")).inspect_err(|_| drop(fs::remove_file(&part)))?;
        let file = writer.file.insert(layout.open(Path::new(""))?);
        for (name, tensor) in tensors() {
            file.rows(name, 0, tensor)?;
        }
        Ok(writer)
    }

    /// Writes the row of a feature or logit.
    ///
    /// # Errors
    /// A node without a row or whose row is there, a row of another length, numbers that are not finite, a feature that depends on one of
    /// its own layer or a later one, and what the file system returns.
    pub fn row(&mut self, node: usize, row: &[f32]) -> Result<()> {
        check_row(&self.nodes, node, row).map_err(Error::Invalid)?;
        let twice = || Error::Invalid(format!("row {node} of the graph `{}` is written twice", self.path.display()));
        if std::mem::replace(&mut self.written[node], true) {
            return Err(twice());
        }
        match &mut self.file {
            Some(file) => Ok(file.numbers(MATRIX, (node * row.len()) as i64, &Tensor::from_slice(row))?),
            None => Err(twice()),
        }
    }

    /// Gives the file its name, once all of it is on the disk.
    ///
    /// # Errors
    /// Rows that are missing, and what the file system returns.
    pub fn finish(mut self) -> Result<()> {
        let missing = self.nodes.targets().filter(|node| !self.written[*node]).count();
        if missing > 0 {
            return Err(Error::Invalid(format!("{missing} rows of the graph `{}` were not written", self.path.display())));
        }
        if let Some(file) = self.file.take() {
            let done = file.finish().and_then(|_| files::publish_folder(&self.path));
            done.inspect_err(|_| drop(fs::remove_file(files::part_path(&self.path))))?;
        }
        Ok(())
    }
}

impl Drop for GraphWriter {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            // Nobody is there to be told.
            let _ = fs::remove_file(files::part_path(&self.path));
        }
    }
}

/// A graph's file, opened and checked but for its rows, which are checked as they are read.
#[derive(Debug)]
pub struct Graph {
    /// Its nodes.
    pub nodes: Nodes,
    /// What it was made of.
    pub meta: GraphMeta,
    file: TensorFile,
}

impl Graph {
    /// Opens a file that a [`GraphWriter`] wrote.
    ///
    /// # Errors
    /// A file that cannot be read, is cut short, holds something else or a newer version, or does not fit together.
    pub fn open(path: &Path) -> Result<Self> {
        let file = TensorFile::open(path)?;
        let Some(note) = file.metadata(NOTE)? else {
            return Err(wrong(path, format!("it is no graph: a file by `attribute` has `{NOTE}` in its metadata")));
        };
        let note: Note = read_note(&note).map_err(|message| wrong(path, message))?;
        let nodes = read_nodes(&file, &note)?;
        let bad = |message: String| wrong(path, message);
        nodes.check().map_err(|error| bad(error.to_string()))?;
        check_meta(&nodes, &note.meta).map_err(bad)?;
        let count = nodes.count() as i64;
        expect(&file, MATRIX, Kind::Float, &[count, count])?;
        Ok(Self { nodes, meta: note.meta, file })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// All of its tensors, those of [`GraphWriter::create`]'s caller among them.
    pub fn tensors(&self) -> &TensorFile {
        &self.file
    }
}

impl Rows for Graph {
    fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    fn read(&self, node: usize, row: &mut Vec<f32>) -> Result<()> {
        let length = self.nodes.count();
        let (_, matrix) = self.file.raw(MATRIX)?;
        let row_bytes = length * size_of::<f32>();
        let begin = node.saturating_mul(row_bytes).min(matrix.len());
        let end = begin.saturating_add(row_bytes).min(matrix.len());
        // A node that is none is refused below, for its row has no numbers.
        let data = &matrix[begin..end];
        row.clear();
        row.extend(data.chunks_exact(4).map(|number| f32::from_le_bytes([number[0], number[1], number[2], number[3]])));
        self.file.release(&matrix[begin.saturating_sub(AROUND)..end.saturating_add(AROUND).min(matrix.len())]);
        check_row(&self.nodes, node, row).map_err(|message| wrong(self.path(), message))
    }
}

fn wrong(path: &Path, message: String) -> Error {
    CoreError::format(path, message).into()
}

/// Checks a row at the door: its length, its numbers, and that it depends on nothing that comes later.
fn check_row(nodes: &Nodes, node: usize, row: &[f32]) -> Result<(), String> {
    let count = nodes.count();
    if !nodes.is_target(node) || row.len() != count {
        return Err(format!("{} numbers for row {node} of {count} nodes, of which features and logits have rows", row.len()));
    }
    if let Some(source) = row.iter().position(|number| !number.is_finite()) {
        return Err(format!("row {node}, column {source} is {}, which must be finite", row[source]));
    }
    let layer = if nodes.features().contains(&node) { nodes.feature(node).layer as usize } else { nodes.layers };
    let later = nodes.features_below(layer).end..nodes.features().end;
    if let Some(source) = later.chain(nodes.logits()).find(|source| row[*source] != 0.0) {
        return Err(format!("row {node} depends on node {source}, which is not before it; the graph must have no cycles"));
    }
    Ok(())
}

fn check_meta(nodes: &Nodes, meta: &GraphMeta) -> Result<(), String> {
    let (texts, tokens) = (meta.prompt_tokens.len(), nodes.tokens.len());
    if texts == tokens { Ok(()) } else { Err(format!("{texts} texts for the graph's {tokens} tokens")) }
}

/// All tensors but the matrix.
fn own_tensors(nodes: &Nodes) -> Result<Vec<(String, Tensor)>> {
    let keys: Vec<i64> =
        nodes.active.iter().flat_map(|feature| [feature.layer, feature.position, feature.feature].map(i64::from)).collect();
    let whole = |numbers: &[u32]| Tensor::f_from_slice(&numbers.iter().copied().map(i64::from).collect::<Vec<_>>());
    let active = |number: fn(&ActiveFeature) -> f32| Tensor::f_from_slice(&nodes.active.iter().map(number).collect::<Vec<_>>());
    let ids: Vec<i64> = nodes.logits.iter().map(|logit| logit.id as i64).collect();
    let weights: Vec<f64> = nodes.logits.iter().map(|logit| logit.probability).collect();
    let all = [
        ("active_features", Tensor::f_from_slice(&keys)?.f_view([nodes.active.len() as i64, 3])?),
        ("activation_values", active(|feature| feature.activation)?),
        ("pre_activations_of_active", active(|feature| feature.pre_activation)?),
        ("selected_features", whole(&nodes.selected)?),
        ("input_ids", whole(&nodes.tokens)?),
        ("logit_token_ids", Tensor::f_from_slice(&ids)?),
        // Of double precision, so that what is computed of the file is what is computed before it is written.
        ("logit_probabilities", Tensor::f_from_slice(&weights)?),
    ];
    Ok(all.map(|(name, tensor)| (name.to_owned(), tensor)).into())
}

fn read_note(text: &str) -> Result<Note, String> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let unreadable = |error: serde_json::Error| format!("the header's `{NOTE}` cannot be read: {error}");
    let Version { version } = serde_json::from_str(text).map_err(unreadable)?;
    if version > VERSION {
        return Err(format!("it is a graph of format {version}; this program reads formats up to {VERSION}"));
    }
    serde_json::from_str(text).map_err(unreadable)
}

fn read_nodes(file: &TensorFile, note: &Note) -> Result<Nodes> {
    let keys = small(file, "active_features", &[-1, 3])?;
    let count = (keys.len() / 3) as i64;
    let activations = floats(file, "activation_values", Kind::Float, count)?;
    let pre_activations = floats(file, "pre_activations_of_active", Kind::Float, count)?;
    let values = activations.into_iter().zip(pre_activations);
    let feature = |(key, (activation, pre_activation)): (&[u32], (f64, f64))| {
        let (activation, pre_activation) = (activation as f32, pre_activation as f32);
        ActiveFeature { layer: key[0], position: key[1], feature: key[2], activation, pre_activation }
    };
    let logits = note.logit_labels.len() as i64;
    let ids = whole(file, "logit_token_ids", &[logits])?;
    let weights = floats(file, "logit_probabilities", Kind::Double, logits)?;
    let logit = |((label, id), probability): ((&String, i64), f64)| match usize::try_from(id) {
        Ok(id) => Ok(LogitNode { label: label.clone(), id, probability }),
        Err(_) => Err(wrong(file.path(), format!("tensor `logit_token_ids` holds {id}"))),
    };
    Ok(Nodes {
        layers: note.layers,
        tokens: small(file, "input_ids", &[-1])?,
        special: note.special_positions.clone(),
        active: keys.chunks_exact(3).zip(values).map(feature).collect(),
        selected: small(file, "selected_features", &[-1])?,
        logits: note.logit_labels.iter().zip(ids).zip(weights).map(logit).collect::<Result<_>>()?,
        closing: note.closing,
    })
}

/// Checks a tensor's type and shape, in which -1 stands for any length.
fn expect(file: &TensorFile, name: &str, kind: Kind, shape: &[i64]) -> Result<()> {
    let found = file.layout(name)?;
    let fits = found.shape.len() == shape.len() && found.shape.iter().zip(shape).all(|(found, wanted)| *wanted == -1 || found == wanted);
    if fits && found.kind == kind {
        return Ok(());
    }
    let message = format!("tensor `{name}` has shape {:?} of {:?}, expected {shape:?} of {kind:?}", found.shape, found.kind);
    Err(wrong(file.path(), message))
}

fn whole(file: &TensorFile, name: &str, shape: &[i64]) -> Result<Vec<i64>> {
    expect(file, name, Kind::Int64, shape)?;
    Ok(Vec::try_from(file.tensor(name, None, Device::Cpu)?.f_reshape([-1])?)?)
}

fn small(file: &TensorFile, name: &str, shape: &[i64]) -> Result<Vec<u32>> {
    let fit = |number| u32::try_from(number).map_err(|_| wrong(file.path(), format!("tensor `{name}` holds {number}")));
    whole(file, name, shape)?.into_iter().map(fit).collect()
}

fn floats(file: &TensorFile, name: &str, kind: Kind, count: i64) -> Result<Vec<f64>> {
    expect(file, name, kind, &[count])?;
    Ok(Vec::try_from(file.tensor(name, Some(Kind::Double), Device::Cpu)?)?)
}

#[cfg(test)]
mod tests {
    use super::super::nodes::tests::nodes;
    use super::*;

    fn meta(nodes: &Nodes) -> GraphMeta {
        GraphMeta {
            slug: "a-cat".into(),
            prompt: "a cat".into(),
            prompt_tokens: nodes.tokens.iter().map(ToString::to_string).collect(),
            vocabulary: 10,
            generation_settings: serde_json::json!({"max_feature_nodes": 3}),
            ..GraphMeta::default()
        }
    }

    /// A row that is allowed: of other numbers for each node, zeros where there must be.
    fn row(nodes: &Nodes, node: usize) -> Vec<f32> {
        let below = if nodes.logits().contains(&node) { nodes.layers } else { nodes.feature(node).layer as usize };
        let earlier = nodes.features_below(below);
        let allowed = |source| earlier.contains(&source) || (nodes.errors().start..nodes.logits().start).contains(&source);
        (0..nodes.count()).map(|source| if allowed(source) { (node * 100 + source) as f32 * -0.125 } else { 0.0 }).collect()
    }

    fn written(path: &Path, closing: bool) -> Nodes {
        let nodes = nodes(closing);
        let further = [("error_vectors".to_owned(), Tensor::arange(6, (Kind::Float, Device::Cpu)))];
        let mut writer = GraphWriter::create(path, &nodes, &meta(&nodes), &further).expect("begins");
        for node in nodes.targets().rev() {
            writer.row(node, &row(&nodes, node)).expect("writes");
        }
        writer.finish().expect("ends");
        nodes
    }

    #[test]
    fn a_graph_comes_back_and_is_the_same_bytes_each_time() {
        let folder = tempfile::tempdir().expect("a folder");
        for closing in [false, true] {
            let [path, again] = ["a", "b"].map(|name| folder.path().join(format!("{name}.safetensors")));
            let nodes = written(&path, closing);
            written(&again, closing);
            assert!(fs::read(&path).expect("reads") == fs::read(&again).expect("reads"), "other bytes");
            let graph = Graph::open(&path).expect("opens");
            assert_eq!((&graph.nodes, &graph.meta), (&nodes, &meta(&nodes)));
            assert_eq!(graph.tensors().layout("error_vectors").expect("is there").shape, [6]);
            let mut found = Vec::new();
            for node in nodes.targets() {
                graph.read(node, &mut found).expect("has a row");
                assert_eq!(found, row(&nodes, node));
            }
            for node in [nodes.errors().start, nodes.count(), usize::MAX / 8] {
                assert!(graph.read(node, &mut found).expect_err("has no row").to_string().contains("features and logits have rows"));
            }
        }
        assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 2, "parts are left over");
    }

    #[test]
    fn rows_that_cannot_be_are_refused_and_a_dropped_writer_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.safetensors");
        let nodes = nodes(false);
        let mut writer = GraphWriter::create(&path, &nodes, &meta(&nodes), &[]).expect("begins");
        let mut refused = |node: usize, change: fn(&mut Vec<f32>), words: &str| {
            let mut row = row(&nodes, node.min(2));
            change(&mut row);
            let error = writer.row(node, &row).expect_err(words).to_string();
            assert!(error.contains(words), "{error}");
        };
        refused(3, |_| (), "features and logits have rows");
        refused(0, |row| row.truncate(20), "20 numbers for row 0 of 21 nodes");
        refused(0, |row| row[7] = f32::NAN, "row 0, column 7 is NaN");
        refused(1, |row| row[1] = 1.0, "row 1 depends on node 1");
        refused(2, |row| row[20] = 1.0, "row 2 depends on node 20");
        writer.row(0, &row(&nodes, 0)).expect("writes");
        assert!(writer.row(0, &row(&nodes, 0)).expect_err("twice").to_string().contains("written twice"));
        assert!(writer.finish().expect_err("more rows").to_string().contains("4 rows of the graph"));
        assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 0);
        let few = GraphMeta { prompt_tokens: Vec::new(), ..meta(&nodes) };
        assert!(GraphWriter::create(&path, &nodes, &few, &[]).is_err());
        let taken = [("input_ids".to_owned(), Tensor::zeros([1], (Kind::Float, Device::Cpu)))];
        assert!(GraphWriter::create(&path, &nodes, &meta(&nodes), &taken).expect_err("taken").to_string().contains("two tensors"));
        assert!(GraphWriter::create(&folder.path().join("none/a.safetensors"), &nodes, &meta(&nodes), &[]).is_err());
        assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 0);
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "damaged files are what this test is about")]
    fn files_that_are_no_whole_graph_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.safetensors");
        let nodes = written(&path, true);
        let whole = fs::read(&path).expect("reads");
        let refused = |bytes: &[u8], words: &str| {
            fs::write(&path, bytes).expect("writes");
            let error = Graph::open(&path).expect_err(words).to_string();
            assert!(error.contains(words) && error.contains("a.safetensors") && !error.contains('\n'), "{error}");
        };
        for length in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
            refused(&whole[..length], "not a whole safetensors file");
        }
        // The header is text: what is replaced by as many bytes leaves it a header.
        let changed = |from: &str, to: &str| {
            assert_eq!(from.len(), to.len());
            let at = whole.windows(from.len()).position(|found| found == from.as_bytes()).expect(from);
            [&whole[..at], to.as_bytes(), &whole[at + from.len()..]].concat()
        };
        refused(&changed("circuitlab_graph", "circuitlab_grape"), "it is no graph");
        refused(&changed(r#"\"version\":1"#, r#"\"version\":2"#), "a graph of format 2");
        refused(&changed(r#"\"version\":1"#, r#"\"version\":x"#), "cannot be read");
        refused(&changed(r#"\"layers\":3"#, r#"\"layers\":2"#), "active feature 3 is at layer 2");
        refused(&changed(r#"\"layers\":3"#, r#"\"layers\":4"#), "tensor `adjacency_matrix` has shape");
        refused(&changed("logit_token_ids", "logit_token_idz"), "no tensor `logit_token_ids`");
        let mut nan = whole.clone();
        let first = row(&nodes, 0)[nodes.errors().start].to_le_bytes();
        let at = nan.windows(4).position(|found| found == first).expect("is there");
        nan[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        fs::write(&path, &nan).expect("writes");
        let error = Graph::open(&path).expect("rows are read later").read(0, &mut Vec::new()).expect_err("not finite").to_string();
        assert!(error.contains("a.safetensors") && error.contains("row 0, column 3 is NaN"), "{error}");
    }
}
