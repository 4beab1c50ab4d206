//! Graph files for viewers: circuit-tracer's and Neuronpedia's JSON.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use circuitlab_core::files::write_atomic;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::view::node_id;
use super::{GraphMeta, Pruned, Rows, View, ViewLink, ViewNode};
use crate::{Error, Result};

/// What a graph's file for viewers is to hold beyond the graph.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct JsonOptions {
    /// Another name than the graph's own.
    pub slug: Option<String>,
    /// Whether closing nodes are shown: those with edges that weigh as much as kept ones.
    pub closing: bool,
    /// Labels of features, by layer and index.
    pub labels: BTreeMap<(usize, usize), String>,
    /// What attention looked for and found, by node: `pair_wise_contributors`, `top_q_marginal_contributors`,
    /// `top_k_marginal_contributors`.
    pub qk_tracing_results: BTreeMap<usize, Value>,
    /// Nodes that those name and that were not kept, by id.
    pub qk_only_nodes: Option<Value>,
    /// Where viewers find features: `feature_json_base_url`, `neuronpedia_source_set`.
    pub feature_details: Option<Value>,
}

/// The `metadata` of a graph's file for viewers, which their list of graphs has as well.
pub fn metadata(meta: &GraphMeta, pruned: &Pruned, options: &JsonOptions) -> Map<String, Value> {
    let mut all = Map::new();
    let mut put = |name: &str, value: Value| drop(all.insert(name.to_owned(), value));
    put("slug", json!(options.slug.as_ref().unwrap_or(&meta.slug)));
    put("scan", json!(meta.scan));
    put("transcoder_list", json!(meta.transcoder_list));
    put("prompt_tokens", json!(meta.prompt_tokens));
    put("prompt", json!(meta.prompt));
    put("node_threshold", json!(pruned.options.node_threshold));
    // From version 1 on `feature` is layer and index paired.
    put("schema_version", json!(1));
    put("replacement_score", json!(pruned.scores.replacement));
    put("completeness_score", json!(pruned.scores.completeness));
    if meta.generation_settings.is_object() {
        put("generation_settings", meta.generation_settings.clone());
    }
    put("pruning_settings", json!(pruned.options));
    if let Some(details) = &options.feature_details {
        put("feature_details", details.clone());
    }
    put("info", json!({"generator": {"name": "CircuitLab", "version": env!("CARGO_PKG_VERSION")}}));
    all
}

/// Writes a graph that was pruned as a file for viewers, link by link, and gives back its `metadata`.
///
/// # Errors
/// Rows that cannot be read, and what the file system returns.
pub fn write_json(path: &Path, rows: &impl Rows, meta: &GraphMeta, pruned: &Pruned, options: &JsonOptions) -> Result<Map<String, Value>> {
    let metadata = metadata(meta, pruned, options);
    let shown = shown(rows, pruned, options.closing)?;
    let nodes = rows.nodes();
    let ids: Vec<String> = (0..nodes.count()).map(|node| if shown[node] { node_id(nodes, node) } else { String::new() }).collect();
    let mut failed = None;
    let written = write_atomic(path, |out| {
        let mut out = Lines { out, first: true };
        let params = json!({"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""});
        write!(out.out, "{{\"metadata\":{},\n\"qParams\":{params},\n\"nodes\":[", text(&metadata)?)?;
        for node in (0..nodes.count()).filter(|node| shown[*node]) {
            out.line(&view_node(rows, pruned, options, node))?;
        }
        write!(out.out, "\n],\n\"links\":[")?;
        out.first = true;
        let links = pruned.each_edge(rows, options.closing, |edge| {
            let link = Link { source: &ids[edge.source], target: &ids[edge.target], weight: edge.weight };
            Ok(out.line(&link).map_err(circuitlab_core::Error::io("write", path))?)
        });
        if let Err(error) = links {
            failed = Some(error);
            return Err(io::Error::other("the links could not be written"));
        }
        write!(out.out, "\n]")?;
        if let Some(nodes) = &options.qk_only_nodes {
            write!(out.out, ",\n\"qk_only_nodes\":{}", text(nodes)?)?;
        }
        writeln!(out.out, "}}")
    });
    match (failed, written) {
        (Some(error), _) => Err(error),
        (None, Err(error)) => Err(error.into()),
        (None, Ok(())) => Ok(metadata),
    }
}

#[derive(Serialize)]
struct Link<'a> {
    source: &'a str,
    target: &'a str,
    weight: f32,
}

/// The items of a list, one in each line, so that files can be compared by lines.
struct Lines<'a> {
    out: &'a mut dyn Write,
    first: bool,
}

impl Lines<'_> {
    fn line(&mut self, item: &impl Serialize) -> io::Result<()> {
        let comma = if std::mem::replace(&mut self.first, false) { "" } else { "," };
        write!(self.out, "{comma}\n{}", text(item)?)
    }
}

fn text(value: &impl Serialize) -> io::Result<String> {
    serde_json::to_string(value).map_err(io::Error::other)
}

/// Which nodes a viewer is shown: kept ones, and closing ones that have links.
fn shown(rows: &impl Rows, pruned: &Pruned, closing: bool) -> Result<Vec<bool>> {
    let mut shown = pruned.kept.clone();
    if closing {
        pruned.each_edge(rows, true, |edge| {
            shown[edge.source] = true;
            Ok(())
        })?;
    }
    Ok(shown)
}

fn view_node(rows: &impl Rows, pruned: &Pruned, options: &JsonOptions, node: usize) -> ViewNode {
    let nodes = rows.nodes();
    let mut view = ViewNode::new(nodes, pruned, node);
    if nodes.features().contains(&node) {
        let feature = nodes.feature(node);
        if let Some(label) = options.labels.get(&(feature.layer as usize, feature.feature as usize)) {
            view.clerp.clone_from(label);
        }
    }
    view.qk_tracing_results = options.qk_tracing_results.get(&node).cloned();
    view
}

impl View {
    /// What [`write_json`] would write, in memory.
    ///
    /// # Errors
    /// Rows that cannot be read.
    pub fn of(rows: &impl Rows, meta: &GraphMeta, pruned: &Pruned, options: &JsonOptions) -> Result<Self> {
        let shown = shown(rows, pruned, options.closing)?;
        let mut places = vec![u32::MAX; shown.len()];
        let mut nodes = Vec::new();
        for node in (0..shown.len()).filter(|node| shown[*node]) {
            places[node] = nodes.len() as u32;
            nodes.push(view_node(rows, pruned, options, node));
        }
        let mut links = Vec::new();
        pruned.each_edge(rows, options.closing, |edge| {
            links.push(ViewLink { source: places[edge.source], target: places[edge.target], weight: edge.weight });
            Ok(())
        })?;
        Ok(Self { metadata: metadata(meta, pruned, options), nodes, links })
    }
}

/// Checks a name that is to be a file's.
///
/// # Errors
/// One that is empty, that of a list, or that would be elsewhere.
pub fn check_slug(slug: &str) -> Result<()> {
    let named = slug.chars().all(|letter| !matches!(letter, '/' | '\\' | ':') && !letter.is_control());
    if slug.is_empty() || slug.starts_with('.') || !named || slug == "graph-metadata" || slug.len() > 200 {
        let right = "expected a name without slashes, colons and a leading dot that is not `graph-metadata`";
        return Err(Error::Invalid(format!("the slug `{}` cannot name a file: {right}", slug.escape_debug())));
    }
    Ok(())
}
