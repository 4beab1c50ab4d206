//! Language models: one transformer, and a page for each family.
//!
//! A page, here or in a crate of its own, is a [`Family`](transformer::Family): a function that turns a
//! [`ConfigFile`](hugging_face::ConfigFile) into a [`Description`](transformer::Description), and one that says where each
//! [`Site`](transformer::Site) has its tensors. [`Transformer::open`](transformer::Transformer::open) does the rest.

pub mod decoder;
pub mod gemma;
pub mod gpt2;
pub mod gpt_neox;
pub mod hugging_face;
pub mod llama;
pub mod mistral;
pub mod olmo2;
pub mod phi3;
pub mod qwen;
pub mod rope;
pub mod smollm3;
pub mod transformer;
