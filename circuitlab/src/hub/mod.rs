//! Repositories of the Hugging Face hub: `hf:ORG/NAME[@REVISION]`, fetched into the cache that Python's `huggingface_hub` uses too.
//!
//! [`fetch_model`] gives a folder with a model's files, [`list`] and [`fetch_files`] serve data sets. What is in the cache is not
//! fetched again; a download that broke off is gone on with; a file gets its name when its length, and its SHA-256 where the hub tells
//! one, are right. Where the hub cannot be reached and the cache has everything, that is used, with a warning.
//!
//! | variable | meaning |
//! | --- | --- |
//! | `HF_HOME`, `HF_HUB_CACHE` | where downloads are kept: `~/.cache/huggingface`, and `hub` in it |
//! | `HF_ENDPOINT` | the hub's address; default `https://huggingface.co` |
//! | `HF_TOKEN`, `HF_TOKEN_PATH` | an access token, or the file that holds it: `token` in `HF_HOME` |
//! | `HF_HUB_OFFLINE` | `1`: use the cache alone |
//! | `HF_HUB_DOWNLOAD_TIMEOUT` | seconds to wait for a connection, or for a next byte; default 10 |
//!
//! A proxy is taken from `HTTPS_PROXY`, `HTTP_PROXY` and `ALL_PROXY`.

mod client;
mod download;
mod fault;
mod fetch;
mod part;
mod place;
mod settings;
mod spec;
mod store;

pub use fetch::{fetch_files, fetch_model, list};
pub use place::find_model;
pub use spec::{HubKind, HubSpec};
