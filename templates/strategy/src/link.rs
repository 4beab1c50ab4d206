//! A connection between the hub and another rank: opening it, and messages of a known size.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::thread::sleep;
use std::time::{Duration, Instant};

use circuitlab_core::{Error, Result};

/// What each message begins with, and both ends must agree on: `[MAGIC, VERSION, ranks]` in a handshake, later
/// `[call, bytes of an entry, entries]`. So a rank that is somewhere else is noticed, and nothing is read or made room for on its word.
pub(crate) type Header = [u64; 3];

/// A machine of another byte order sends it turned around, and is refused as strangers are.
const MAGIC: u64 = 0x7261_7473_2062_616c;
const VERSION: u64 = 1;
const RETRY: Duration = Duration::from_millis(20);

/// The number of a peer that has not said it yet.
const STRANGER: usize = usize::MAX;

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Link {
    stream: TcpStream,
    rank: usize,
    peer: usize,
}

impl Link {
    /// The hub's links to ranks 1, 2, .., when all of them have come.
    pub(crate) fn to_all(ranks: usize, address: &str, timeout: Duration) -> Result<Vec<Self>> {
        let deadline = Instant::now() + timeout;
        let refused = |error: io::Error| Error::Invalid(format!("strategy `star`, rank 0: cannot listen at `{address}`: {error}"));
        let listener = TcpListener::bind(address).map_err(refused)?;
        listener.set_nonblocking(true).map_err(refused)?;
        let hello = [MAGIC, VERSION, ranks as u64];
        let mut links: Vec<Self> = Vec::new();
        while links.len() + 1 < ranks {
            match listener.accept().and_then(|(stream, _)| prepare(stream, timeout)) {
                Ok(stream) => {
                    let mut link = Self { stream, rank: 0, peer: STRANGER };
                    link.peer = link.receive("handshake", hello, &mut [])?;
                    if !(1..ranks).contains(&link.peer) || links.iter().any(|other| other.peer == link.peer) {
                        return Err(broken(0, link.peer, "handshake", "its number is taken, or no rank's"));
                    }
                    links.push(link);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => sleep(RETRY),
                Err(error) => {
                    let missing = (1..ranks).find(|rank| links.iter().all(|link| link.peer != *rank));
                    return Err(failed(0, missing.unwrap_or_default(), "handshake", &error));
                }
            }
        }
        links.sort_by_key(|link| link.peer);
        links.iter_mut().try_for_each(|link| link.send("handshake", hello, &[]))?;
        Ok(links)
    }

    /// Another rank's link to the hub, when all ranks have come.
    pub(crate) fn to_hub(rank: usize, ranks: usize, address: &str, timeout: Duration) -> Result<Self> {
        let deadline = Instant::now() + timeout;
        let stream = loop {
            match connect(address, timeout) {
                Ok(stream) => break stream,
                // The hub may come later, and so may its name.
                Err(_) if Instant::now() < deadline => sleep(RETRY),
                Err(error) => return Err(failed(rank, 0, &format!("connecting to `{address}`"), &error)),
            }
        };
        let (mut link, hello) = (Self { stream, rank, peer: 0 }, [MAGIC, VERSION, ranks as u64]);
        link.send("handshake", hello, &[])?;
        link.receive("handshake", hello, &mut [])?;
        Ok(link)
    }

    pub(crate) fn send(&mut self, operation: &str, header: Header, values: &[u8]) -> Result<()> {
        let header = [header[0], header[1], header[2], self.rank as u64].map(u64::to_ne_bytes);
        let sent = self.stream.write_all(header.as_flattened()).and_then(|()| self.stream.write_all(values));
        sent.map_err(|error| failed(self.rank, self.peer, operation, &error))
    }

    /// Fills `values`, and gives the number of the rank that sent them.
    pub(crate) fn receive(&mut self, operation: &str, expected: Header, values: &mut [u8]) -> Result<usize> {
        let refused = |error| failed(self.rank, self.peer, operation, &error);
        let mut header = [[0; 8]; 4];
        self.stream.read_exact(header.as_flattened_mut()).map_err(refused)?;
        let [first, second, third, rank] = header.map(u64::from_ne_bytes);
        if [first, second, third] != expected {
            let message = format!("it sends {:?}, expected {expected:?}", [first, second, third]);
            return Err(broken(self.rank, self.peer, operation, &message));
        }
        self.stream.read_exact(values).map_err(refused)?;
        Ok(usize::try_from(rank).unwrap_or(usize::MAX))
    }
}

fn connect(address: &str, timeout: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
    for place in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&place, timeout) {
            Ok(stream) => return prepare(stream, timeout),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn prepare(stream: TcpStream, timeout: Duration) -> io::Result<TcpStream> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    // Single numbers are sent too, and must not wait for more.
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn failed(rank: usize, peer: usize, operation: &str, error: &io::Error) -> Error {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => broken(rank, peer, operation, "no answer in time"),
        ErrorKind::UnexpectedEof => broken(rank, peer, operation, "it is gone"),
        _ => broken(rank, peer, operation, &error.to_string()),
    }
}

fn broken(rank: usize, peer: usize, operation: &str, message: &str) -> Error {
    let peer = if peer == STRANGER { "a stranger".to_owned() } else { format!("rank {peer}") };
    Error::Invalid(format!("strategy `star`, rank {rank}, {operation} with {peer}: {message}"))
}
