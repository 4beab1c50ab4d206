//! What is asked of a hub over HTTP.
//!
//! hf-hub's own client has no time limits, appends a whole file to a part where a server ignores `Range`, and panics on some answers;
//! so the requests are made here, and hf-hub answers for names and addresses.

use std::fmt::Write as _;
use std::time::Duration;

use hf_hub::api::RepoInfo;
use ureq::http::Response;
use ureq::{Agent, Body};

use super::fault::{Fault, trying};
use super::settings::Settings;
use super::spec::{HubSpec, is_plain_name};
use super::store::{is_file_name, repository};

/// A listing of a million files is some 60 MB.
const LONGEST_LISTING: u64 = 256 << 20;

const MOST_REDIRECTS: usize = 10;

/// What a hub says of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Remote {
    /// Names the content, and the blob.
    pub(super) etag: String,
    /// Bytes.
    pub(super) size: u64,
}

impl Remote {
    /// Large files go by their SHA-256, others by a hash of git's.
    pub(super) fn sha256(&self) -> Option<&str> {
        let hexadecimal = self.etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        (self.etag.len() == 64 && hexadecimal).then_some(self.etag.as_str())
    }
}

#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    timeout: Duration,
}

enum Method {
    Get,
    Head,
}

impl Client {
    pub(super) fn new(settings: &Settings) -> Self {
        let limit = Some(settings.timeout);
        let config = Agent::config_builder()
            .user_agent(concat!("circuitlab/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(limit)
            .timeout_connect(limit)
            .timeout_send_request(limit)
            .timeout_recv_response(limit)
            .timeout_per_read(limit)
            .build();
        let Settings { endpoint, token, timeout, .. } = settings.clone();
        Self { agent: config.into(), endpoint, token, timeout }
    }

    /// The commit that a revision is at, and the names of all its files.
    pub(super) fn info(&self, spec: &HubSpec, tries: u32) -> Result<RepoInfo, Fault> {
        let url = format!("{}/api/{}", self.endpoint, repository(spec).api_url());
        trying(tries, || {
            let mut response = self.send(&Method::Get, &url, &[], false)?;
            let body = response.body_mut().with_config().limit(LONGEST_LISTING).read_to_vec().map_err(|error| self.broken(error))?;
            let info: RepoInfo = serde_json::from_slice(&body).map_err(|error| {
                Fault::Final(format!("`{url}` answers with something else than a repository ({error}); is HF_ENDPOINT right?"))
            })?;
            match info.siblings.iter().find(|file| !is_file_name(&file.rfilename)) {
                Some(file) => Err(Fault::Final(format!("the hub lists `{}`, which is no name of a file", file.rfilename.escape_default()))),
                None if !is_plain_name(&info.sha) => {
                    Err(Fault::Final(format!("the hub names the commit `{}`; expected 40 hexadecimal digits", info.sha.escape_default())))
                }
                None => Ok(info),
            }
        })
    }

    /// The address of a file of a commit.
    pub(super) fn url(&self, spec: &HubSpec, commit: &str, file: &str) -> String {
        format!("{}/{}/resolve/{commit}/{}", self.endpoint, repository(spec).url(), escaped(file))
    }

    /// What the hub says of a file, without its bytes.
    pub(super) fn remote(&self, url: &str) -> Result<Remote, Fault> {
        trying(super::fault::TRIES, || {
            let response = self.send(&Method::Head, url, &[], true)?;
            // Some mirrors serve files alone: the first byte tells as much.
            let no_heads = matches!(response.status().as_u16(), 405 | 501);
            let response = if no_heads { self.send(&Method::Get, url, &[("Range", "bytes=0-0")], true)? } else { response };
            let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
            let etag = text("x-linked-etag").or_else(|| text("etag"));
            let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned()).filter(|etag| is_plain_name(etag));
            let etag = etag.ok_or_else(|| no_header("X-Linked-Etag or ETag", "to tell the file's content by"))?;
            let own = match response.status().as_u16() {
                // The length of a redirect's own body says nothing of the file.
                300..400 => None,
                206 => text("content-range").and_then(|range| range.rsplit('/').next()),
                _ => text("content-length"),
            };
            let size = text("x-linked-size").or(own).and_then(|size| size.parse().ok());
            Ok(Remote { etag, size: size.ok_or_else(|| no_header("X-Linked-Size or Content-Length", "to check the file's length by"))? })
        })
    }

    /// The bytes of a file from a place on, once.
    pub(super) fn bytes(&self, url: &str, from: u64) -> Result<Response<Body>, Fault> {
        let range = format!("bytes={from}-");
        let headers: &[(&str, &str)] = if from == 0 { &[] } else { &[("Range", &range)] };
        self.send(&Method::Get, url, headers, false)
    }

    /// Asks, and follows redirects; `linked` ends at one that tells what is looked for.
    fn send(&self, method: &Method, url: &str, headers: &[(&str, &str)], linked: bool) -> Result<Response<Body>, Fault> {
        let mut url = url.to_owned();
        for _ in 0..=MOST_REDIRECTS {
            let mut request = match method {
                Method::Get => self.agent.get(&url),
                Method::Head => self.agent.head(&url),
            };
            // Lengths are of the bytes as they are.
            request = request.header("Accept-Encoding", "identity");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            // A token is for the hub alone, never for where it sends us.
            if let Some(token) = self.token.as_ref().filter(|_| origin(&url) == origin(&self.endpoint)) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            let response = request.call().map_err(|error| self.broken(error))?;
            let location = response.headers().get("location").and_then(|value| value.to_str().ok());
            match location.filter(|_| response.status().is_redirection()) {
                Some(_) if linked && response.headers().contains_key("x-linked-etag") => return Ok(response),
                Some(location) => url = join(&url, location),
                None if response.status().is_success() => return Ok(response),
                // Left to whoever asked in this way.
                None if matches!(method, Method::Head) && matches!(response.status().as_u16(), 405 | 501) => return Ok(response),
                None => return Err(self.refusal(&response)),
            }
        }
        Err(Fault::Final(format!("the hub redirects more than {MOST_REDIRECTS} times")))
    }

    /// What an answer other than success means.
    fn refusal(&self, response: &Response<Body>) -> Fault {
        let status = response.status();
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let said = format!("`{}` answers {status}", self.endpoint);
        let token = if self.token.is_some() { "the token in use may not read it" } else { "no token is set" };
        Fault::Final(match (status.as_u16(), header("x-error-code")) {
            (401, _) => format!("{said}: it is not there, or private, or gated, and {token}; set HF_TOKEN to a token that may read it"),
            (403, _) => {
                format!(
                    "{said}: access is not granted, and {token}; accept the terms on its page and set HF_TOKEN to a token of that account"
                )
            }
            (404, Some("RevisionNotFound")) => format!("{said}: there is no such revision; expected a branch, a tag or a full commit"),
            (404, Some("RepoNotFound")) => format!("{said}: there is no such repository; where it is private, set HF_TOKEN"),
            (404, Some("EntryNotFound")) => format!("{said}: there is no such file"),
            (404, _) => format!("{said}: there is no such repository, revision or file; where it is private, set HF_TOKEN"),
            (429 | 500.., _) => {
                let after = header("retry-after").and_then(|text| text.parse().ok()).map(Duration::from_secs);
                return Fault::Passing { message: said, after };
            }
            _ => format!("{said}, which is not expected"),
        })
    }

    /// A connection that failed, in words.
    pub(super) fn broken(&self, error: ureq::Error) -> Fault {
        let (place, seconds) = (&self.endpoint, self.timeout.as_secs_f64());
        match error {
            ureq::Error::Timeout(_) => {
                Fault::passing(format!("`{place}` sent nothing for {seconds} s (HF_HUB_DOWNLOAD_TIMEOUT sets how long to wait)"))
            }
            ureq::Error::HostNotFound => Fault::passing(format!("cannot find the host of `{place}`")),
            ureq::Error::Io(error) => Fault::passing(format!("the connection to `{place}` failed ({error})")),
            ureq::Error::ConnectionFailed => Fault::passing(format!("cannot connect to `{place}`")),
            ureq::Error::BodyExceedsLimit(bytes) => Fault::Final(format!("`{place}` sends more than {bytes} bytes")),
            // Broken HTTP is mostly a connection that ended early.
            ureq::Error::Protocol(error) => Fault::passing(format!("`{place}` breaks the rules of HTTP ({error})")),
            other => Fault::Final(format!("cannot ask `{place}` ({other})")),
        }
    }
}

fn no_header(name: &str, why: &str) -> Fault {
    Fault::Final(format!("the hub's answer has no usable {name} header, which is needed {why}"))
}

/// Scheme, host and port.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    url[host..].find(['/', '?', '#']).map_or(url, |end| &url[..host + end])
}

/// The address that a `Location` means.
fn join(url: &str, location: &str) -> String {
    if location.contains("://") && !location.starts_with('/') {
        return location.to_owned();
    }
    let origin = origin(url);
    if let Some(elsewhere) = location.strip_prefix("//") {
        return format!("{}://{elsewhere}", origin.split("://").next().unwrap_or("https"));
    }
    if location.starts_with('/') {
        return format!("{origin}{location}");
    }
    let path = url.split(['?', '#']).next().unwrap_or(url);
    let folder = path.rfind('/').filter(|at| *at >= origin.len()).map_or(origin, |at| &path[..at]);
    format!("{folder}/{location}")
}

/// A file's name as part of an address.
fn escaped(file: &str) -> String {
    let mut escaped = String::with_capacity(file.len());
    for byte in file.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'_' | b'.' | b'~') {
            escaped.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_joined_as_the_standard_has_it() {
        let from = "https://hub.co/org/name/resolve/main/a.txt?x=1";
        assert_eq!(join(from, "https://cdn.co/b"), "https://cdn.co/b");
        assert_eq!(join(from, "//cdn.co/b"), "https://cdn.co/b");
        assert_eq!(join(from, "/b?u=http://c"), "https://hub.co/b?u=http://c");
        assert_eq!(join(from, "b"), "https://hub.co/org/name/resolve/main/b");
        assert_eq!(join("http://hub:80", "b"), "http://hub:80/b");
    }

    #[test]
    fn a_token_goes_to_the_same_origin_only() {
        assert_eq!(origin("https://hub.co/a/b"), "https://hub.co");
        assert_ne!(origin("https://hub.co.evil.com/a"), origin("https://hub.co"));
        assert_ne!(origin("http://hub.co/a"), origin("https://hub.co"));
        assert_ne!(origin("https://hub.co@evil.com/a"), origin("https://hub.co"));
        assert_eq!(origin("https://hub.co?x=/"), "https://hub.co");
    }

    #[test]
    fn names_are_escaped_and_etags_checked() {
        assert_eq!(escaped("data/a b=1#ü.txt"), "data/a%20b%3D1%23%C3%BC.txt");
        assert!(is_plain_name("e7a6-2") && !is_plain_name("") && !is_plain_name("../x") && !is_plain_name(".git"));
        assert_eq!(Remote { etag: "a".repeat(64), size: 0 }.sha256(), Some("a".repeat(64).as_str()));
        assert_eq!(Remote { etag: "a".repeat(40), size: 0 }.sha256(), None);
    }
}
