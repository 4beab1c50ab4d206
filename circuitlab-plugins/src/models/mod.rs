//! Language models: one transformer, and a page for each family.

pub mod gpt2;
pub mod hugging_face;
pub mod llama;
pub mod rope;
pub mod transformer;
