//! `circuitlab intervene`, and what it shares with `model generate`.

use std::path::PathBuf;

use clap::Args;

use super::ModelPlace;

/// The prompt.
#[derive(Debug, Clone, Args)]
pub struct PromptArgs {
    /// The text.
    #[arg(long, value_name = "TEXT", required_unless_present = "tokens", conflicts_with = "tokens")]
    pub prompt: Option<String>,
    /// Token ids in place of a text, such as `0,5,9`, taken as they are.
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    pub tokens: Vec<u32>,
    /// Begin the prompt without the model's BOS.
    #[arg(long)]
    pub no_bos: bool,
}

/// What is changed. A feature is written LAYER/POSITION/FEATURE, where several positions are `2:` (from there on), `2:5` or `:` (all). Of
/// several changes of one feature at one position the last counts: those that set before those that scale, add and ablate, single features
/// before supernodes.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Changes")]
pub struct ChangeArgs {
    /// Give a feature this activation, such as `3/5/120=4.5` or `3/2:/120=0`; may be given again, as all of these.
    #[arg(long, value_name = "L/P/F=VALUE", requires = "clt", allow_hyphen_values = true)]
    pub set_feature: Vec<String>,
    /// Multiply a feature's activation.
    #[arg(long, value_name = "L/P/F=FACTOR", requires = "clt", allow_hyphen_values = true)]
    pub scale_feature: Vec<String>,
    /// Add to a feature's activation, whatever it is.
    #[arg(long, value_name = "L/P/F=VALUE", requires = "clt", allow_hyphen_values = true)]
    pub add_feature: Vec<String>,
    /// Set a feature's activation to zero.
    #[arg(long, value_name = "L/P/F", requires = "clt")]
    pub ablate: Vec<String>,
    /// Add a feature's decoder rows, times a number, where it writes, whatever else is changed.
    #[arg(long, value_name = "L/P/F=NUMBER", requires = "clt", allow_hyphen_values = true)]
    pub steer: Vec<String>,
    /// Name a set of features at single positions, to be changed together.
    #[arg(long, value_name = "NAME=L/P/F,..", requires = "clt")]
    pub supernode: Vec<String>,
    /// JSON file of supernodes, `{"NAME": ["L/P/F", ..]}`, or a graph's, whose `qParams.supernodes` are taken.
    #[arg(long, value_name = "FILE", requires = "clt")]
    pub supernodes: Vec<PathBuf>,
    /// Give all features of a supernode this activation.
    #[arg(long, value_name = "NAME=VALUE", requires = "clt", allow_hyphen_values = true)]
    pub set_supernode: Vec<String>,
    /// Multiply the activations of all features of a supernode, such as by -1.
    #[arg(long, value_name = "NAME=FACTOR", requires = "clt", allow_hyphen_values = true)]
    pub scale_supernode: Vec<String>,
    /// Add to the activations of all features of a supernode.
    #[arg(long, value_name = "NAME=VALUE", requires = "clt", allow_hyphen_values = true)]
    pub add_supernode: Vec<String>,
    /// Set the activations of all features of a supernode to zero.
    #[arg(long, value_name = "NAME", requires = "clt")]
    pub ablate_supernode: Vec<String>,
    /// Let attention answer to the changes. By default its patterns on the prompt are held as they are without them.
    #[arg(long, requires = "clt")]
    pub no_freeze_attention: bool,
}

/// Runs a prompt with features changed, beside the same run without changes.
#[derive(Debug, Args)]
pub struct InterveneArgs {
    /// Transcoder folder: a run's `final` or one of its checkpoints, or circuit-tracer's.
    #[arg(long, value_name = "CLT")]
    pub clt: PathBuf,
    /// The model.
    #[command(flatten)]
    pub place: ModelPlace,
    /// The prompt.
    #[command(flatten)]
    pub prompt: PromptArgs,
    /// What is changed.
    #[command(flatten)]
    pub changes: ChangeArgs,
    /// JSON file with a list of named interventions, `[{"name": .., "interventions": [[LAYER, POSITION, FEATURE, VALUE], ..],
    /// "constrained_layers": [A, B], "freeze_attention": true, "apply_activation_function": true}, ..]`, which are run together.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Hold the MLP outputs of these layers as they are without changes, which then reach no others.
    #[arg(long, value_name = "A:B", conflicts_with_all = ["no_freeze_attention", "direct"])]
    pub constrained_layers: Option<String>,
    /// Direct effects only, which are what a graph's edges say: hold all layers, and the norms.
    #[arg(long, conflicts_with = "no_freeze_attention")]
    pub direct: bool,
    /// Give the pre-activations of the features that are active without changes, not activations.
    #[arg(long)]
    pub pre_activations: bool,
    /// How many tokens and features to show.
    #[arg(long, default_value_t = 10, value_name = "COUNT")]
    pub top: usize,
    /// Safetensors file to write: for each intervention `iv_NAME_logits`, `iv_NAME_act_idx` and `iv_NAME_act_val`, or
    /// `iv_NAME_pre_of_active`; what is not from a file is called `intervention`.
    #[arg(long, value_name = "FILE")]
    pub tensors: Option<PathBuf>,
}
