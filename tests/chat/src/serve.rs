//! Connections, and what is remembered of requests.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

use crate::body::{Chunks, End};
use crate::{Asked, Behaviour, Reply};

type Script = dyn Fn(&Asked) -> Behaviour + Send + Sync;

/// The server. It ends when it is dropped, and its connections with it.
pub struct ChatServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

pub(crate) struct Shared {
    script: Box<Script>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    requests: Vec<Asked>,
    open: usize,
    most_open: usize,
}

impl ChatServer {
    /// Starts a server on a free port that does with each request what the script says. Requests whose path is not
    /// `/v1/chat/completions` are seen by the script too.
    ///
    /// # Panics
    /// When no port is free.
    pub fn start(script: impl Fn(&Asked) -> Behaviour + Send + Sync + 'static) -> Self {
        let shared = Arc::new(Shared { script: Box::new(script), seen: Mutex::default() });
        let runtime = Builder::new_multi_thread().worker_threads(2).thread_name("chat-server").enable_all().build();
        let runtime = runtime.expect("threads");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("an address");
        runtime.spawn(accept(listener, Arc::clone(&shared)));
        Self { address, shared, runtime: Some(runtime) }
    }

    /// What clients call the base URL, without a slash at its end.
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// How many requests came so far.
    pub fn count(&self) -> usize {
        self.shared.seen().requests.len()
    }

    /// All requests so far, in the order in which they came.
    pub fn requests(&self) -> Vec<Asked> {
        self.shared.seen().requests.clone()
    }

    /// The most requests that were under way at once.
    pub fn most_at_once(&self) -> usize {
        self.shared.seen().most_open
    }
}

impl std::fmt::Debug for ChatServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatServer").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Drop for ChatServer {
    fn drop(&mut self) {
        // Those that hang would be waited for.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that is under way, until its answer has gone out or was given up.
pub(crate) struct Open(Arc<Shared>);

impl Open {
    fn new(shared: &Arc<Shared>) -> Self {
        let mut seen = shared.seen();
        seen.open += 1;
        seen.most_open = seen.most_open.max(seen.open);
        Self(Arc::clone(shared))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.seen().open -= 1;
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, &shared));
            // A client that went away is none of the server's troubles, nor is a connection that was to be cut.
            drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

async fn answer(request: Request<Incoming>, shared: &Arc<Shared>) -> Result<Response<Chunks>, io::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let headers = head.headers.iter().map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()));
    let asked = {
        let mut seen = shared.seen();
        let asked = Asked {
            turn: seen.requests.len(),
            method: head.method.to_string(),
            path: head.uri.to_string(),
            headers: headers.collect(),
            body: serde_json::from_slice(&body).unwrap_or(Value::Null),
            at: Instant::now(),
        };
        seen.requests.push(asked.clone());
        asked
    };
    let open = Open::new(shared);
    let behaviour = (shared.script)(&asked);
    Ok(respond(&asked, behaviour).await?.map(|chunks| chunks.holding(open)))
}

async fn respond(asked: &Asked, behaviour: Behaviour) -> Result<Response<Chunks>, io::Error> {
    match behaviour {
        Behaviour::Plain { status, headers, body } => {
            let mut response = Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(name, value);
            }
            response.body(Chunks::new([body], Duration::ZERO, End::Well)).map_err(io::Error::other)
        }
        Behaviour::Reply(reply) => spoken(asked, &reply, usize::MAX, End::Well).await,
        Behaviour::Cut(_, 0) => Err(io::Error::other("cut")),
        Behaviour::Hang(_, 0) => std::future::pending().await,
        Behaviour::Cut(reply, chunks) => spoken(asked, &reply, chunks, End::Cut).await,
        Behaviour::Hang(reply, chunks) => spoken(asked, &reply, chunks, End::Never).await,
    }
}

/// So many chunks of an answer.
async fn spoken(asked: &Asked, reply: &Reply, most: usize, end: End) -> Result<Response<Chunks>, io::Error> {
    let response = Response::builder();
    let response = if asked.streams() {
        let events = reply.events(asked);
        let end = if most >= events.len() { End::Well } else { end };
        let chunks = Chunks::new(events.into_iter().take(most), reply.pause, end);
        response.header("content-type", "text/event-stream; charset=utf-8").body(chunks)
    } else {
        let mut whole = reply.whole(asked);
        tokio::time::sleep(reply.pause * (reply.tokens.len() as u32 + 1)).await;
        let response = response.header("content-type", "application/json").header("content-length", whole.len());
        if end != End::Well {
            whole.truncate(whole.floor_char_boundary(whole.len() / 2));
        }
        response.body(Chunks::new([whole], Duration::ZERO, end))
    };
    response.map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;

    /// Status line, headers and body, as they come until the connection ends.
    fn post(server: &ChatServer, body: &str) -> String {
        let mut stream = TcpStream::connect(server.address).expect("a server");
        let length = body.len();
        let head = format!("POST /v1/chat/completions HTTP/1.1\r\nhost: here\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(format!("{head}{body}").as_bytes()).expect("is taken");
        let mut answer = Vec::new();
        // A connection that is cut may end with an error.
        drop(stream.read_to_end(&mut answer));
        String::from_utf8(answer).expect("text")
    }

    #[test]
    fn an_answer_comes_whole_or_in_pieces_with_what_was_asked_for() {
        let server = ChatServer::start(|asked| Behaviour::reply(format!("You said {}", asked.prompt())));
        let whole = post(&server, r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"logprobs":true,"top_logprobs":1}"#);
        assert!(whole.starts_with("HTTP/1.1 200") && whole.contains(r#""content":"You said hi""#), "{whole}");
        assert!(whole.contains(r#""top_logprobs":[{"token":" hi""#) && whole.contains(r#""completion_tokens":3"#), "{whole}");
        let pieces = post(&server, r#"{"messages":[{"content":"hi"}],"stream":true,"stream_options":{"include_usage":true}}"#);
        let events: Vec<&str> = pieces.lines().filter(|line| line.starts_with("data: ")).collect();
        assert!(events.len() == 7 && events[6] == "data: [DONE]" && events[5].contains(r#""choices":[],"usage":{"#), "{pieces}");
        assert!(events[2].contains(r#""delta":{"content":" said"},"logprobs":null"#), "{pieces}");
        assert_eq!((server.count(), server.requests()[1].turn, server.most_at_once()), (2, 1, 1));
    }

    #[test]
    fn a_connection_is_cut_where_the_script_says() {
        let server = ChatServer::start(|asked| Behaviour::Cut(Reply::new("one two three"), asked.turn));
        assert_eq!(post(&server, r#"{"stream":true}"#), "");
        let begun = post(&server, r#"{"stream":true}"#);
        assert!(begun.contains("assistant") && !begun.contains("one") && !begun.contains("DONE"), "{begun}");
        let half = post(&server, "{}");
        assert!(half.contains("chatcmpl-2") && !half.contains("usage"), "{half}");
    }

    #[test]
    fn failures_are_as_the_script_says() {
        let server = ChatServer::start(|asked| match asked.turn {
            0 => Behaviour::busy(Some("3")),
            _ => Behaviour::wanting(asked, "right").unwrap_or(Behaviour::body("text/html", "<p>")),
        });
        let busy = post(&server, "{}");
        assert!(busy.starts_with("HTTP/1.1 429") && busy.contains("retry-after: 3"), "{busy}");
        assert!(post(&server, "not JSON").starts_with("HTTP/1.1 401"));
        assert_eq!(server.requests()[1].body, Value::Null);
    }
}
