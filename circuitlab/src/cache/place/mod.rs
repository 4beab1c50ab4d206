//! Where a cache lies: a local folder, or an object store (`s3://`, `gs://`, `az://`).
//!
//! The rest of the cache reads and writes through [`Place`] and does not know which. A file is written whole or not at all in both. What
//! keeps two writers apart differs: locally a lock on the folder; in an object store, which has none, every replacement of a manifest
//! names the version that it replaces.

mod file;
mod folder;
mod local;
mod remote;
mod runtime;

pub(crate) use file::PlaceFile;
pub(crate) use folder::{Condition, Lock, Place, Version, is_url};
