//! Memory that is used again.

use std::sync::{Mutex, PoisonError};

/// Byte buffers between their uses. Fresh memory costs the system's zeroing of every page, which decoding at gigabytes a second notices.
#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<Vec<Vec<u8>>>);

impl Pool {
    /// A buffer, with whatever it held.
    pub(super) fn take(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    /// Keeps a buffer for the next use.
    pub(super) fn give_back(&self, buffer: Vec<u8>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}
