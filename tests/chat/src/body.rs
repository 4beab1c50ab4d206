//! Bodies that come slowly, end early, or never.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::time::{Sleep, sleep};

use crate::serve::Open;

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Well,
    /// With its connection.
    Cut,
    /// Never.
    Never,
}

/// Chunks, a pause before each, and an end.
pub(crate) struct Chunks {
    /// Dropped at its end.
    held: Option<Open>,
    left: VecDeque<Bytes>,
    pause: Duration,
    pausing: Option<Pin<Box<Sleep>>>,
    end: End,
}

impl Chunks {
    pub(crate) fn new(chunks: impl IntoIterator<Item = String>, pause: Duration, end: End) -> Self {
        Self { held: None, left: chunks.into_iter().map(Bytes::from).collect(), pause, pausing: None, end }
    }
}

impl Chunks {
    /// The same, under way as long as it lives.
    pub(crate) fn holding(self, open: Open) -> Self {
        Self { held: Some(open), ..self }
    }
}

impl Body for Chunks {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let pause = match (self.left.is_empty(), self.end) {
            (true, End::Well) => {
                drop(self.held.take());
                return Poll::Ready(None);
            }
            (true, End::Never) => return Poll::Pending,
            // What came before goes out first: hyper throws away what it has not sent when a body fails.
            (true, End::Cut) => self.pause.max(Duration::from_millis(20)),
            (false, _) => self.pause,
        };
        if !pause.is_zero() {
            let pausing = self.pausing.get_or_insert_with(|| Box::pin(sleep(pause)));
            if pausing.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            self.pausing = None;
        }
        Poll::Ready(Some(match self.left.pop_front() {
            Some(chunk) => Ok(Frame::data(chunk)),
            None => Err(io::Error::other("cut")),
        }))
    }
}
