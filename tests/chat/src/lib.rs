//! A chat server for tests: it speaks `/v1/chat/completions` as OpenAI, vLLM, llama.cpp and Ollama do, over real connections on a port of
//! this machine, and behaves as a script says, request by request.
//!
//! ```
//! use circuitlab_test_chat::{Behaviour, ChatServer};
//! let server = ChatServer::start(|asked| match asked.turn {
//!     0 => Behaviour::status(500, "not yet"),
//!     _ => Behaviour::reply(format!("You said: {}", asked.prompt())),
//! });
//! assert!(server.base_url().starts_with("http://127.0.0.1:"));
//! ```

mod asked;
mod behaviour;
mod body;
mod reply;
mod serve;

pub use asked::Asked;
pub use behaviour::Behaviour;
pub use reply::{Reply, Token};
pub use serve::ChatServer;
