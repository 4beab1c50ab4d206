//! Writes a feature store.

use std::fs;
use std::path::Path;

use circuitlab_core::{Error as CoreError, files};
use rusqlite::{Connection, params};

use super::blocks;
use super::card::Profile;
use super::settings::Identity;
use super::store::{BLOCK_FEATURES, DATABASE, PROFILES, SCHEMA, TOKENIZER, VERSION, damaged};
use crate::{Error, Result};

/// Upper bounds of tenths are what the database has of a histogram.
const TENTHS: usize = 10;

/// Writes a store into a folder, the database last, which makes it one. `profile` gives what is known of each feature, in the order of numbers.
///
/// # Errors
/// What `profile`, the file system and the database return.
pub fn write_store(
    folder: &Path,
    identity: &Identity,
    tokenizer: Option<&Path>,
    mut profile: impl FnMut(u32) -> Result<Profile>,
) -> Result<()> {
    fs::create_dir_all(folder).map_err(CoreError::io("create", folder))?;
    if let Some(from) = tokenizer {
        let bytes = fs::read(from).map_err(CoreError::io("read", from))?;
        files::write_atomic(&folder.join(TOKENIZER), |out| out.write_all(&bytes))?;
    }
    let path = folder.join(DATABASE);
    let part = files::part_path(&path);
    if part.exists() {
        fs::remove_file(&part).map_err(CoreError::io("remove", &part))?;
    }
    let mut database = Connection::open(&part).map_err(damaged(&part))?;
    let unwritten = |error: rusqlite::Error| Error::from(CoreError::io("write", &part)(std::io::Error::other(error)));
    database.execute_batch(SCHEMA).map_err(unwritten)?;
    let rows = database.transaction().map_err(unwritten)?;
    let json = serde_json::to_string(identity).map_err(|error| CoreError::format(&part, error.to_string()))?;
    for (key, value) in [("version", VERSION.to_string()), ("identity", json)] {
        rows.execute("INSERT INTO meta (key, value) VALUES (?1, ?2)", params![key, value]).map_err(unwritten)?;
    }
    let count = identity.features() as u32;
    blocks::write(&folder.join(PROFILES), |out| {
        for first in (0..count).step_by(BLOCK_FEATURES) {
            let numbers = first..count.min(first + BLOCK_FEATURES as u32);
            let block = numbers.clone().map(&mut profile).collect::<Result<Vec<_>>>()?;
            for (number, profile) in numbers.zip(&block) {
                add_row(&rows, identity, number, profile).map_err(unwritten)?;
            }
            out.push(&block).map_err(CoreError::io("write", &folder.join(PROFILES)))?;
        }
        Ok(())
    })?;
    rows.commit().map_err(unwritten)?;
    database.close().map_err(|(_, error)| unwritten(error))?;
    fs::rename(&part, &path).map_err(CoreError::io("write", &path))?;
    Ok(())
}

fn add_row(rows: &Connection, identity: &Identity, number: u32, profile: &Profile) -> rusqlite::Result<usize> {
    let Profile { statistics, decoder, .. } = profile;
    let summed = decoder.logits.iter().find(|effects| effects.target.is_none()).cloned().unwrap_or_default();
    // Pairs of numbers cannot fail to be JSON.
    let json = |value: serde_json::Result<String>| value.unwrap_or_default();
    let sql = "INSERT INTO features VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)";
    rows.prepare_cached(sql)?.execute(params![
        number,
        number as usize / identity.d_features,
        number as usize % identity.d_features,
        statistics.firings,
        statistics.frequency(),
        statistics.mean,
        statistics.max,
        statistics.min,
        json(serde_json::to_string(&statistics.histogram.quantiles(TENTHS))),
        json(serde_json::to_string(&&summed.top)),
        json(serde_json::to_string(&&summed.bottom)),
        json(serde_json::to_string(&decoder.norms)),
        json(serde_json::to_string(&decoder.neighbours)),
    ])
}
