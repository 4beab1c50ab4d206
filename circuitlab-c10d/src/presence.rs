//! A port on which a rank says how far it is, and the questions that another one asks when an operation failed.
//!
//! What a collective sees of a rank that is gone or hangs depends on who waits for whom; often only that somebody is late. So whoever fails
//! asks all members: one whose port is closed is gone, one that does not answer hangs or is cut off, and the others say which operation they are in.
//! What it found it tells the others, whose own operations will fail too, and later: when it has ended as well, and more ranks are gone.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How long a rank has to answer. The port's thread does nothing else, so that only a stopped or unreachable process is late.
const PATIENCE: Duration = Duration::from_secs(2);

/// Ranks that are asked at the same time.
const AT_ONCE: usize = 64;

/// Longer than any answer.
const LONGEST: u64 = 1 << 16;

/// Where a rank is in a group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The operation that was begun last, from 1.
    pub(crate) begun: u64,
    /// What it is.
    pub(crate) what: String,
    /// Whether it has ended.
    pub(crate) ended: bool,
}

/// Where a rank listens, and the number that it answers with, so that nobody else is taken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) address: SocketAddr,
    pub(crate) token: u64,
}

impl std::fmt::Display for Place {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} {:x}", self.address, self.token)
    }
}

impl FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, token) = text.split_once(' ').ok_or(())?;
        Ok(Self { address: address.parse().map_err(drop)?, token: u64::from_str_radix(token, 16).map_err(drop)? })
    }
}

/// This rank's port, open as long as it lives.
#[derive(Debug)]
pub(crate) struct Presence {
    place: Place,
    shared: Arc<Shared>,
    answering: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    groups: Mutex<BTreeMap<String, Progress>>,
    /// What the first rank that told of a fault said.
    told: Mutex<Option<String>>,
    ends: AtomicBool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn answer(&self, token: u64) -> String {
        let line = |(name, at): (&String, &Progress)| format!("{} {} {name}\t{}\n", at.begun, u8::from(at.ended), at.what);
        format!("{token:x}\n") + &locked(&self.groups).iter().map(line).collect::<String>()
    }

    /// One connection: a line with the token, and after it what another rank tells, or nothing where it asks.
    fn serve(&self, stream: &TcpStream, token: u64) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut line = String::new();
        BufReader::new(stream.take(LONGEST)).read_line(&mut line)?;
        let (given, told) = line.trim_end().split_once(' ').unwrap_or((line.trim_end(), ""));
        if given != format!("{token:x}") {
            return Ok(());
        }
        if !told.is_empty() {
            locked(&self.told).get_or_insert_with(|| told.to_owned());
        }
        (&mut &*stream).write_all(self.answer(token).as_bytes())
    }
}

impl Presence {
    pub(crate) fn open(address: IpAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((address, 0))?;
        // A hasher's random keys are what std has of random numbers.
        let place = Place { address: listener.local_addr()?, token: RandomState::new().hash_one(std::process::id()) };
        let shared = Arc::new(Shared::default());
        let answers = Arc::clone(&shared);
        let answering = thread::Builder::new().name("presence".to_owned()).spawn(move || {
            for stream in listener.incoming() {
                if answers.ends.load(Ordering::Acquire) {
                    return;
                }
                let Ok(stream) = stream else {
                    // Out of handles, perhaps; not to be asked again at once.
                    thread::sleep(Duration::from_millis(50));
                    continue;
                };
                let answers = Arc::clone(&answers);
                // Of its own, so that whoever connects and says nothing holds nobody up. Whoever asks and leaves misses the answer.
                let _ = thread::Builder::new().spawn(move || answers.serve(&stream, place.token));
            }
        })?;
        Ok(Self { place, shared, answering: Some(answering) })
    }

    pub(crate) fn place(&self) -> Place {
        self.place
    }

    pub(crate) fn begin(&self, group: &str, call: u64, what: &str) {
        let at = Progress { begun: call, what: what.to_owned(), ended: false };
        locked(&self.shared.groups).insert(group.to_owned(), at);
    }

    pub(crate) fn end(&self, group: &str, call: u64) {
        if let Some(at) = locked(&self.shared.groups).get_mut(group).filter(|at| at.begun == call) {
            at.ended = true;
        }
    }

    pub(crate) fn leave(&self, group: &str) {
        locked(&self.shared.groups).remove(group);
    }

    /// What another rank found out and told this one.
    pub(crate) fn told(&self) -> Option<String> {
        locked(&self.shared.told).clone()
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Release);
        // The thread waits for a connection.
        if TcpStream::connect_timeout(&self.place.address, PATIENCE).is_ok()
            && let Some(answering) = self.answering.take()
        {
            let _ = answering.join();
        }
    }
}

/// What asking a rank showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Nobody has the port.
    Gone,
    /// No answer came.
    Silent,
    /// Where it is in the group; nothing where it has not begun.
    At(Option<Progress>),
}

/// Asks ranks how far they are in a group; answers are in their order.
pub(crate) fn ask(places: &[Place], group: &str) -> Vec<Answer> {
    ask_within(places, group, PATIENCE)
}

/// The same with another time that they have to answer.
pub(crate) fn ask_within(places: &[Place], group: &str, limit: Duration) -> Vec<Answer> {
    at_once(places, |place| understood(place, group, exchange(place, "", limit.max(Duration::from_millis(1)))))
}

/// Tells ranks what is the matter, in one line, so that they can say it too. Those who do not listen are passed over.
pub(crate) fn tell(places: &[Place], what: &str) {
    at_once(places, |place| drop(exchange(place, what, PATIENCE)));
}

fn at_once<T: Send>(places: &[Place], work: impl Fn(Place) -> T + Sync) -> Vec<T> {
    let mut all = Vec::with_capacity(places.len());
    for some in places.chunks(AT_ONCE) {
        thread::scope(|scope| {
            let working: Vec<_> = some.iter().map(|place| scope.spawn(|| work(*place))).collect();
            all.extend(working.into_iter().filter_map(|working| working.join().ok()));
        });
    }
    all
}

fn understood(place: Place, group: &str, answer: io::Result<String>) -> Answer {
    let text = match answer {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
            return Answer::Gone;
        }
        Err(_) => return Answer::Silent,
    };
    let mut lines = text.lines();
    // Another program may have been given the port since.
    if lines.next().and_then(|token| u64::from_str_radix(token, 16).ok()) != Some(place.token) {
        return Answer::Gone;
    }
    Answer::At(lines.filter_map(progress).find(|(name, _)| *name == group).map(|(_, at)| at))
}

fn exchange(place: Place, told: &str, limit: Duration) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&place.address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    let line: String = format!("{:x} {told}", place.token).chars().filter(|letter| *letter != '\n').collect();
    stream.write_all(format!("{}\n", line.trim_end()).as_bytes())?;
    let mut text = String::new();
    stream.take(LONGEST).read_to_string(&mut text)?;
    Ok(text)
}

/// A group's name, and where the rank is in it.
fn progress(line: &str) -> Option<(&str, Progress)> {
    let mut words = line.splitn(3, ' ');
    let (begun, ended) = (words.next()?.parse().ok()?, words.next()? == "1");
    let (name, what) = words.next()?.split_once('\t')?;
    Some((name, Progress { begun, what: what.to_owned(), ended }))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn ranks_are_told_apart() {
        let here = Presence::open(Ipv4Addr::LOCALHOST.into()).expect("a port");
        here.begin("data 1", 7, "all_reduce of 3 Float");
        here.begin("other", 1, "barrier");
        here.end("other", 1);
        let gone = {
            let other = Presence::open(Ipv4Addr::LOCALHOST.into()).expect("a port");
            other.place()
        };
        let stranger = Place { token: here.place().token ^ 1, ..here.place() };
        let at = Progress { begun: 7, what: "all_reduce of 3 Float".to_owned(), ended: false };
        let answers = ask(&[here.place(), gone, stranger], "data 1");
        assert_eq!(answers, [Answer::At(Some(at.clone())), Answer::Gone, Answer::Gone]);
        assert_eq!(ask(&[here.place()], "other"), [Answer::At(Some(Progress { begun: 1, what: "barrier".to_owned(), ended: true }))]);
        assert_eq!(ask(&[here.place()], "none"), [Answer::At(None)]);
        assert_eq!(here.told(), None);
        tell(&[gone, stranger], "nobody hears it");
        tell(&[here.place()], "rank 2 is\ngone");
        tell(&[here.place()], "so is 3");
        assert_eq!(here.told().as_deref(), Some("rank 2 isgone"));
        here.leave("other");
        assert_eq!(ask(&[here.place()], "other"), [Answer::At(None)]);
        assert_eq!(here.place().to_string().parse(), Ok(here.place()));
        for text in ["", "127.0.0.1 3", "127.0.0.1:4 g", "x 4"] {
            assert_eq!(text.parse::<Place>(), Err(()), "{text}");
        }
    }

    #[test]
    fn a_port_that_nobody_answers_on_is_silent() {
        // Connections wait in the listener's queue, as a stopped process leaves them.
        let stopped = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let place = Place { address: stopped.local_addr().expect("bound"), token: 1 };
        assert_eq!(ask(&[place], "any"), [Answer::Silent]);
    }
}
