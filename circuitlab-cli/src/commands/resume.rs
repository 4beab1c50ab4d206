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
    // The run keeps the settings that it began with; a strategy that it went on with is not among them.
    let strategy = args.strategy.iter().filter(|_| args.resume).flat_map(|name| ["--strategy".to_owned(), name.clone()]);
    let settings =
        args.set.iter().filter(|set| args.resume && set.starts_with("strategy")).flat_map(|set| ["--set".to_owned(), set.clone()]);
    let more: Vec<String> = strategy.chain(settings).collect();
    words(&program, env::var(LAUNCHED).ok().as_deref(), &args.out, args.cache.as_deref(), &more)
}

/// How many processes the environment says that there are, where a launcher other than ours started them.
pub(super) fn ranks_of_another_launcher() -> Option<usize> {
    let slurm = || env::var("SLURM_NTASKS").ok().filter(|_| env::var_os("SLURM_STEP_ID").is_some());
    let announced = env::var("WORLD_SIZE").ok().or_else(slurm)?;
    announced.parse().ok().filter(|ranks| *ranks > 1 && env::var_os(LAUNCHED).is_none())
}

/// How many processes of this run there are, as far as `RANK` and `WORLD_SIZE` say: those of a scheduler may well be runs of their own.
pub(super) fn ranks() -> Option<usize> {
    env::var("WORLD_SIZE").ok().filter(|_| env::var_os("RANK").is_some())?.parse().ok()
}

fn words(program: &OsStr, launched: Option<&str>, out: &Path, cache: Option<&Path>, more: &[String]) -> String {
    let mut words = vec![program];
    if let Some(ranks) = launched {
        words.extend(["launch", "--ranks", ranks, "--"].map(OsStr::new));
    }
    words.extend(["train", "--resume", "--out"].map(OsStr::new));
    words.push(out.as_os_str());
    if let Some(cache) = cache {
        words.extend([OsStr::new("--cache"), cache.as_os_str()]);
    }
    words.extend(more.iter().map(OsStr::new));
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
            |launched, out: &str, cache: Option<&str>| words(OsStr::new("circuitlab"), launched, Path::new(out), cache.map(Path::new), &[]);
        assert_eq!(line(None, "runs/a", None), "circuitlab train --resume --out runs/a");
        assert_eq!(
            line(Some("4"), "my runs/it's", Some("s3://bucket/cache")),
            r"circuitlab launch --ranks 4 -- train --resume --out 'my runs/it'\''s' --cache s3://bucket/cache"
        );
        assert_eq!(line(None, "$(rm x)", None), "circuitlab train --resume --out '$(rm x)'");
    }
}
