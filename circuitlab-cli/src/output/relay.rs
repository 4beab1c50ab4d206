//! What several processes say, shown by one: every line with its rank before it, and one progress bar.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use super::Bars;
use super::news::News;

/// A line is cut here, so that one without an end takes no memory without end.
const LONGEST_LINE: u64 = 1 << 16;

/// Shows the lines of one rank.
#[derive(Debug)]
pub(crate) struct Relay {
    rank: u32,
    bars: Arc<Bars>,
    failed: Arc<OnceLock<Instant>>,
}

impl Relay {
    /// Lines and bars appear with those of `bars`.
    pub(crate) fn new(rank: u32, bars: Arc<Bars>) -> Self {
        Self { rank, bars, failed: Arc::default() }
    }

    /// Set when the rank says what it fails with.
    pub(crate) fn failed(&self) -> Arc<OnceLock<Instant>> {
        Arc::clone(&self.failed)
    }

    /// Shows everything up to the end. It reads on where nothing can be shown, since a writer whose lines nobody takes stands still.
    pub(crate) fn run(&self, from: impl Read) {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while matches!((&mut from).take(LONGEST_LINE).read_until(b'\n', &mut line), Ok(bytes) if bytes > 0) {
            self.show(&line);
            line.clear();
        }
    }

    fn show(&self, line: &[u8]) {
        if line.starts_with(b"error: ") {
            self.failed.get_or_init(Instant::now);
        }
        let Some((before, news)) = News::find(line) else { return self.say(line) };
        if !before.is_empty() {
            self.say(before);
        }
        self.bars.show(&news);
    }

    /// One line on stderr, in one piece.
    fn say(&self, line: &[u8]) {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let whole = [format!("[rank {}] ", self.rank).as_bytes(), line, b"\n"].concat();
        // Where stderr is gone, nobody is left to tell.
        let _ = self.bars.multi().suspend(|| io::stderr().write_all(&whole));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_to_the_end_whatever_comes_and_notes_the_first_error() {
        let relay = Relay::new(2, Arc::new(Bars::new(true)));
        let failed = relay.failed();
        relay.run([vec![b'x'; 300_000], b"\nhalf".to_vec()].concat().as_slice());
        relay.run(b"\x1ecircuitlab-progress nonsense\n\xff\xfe\n\r\n\n".as_slice());
        assert!(failed.get().is_none());
        relay.run(b"a warning\nerror: disk full\nhint: buy one\n".as_slice());
        assert!(failed.get().is_some());
    }
}
