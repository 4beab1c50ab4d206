//! Interventions: what a model does when features of a transcoder are set, scaled, added to or ablated at some positions.
//!
//! The model's own MLPs run. What changes is added to the MLP outputs that a feature writes to: the difference between the activation that it
//! is given and the one that it has, times its decoder rows. What is held as in the run without changes is the [`Mode`].

mod change;
mod edit;
mod features;
mod file;
mod generate;
mod run;
mod spec;
mod supernode;

pub use change::{Change, Intervention, Mode, Positions, Site, Target};
pub use features::Features;
pub use file::{Named, read_interventions};
pub use generate::{Generated, generate};
pub use run::{Budget, Outcome, Study, Variant, Want, intervene};
pub use spec::{assignment, feature_at};
pub use supernode::{Supernode, read_supernodes};
