//! What a launcher tells a process of its place among the others.

use std::env;

use circuitlab_core::{Error, Result};

use crate::hosts;

/// A process's place in a run, and where the run meets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// This process's number, from 0.
    pub rank: usize,
    /// How many processes there are.
    pub ranks: usize,
    /// This process's number on its machine, which decides the device; nothing where the launcher does not say.
    pub local_rank: Option<usize>,
    /// The master's host: a name or an address. Empty for a run of one.
    pub host: String,
    /// The port that the ranks meet on.
    pub port: u16,
    /// Whether the launcher hosts the store there, so that rank 0 must not.
    pub hosted: bool,
    /// Sets this start of the run apart from others that meet at the same store.
    pub attempt: String,
}

const RANK: &str = "RANK";
const WORLD_SIZE: &str = "WORLD_SIZE";
const LOCAL_RANK: &str = "LOCAL_RANK";
const MASTER_ADDR: &str = "MASTER_ADDR";
const MASTER_PORT: &str = "MASTER_PORT";
const AGENT_STORE: &str = "TORCHELASTIC_USE_AGENT_STORE";
const RUN_ID: &str = "TORCHELASTIC_RUN_ID";
const RESTARTS: &str = "TORCHELASTIC_RESTART_COUNT";
const SLURM_RANK: &str = "SLURM_PROCID";
const SLURM_RANKS: &str = "SLURM_NTASKS";
const SLURM_LOCAL: &str = "SLURM_LOCALID";
const SLURM_NODES: [&str; 2] = ["SLURM_JOB_NODELIST", "SLURM_NODELIST"];
const SLURM_JOB: &str = "SLURM_JOB_ID";

/// More processes than any machine room has: such a number is a slip.
const MOST_RANKS: usize = 1 << 20;

/// Ports of SLURM jobs that name none: jobs that share a node get different ones, unless their numbers are apart by this many.
const SLURM_PORTS: u64 = 10_000;
const FIRST_SLURM_PORT: u64 = 20_000;

impl Environment {
    /// A run of one process, which meets nobody.
    pub fn alone() -> Self {
        let none = String::new();
        Self { rank: 0, ranks: 1, local_rank: None, host: none.clone(), port: 0, hosted: false, attempt: none }
    }

    /// Reads the environment: torchrun's `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR`, `MASTER_PORT`; without a `RANK`, SLURM's
    /// `SLURM_PROCID`, `SLURM_NTASKS`, `SLURM_LOCALID`, and where there is no `MASTER_ADDR` the first host of `SLURM_JOB_NODELIST`.
    ///
    /// # Errors
    /// Variables that are missing or say nothing sensible, by name.
    pub fn read() -> Result<Self> {
        Self::of(|name| env::var(name).ok())
    }

    /// The same of any variables.
    ///
    /// # Errors
    /// As [`Environment::read`].
    pub fn of(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let set = |name: &str| variable(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        let slurm = set(RANK).is_none() && set(SLURM_RANK).is_some();
        let [rank, ranks, local] = if slurm { [SLURM_RANK, SLURM_RANKS, SLURM_LOCAL] } else { [RANK, WORLD_SIZE, LOCAL_RANK] };
        let number = |name: &str| set(name).map(|text| number(name, &text)).transpose();
        let wanted = |name: &str| number(name)?.ok_or_else(|| missing(name));
        let (size_of, number_of) = (ranks, rank);
        let (ranks, rank, local_rank) = (wanted(ranks)?, wanted(rank)?, number(local)?);
        if !(1..=MOST_RANKS).contains(&ranks) {
            return Err(wrong(size_of, &ranks.to_string(), &format!("1 to {MOST_RANKS} processes")));
        }
        if rank >= ranks {
            return Err(wrong(number_of, &rank.to_string(), &format!("less than {ranks}, which {size_of} says")));
        }
        if ranks == 1 {
            return Ok(Self { local_rank, ..Self::alone() });
        }
        let nodes = || SLURM_NODES.iter().find_map(|name| set(name).map(|list| (*name, list)));
        let host = match (set(MASTER_ADDR), slurm.then(nodes).flatten()) {
            (Some(host), _) => host,
            (None, Some((name, list))) => hosts::first(&list).ok_or_else(|| wrong(name, &list, "hosts such as `node[01-04]`"))?,
            (None, None) => return Err(missing(MASTER_ADDR)),
        };
        let port = match (set(MASTER_PORT), slurm.then(|| set(SLURM_JOB)).flatten()) {
            (Some(text), _) => text.parse().ok().filter(|port| *port > 0).ok_or_else(|| wrong(MASTER_PORT, &text, "a port, 1 to 65535")),
            (None, Some(job)) => port_of(&job).ok_or_else(|| wrong(SLURM_JOB, &job, "a number")),
            (None, None) => Err(missing(MASTER_PORT)),
        }?;
        let hosted = set(AGENT_STORE).is_some_and(|text| text.eq_ignore_ascii_case("true"));
        let attempt = [RUN_ID, RESTARTS].map(|name| set(name).unwrap_or_default()).join(".");
        Ok(Self { rank, ranks, local_rank, host, port, hosted, attempt })
    }
}

fn port_of(job: &str) -> Option<u16> {
    let job: u64 = job.parse().ok()?;
    u16::try_from(FIRST_SLURM_PORT + job % SLURM_PORTS).ok()
}

fn number(name: &str, text: &str) -> Result<usize> {
    text.parse().map_err(|_| wrong(name, text, "a whole number"))
}

fn wrong(name: &str, text: &str, expected: &str) -> Error {
    Error::Invalid(format!("the environment's {name} is `{}`; expected {expected}", text.escape_debug()))
}

fn missing(name: &str) -> Error {
    Error::Invalid(format!(
        "the environment has no {name}: start the run by a launcher that says who is who (`circuitlab launch --ranks N -- train ..`, `torchrun --no-python`, `srun`), go on in one process with `--strategy single`, or set {RANK}, {WORLD_SIZE}, {MASTER_ADDR} and {MASTER_PORT}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Environment> {
        Environment::of(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, text)| (*text).to_owned()))
    }

    #[test]
    fn torchrun_is_understood() {
        let mut variables =
            vec![("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1"), ("MASTER_ADDR", "node0"), ("MASTER_PORT", "29500")];
        let plain = of(&variables).expect("whole");
        let want = Environment {
            rank: 3,
            ranks: 4,
            local_rank: Some(1),
            host: "node0".to_owned(),
            port: 29500,
            hosted: false,
            attempt: ".".to_owned(),
        };
        assert_eq!(plain, want);
        variables.extend([("TORCHELASTIC_USE_AGENT_STORE", "True"), ("TORCHELASTIC_RUN_ID", "a7"), ("TORCHELASTIC_RESTART_COUNT", "2")]);
        // SLURM's are there too where torchrun was started by it, and mean the nodes.
        variables.extend([("SLURM_PROCID", "0"), ("SLURM_NTASKS", "2")]);
        assert_eq!(of(&variables).expect("whole"), Environment { hosted: true, attempt: "a7.2".to_owned(), ..want });
    }

    #[test]
    fn slurm_is_understood() {
        let mut variables = vec![
            ("SLURM_PROCID", "1"),
            ("SLURM_NTASKS", "16"),
            ("SLURM_LOCALID", "0"),
            ("SLURM_NODELIST", "n[03-04]"),
            ("SLURM_JOB_ID", "1234567"),
        ];
        let got = of(&variables).expect("whole");
        assert_eq!((got.rank, got.ranks, got.local_rank, got.host.as_str(), got.port), (1, 16, Some(0), "n03", 24567));
        variables.extend([("MASTER_ADDR", "10.0.0.7"), ("MASTER_PORT", "400")]);
        let got = of(&variables).expect("whole");
        assert_eq!((got.host.as_str(), got.port), ("10.0.0.7", 400));
    }

    #[test]
    fn a_run_of_one_needs_no_address() {
        assert_eq!(of(&[("RANK", "0"), ("WORLD_SIZE", "1")]).expect("whole"), Environment::alone());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let good = [("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "1")];
        let with = |name: &'static str, text: &'static str| {
            let all: Vec<_> = good.iter().map(|(known, old)| (*known, if *known == name { text } else { *old })).collect();
            of(&all).expect_err("refused").to_string()
        };
        for (name, text, want) in [
            ("RANK", "x", "the environment's RANK is `x`; expected a whole number"),
            ("RANK", "2", "the environment's RANK is `2`; expected less than 2, which WORLD_SIZE says"),
            ("WORLD_SIZE", "0", "the environment's WORLD_SIZE is `0`; expected 1 to 1048576 processes"),
            ("MASTER_PORT", "70000", "the environment's MASTER_PORT is `70000`; expected a port, 1 to 65535"),
            ("MASTER_PORT", "0", "the environment's MASTER_PORT is `0`; expected a port, 1 to 65535"),
        ] {
            assert_eq!(with(name, text), want);
        }
        for name in ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"] {
            assert!(with(name, "").starts_with(&format!("the environment has no {name}: start the run by a launcher")), "{name}");
        }
        let nodes = of(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "2"), ("SLURM_NODELIST", "n[")]).expect_err("no host");
        assert_eq!(nodes.to_string(), "the environment's SLURM_NODELIST is `n[`; expected hosts such as `node[01-04]`");
    }
}
