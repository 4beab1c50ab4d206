//! What the environment says: the variables that Python's `huggingface_hub` reads.

use std::env;
use std::ffi::OsString;
use std::fmt::{self, Debug, Formatter};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{Error, Result};

const ENDPOINT: &str = "https://huggingface.co";

/// `huggingface_hub`'s own default.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Where the hub and its cache are.
#[derive(Clone)]
pub(super) struct Settings {
    /// The cache: `hub` in `HF_HOME`.
    pub(super) cache: PathBuf,
    /// The hub's address, without a slash at its end.
    pub(super) endpoint: String,
    pub(super) token: Option<String>,
    /// Nothing may be asked of the hub.
    pub(super) offline: bool,
    /// How long to wait for a connection or a next byte.
    pub(super) timeout: Duration,
}

impl Settings {
    /// Those of this process.
    pub(super) fn from_env() -> Result<Self> {
        Self::read(|name| env::var_os(name).filter(|value| !value.is_empty()), env::home_dir().as_deref())
    }

    fn read(variable: impl Fn(&str) -> Option<OsString>, user: Option<&Path>) -> Result<Self> {
        let text = |name: &str| variable(name).map(|value| value.to_string_lossy().into_owned());
        let path = |name: &str| variable(name).map(|value| expand(PathBuf::from(value), user));
        let caches = || path("XDG_CACHE_HOME").or_else(|| Some(user?.join(".cache")));
        let home = path("HF_HOME").or_else(|| Some(caches()?.join("huggingface")));
        let cache = path("HF_HUB_CACHE")
            .or_else(|| Some(home.as_ref()?.join("hub")))
            .ok_or_else(|| Error::Invalid("there is no home folder to keep downloads in; set HF_HOME to a folder for them".to_owned()))?;
        // Links in it are relative, and the current folder may be another one later.
        let cache = std::path::absolute(&cache).map_err(circuitlab_core::Error::io("find", &cache))?;
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned()).trim_end_matches('/').to_owned();
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            let shown = endpoint.escape_default();
            return Err(Error::Invalid(format!("HF_ENDPOINT is `{shown}`; expected an address such as `{ENDPOINT}`")));
        }
        let token_file = path("HF_TOKEN_PATH").or_else(|| Some(home?.join("token")));
        let stored = || fs::read_to_string(token_file?).ok();
        let token = text("HF_TOKEN").or_else(stored).map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        if token.as_ref().is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(Error::Invalid("the token in HF_TOKEN or in its file holds characters that no token has".to_owned()));
        }
        let yes = |name: &str| text(name).is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str()));
        let offline = yes("HF_HUB_OFFLINE") || yes("TRANSFORMERS_OFFLINE");
        Ok(Self { cache, endpoint, token, offline, timeout: timeout(text("HF_HUB_DOWNLOAD_TIMEOUT").as_deref())? })
    }
}

// By hand, so that no log shows the token.
impl Debug for Settings {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("cache", &self.cache).field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// `~/` at the start stands for the user's home.
fn expand(path: PathBuf, user: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), user) {
        (Ok(rest), Some(user)) => user.join(rest),
        _ => path,
    }
}

fn timeout(text: Option<&str>) -> Result<Duration> {
    let Some(text) = text else { return Ok(TIMEOUT) };
    let seconds = text.trim().parse().ok().filter(|seconds| (0.001..=86400.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| {
        let shown = text.escape_default();
        Error::Invalid(format!("HF_HUB_DOWNLOAD_TIMEOUT is `{shown}`; expected seconds, such as `10`"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings> {
        let get = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value));
        Settings::read(get, Some(Path::new("/home/me")))
    }

    #[test]
    fn folders_are_those_of_huggingface_hub() {
        let cache = |variables: &[(&str, &str)]| read(variables).expect("right").cache;
        assert_eq!(cache(&[]), Path::new("/home/me/.cache/huggingface/hub"));
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/c")]), Path::new("/c/huggingface/hub"));
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/c"), ("HF_HOME", "/h")]), Path::new("/h/hub"));
        assert_eq!(cache(&[("HF_HOME", "~/h")]), Path::new("/home/me/h/hub"));
        assert_eq!(cache(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/elsewhere")]), Path::new("/elsewhere"));
        assert!(Settings::read(|_| None, None).expect_err("no home").to_string().contains("HF_HOME"));
    }

    #[test]
    fn a_token_comes_from_the_variable_or_its_file() {
        let home = tempfile::tempdir().expect("a folder");
        let path = home.path().to_str().expect("text");
        assert_eq!(read(&[("HF_HOME", path)]).expect("right").token, None);
        circuitlab_core::files::write_atomic(&home.path().join("token"), |out| out.write_all(b"hf_file\n")).expect("writes");
        assert_eq!(read(&[("HF_HOME", path)]).expect("right").token.as_deref(), Some("hf_file"));
        let settings = read(&[("HF_HOME", path), ("HF_TOKEN", " hf_secret ")]).expect("right");
        assert_eq!(settings.token.as_deref(), Some("hf_secret"));
        assert!(!format!("{settings:?}").contains("secret"));
        let error = read(&[("HF_TOKEN", "a\nb")]).expect_err("two lines").to_string();
        assert!(error.contains("HF_TOKEN") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn wrong_variables_are_named() {
        assert_eq!(read(&[("HF_ENDPOINT", "http://mirror:80/")]).expect("right").endpoint, "http://mirror:80");
        assert!(read(&[("HF_ENDPOINT", "mirror")]).expect_err("no scheme").to_string().contains("HF_ENDPOINT is `mirror`"));
        for wrong in ["0", "-1", "soon", "NaN", "1e9"] {
            let error = read(&[("HF_HUB_DOWNLOAD_TIMEOUT", wrong)]).expect_err(wrong).to_string();
            assert!(error.contains("HF_HUB_DOWNLOAD_TIMEOUT") && error.contains(wrong), "{error}");
        }
        assert!(read(&[("HF_HUB_OFFLINE", "1")]).expect("right").offline);
        assert!(!read(&[("HF_HUB_OFFLINE", "0")]).expect("right").offline);
    }
}
