//! Reading graph files for viewers back, whoever wrote them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use circuitlab_core::Error as CoreError;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Graph, View, ViewLink, ViewNode};
use crate::{Error, Result};

/// A graph's file of either sort.
#[derive(Debug)]
pub enum GraphFile {
    /// With its matrix.
    Matrix(Box<Graph>),
    /// For viewers: what was kept of a graph.
    View(View),
}

impl GraphFile {
    /// Opens a file by what it holds, whatever it is called.
    ///
    /// # Errors
    /// As [`Graph::open`] and [`View::read`].
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(CoreError::io("read", path))?;
        let mut file = BufReader::new(file);
        let begin = file.fill_buf().map_err(CoreError::io("read", path))?;
        // The other sort begins with the length of its header, a multiple of 8.
        if begin.trim_ascii_start().starts_with(b"{") {
            return Ok(Self::View(View::read(path)?));
        }
        Ok(Self::Matrix(Box::new(Graph::open(path)?)))
    }
}

#[derive(Deserialize)]
struct FileView {
    metadata: Map<String, Value>,
    nodes: Vec<ViewNode>,
    links: Vec<FileLink>,
}

#[derive(Deserialize)]
struct FileLink {
    source: String,
    target: String,
    weight: f32,
}

impl View {
    /// Reads a file by [`write_json`](super::write_json) or by circuit-tracer.
    ///
    /// circuit-tracer gave an error the id of a feature of layer 0 at first. Which of both a link means follows from the order of links, but
    /// for a few that are taken for the feature's.
    ///
    /// # Errors
    /// A file that cannot be read or is none of a graph, ids that are there twice, links of nodes that are not there, and cycles.
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(CoreError::io("read", path))?;
        let wrong = |message: String| Error::from(CoreError::format(path, message));
        let read = serde_json::from_reader(BufReader::new(file));
        let FileView { metadata, mut nodes, links } = read.map_err(|error| wrong(format!("it is no graph for viewers: {error}")))?;
        let ids = Ids::of(&nodes).map_err(wrong)?;
        let links = ids.resolve(&links).map_err(wrong)?;
        for node in nodes.iter_mut().filter(|node| node.is_error()) {
            node.node_id = format!("{}_-1_{}", node.layer, node.ctx_idx);
        }
        // An error that has the new form twice is there twice.
        Ids::of(&nodes).map_err(wrong)?;
        let view = Self { metadata, nodes, links };
        view.order().map_err(wrong)?;
        Ok(view)
    }

    /// All nodes, each after those that add to it.
    pub(super) fn order(&self) -> Result<Vec<u32>, String> {
        let mut missing = vec![0_u32; self.nodes.len()];
        let mut out: Vec<Vec<u32>> = vec![Vec::new(); self.nodes.len()];
        for link in &self.links {
            missing[link.target as usize] += 1;
            out[link.source as usize].push(link.target);
        }
        let mut order: Vec<u32> = (0..self.nodes.len() as u32).filter(|node| missing[*node as usize] == 0).collect();
        let mut next = 0;
        while let Some(node) = order.get(next).copied() {
            next += 1;
            for target in &out[node as usize] {
                missing[*target as usize] -= 1;
                if missing[*target as usize] == 0 {
                    order.push(*target);
                }
            }
        }
        match missing.iter().position(|missing| *missing > 0) {
            None => Ok(order),
            Some(node) => Err(format!("node `{}` depends on itself; a graph must have no cycles", self.nodes[node].node_id)),
        }
    }
}

/// Which nodes an id stands for: the one, and the error that has the same id.
struct Ids<'a>(HashMap<&'a str, (u32, Option<u32>)>);

impl<'a> Ids<'a> {
    fn of(nodes: &'a [ViewNode]) -> Result<Self, String> {
        let mut ids = HashMap::with_capacity(nodes.len());
        for (place, node) in nodes.iter().enumerate() {
            let place = place as u32;
            let Some((first, error)) = ids.get_mut(node.node_id.as_str()) else {
                ids.insert(node.node_id.as_str(), (place, None));
                continue;
            };
            let other = &nodes[*first as usize];
            if error.is_some() || node.is_error() == other.is_error() {
                return Err(format!("two nodes have the id `{}`", node.node_id));
            }
            // The feature first, wherever both are.
            (*first, *error) = if node.is_error() { (*first, Some(place)) } else { (place, Some(*first)) };
        }
        Ok(Self(ids))
    }

    fn find(&self, id: &str) -> Result<(u32, Option<u32>), String> {
        self.0.get(id).copied().ok_or_else(|| format!("a link names the node `{id}`, which is not there"))
    }

    fn resolve(&self, links: &[FileLink]) -> Result<Vec<ViewLink>, String> {
        let mut resolved: Vec<ViewLink> = Vec::with_capacity(links.len());
        for (at, link) in links.iter().enumerate() {
            let (target, _) = self.find(&link.target)?;
            let source = match self.find(&link.source)? {
                (one, None) => one,
                (feature, Some(error)) => {
                    // Links of a target are in the order of nodes, and all features come before errors.
                    let previous = resolved.last().filter(|last| last.target == target).map(|last| last.source);
                    let next = links.get(at + 1).filter(|next| next.target == link.target);
                    let twice = next.is_some_and(|next| next.source == link.source);
                    if previous.is_some_and(|previous| previous >= feature) && !twice { error } else { feature }
                }
            };
            resolved.push(ViewLink { source, target, weight: link.weight });
        }
        Ok(resolved)
    }
}
