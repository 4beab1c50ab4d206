//! What stands between a plugin and everybody else: a panic in it becomes an error that names it.
//!
//! A panic that leaves the library in which it began ends the process: each has a runtime of its own. So every component is
//! wrapped where it is registered, within its own library, and what of the host's is lent to it is wrapped by the host
//! ([`visitor`]). What a component must answer without an error, such as its parameters, is asked for once, when it is made.

mod activation;
mod codec;
mod documents;
mod explainer;
mod frozen;
mod guarded;
mod metric;
mod model;
mod strategy;
mod text;
mod transcoder;
mod visitor;

pub use activation::activation;
pub use codec::codec;
pub use explainer::explainer;
pub use metric::metric_sink;
pub use model::model;
pub use strategy::strategy;
pub use text::text_source;
pub use transcoder::transcoder;
pub(super) use visitor::shield;
