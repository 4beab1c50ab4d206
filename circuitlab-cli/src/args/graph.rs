//! `circuitlab graph`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// What to do with graphs that `attribute` made.
#[derive(Debug, Subcommand)]
pub enum GraphCommand {
    /// Write what of a graph is worth looking at, for viewers; as often as need be, at any thresholds.
    Prune(GraphPruneArgs),
    /// Print how much of what the model does graphs explain.
    Scores(GraphScoresArgs),
    /// Print the paths that carry most of each logit.
    Show(GraphShowArgs),
    /// Print in what two graphs differ.
    Diff(GraphDiffArgs),
}

/// How much of a graph to keep.
#[derive(Debug, Args)]
pub struct ThresholdArgs {
    /// The share of all influence that kept nodes have together, 0 to 1.
    #[arg(long, default_value_t = 0.8, value_name = "SHARE", allow_negative_numbers = true)]
    pub node_threshold: f64,
    /// The share of what flows between kept nodes that kept edges carry together, 0 to 1.
    #[arg(long, default_value_t = 0.98, value_name = "SHARE", allow_negative_numbers = true)]
    pub edge_threshold: f64,
}

/// Prunes a graph for viewers: circuit-tracer's and Neuronpedia's JSON.
#[derive(Debug, Args)]
pub struct GraphPruneArgs {
    /// A graph with its matrix, a `.safetensors` file.
    #[arg(value_name = "GRAPH")]
    pub graph: PathBuf,
    /// How much to keep.
    #[command(flatten)]
    pub thresholds: ThresholdArgs,
    /// The file to write; or a folder that is there, into which `SLUG.json` is written and entered in its `graph-metadata.json`.
    #[arg(long, value_name = "FILE|FOLDER")]
    pub out: PathBuf,
    /// The graph's name. Default: that of the file to write, or the graph's own.
    #[arg(long, value_name = "SLUG")]
    pub slug: Option<String>,
    /// Show biases, positions and special positions too, where the graph was made with them.
    #[arg(long)]
    pub closing: bool,
}

/// Prints scores.
#[derive(Debug, Args)]
pub struct GraphScoresArgs {
    /// Graphs: with their matrices, or for viewers.
    #[arg(value_name = "FILE", required = true)]
    pub graphs: Vec<PathBuf>,
}

/// Prints paths.
#[derive(Debug, Args)]
pub struct GraphShowArgs {
    /// A graph: with its matrix, or for viewers.
    #[arg(value_name = "FILE")]
    pub graph: PathBuf,
    /// Paths of each logit.
    #[arg(long, default_value_t = 10, value_name = "COUNT")]
    pub top: usize,
    /// How much to keep of a graph with its matrix; one for viewers is shown as it is.
    #[command(flatten)]
    pub thresholds: ThresholdArgs,
}

/// Compares graphs, of one prompt as a rule.
#[derive(Debug, Args)]
pub struct GraphDiffArgs {
    /// A graph: with its matrix, or for viewers.
    #[arg(value_name = "FIRST")]
    pub first: PathBuf,
    /// Another one.
    #[arg(value_name = "SECOND")]
    pub second: PathBuf,
    /// Nodes and edges that are shown of each sort.
    #[arg(long, default_value_t = 10, value_name = "COUNT")]
    pub top: usize,
    /// How much to keep of a graph with its matrix; one for viewers is compared as it is.
    #[command(flatten)]
    pub thresholds: ThresholdArgs,
}
