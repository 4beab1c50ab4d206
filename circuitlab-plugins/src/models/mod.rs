//! Language models: one transformer, and a page for each family.
//!
//! A page, here or in a crate of its own, is a [`Family`](transformer::Family): a function that turns a
//! [`ConfigFile`](hugging_face::ConfigFile) into a [`Description`](transformer::Description), and one that says where each
//! [`Site`](transformer::Site) has its tensors. [`Transformer::open`](transformer::Transformer::open) does the rest.

pub mod gpt2;
pub mod hugging_face;
pub mod llama;
pub mod rope;
pub mod transformer;
