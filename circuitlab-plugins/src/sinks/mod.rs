//! Sinks of a run's figures: `jsonl` and `tensorboard`, which a run has unless told otherwise, and `csv`.

mod append;
mod csv;
mod jsonl;
mod tensorboard;

pub use csv::{Csv, CsvConfig};
pub use jsonl::{Jsonl, JsonlConfig};
pub use tensorboard::{TensorBoard, TensorBoardConfig};
