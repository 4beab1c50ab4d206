//! Progress of long work: a bar on a terminal, a plain line now and then elsewhere.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use circuitlab::Progress;
use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};

use super::human;
use super::news::{self, News, Teller};

/// Without a terminal, lines come no more often than this.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Work that is over sooner is not worth a line.
const WORTH_TELLING: Duration = Duration::from_secs(1);

/// News that come so soon tell of work that an earlier process did.
const AT_ONCE: Duration = Duration::from_millis(20);

/// Shows one piece of work after the other on stderr.
#[derive(Debug)]
pub struct Bars {
    multi: MultiProgress,
    terminal: bool,
    quiet: bool,
    /// Where another process shows what this one tells.
    teller: Option<Teller>,
    task: Mutex<Option<Task>>,
}

#[derive(Debug)]
struct Task {
    name: String,
    total: u64,
    unit: String,
    started: Instant,
    told: Instant,
    done: u64,
    /// What was done when the first news came: a resumed piece of work does not begin at 0.
    before: Option<u64>,
    note: String,
    bar: Option<ProgressBar>,
}

impl Bars {
    /// Shows bars if stderr is a terminal, and nothing at all if `quiet`. Log lines must be printed through [`Bars::multi`].
    ///
    /// A process that `launch` started shows nothing itself: the first one tells its progress to the launching process.
    pub fn new(quiet: bool) -> Self {
        let role = std::env::var_os(news::VARIABLE).unwrap_or_default();
        let teller = (role == news::TELL && !quiet).then(Teller::default);
        Self::over(MultiProgress::new(), quiet || role == news::KEEP, teller)
    }

    /// Others that appear with these.
    pub(crate) fn beside(&self) -> Self {
        Self::over(self.multi.clone(), self.quiet, None)
    }

    fn over(multi: MultiProgress, quiet: bool, teller: Option<Teller>) -> Self {
        Self { multi, terminal: io::stderr().is_terminal() && !quiet, quiet, teller, task: Mutex::new(None) }
    }

    /// Shows what another process tells.
    pub(crate) fn show(&self, news: &News) {
        match news {
            News::Begin { task, total, unit } => self.start(task, *total, unit),
            News::At { done, note } => self.at(*done, note),
            News::End => self.end(),
        }
    }

    /// Ends work that an error cut short: it has no summary, and its bar must not stay behind.
    pub(crate) fn abandon(&self) {
        self.with_task(|current| {
            if let Some(bar) = current.take().and_then(|task| task.bar) {
                bar.finish_and_clear();
            }
        });
    }

    fn start(&self, name: &str, total: u64, unit: &str) {
        self.end();
        let now = Instant::now();
        let bar = self.terminal.then(|| {
            let bar = self.multi.add(ProgressBar::new(total).with_style(style(unit, total)).with_prefix(name.to_owned()));
            bar.enable_steady_tick(Duration::from_millis(500));
            bar
        });
        let (name, unit, note) = (name.to_owned(), unit.to_owned(), String::new());
        let task = Task { name, total, unit, started: now, told: now, done: 0, before: None, note, bar };
        self.with_task(|current| *current = Some(task));
    }

    /// What keeps other output on stderr from tearing a bar apart.
    pub fn multi(&self) -> &MultiProgress {
        &self.multi
    }

    fn with_task(&self, act: impl FnOnce(&mut Option<Task>)) {
        act(&mut self.task.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Progress for Bars {
    fn begin(&self, task: &str, total: u64, unit: &'static str) {
        match &self.teller {
            Some(teller) => teller.begin(task, total, unit),
            None => self.start(task, total, unit),
        }
    }

    fn at(&self, done: u64, note: &str) {
        if let Some(teller) = &self.teller {
            return teller.at(done, note);
        }
        self.with_task(|current| {
            if let Some(task) = current {
                task.at(done, note, self.quiet);
            }
        });
    }

    fn end(&self) {
        if let Some(teller) = &self.teller {
            return teller.end();
        }
        self.with_task(|current| {
            let Some(task) = current.take() else { return };
            if let Some(bar) = &task.bar {
                bar.finish_and_clear();
            }
            if !self.quiet && task.started.elapsed() >= WORTH_TELLING {
                say(&task.summary());
            }
        });
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.abandon();
    }
}

impl Task {
    fn at(&mut self, done: u64, note: &str, quiet: bool) {
        self.done = done;
        if self.note != note {
            note.clone_into(&mut self.note);
            if let Some(bar) = &self.bar {
                bar.set_message(self.note.clone());
            }
        }
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        } else if !quiet && self.told.elapsed() >= LINE_EVERY {
            self.told = Instant::now();
            say(&self.line());
        }
        if self.before.is_none() {
            self.before = Some(if self.started.elapsed() < AT_ONCE { done } else { 0 });
            if let Some(bar) = self.bar.as_ref().filter(|_| self.before != Some(0)) {
                bar.reset_eta();
            }
        }
    }

    /// Units per second since the work began.
    fn rate(&self) -> f64 {
        let before = self.before.filter(|before| *before < self.done).unwrap_or(0);
        let done = self.done - before;
        done as f64 / self.started.elapsed().as_secs_f64().max(1e-9)
    }

    /// One line of where it stands: `cache: 45% (1.20M of 2.66M tokens), 83.1k tokens/s, 17 s left; note`.
    fn line(&self) -> String {
        let (name, unit, rate) = (&self.name, &self.unit, self.rate());
        let (done, speed) = (human::count(self.done as f64), human::count(rate));
        let left = left(self.total.saturating_sub(self.done), rate).map_or_else(String::new, |left| format!(", {left} left"));
        let note = self.end_note();
        if self.total == 0 {
            return format!("{name}: {done} {unit}, {speed} {unit}/s{note}");
        }
        let share = self.done.min(self.total) as f64 * 100.0 / self.total as f64;
        let total = human::count(self.total as f64);
        format!("{name}: {share:.0}% ({done} of {total} {unit}), {speed} {unit}/s{left}{note}")
    }

    fn end_note(&self) -> String {
        if self.note.is_empty() { String::new() } else { format!("; {}", self.note) }
    }

    /// The last line: `cache: 2.66M tokens in 32 s, 83.1k tokens/s; note`.
    fn summary(&self) -> String {
        let time = human::duration(self.started.elapsed());
        let done = human::count(self.done as f64);
        let speed = human::count(self.rate());
        format!("{}: {done} {unit} in {time}, {speed} {unit}/s{note}", self.name, unit = self.unit, note = self.end_note())
    }
}

/// How long the rest takes at this rate, where that can be said.
fn left(rest: u64, rate: f64) -> Option<String> {
    let seconds = rest as f64 / rate;
    (rest > 0 && seconds.is_finite()).then(|| human::duration(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)))
}

fn style(unit: &str, total: u64) -> ProgressStyle {
    let template = if total == 0 {
        "{prefix} {spinner} {done} {unit}  {speed}  {elapsed}  {wide_msg}"
    } else {
        "{prefix} [{bar:24}] {percent:>3}%  {done} of {all} {unit}  {speed}  {left} left  {wide_msg}"
    };
    // The template is fixed, so the default stands in for nothing but a slip in it, which a test would find.
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let (unit, per_second) = (unit.to_owned(), unit.to_owned());
    let speed = move |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        let _ = write!(out, "{} {per_second}/s", human::count(state.per_sec()));
    };
    let left = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        let rest = state.len().unwrap_or(0).saturating_sub(state.pos());
        let _ = write!(out, "{}", left(rest, state.per_sec()).unwrap_or_else(|| "-".to_owned()));
    };
    style
        .progress_chars("=> ")
        .with_key("done", |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            let _ = write!(out, "{}", human::count(state.pos() as f64));
        })
        .with_key("all", |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            let _ = write!(out, "{}", human::count(state.len().unwrap_or(0) as f64));
        })
        .with_key("unit", move |_: &ProgressState, out: &mut dyn std::fmt::Write| {
            let _ = out.write_str(&unit);
        })
        .with_key("speed", speed)
        .with_key("left", left)
}

/// A plain line on stderr; where stderr is gone, nobody is left to tell.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use indicatif::{InMemoryTerm, ProgressDrawTarget};

    use super::*;

    fn task(total: u64, done: u64, note: &str) -> Task {
        let started = Instant::now().checked_sub(Duration::from_secs(10)).expect("the machine is up for longer");
        Task {
            name: "cache".into(),
            total,
            unit: "tokens".into(),
            started,
            told: started,
            done,
            before: None,
            note: note.into(),
            bar: None,
        }
    }

    #[test]
    fn lines_tell_share_speed_and_time_left() {
        assert_eq!(task(2_000_000, 500_000, "").line(), "cache: 25% (500k of 2.00M tokens), 50.0k tokens/s, 30 s left");
        assert_eq!(task(0, 50, "loss 3").line(), "cache: 50 tokens, 5.00 tokens/s; loss 3");
        assert_eq!(task(100, 0, "").line(), "cache: 0% (0 of 100 tokens), 0 tokens/s");
        assert_eq!(task(100, 100, "").summary(), "cache: 100 tokens in 10 s, 10.0 tokens/s");
    }

    #[test]
    fn a_bar_shows_unit_and_note() {
        let screen = InMemoryTerm::new(5, 140);
        let multi = MultiProgress::with_draw_target(ProgressDrawTarget::term_like(Box::new(screen.clone())));
        let mut bars = Bars::over(multi, false, None);
        bars.terminal = true;
        bars.begin("train", 4000, "tokens");
        bars.at(1000, "loss 3.5");
        if let Some(bar) = bars.task.lock().expect("not poisoned").as_ref().and_then(|task| task.bar.clone()) {
            bar.force_draw();
        }
        let text = screen.contents();
        assert!(text.starts_with("train [======>") && text.contains("25%  1000 of 4000 tokens"), "{text}");
        assert!(text.contains("tokens/s") && text.ends_with("left  loss 3.5"), "{text}");
        bars.end();
        assert_eq!(screen.contents(), "");
    }

    #[test]
    fn news_without_work_is_ignored() {
        let mut bars = Bars::over(MultiProgress::new(), false, None);
        bars.terminal = false;
        bars.at(3, "");
        bars.end();
        bars.begin("a", 0, "rows");
        bars.at(u64::MAX, "x");
        bars.begin("b", u64::MAX, "rows");
    }

    #[test]
    fn what_another_process_tells_is_shown_as_its_own() {
        let screen = InMemoryTerm::new(5, 140);
        let mut bars = Bars::over(MultiProgress::with_draw_target(ProgressDrawTarget::term_like(Box::new(screen.clone()))), false, None);
        bars.terminal = true;
        bars.show(&News::Begin { task: "train".into(), total: 4000, unit: "tokens".into() });
        bars.show(&News::At { done: 1000, note: "loss 3.5".into() });
        if let Some(bar) = bars.task.lock().expect("not poisoned").as_ref().and_then(|task| task.bar.clone()) {
            bar.force_draw();
        }
        assert!(screen.contents().contains("25%  1000 of 4000 tokens"), "{}", screen.contents());
        bars.show(&News::End);
        assert_eq!(screen.contents(), "");
    }
}
