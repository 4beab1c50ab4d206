//! Supernodes: features at positions that are acted on together.

use std::fs;
use std::path::Path;

use circuitlab_core::Error as CoreError;
use serde_json::Value;

use super::{Change, Intervention, Site};
use crate::{Error, Result};

/// A named set of features at positions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Supernode {
    /// What it is called.
    pub name: String,
    /// Its members.
    pub sites: Vec<Site>,
}

impl Supernode {
    /// Reads `NAME=LAYER/POSITION/FEATURE,..`.
    ///
    /// # Errors
    /// Anything else.
    pub fn parse(text: &str) -> Result<Self> {
        let (name, sites) = text.split_once('=').filter(|(name, _)| !name.trim().is_empty()).ok_or_else(|| {
            Error::Invalid(format!("`{text}` is no supernode; expected NAME=LAYER/POSITION/FEATURE,.. such as `rhyme=3/5/120,4/5/7`"))
        })?;
        let sites = sites.split(',').map(|site| site.trim().parse()).collect::<Result<Vec<Site>>>()?;
        Ok(Self { name: name.trim().to_owned(), sites })
    }

    /// The same change of every member.
    pub fn interventions(&self, change: Change) -> Vec<Intervention> {
        self.sites.iter().map(|site| Intervention::at(*site, change)).collect()
    }

    /// The one of that name.
    ///
    /// # Errors
    /// None of that name.
    pub fn find<'a>(all: &'a [Self], name: &str) -> Result<&'a Self> {
        all.iter().rev().find(|one| one.name == name).ok_or_else(|| {
            let known: Vec<String> = all.iter().map(|one| one.name.clone()).collect();
            if known.is_empty() {
                return Error::Invalid(format!("there is no supernode `{name}`; none is defined"));
            }
            CoreError::unknown("supernode", name, known).into()
        })
    }
}

/// Reads supernodes from a JSON file: an object of names with lists of `LAYER/POSITION/FEATURE`, or a graph's file, whose
/// `qParams.supernodes` holds them. Of a graph, members that are no features are left out.
///
/// # Errors
/// A file that cannot be read, or that holds something else.
pub fn read_supernodes(path: &Path) -> Result<Vec<Supernode>> {
    let text = fs::read_to_string(path).map_err(CoreError::io("read", path))?;
    let wrong = |message: String| Error::from(CoreError::format(path, message));
    let file: Value = serde_json::from_str(&text).map_err(|error| wrong(format!("not valid JSON: {error}")))?;
    of_value(&file).map_err(|error| wrong(error.to_string()))
}

/// The same of what is in the file.
pub(super) fn of_value(file: &Value) -> Result<Vec<Supernode>> {
    if let Some(query) = file.get("qParams") {
        return of_graph(file, query.get("supernodes").unwrap_or(&Value::Null));
    }
    let named = file.get("supernodes").unwrap_or(file).as_object();
    let named = named.ok_or_else(|| {
        Error::Invalid("expected an object of supernodes, `{\"NAME\": [\"LAYER/POSITION/FEATURE\", ..]}`, or a graph".to_owned())
    })?;
    let of_name = |(name, sites): (&String, &Value)| {
        let wrong = || Error::Invalid(format!("supernode `{name}`: expected a list of `LAYER/POSITION/FEATURE`"));
        let sites = sites.as_array().filter(|sites| !sites.is_empty()).ok_or_else(wrong)?;
        let sites = sites.iter().map(|site| site.as_str().ok_or_else(wrong)?.parse()).collect::<Result<Vec<Site>>>()?;
        Ok(Supernode { name: name.clone(), sites })
    };
    named.iter().map(of_name).collect()
}

/// Those of a graph: `[["name", "layer_feature_position", ..], ..]`.
fn of_graph(graph: &Value, list: &Value) -> Result<Vec<Supernode>> {
    let nodes = graph.get("nodes").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(ToOwned::to_owned);
    // Ids of errors and logits are of the same form as those of features.
    let others: std::collections::HashSet<String> = nodes
        .iter()
        .filter(|node| text(node, "feature_type").is_some_and(|kind| kind != "cross layer transcoder"))
        .filter_map(|node| text(node, "node_id"))
        .collect();
    let list = match list {
        Value::Null => return Ok(Vec::new()),
        Value::Array(list) => list,
        _ => return Err(Error::Invalid("`qParams.supernodes` is no list".to_owned())),
    };
    let mut supernodes = Vec::new();
    for group in list {
        let words: Option<Vec<&str>> = group.as_array().and_then(|group| group.iter().map(Value::as_str).collect());
        let Some((name, ids)) = words.as_deref().and_then(<[&str]>::split_first) else {
            return Err(Error::Invalid("`qParams.supernodes`: expected lists of a name and of node ids".to_owned()));
        };
        let sites: Vec<Site> = ids.iter().filter(|id| !others.contains(**id)).filter_map(|id| node_site(id)).collect();
        if sites.len() < ids.len() {
            tracing::warn!("supernode `{name}`: {} of its {} members are no features and are left out", ids.len() - sites.len(), ids.len());
        }
        supernodes.push(Supernode { name: (*name).to_owned(), sites });
    }
    Ok(supernodes)
}

/// `layer_feature_position`, where all are numbers from 0.
fn node_site(id: &str) -> Option<Site> {
    let numbers: Option<Vec<usize>> = id.split('_').map(|part| part.parse().ok()).collect();
    match numbers?[..] {
        [layer, feature, position] => Some(Site { layer, position, feature }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn supernodes_are_read_from_words_objects_and_graphs() {
        let site = |layer, position, feature| Site { layer, position, feature };
        let named = Supernode::parse("rhyme = 3/5/120, 4/5/7").expect("a supernode");
        assert_eq!(named, Supernode { name: "rhyme".into(), sites: vec![site(3, 5, 120), site(4, 5, 7)] });
        let object = of_value(&json!({"supernodes": {"rhyme": ["3/5/120", "4/5/7"]}})).expect("an object");
        assert_eq!(object, std::slice::from_ref(&named));
        let graph = json!({
            "qParams": {"supernodes": [["rhyme", "3_120_5", "4_7_5", "E_12_3", "0_2_5", "3_-1_5"]]},
            "nodes": [{"node_id": "0_2_5", "feature_type": "mlp reconstruction error"}, {"node_id": "3_120_5", "feature_type": "cross layer transcoder"}]
        });
        assert_eq!(of_value(&graph).expect("a graph"), [named]);
        assert!(of_value(&json!({"qParams": {}})).expect("a graph without").is_empty());
    }

    #[test]
    fn other_things_are_named() {
        for wrong in [json!([]), json!({"a": []}), json!({"a": [3]}), json!({"a": ["3/5"]}), json!({"qParams": {"supernodes": [[3]]}})] {
            assert!(of_value(&wrong).is_err(), "{wrong}");
        }
        for wrong in ["a", "=3/5/7", "a=", "a=3/5/7,"] {
            assert!(Supernode::parse(wrong).is_err(), "{wrong}");
        }
        let known = [Supernode { name: "rhyme".into(), sites: Vec::new() }];
        assert!(Supernode::find(&known, "ryme").expect_err("unknown").to_string().contains("did you mean `rhyme`"));
        assert!(Supernode::find(&[], "ryme").expect_err("unknown").to_string().contains("none is defined"));
    }
}
