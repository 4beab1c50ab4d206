//! The bytes of one file: fetched, gone on with where they broke off, checked, named.

use std::io::Read;

use ureq::Body;
use ureq::http::Response;

use super::client::{Client, Remote};
use super::fault::{Fault, Patience, TRIES};
use super::part::Part;
use super::store::Store;
use crate::Result;

/// A connection that brought so many bytes was worth its try.
const WORTH_A_TRY: u64 = 1 << 20;

/// Fetches a blob unless it is there. `at` is told how many of its bytes there are.
pub(super) fn blob(client: &Client, store: &Store, url: &str, remote: &Remote, at: &mut dyn FnMut(u64)) -> Result<(), Fault> {
    let _lock = store.lock(&remote.etag)?;
    let blob = store.blob(&remote.etag);
    std::fs::create_dir_all(blob.parent().unwrap_or(&blob)).map_err(circuitlab_core::Error::io("create", &blob))?;
    let mut first = true;
    // A blob of another length was cut by a crash; it is replaced.
    let whole = || blob.metadata().is_ok_and(|there| there.is_file() && there.len() == remote.size);
    while !whole() {
        let mut part = Part::open(&blob, remote)?;
        complete(client, &mut part, url, remote, at)?;
        let pieced = part.pieces > 1;
        match part.finish(&blob, remote) {
            // An earlier piece may have been at fault, such as what another process had left: once more, from the start.
            Err(Fault::Final(message)) if pieced && first => tracing::warn!("hub: {message}; fetching it from the start"),
            other => other?,
        }
        first = false;
    }
    at(remote.size);
    Ok(())
}

/// Fetches what is missing, over as many connections as it takes and makes sense.
fn complete(client: &Client, part: &mut Part, url: &str, remote: &Remote, at: &mut dyn FnMut(u64)) -> Result<(), Fault> {
    let mut patience = Patience::new(TRIES);
    while part.length < remote.size {
        let before = part.length;
        at(before);
        if let Err(fault) = once(client, part, url, remote, at) {
            if part.length >= before + WORTH_A_TRY {
                patience.renew();
            }
            patience.bear(fault)?;
        }
    }
    Ok(())
}

fn once(client: &Client, part: &mut Part, url: &str, remote: &Remote, at: &mut dyn FnMut(u64)) -> Result<(), Fault> {
    let mut response = client.bytes(url, part.length)?;
    if part.length > 0 && !goes_on_at(&response, part.length) {
        // A server without ranges sends the whole file.
        part.restart()?;
    }
    part.pieces += 1;
    let mut body = response.body_mut().as_reader();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let got = body.read(&mut buffer).map_err(|error| client.broken(error.into()))?;
        if got == 0 {
            break;
        }
        if part.length + got as u64 > remote.size {
            part.restart()?;
            return Err(Fault::Final(format!("more bytes come than the {} that the hub says it has", remote.size)));
        }
        part.push(&buffer[..got])?;
        at(part.length);
    }
    if part.length < remote.size {
        return Err(Fault::passing(format!("the connection ended after {} of {} bytes", part.length, remote.size)));
    }
    Ok(())
}

/// Whether the body begins at the byte that was asked for.
fn goes_on_at(response: &Response<Body>, from: u64) -> bool {
    let range = response.headers().get("content-range").and_then(|value| value.to_str().ok());
    let first = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok());
    response.status().as_u16() == 206 && first == Some(from)
}
