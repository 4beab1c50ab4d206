//! A hub on this machine: it speaks the paths and headers of huggingface.co, and fails when it is told to.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};

/// The commit of `main`.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The only token that is let in where one is needed.
pub const TOKEN: &str = "hf_right";

/// What goes wrong.
#[derive(Debug, Clone)]
pub enum Fault {
    /// This status, without a body.
    Status(u16),
    /// The body ends after so many bytes, though more were announced.
    Cut(usize),
    /// So many bytes of the body, and then nothing, with the connection open.
    Stall(usize),
    /// Nothing at all, with the connection open.
    Silence,
    /// The first byte is another one.
    WrongByte,
    /// The whole file, whatever range was asked for.
    NoRanges,
    /// An answer without this header.
    Without(&'static str),
    /// This body in place of the right one.
    Body(&'static str),
    /// A redirect to here.
    Redirect(&'static str),
}

/// What was asked.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET` or `HEAD`.
    pub method: String,
    /// With its slash.
    pub path: String,
    /// By lower-case name.
    pub headers: BTreeMap<String, String>,
}

#[derive(Debug, Default)]
struct State {
    /// By address: `org/tiny`, `datasets/org/text`.
    repositories: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    private: bool,
    /// Part of `METHOD path`, how often still, and what.
    faults: Vec<(String, usize, Fault)>,
    requests: Vec<Request>,
}

/// A running hub; it ends when it is dropped.
#[derive(Debug)]
pub struct Hub {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    ended: Arc<AtomicBool>,
}

impl Hub {
    /// Starts one without repositories.
    ///
    /// # Panics
    /// When this machine has no free port.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let hub = Self { address: listener.local_addr().expect("bound"), state: Arc::default(), ended: Arc::default() };
        let (state, ended, port) = (Arc::clone(&hub.state), Arc::clone(&hub.ended), hub.address.port());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let (state, ended) = (Arc::clone(&state), Arc::clone(&ended));
                // A client that goes away is no fault of the hub's.
                thread::spawn(move || drop(serve(&stream, &state, &ended, port)));
            }
        });
        hub
    }

    /// Its address, for `HF_ENDPOINT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds this")
    }

    /// Adds a file to a repository: `org/tiny`, `datasets/org/text`.
    pub fn put(&self, repository: &str, file: &str, content: impl Into<Vec<u8>>) {
        self.state().repositories.entry(repository.to_owned()).or_default().insert(file.to_owned(), content.into());
    }

    /// From now on nobody without [`TOKEN`] is let in.
    pub fn close(&self) {
        self.state().private = true;
    }

    /// Lets the next `times` requests fail whose `METHOD path` contains `place`.
    pub fn fail(&self, place: &str, times: usize, fault: Fault) {
        self.state().faults.push((place.to_owned(), times, fault));
    }

    /// Forgets all faults that are still to come.
    pub fn mend(&self) {
        self.state().faults.clear();
    }

    /// What was asked since the last call.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state().requests)
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // Wakes the listener.
        drop(TcpStream::connect(self.address));
    }
}

/// An answer before anything goes wrong with it.
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new() }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

fn serve(stream: &TcpStream, state: &Mutex<State>, ended: &AtomicBool, port: u16) -> std::io::Result<()> {
    let Some(request) = read(stream)? else { return Ok(()) };
    let line = format!("{} {}", request.method, request.path);
    let (mut answer, fault) = {
        let mut state = state.lock().expect("no panic while it is held");
        state.requests.push(request.clone());
        let fault = state.faults.iter_mut().find(|(place, times, _)| *times > 0 && line.contains(place.as_str()));
        let fault = fault.map(|(_, times, fault)| {
            *times -= 1;
            fault.clone()
        });
        let whole = matches!(fault, Some(Fault::NoRanges));
        (answer(&state, &request, port, whole), fault)
    };
    let mut sent = usize::MAX;
    match &fault {
        Some(Fault::Status(status)) => answer = Answer::new(*status),
        Some(Fault::Redirect(place)) => answer = Answer::new(307).with("Location", *place),
        Some(Fault::Without(name)) => answer.headers.retain(|(known, _)| known != name),
        Some(Fault::Body(body)) => answer.body = body.as_bytes().to_vec(),
        Some(Fault::WrongByte) => answer.body[0] ^= 1,
        Some(Fault::Cut(bytes) | Fault::Stall(bytes)) => sent = *bytes,
        Some(Fault::Silence | Fault::NoRanges) | None => {}
    }
    if !matches!(fault, Some(Fault::Silence)) {
        write(stream, &request, &answer, sent, matches!(fault, Some(Fault::Without("Content-Length"))))?;
    }
    while matches!(fault, Some(Fault::Silence | Fault::Stall(_))) && !ended.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn read(stream: &TcpStream) -> std::io::Result<Option<Request>> {
    let mut lines = BufReader::new(stream).lines();
    let Some(first) = lines.next().transpose()? else { return Ok(None) };
    let mut words = first.split(' ').map(str::to_owned);
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return Ok(None) };
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    Ok(Some(Request { method, path, headers }))
}

fn write(mut stream: &TcpStream, request: &Request, answer: &Answer, sent: usize, no_length: bool) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} Said\r\nConnection: close\r\n", answer.status);
    if !no_length {
        let _ = write!(head, "Content-Length: {}\r\n", answer.body.len());
    }
    for (name, value) in &answer.headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    if request.method == "GET" {
        stream.write_all(&answer.body[..sent.min(answer.body.len())])?;
    }
    stream.flush()
}

/// The right answer.
fn answer(state: &State, request: &Request, port: u16, whole: bool) -> Answer {
    let path = request.path.trim_start_matches('/');
    if let Some(hash) = path.strip_prefix("cdn/") {
        let all = state.repositories.values().flat_map(BTreeMap::values);
        return all.into_iter().find(|content| sha256(content) == hash).map_or(Answer::new(404), |found| bytes(request, found, whole));
    }
    if state.private && request.headers.get("authorization").map(String::as_str) != Some(&format!("Bearer {TOKEN}")) {
        return Answer::new(401).with("X-Error-Code", "RepoNotFound");
    }
    if let Some(rest) = path.strip_prefix("api/") {
        let Some((name, revision)) = rest.split_once("/revision/") else { return Answer::new(404) };
        let Some(files) = state.repositories.get(name.strip_prefix("models/").unwrap_or(name)) else {
            return Answer::new(404).with("X-Error-Code", "RepoNotFound");
        };
        if revision != "main" && revision != COMMIT && revision != "refs%2Fpr%2F1" {
            return Answer::new(404).with("X-Error-Code", "RevisionNotFound");
        }
        let siblings: Vec<_> = files.keys().map(|file| json!({"rfilename": file})).collect();
        let body = json!({"id": name, "sha": COMMIT, "siblings": siblings}).to_string().into_bytes();
        return Answer { body, ..Answer::new(200).with("Content-Type", "application/json") };
    }
    let Some((name, rest)) = path.split_once("/resolve/") else { return Answer::new(404) };
    let found = rest.split_once('/').and_then(|(_, file)| Some((file, state.repositories.get(name)?.get(&unescaped(file))?)));
    let Some((file, content)) = found else { return Answer::new(404).with("X-Error-Code", "EntryNotFound") };
    if [".safetensors", ".txt", ".parquet"].iter().any(|large| file.ends_with(large)) {
        // By another name, so that it is another host.
        return Answer::new(302)
            .with("Location", format!("http://localhost:{port}/cdn/{}", sha256(content)))
            .with("X-Linked-Etag", format!("\"{}\"", sha256(content)))
            .with("X-Linked-Size", content.len().to_string())
            .with("X-Repo-Commit", COMMIT);
    }
    // Git's hashes have 40 digits.
    bytes(request, content, whole).with("ETag", format!("\"{}\"", &sha256(content)[..40])).with("X-Repo-Commit", COMMIT)
}

/// A file, or the part of it that is asked for.
fn bytes(request: &Request, content: &[u8], whole: bool) -> Answer {
    let range = request.headers.get("range").filter(|_| !whole);
    let Some((from, to)) = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-')) else {
        return Answer { body: content.to_vec(), ..Answer::new(200) };
    };
    let from: usize = from.parse().unwrap_or(usize::MAX);
    if from >= content.len() {
        return Answer::new(416).with("Content-Range", format!("bytes */{}", content.len()));
    }
    let end = to.parse().map_or(content.len(), |last: usize| content.len().min(last + 1));
    Answer { body: content[from..end].to_vec(), ..Answer::new(206) }
        .with("Content-Range", format!("bytes {from}-{}/{}", end - 1, content.len()))
}

fn unescaped(file: &str) -> String {
    let mut bytes = file.bytes();
    let mut plain = Vec::new();
    while let Some(byte) = bytes.next() {
        let digits: Option<[u8; 2]> = if byte == b'%' { bytes.next().zip(bytes.next()).map(<[u8; 2]>::from) } else { None };
        let escaped = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok());
        plain.push(escaped.unwrap_or(byte));
    }
    String::from_utf8_lossy(&plain).into_owned()
}

/// In hexadecimal.
pub fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
