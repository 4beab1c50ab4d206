//! A small object store that speaks what S3 clients need, on a port of this machine, and fails when it is told to.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// What goes wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is answered with this status and not done.
    Status(u16),
    /// The connection ends without an answer, and it is not done.
    Lost,
    /// It is done, and the connection ends without an answer.
    AnswerLost,
    /// The connection ends in the middle of the answer's body.
    Cut,
    /// Somebody else writes the object first.
    Overtaken,
}

/// A fault, and the requests that it befalls.
#[derive(Debug)]
struct Plan {
    method: &'static str,
    key: String,
    /// How many such requests go well before.
    after: usize,
    /// How many fail then.
    times: usize,
    fault: Fault,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, (Vec<u8>, String)>,
    plans: Vec<Plan>,
    writes: u64,
}

/// The store, with one bucket, `bucket`. It ends with the process.
#[derive(Debug)]
pub struct S3 {
    port: u16,
    state: Arc<Mutex<State>>,
}

/// Objects in one answer to a listing, few enough that listings go on in further answers.
const PAGE: usize = 3;

struct Request {
    method: String,
    key: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl S3 {
    /// Starts a store without objects.
    ///
    /// # Panics
    /// When no port is free.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                // A client that went away is none of the server's troubles.
                thread::spawn(move || drop(serve(&stream, &state)));
            }
        });
        Self { port, state }
    }

    /// Tells a program where the store is.
    pub fn known_to<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", self.port))
            .env("AWS_ALLOW_HTTP", "true")
            .env("AWS_REGION", "nowhere-1")
            .env("AWS_ACCESS_KEY_ID", "somebody")
            .env("AWS_SECRET_ACCESS_KEY", "secret")
    }

    /// Lets requests of a method for keys that hold `key` fail: `times` of them, after the first `after`.
    pub fn fail(&self, method: &'static str, key: &str, after: usize, times: usize, fault: Fault) {
        lock(&self.state).plans.push(Plan { method, key: key.to_owned(), after, times, fault });
    }

    /// Ends all faults.
    pub fn mend(&self) {
        lock(&self.state).plans.clear();
    }

    /// Every object below a prefix, by the rest of its key.
    pub fn objects(&self, prefix: &str) -> Vec<(String, Vec<u8>)> {
        let state = lock(&self.state);
        state.objects.iter().filter_map(|(key, (bytes, _))| Some((key.strip_prefix(prefix)?.to_owned(), bytes.clone()))).collect()
    }

    /// Changes an object, or makes one.
    pub fn put(&self, key: &str, bytes: Vec<u8>) {
        lock(&self.state).put(key, bytes);
    }

    /// Removes an object.
    pub fn remove(&self, key: &str) {
        lock(&self.state).objects.remove(key);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn put(&mut self, key: &str, bytes: Vec<u8>) -> String {
        self.writes += 1;
        let tag = format!("\"{}\"", self.writes);
        self.objects.insert(key.to_owned(), (bytes, tag.clone()));
        tag
    }

    fn fault(&mut self, request: &Request) -> Option<Fault> {
        for plan in self.plans.iter_mut().filter(|plan| plan.method == request.method && request.key.contains(&plan.key)) {
            if plan.after > 0 {
                plan.after -= 1;
            } else if plan.times > 0 {
                plan.times -= 1;
                return Some(plan.fault);
            }
        }
        None
    }

    fn answer(&mut self, request: &Request) -> Answer {
        match request.method.as_str() {
            "GET" if request.query.contains_key("list-type") => self.list(request),
            "GET" | "HEAD" => self.get(request),
            "PUT" => self.write(request),
            "DELETE" => {
                self.objects.remove(&request.key);
                Answer::empty(204)
            }
            _ => Answer::error(405, "MethodNotAllowed"),
        }
    }

    fn get(&self, request: &Request) -> Answer {
        let Some((bytes, tag)) = self.objects.get(&request.key) else {
            return Answer::error(404, "NoSuchKey");
        };
        if request.headers.get("if-match").is_some_and(|wanted| wanted != tag) {
            return Answer::error(412, "PreconditionFailed");
        }
        let dates = ("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT".to_owned());
        let range = request.headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        let range = range.and_then(|(from, to)| Some((from.parse::<usize>().ok()?, to.parse::<usize>().unwrap_or(usize::MAX))));
        let Some((from, to)) = range else {
            return Answer { status: 200, headers: vec![("ETag", tag.clone()), dates], body: bytes.clone() };
        };
        if from >= bytes.len() {
            return Answer::error(416, "InvalidRange");
        }
        let to = to.min(bytes.len() - 1);
        let place = ("Content-Range", format!("bytes {from}-{to}/{}", bytes.len()));
        Answer { status: 206, headers: vec![("ETag", tag.clone()), dates, place], body: bytes[from..=to].to_vec() }
    }

    fn write(&mut self, request: &Request) -> Answer {
        let there = self.objects.get(&request.key).map(|(_, tag)| tag);
        let refused = match (request.headers.get("if-match"), request.headers.get("if-none-match")) {
            (Some(wanted), _) => there != Some(wanted),
            (None, Some(_)) => there.is_some(),
            (None, None) => false,
        };
        if refused {
            return Answer::error(412, "PreconditionFailed");
        }
        let tag = self.put(&request.key, request.body.clone());
        Answer { headers: vec![("ETag", tag)], ..Answer::empty(200) }
    }

    fn list(&self, request: &Request) -> Answer {
        let query = |name: &str| request.query.get(name).map_or("", String::as_str);
        let (prefix, delimiter, after) = (query("prefix"), query("delimiter"), query("continuation-token"));
        // Keys and common prefixes, in the order of keys, each once.
        let mut found: Vec<(String, Option<(usize, &str)>)> = Vec::new();
        for (key, (bytes, tag)) in self.objects.iter().filter(|(key, _)| key.starts_with(prefix)) {
            let rest = &key[prefix.len()..];
            match rest.find(delimiter).filter(|_| !delimiter.is_empty()) {
                Some(end) => found.push((format!("{prefix}{}", &rest[..end + delimiter.len()]), None)),
                None => found.push((key.clone(), Some((bytes.len(), tag)))),
            }
        }
        found.dedup_by(|a, b| a.0 == b.0);
        found.retain(|(name, _)| name.as_str() > after);
        let more = found.len() > PAGE;
        found.truncate(PAGE);
        let mut text =
            format!("<ListBucketResult><Name>bucket</Name><KeyCount>{}</KeyCount><IsTruncated>{more}</IsTruncated>", found.len());
        if let Some((last, _)) = found.last().filter(|_| more) {
            let _ = write!(text, "<NextContinuationToken>{last}</NextContinuationToken>");
        }
        for (name, object) in found {
            let _ = match object {
                None => write!(text, "<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>"),
                Some((size, tag)) => {
                    let tag = tag.replace('"', "&quot;");
                    let date = "2024-01-01T00:00:00.000Z";
                    write!(
                        text,
                        "<Contents><Key>{name}</Key><LastModified>{date}</LastModified><ETag>{tag}</ETag><Size>{size}</Size></Contents>"
                    )
                }
            };
        }
        Answer { body: (text + "</ListBucketResult>").into_bytes(), ..Answer::empty(200) }
    }
}

impl Answer {
    fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new() }
    }

    fn error(status: u16, code: &str) -> Self {
        Self { body: format!("<Error><Code>{code}</Code></Error>").into_bytes(), ..Self::empty(status) }
    }

    fn send(&self, mut stream: &TcpStream, with_body: bool, cut: bool) -> io::Result<()> {
        let mut head = format!("HTTP/1.1 {} -\r\nContent-Length: {}\r\n", self.status, self.body.len());
        for (name, value) in &self.headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        stream.write_all((head + "\r\n").as_bytes())?;
        let body = if cut { &self.body[..self.body.len() / 2] } else { &self.body };
        if with_body { stream.write_all(body) } else { Ok(()) }
    }
}

/// Answers the requests of one connection.
fn serve(stream: &TcpStream, state: &Mutex<State>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = read(&mut reader)? {
        let (fault, answer) = {
            let mut state = lock(state);
            let fault = state.fault(&request);
            let answer = match fault {
                Some(Fault::Lost) => return Ok(()),
                Some(Fault::Status(status)) => Answer::error(status, "InternalError"),
                Some(Fault::Overtaken) => {
                    state.put(&request.key, b"another's".to_vec());
                    state.answer(&request)
                }
                _ => state.answer(&request),
            };
            (fault, answer)
        };
        if fault == Some(Fault::AnswerLost) {
            return Ok(());
        }
        answer.send(stream, request.method != "HEAD", fault == Some(Fault::Cut))?;
        if fault == Some(Fault::Cut) {
            return Ok(());
        }
    }
    Ok(())
}

fn read(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let key = decoded(path).trim_start_matches("/bucket").trim_start_matches('/').to_owned();
    let query = query.split('&').filter_map(|pair| pair.split_once('=')).map(|(name, value)| (decoded(name), decoded(value))).collect();
    Ok(Some(Request { method, key, query, headers, body }))
}

fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut plain, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let code = text.get(at + 1..at + 3).filter(|_| bytes[at] == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok());
        plain.push(code.unwrap_or(bytes[at]));
        at += if code.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&plain).into_owned()
}
