//! The built program, from the outside.

mod attribute;
mod bad_input;
mod checkpoints;
mod export;
mod faithfulness;
#[cfg(unix)]
mod faults;
mod formats;
mod graph_files;
mod hostile;
#[cfg(target_os = "linux")]
mod hosts;
mod hub;
mod intervene;
mod kill;
#[cfg(unix)]
mod launch;
mod linked;
mod live;
mod model;
mod odd;
mod pipeline;
mod plan;
mod plugins;
mod ranks;
mod several;
#[cfg(unix)]
mod signals;
mod store;
mod text;
mod topk;
mod traffic;
