//! The command line that goes on with a stopped run.

use std::env;
use std::ffi::OsStr;
use std::path::Path;

use crate::args::TrainArgs;

/// Set for the ranks of `launch`: how many there are.
pub(super) const LAUNCHED: &str = "CIRCUITLAB_LAUNCHED";

/// What a user types to go on with a run that was started by `args`, in the folder that they are in.
pub(super) fn command_line(args: &TrainArgs) -> String {
    let program = env::args_os().next().unwrap_or_else(|| "circuitlab".into());
    words(&program, env::var(LAUNCHED).ok().as_deref(), &args.out, args.cache.as_deref())
}

fn words(program: &OsStr, launched: Option<&str>, out: &Path, cache: Option<&Path>) -> String {
    let mut words = vec![program];
    if let Some(ranks) = launched {
        words.extend(["launch", "--ranks", ranks, "--"].map(OsStr::new));
    }
    words.extend(["train", "--resume", "--out"].map(OsStr::new));
    words.push(out.as_os_str());
    if let Some(cache) = cache {
        words.extend([OsStr::new("--cache"), cache.as_os_str()]);
    }
    words.into_iter().map(quoted).collect::<Vec<_>>().join(" ")
}

/// A word as a shell takes it.
fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c) || (!c.is_ascii() && c.is_alphanumeric());
    if !word.is_empty() && word.chars().all(plain) { word.into_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn can_be_pasted_into_a_shell() {
        let line =
            |launched, out: &str, cache: Option<&str>| words(OsStr::new("circuitlab"), launched, Path::new(out), cache.map(Path::new));
        assert_eq!(line(None, "runs/a", None), "circuitlab train --resume --out runs/a");
        assert_eq!(
            line(Some("4"), "my runs/it's", Some("s3://bucket/cache")),
            r"circuitlab launch --ranks 4 -- train --resume --out 'my runs/it'\''s' --cache s3://bucket/cache"
        );
        assert_eq!(line(None, "$(rm x)", None), "circuitlab train --resume --out '$(rm x)'");
    }
}
