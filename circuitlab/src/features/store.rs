//! The feature store: a folder with what is known of every feature of a transcoder.
//!
//! `features.sqlite` has statistics, labels and scores, for queries and other tools; `profiles.blocks` has everything of the text and the
//! weights, a few features to a block; `tokenizer.json` is the model's, so that tokens can be read. Any number of processes may read it at the
//! same time, also while one writes labels.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use circuitlab_core::Error as CoreError;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};

use super::blocks::BlockFile;
use super::card::{Card, Label, Profile, Score};
use super::settings::Identity;
use crate::text::Tokenizer;
use crate::{Error, Result};

/// Features in a block: few, so that one is read fast, and enough to be packed well.
pub(super) const BLOCK_FEATURES: usize = 8;

pub(super) const DATABASE: &str = "features.sqlite";
pub(super) const PROFILES: &str = "profiles.blocks";
pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const SCHEMA: &str = include_str!("schema.sql");

/// Of the schema and the blocks; it changes with either.
pub(super) const VERSION: u32 = 1;

/// How long a process waits for another's writing.
const BUSY: Duration = Duration::from_secs(30);

/// An open store.
#[derive(Debug)]
pub struct FeatureStore {
    folder: PathBuf,
    identity: Identity,
    database: Connection,
    blocks: BlockFile,
    tokenizer: Option<Tokenizer>,
}

/// A label that was found by its words.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Found {
    /// The layer of the feature.
    pub layer: usize,
    /// Its number in the layer.
    pub feature: usize,
    /// Its newest label.
    pub label: String,
    /// How often it fires.
    pub frequency: f64,
}

impl FeatureStore {
    /// Opens a store for reading.
    ///
    /// # Errors
    /// A folder that is no store, or one of another version, and damage.
    pub fn open(folder: &Path) -> Result<Self> {
        Self::with(folder, OpenFlags::SQLITE_OPEN_READ_ONLY)
    }

    /// Opens a store to add labels and scores.
    ///
    /// # Errors
    /// As for [`open`](Self::open), and a folder that cannot be written.
    pub fn open_to_add(folder: &Path) -> Result<Self> {
        Self::with(folder, OpenFlags::SQLITE_OPEN_READ_WRITE)
    }

    fn with(folder: &Path, flags: OpenFlags) -> Result<Self> {
        let path = folder.join(DATABASE);
        if !path.is_file() {
            let message = format!("no feature store: it holds no `{DATABASE}`; `circuitlab features build` makes one");
            return Err(CoreError::format(folder, message).into());
        }
        // No mutex: rusqlite's connection is not shared among threads.
        let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let database = Connection::open_with_flags(&path, flags).map_err(damaged(&path))?;
        database.busy_timeout(BUSY).map_err(damaged(&path))?;
        let meta = |key: &str| -> Result<String> {
            let found =
                database.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0)).optional().map_err(damaged(&path))?;
            Ok(found.ok_or_else(|| CoreError::format(&path, format!("it does not say its `{key}`; make the store again")))?)
        };
        let version = meta("version")?;
        if version != VERSION.to_string() {
            return Err(Error::mismatch(format!("feature store `{}`: its version", folder.display()), VERSION, version));
        }
        let identity: Identity = serde_json::from_str(&meta("identity")?).map_err(|error| CoreError::format(&path, error.to_string()))?;
        let blocks = BlockFile::open(&folder.join(PROFILES))?;
        let expected = identity.features().div_ceil(BLOCK_FEATURES);
        if blocks.len() != expected {
            return Err(Error::mismatch(format!("`{}`: blocks", folder.join(PROFILES).display()), expected, blocks.len()));
        }
        let tokenizer = folder.join(TOKENIZER);
        let tokenizer = if tokenizer.is_file() { Some(Tokenizer::load(&tokenizer, &identity.model)?) } else { None };
        Ok(Self { folder: folder.to_path_buf(), identity, database, blocks, tokenizer })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What it is of.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// A feature's number in the store.
    ///
    /// # Errors
    /// A layer or feature that there is not.
    pub fn number(&self, layer: usize, feature: usize) -> Result<u32> {
        let Identity { layers, d_features, .. } = self.identity;
        if layer >= layers || feature >= d_features {
            let folder = self.folder.display();
            return Err(Error::Invalid(format!(
                "store `{folder}` has no feature {layer}/{feature}: it has layers 0 to {} with features 0 to {}",
                layers - 1,
                d_features - 1
            )));
        }
        Ok((layer * d_features + feature) as u32)
    }

    /// Layer and feature of a number.
    pub fn name(&self, number: u32) -> (usize, usize) {
        (number as usize / self.identity.d_features, number as usize % self.identity.d_features)
    }

    /// Everything of a feature.
    ///
    /// # Errors
    /// A layer or feature that there is not, and damage.
    pub fn card(&self, layer: usize, feature: usize) -> Result<Card> {
        let number = self.number(layer, feature)?;
        Ok(Card { layer, feature, profile: self.profile(number)?, labels: self.labels(number)?, scores: self.scores(number)? })
    }

    /// What text and weights say of a feature.
    ///
    /// # Errors
    /// A number that there is not, and damage.
    pub fn profile(&self, number: u32) -> Result<Profile> {
        let (block, place) = (number as usize / BLOCK_FEATURES, number as usize % BLOCK_FEATURES);
        let mut profiles = self.block(block)?;
        if place >= profiles.len() {
            return Err(CoreError::format(self.folder.join(PROFILES), format!("there is no feature number {number}")).into());
        }
        Ok(profiles.swap_remove(place))
    }

    /// The same of all features in order of their numbers, a block at a time.
    pub fn all(&self) -> impl Iterator<Item = Result<(u32, Profile)>> + '_ {
        (0..self.blocks.len()).flat_map(move |block| {
            let first = (block * BLOCK_FEATURES) as u32;
            match self.block(block) {
                Ok(profiles) => profiles.into_iter().zip(first..).map(|(profile, number)| Ok((number, profile))).collect(),
                Err(error) => vec![Err(error)],
            }
        })
    }

    fn block(&self, block: usize) -> Result<Vec<Profile>> {
        self.blocks.read(block)
    }

    /// The text of each token, in its context: a character of several tokens is the last one's.
    ///
    /// # Errors
    /// Tokens that the tokenizer does not know.
    pub fn texts(&self, tokens: &[u32]) -> Result<Vec<String>> {
        match &self.tokenizer {
            Some(tokenizer) => tokenizer.pieces(tokens),
            None => Ok(tokens.iter().map(|id| format!("<{id}>")).collect()),
        }
    }

    /// A feature's labels, the newest first.
    ///
    /// # Errors
    /// Damage.
    pub fn labels(&self, number: u32) -> Result<Vec<Label>> {
        let sql = "SELECT id, text, explainer, model, made_at FROM labels WHERE feature_id = ?1 AND failure IS NULL ORDER BY id DESC";
        let mut statement = self.database.prepare_cached(sql).map_err(self.damaged())?;
        let label = |row: &rusqlite::Row<'_>| {
            Ok(Label { id: row.get(0)?, text: row.get(1)?, explainer: row.get(2)?, model: row.get(3)?, made_at: row.get(4)? })
        };
        let rows = statement.query_map([number], label).map_err(self.damaged())?;
        rows.collect::<Result<_, _>>().map_err(self.damaged())
    }

    /// The newest label of every feature that has one, in order of numbers.
    ///
    /// # Errors
    /// Damage.
    pub fn newest_labels(&self) -> Result<Vec<(u32, Label)>> {
        let sql = "SELECT id, text, explainer, model, made_at, feature_id FROM labels
                   WHERE id IN (SELECT max(id) FROM labels WHERE failure IS NULL GROUP BY feature_id) ORDER BY feature_id";
        let mut statement = self.database.prepare_cached(sql).map_err(self.damaged())?;
        let label = |row: &rusqlite::Row<'_>| {
            let label = Label { id: row.get(0)?, text: row.get(1)?, explainer: row.get(2)?, model: row.get(3)?, made_at: row.get(4)? };
            Ok((row.get(5)?, label))
        };
        let rows = statement.query_map([], label).map_err(self.damaged())?;
        rows.collect::<Result<_, _>>().map_err(self.damaged())
    }

    /// A feature's scores, the newest first.
    ///
    /// # Errors
    /// Damage.
    pub fn scores(&self, number: u32) -> Result<Vec<Score>> {
        self.scores_where("feature_id = ?1", params![number])
    }

    /// Figures of the dictionary as a whole, the newest first.
    ///
    /// # Errors
    /// Damage.
    pub fn scores_of_all(&self) -> Result<Vec<Score>> {
        self.scores_where("feature_id IS NULL", params![])
    }

    fn scores_where(&self, condition: &str, values: &[&dyn rusqlite::ToSql]) -> Result<Vec<Score>> {
        let sql = format!(
            "SELECT label_id, kind, judge, value, low, high, detail FROM scores WHERE {condition} AND value IS NOT NULL ORDER BY id DESC"
        );
        let mut statement = self.database.prepare_cached(&sql).map_err(self.damaged())?;
        let score = |row: &rusqlite::Row<'_>| {
            let (low, high): (Option<f64>, Option<f64>) = (row.get(4)?, row.get(5)?);
            let detail: String = row.get(6)?;
            Ok(Score {
                label: row.get(0)?,
                kind: row.get(1)?,
                judge: row.get(2)?,
                value: row.get(3)?,
                interval: low.zip(high),
                detail: serde_json::from_str(&detail).unwrap_or_default(),
            })
        };
        let rows = statement.query_map(values, score).map_err(self.damaged())?;
        rows.collect::<Result<_, _>>().map_err(self.damaged())
    }

    /// Features whose newest label has the words, the best matches first: all of them, in any order and inflection; `"two words"` side by side, `king*`
    /// by their beginning.
    ///
    /// # Errors
    /// A query that cannot be read, and damage.
    pub fn search(&self, query: &str, most: usize) -> Result<Vec<Found>> {
        let sql = "SELECT features.layer, features.feature, labels.text, features.frequency
                   FROM labels_text JOIN labels ON labels.id = labels_text.rowid JOIN features ON features.id = labels.feature_id
                   WHERE labels_text MATCH ?1 AND labels.id IN (SELECT max(id) FROM labels WHERE failure IS NULL GROUP BY feature_id)
                   ORDER BY rank, features.id LIMIT ?2";
        let wrong = |error: rusqlite::Error| Error::Invalid(format!("the search `{query}` cannot be read: {error}"));
        let mut statement = self.database.prepare_cached(sql).map_err(self.damaged())?;
        let found =
            |row: &rusqlite::Row<'_>| Ok(Found { layer: row.get(0)?, feature: row.get(1)?, label: row.get(2)?, frequency: row.get(3)? });
        let rows = statement.query_map(params![query, most], found).map_err(wrong)?;
        rows.collect::<Result<_, _>>().map_err(wrong)
    }

    /// Adds a label, or, where there is none, why.
    ///
    /// # Errors
    /// What the database returns.
    pub fn add_label(&self, number: u32, text: Result<&str, &str>, explainer: &str, model: Option<&str>) -> Result<i64> {
        let sql = "INSERT INTO labels (feature_id, text, failure, explainer, model, made_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
        let values = params![number, text.unwrap_or_default(), text.err(), explainer, model, now()];
        self.database.prepare_cached(sql).and_then(|mut statement| statement.execute(values)).map_err(self.unwritten())?;
        Ok(self.database.last_insert_rowid())
    }

    /// Adds a score of a feature, or of all where there is no number; one whose value is no number is kept as failed.
    ///
    /// # Errors
    /// What the database returns.
    pub fn add_score(&self, number: Option<u32>, score: &Score) -> Result<()> {
        let sql = "INSERT INTO scores (feature_id, label_id, kind, judge, value, low, high, detail, made_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
        let value = Some(score.value).filter(|value| value.is_finite());
        let (low, high) = score.interval.unzip();
        let values = params![number, score.label, score.kind, score.judge, value, low, high, score.detail.to_string(), now()];
        self.database.prepare_cached(sql).and_then(|mut statement| statement.execute(values)).map_err(self.unwritten())?;
        Ok(())
    }

    /// A reply that was kept under a key.
    ///
    /// # Errors
    /// Damage.
    pub fn reply(&self, key: &str) -> Result<Option<String>> {
        let mut statement = self.database.prepare_cached("SELECT reply FROM replies WHERE key = ?1").map_err(self.damaged())?;
        statement.query_row([key], |row| row.get(0)).optional().map_err(self.damaged())
    }

    /// Keeps a reply, so that nothing is asked and paid twice.
    ///
    /// # Errors
    /// What the database returns.
    pub fn keep_reply(&self, key: &str, reply: &str) -> Result<()> {
        let sql = "INSERT OR REPLACE INTO replies (key, reply, made_at) VALUES (?1, ?2, ?3)";
        let values = params![key, reply, now()];
        self.database.prepare_cached(sql).and_then(|mut statement| statement.execute(values)).map_err(self.unwritten())?;
        Ok(())
    }

    fn damaged(&self) -> impl Fn(rusqlite::Error) -> Error {
        damaged(&self.folder.join(DATABASE))
    }

    fn unwritten(&self) -> impl Fn(rusqlite::Error) -> Error {
        let path = self.folder.join(DATABASE);
        move |error| CoreError::io("write", &path)(std::io::Error::other(error)).into()
    }
}

/// What `SQLite` says of a file.
pub(super) fn damaged(path: &Path) -> impl Fn(rusqlite::Error) -> Error + use<> {
    let path = path.to_path_buf();
    move |error| CoreError::format(&path, format!("it cannot be read as a feature store: {error}")).into()
}

pub(super) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::{BuildSettings, Example, Place, Statistics, write_store};
    use super::*;

    fn identity() -> Identity {
        Identity {
            transcoder: "abc".to_owned(),
            layers: 2,
            d_features: 9,
            model: crate::text::fixture::model(),
            tokenizer: None,
            texts: Vec::new(),
            range: "0..1".to_owned(),
            settings: BuildSettings::default(),
        }
    }

    fn profile(number: u32) -> Profile {
        let place = Place { document: number, context: 0, offset: 0 };
        let example = Example { place, tokens: vec![number, 7], before: 0, length: 2, firings: vec![(1, 0.5 + number as f32)] };
        let statistics = Statistics { tokens: 100, firings: u64::from(number), ..Statistics::default() };
        Profile { statistics, sample: vec![example], ..Profile::default() }
    }

    #[test]
    fn what_was_written_is_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let asked = AtomicUsize::new(0);
        write_store(folder.path(), &identity(), None, |number| {
            assert_eq!(asked.fetch_add(1, Ordering::Relaxed), number as usize, "in order");
            Ok(profile(number))
        })
        .expect("writes");
        let store = FeatureStore::open_to_add(folder.path()).expect("opens");
        let reader = FeatureStore::open(folder.path()).expect("opens beside");
        assert_eq!(reader.identity(), &identity());
        for number in 0..18 {
            let (layer, feature) = reader.name(number);
            assert_eq!(reader.number(layer, feature).expect("there"), number);
            assert_eq!(reader.card(layer, feature).expect("there").profile, profile(number));
        }
        assert_eq!(reader.all().map(|found| found.expect("whole").0).collect::<Vec<_>>(), (0..18).collect::<Vec<_>>());
        assert_eq!(reader.texts(&[3, 7]).expect("numbers"), ["<3>", "<7>"]);
        let wrong = [reader.card(2, 0), reader.card(0, 9)].map(|card| card.expect_err("not there").to_string());
        assert!(wrong.iter().all(|error| error.contains("layers 0 to 1 with features 0 to 8")), "{wrong:?}");

        store.add_label(11, Ok("kings and queens"), "local", None).expect("adds");
        store.add_label(11, Ok("royal titles"), "openai", Some("m")).expect("adds");
        store.add_label(11, Err("no answer"), "openai", Some("m")).expect("adds");
        store.add_label(3, Ok("a king's crown"), "local", None).expect("adds");
        let labels: Vec<String> = reader.labels(11).expect("reads").into_iter().map(|label| label.text).collect();
        assert_eq!(labels, ["royal titles", "kings and queens"]);
        let newest: Vec<(u32, String)> =
            reader.newest_labels().expect("reads").into_iter().map(|(number, label)| (number, label.text)).collect();
        assert_eq!(newest, [(3, "a king's crown".to_owned()), (11, "royal titles".to_owned())]);
        let names = |query: &str| -> Vec<(usize, usize)> {
            reader.search(query, 10).expect("a query").into_iter().map(|found| (found.layer, found.feature)).collect()
        };
        assert_eq!((names("kings"), names("title"), names("tit*"), names("cat")), (vec![(0, 3)], vec![(1, 2)], vec![(1, 2)], vec![]));
        assert!(reader.search("\"", 10).is_err());
        assert!(reader.add_label(0, Ok("no"), "local", None).is_err(), "opened for reading");

        let score = |value| Score {
            label: Some(1),
            kind: "detection".to_owned(),
            judge: "m".to_owned(),
            value,
            interval: Some((0.5, 0.9)),
            detail: serde_json::json!({"auc": 0.7}),
        };
        store.add_score(Some(11), &score(0.7)).expect("adds");
        store.add_score(Some(11), &score(f64::NAN)).expect("adds a failure");
        store.add_score(None, &score(0.6)).expect("adds");
        assert_eq!((reader.scores(11).expect("reads"), reader.scores_of_all().expect("reads")), (vec![score(0.7)], vec![score(0.6)]));
        assert_eq!(reader.reply("k").expect("reads"), None);
        store.keep_reply("k", "v").expect("keeps");
        assert_eq!(reader.reply("k").expect("reads").as_deref(), Some("v"));
    }

    #[test]
    fn what_is_no_store_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let says = |words: &str| {
            let error = FeatureStore::open(folder.path()).expect_err("no store").to_string();
            assert!(error.contains(words), "{error}");
        };
        says("features build");
        let put = |name: &str, text: &str| {
            circuitlab_core::files::write_atomic(&folder.path().join(name), |out| out.write_all(text.as_bytes())).expect("writes");
        };
        put(DATABASE, "nothing of the kind, and longer than a header of a hundred bytes, which is what the library looks at");
        says("cannot be read as a feature store");
        std::fs::remove_file(folder.path().join(DATABASE)).expect("removes");
        write_store(folder.path(), &identity(), None, |number| Ok(profile(number))).expect("writes");
        put(PROFILES, "short");
        says("cut short");
    }
}
