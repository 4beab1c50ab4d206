//! What a run is to do: its config resolved, its folders made or opened again.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use circuitlab_core::{Error as CoreError, MetricSink, ParallelismStrategy, Registry, SparsityActivation, Spec, Transcoder, files};
use serde_json::Value;

use super::config::TrainConfig;
use super::ranks;
use super::source;
use super::trainer::{TrainRequest, TrainSummary, TrainedClt};
use crate::cache::is_url;
use crate::run::{Origin, RunFolder};
use crate::saved;
use crate::sink::{Sinks, jsonl};
use crate::{Error, Result, config};

/// Whether there is a run to go on with. One that was killed before it had a folder is begun.
pub(super) fn continues(request: &TrainRequest<'_>) -> bool {
    request.resume && RunFolder::check_free(request.out).is_err()
}

/// The config that the run has: the request's, or when going on the one in the run folder.
pub(super) fn resolve(request: &TrainRequest<'_>) -> Result<TrainConfig> {
    if is_url(request.out) {
        return Err(Error::Invalid(format!(
            "run `{}`: a run's folder is a local one; only caches lie in object stores",
            request.out.display()
        )));
    }
    if !continues(request) {
        RunFolder::check_free(request.out)?;
        let mut config = complete(request.config.clone().unwrap_or_default(), request.registry)?;
        config.check()?;
        // Sums over rows depend on how many threads share them, so the number is the run's and not the machine's.
        config.compute.threads.get_or_insert_with(tch::get_num_threads);
        return Ok(config);
    }
    let path = request.out.join("config.toml");
    if !path.is_file() {
        return Err(circuitlab_core::Error::format(request.out, "no run folder: it holds no `config.toml`").into());
    }
    request.registry.require(&format!("run `{}`", request.out.display()), &Origin::read(request.out)?.providers)?;
    let own: TrainConfig = config::resolve(Some(&path), &[], Value::Null)?;
    own.check()?;
    let mut own = complete(own, request.registry)?;
    let given = request.config.clone().map(|mut given| {
        given.compute.threads = given.compute.threads.or(own.compute.threads);
        // Libraries may have moved; the plugins in them are compared.
        given.plugins.clone_from(&own.plugins);
        complete(given, request.registry)
    });
    if let Some(given) = given.transpose()? {
        // What ranks there are changes nothing but the order of sums.
        own.strategy = given.strategy.clone();
        if given == own {
            return Ok(own);
        }
        return Err(Error::Invalid(format!(
            "a resumed run keeps its own config `{}` but for its strategy, and the one given differs from it; leave `--config`, `--set` and the flags that stand for settings (such as `--model`) away",
            path.display()
        )));
    }
    Ok(own)
}

/// The same with every plugin's defaults filled in, so that a later change of theirs does not change the run.
fn complete(mut config: TrainConfig, registry: &Registry) -> Result<TrainConfig> {
    config.transcoder = registry.complete::<dyn Transcoder>(&config.transcoder)?;
    config.activation = registry.complete::<dyn SparsityActivation>(&config.activation)?;
    config.strategy = registry.complete::<dyn ParallelismStrategy>(&config.strategy)?;
    for sink in &mut config.metrics.sinks {
        *sink = registry.complete::<dyn MetricSink>(sink)?;
    }
    config.activations = config.activations.map(source::placed);
    let members = config.members()?;
    for (clt, (_, member)) in config.clt.iter_mut().zip(members) {
        let whole = |spec: Spec| -> Value { spec.into() };
        if let Some(own) = clt.settings.get_mut("transcoder") {
            *own = whole(registry.complete::<dyn Transcoder>(&member.transcoder)?);
        }
        if let Some(own) = clt.settings.get_mut("activation") {
            *own = whole(registry.complete::<dyn SparsityActivation>(&member.activation)?);
        }
    }
    Ok(config)
}

/// Opens the run folder that is there, or makes one; of several ranks the one that leads does.
pub(super) fn folder(
    request: &TrainRequest<'_>,
    path: &Path,
    config: &TrainConfig,
    origin: &Origin,
    strategy: &dyn ParallelismStrategy,
) -> Result<RunFolder> {
    let mut own = None;
    let several = strategy.mesh().ranks() > 1;
    let token = path.join("ranks.token");
    let said = ranks::told(strategy, || {
        own = Some(written(request, path, config, origin)?);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let said = format!("{} {}", std::process::id(), now.as_nanos());
        if several {
            files::write_atomic(&token, |out| out.write_all(said.as_bytes()))?;
        }
        Ok(said)
    })?;
    if several {
        let seen = ranks::all_well(strategy, if own.is_some() { Ok(()) } else { sees(path, &token, &said) });
        if own.is_some() {
            fs::remove_file(&token).map_err(CoreError::io("remove", &token))?;
        }
        seen?;
    }
    Ok(own.unwrap_or_else(|| RunFolder::of_another_rank(path)))
}

/// Whether this rank sees what the one that leads wrote: ranks that have folders of their own by the same name would otherwise find out at the first
/// checkpoint. A network file system may show a new file late.
fn sees(path: &Path, token: &Path, said: &str) -> Result<()> {
    for _ in 0..50 {
        if fs::read_to_string(token).is_ok_and(|found| found == said) {
            return Ok(());
        }
        sleep(Duration::from_millis(100));
    }
    Err(Error::Invalid(format!(
        "it does not see the run folder `{}` of rank 0; --out must be one folder that all ranks see",
        path.display()
    )))
}

fn written(request: &TrainRequest<'_>, path: &Path, config: &TrainConfig, origin: &Origin) -> Result<RunFolder> {
    if !(request.resume && path.join("config.toml").is_file()) {
        return RunFolder::create(path, &config::to_toml(config)?, origin);
    }
    let run = RunFolder::open(path)?;
    let known = Origin::read(path)?.cache;
    if known == origin.cache {
        return Ok(run);
    }
    let now = request.cache.map_or_else(|| "that of its own `activations`".to_owned(), |cache| format!("`{}`", cache.display()));
    let what = format!("run `{}` was started on another cache than {now}", path.display());
    Err(Error::mismatch(what, known, &origin.cache))
}

/// Empties a run folder, and removes it unless it is a link or a mount.
pub(super) fn remove_run(path: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let entry = entry?.path();
        if entry.is_dir() { std::fs::remove_dir_all(&entry)? } else { std::fs::remove_file(&entry)? }
    }
    std::fs::remove_dir(path)
}

/// What a finished run folder holds, as the rank that leads sees it; nothing where the run is not finished. The process that made it may have been
/// killed before it drew the plots.
pub(super) fn finished(name: Option<&str>, run: &Path, strategy: &dyn ParallelismStrategy) -> Result<Option<TrainedClt>> {
    const THERE: &str = "finished";
    let result = run.join("final");
    let found = ranks::told(strategy, || {
        if !result.exists() {
            return Ok(String::new());
        }
        Sinks::plot(run)?;
        Ok(THERE.to_owned())
    })?;
    if found != THERE {
        return Ok(None);
    }
    let last = jsonl::read(run)?.and_then(|mut records| records.pop());
    let (steps, rows) = saved::read_card(&result)?.circuitlab.map_or((0, 0), |known| (known.steps, known.rows));
    Ok(Some(TrainedClt { name: name.map(str::to_owned), result, steps, rows, last }))
}

/// The summary of a run whose transcoders are all there already; nothing where some are not.
pub(super) fn all_finished(
    request: &TrainRequest<'_>,
    config: &TrainConfig,
    strategy: &dyn ParallelismStrategy,
) -> Result<Option<TrainSummary>> {
    let of_member = |(name, _): (Option<String>, TrainConfig)| {
        let name = name.as_deref();
        finished(name, &member_path(request.out, name), strategy)
    };
    let clts: Option<Vec<TrainedClt>> = config.members()?.into_iter().map(of_member).collect::<Result<_>>()?;
    Ok(clts.map(|clts| TrainSummary {
        clts,
        seconds: 0.0,
        data_wait_seconds: 0.0,
        was_finished: true,
        stopped_at: None,
        leads: ranks::leads(strategy),
    }))
}

/// The run folder of one of several transcoders, or of the only one.
pub(super) fn member_path(out: &Path, name: Option<&str>) -> std::path::PathBuf {
    name.map_or_else(|| out.to_path_buf(), |name| out.join(name))
}
