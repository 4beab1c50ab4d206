//! The C interface of `cpp/c10d.h`, and owners of what it hands out.
#![allow(unsafe_code, reason = "calls into C++")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::time::Duration;

use circuitlab_core::Axis;
use libloading::Library;
use tch::Tensor;

use crate::nccl;

/// What C++ said went wrong.
pub(crate) type Outcome<T> = Result<T, String>;

#[repr(C)]
pub(crate) struct StoreHandle {
    _opaque: [u8; 0],
}

#[repr(C)]
pub(crate) struct GroupHandle {
    _opaque: [u8; 0],
}

#[repr(C)]
struct WorkHandle {
    _opaque: [u8; 0],
}

unsafe extern "C" {
    fn clc_free(text: *mut c_char);
    fn clc_store_open(host: *const c_char, port: u16, server: bool, limit: i64, out: *mut *mut StoreHandle) -> *mut c_char;
    fn clc_store_close(store: *mut StoreHandle);
    fn clc_store_set(store: *mut StoreHandle, key: *const c_char, value: *const u8, length: usize) -> *mut c_char;
    fn clc_store_get(store: *mut StoreHandle, key: *const c_char, limit: i64, value: *mut *mut c_char, length: *mut usize) -> *mut c_char;
    fn clc_store_has(store: *mut StoreHandle, key: *const c_char, out: *mut bool) -> *mut c_char;
    fn clc_store_add(store: *mut StoreHandle, key: *const c_char, value: i64, out: *mut i64) -> *mut c_char;
    fn clc_interface_address(name: *const c_char, address: *mut *mut c_char) -> *mut c_char;
    fn clc_gloo_group(
        store: *mut StoreHandle,
        prefix: *const c_char,
        rank: c_int,
        size: c_int,
        address: *const c_char,
        joining: i64,
        limit: i64,
        out: *mut *mut GroupHandle,
    ) -> *mut c_char;
    fn clc_group_close(group: *mut GroupHandle);
    fn clc_all_reduce(group: *mut GroupHandle, tensor: *mut c_void, reduction: c_int, out: *mut *mut WorkHandle) -> *mut c_char;
    fn clc_broadcast(group: *mut GroupHandle, tensor: *mut c_void, root: c_int, out: *mut *mut WorkHandle) -> *mut c_char;
    fn clc_all_gather(group: *mut GroupHandle, whole: *mut c_void, own: *mut c_void, out: *mut *mut WorkHandle) -> *mut c_char;
    fn clc_all_to_all(
        group: *mut GroupHandle,
        received: *mut c_void,
        sent: *mut c_void,
        received_rows: *const i64,
        sent_rows: *const i64,
        out: *mut *mut WorkHandle,
    ) -> *mut c_char;
    fn clc_barrier(group: *mut GroupHandle, out: *mut *mut WorkHandle) -> *mut c_char;
    fn clc_work_wait(work: *mut WorkHandle, limit: i64) -> *mut c_char;
    fn clc_work_ended(work: *mut WorkHandle) -> bool;
    fn clc_work_close(work: *mut WorkHandle);
}

/// `clc_nccl_group` of the library for NCCL.
pub(crate) type NcclGroup =
    unsafe extern "C" fn(*mut StoreHandle, *const c_char, c_int, c_int, c_int, i64, *mut *mut GroupHandle) -> *mut c_char;

/// Opens the library for NCCL.
pub(crate) fn open_library(file: &Path) -> Result<Library, libloading::Error> {
    // SAFETY: it is our own library, and has no initialisers but those of iostreams.
    unsafe { Library::new(file) }
}

/// Its only function.
pub(crate) fn nccl_symbol(library: &Library) -> Outcome<NcclGroup> {
    // SAFETY: `cpp/nccl.cpp` declares it so; whoever calls it does not outlive the library, which is never closed.
    unsafe { library.get::<NcclGroup>(b"clc_nccl_group\0") }.map(|found| *found).map_err(|error| error.to_string())
}

/// A text that C++ allocated.
fn taken(text: NonNull<c_char>, length: Option<usize>) -> Vec<u8> {
    // SAFETY: the interface ends texts with a zero, which `length` does not count; it is given back once, here.
    unsafe {
        let bytes = match length {
            Some(length) => std::slice::from_raw_parts(text.as_ptr().cast::<u8>(), length).to_vec(),
            None => CStr::from_ptr(text.as_ptr()).to_bytes().to_vec(),
        };
        clc_free(text.as_ptr());
        bytes
    }
}

fn checked(error: *mut c_char) -> Outcome<()> {
    NonNull::new(error).map_or(Ok(()), |text| Err(String::from_utf8_lossy(&taken(text, None)).into_owned()))
}

/// What a call that gives a handle gives.
fn made<T>(call: impl FnOnce(*mut *mut T) -> *mut c_char) -> Outcome<NonNull<T>> {
    let mut out = ptr::null_mut();
    checked(call(&raw mut out))?;
    NonNull::new(out).ok_or_else(|| "out of memory".to_owned())
}

fn c_text(text: &str) -> Outcome<CString> {
    CString::new(text).map_err(|_| format!("`{}` holds a zero byte", text.escape_debug()))
}

/// Milliseconds for C++, at least one: to c10d none at all means without a limit.
fn milliseconds(limit: Duration) -> i64 {
    i64::try_from(limit.as_millis()).unwrap_or(i64::MAX / 2_000_000).clamp(1, i64::MAX / 2_000_000)
}

fn pointer(tensor: &Tensor) -> *mut c_void {
    tensor.as_ptr().cast_mut().cast()
}

/// The address of a network interface.
pub(crate) fn interface_address(name: &str) -> Outcome<String> {
    let name = c_text(name)?;
    // SAFETY: both pointers are good for the call.
    let text = made(|out| unsafe { clc_interface_address(name.as_ptr(), out) })?;
    Ok(String::from_utf8_lossy(&taken(text, None)).into_owned())
}

/// A connection to a store, and the store itself where this process is its server.
#[derive(Debug)]
pub(crate) struct RawStore(NonNull<StoreHandle>);

// SAFETY: c10d's store is bound to no thread.
unsafe impl Send for RawStore {}

impl RawStore {
    pub(crate) fn open(host: &str, port: u16, server: bool, limit: Duration) -> Outcome<Self> {
        let host = c_text(host)?;
        // SAFETY: both pointers are good for the call.
        made(|out| unsafe { clc_store_open(host.as_ptr(), port, server, milliseconds(limit), out) }).map(Self)
    }

    pub(crate) fn set(&mut self, key: &str, value: &[u8]) -> Outcome<()> {
        let key = c_text(key)?;
        // SAFETY: the store lives as long as `self`, all else for the call.
        checked(unsafe { clc_store_set(self.0.as_ptr(), key.as_ptr(), value.as_ptr(), value.len()) })
    }

    pub(crate) fn get(&mut self, key: &str, limit: Duration) -> Outcome<Vec<u8>> {
        let (key, mut length) = (c_text(key)?, 0);
        // SAFETY: as above.
        let value = made(|out| unsafe { clc_store_get(self.0.as_ptr(), key.as_ptr(), milliseconds(limit), out, &raw mut length) })?;
        Ok(taken(value, Some(length)))
    }

    pub(crate) fn has(&mut self, key: &str) -> Outcome<bool> {
        let (key, mut has) = (c_text(key)?, false);
        // SAFETY: as above.
        checked(unsafe { clc_store_has(self.0.as_ptr(), key.as_ptr(), &raw mut has) })?;
        Ok(has)
    }

    pub(crate) fn add(&mut self, key: &str, value: i64) -> Outcome<i64> {
        let (key, mut sum) = (c_text(key)?, 0);
        // SAFETY: as above.
        checked(unsafe { clc_store_add(self.0.as_ptr(), key.as_ptr(), value, &raw mut sum) })?;
        Ok(sum)
    }
}

impl Drop for RawStore {
    fn drop(&mut self) {
        // SAFETY: nobody else has the handle. What else uses the store counts its own reference.
        unsafe { clc_store_close(self.0.as_ptr()) }
    }
}

/// A process group.
#[derive(Debug)]
pub(crate) struct RawGroup(NonNull<GroupHandle>);

// SAFETY: c10d's groups are bound to no thread; they must not be called by two at once, and every method takes `&mut`.
unsafe impl Send for RawGroup {}

impl RawGroup {
    /// `axis` is this rank's place in the group; `limits` are that of joining and that of an operation.
    pub(crate) fn gloo(store: &mut RawStore, prefix: &str, axis: Axis, address: &str, limits: [Duration; 2]) -> Outcome<Self> {
        let (prefix, address) = (c_text(prefix)?, c_text(address)?);
        let number = |number: usize| c_int::try_from(number).map_err(|_| format!("{number} ranks are too many"));
        let (rank, size) = (number(axis.rank)?, number(axis.size)?);
        let (store, [joining, limit]) = (store.0.as_ptr(), limits.map(milliseconds));
        // SAFETY: all pointers are good for the call; the group keeps a reference of its own to the store.
        made(|out| unsafe { clc_gloo_group(store, prefix.as_ptr(), rank, size, address.as_ptr(), joining, limit, out) }).map(Self)
    }

    /// Over NCCL, on one CUDA device for each rank.
    pub(crate) fn nccl(store: &mut RawStore, prefix: &str, axis: Axis, device: usize, limit: Duration) -> Outcome<Self> {
        let make = nccl::function()?;
        let prefix = c_text(prefix)?;
        let number = |number: usize| c_int::try_from(number).map_err(|_| format!("{number} is too large a number"));
        let (rank, size, device) = (number(axis.rank)?, number(axis.size)?, number(device)?);
        let (store, limit) = (store.0.as_ptr(), milliseconds(limit));
        // SAFETY: as above.
        made(|out| unsafe { make(store, prefix.as_ptr(), rank, size, device, limit, out) }).map(Self)
    }

    pub(crate) fn all_reduce(&mut self, tensor: &Tensor, reduction: c_int) -> Outcome<RawWork> {
        // SAFETY: the group lives as long as `self`; c10d keeps a reference of its own to the tensor's memory. So below.
        made(|out| unsafe { clc_all_reduce(self.0.as_ptr(), pointer(tensor), reduction, out) }).map(RawWork)
    }

    pub(crate) fn broadcast(&mut self, tensor: &Tensor, root: usize) -> Outcome<RawWork> {
        let root = c_int::try_from(root).map_err(|_| format!("{root} is no rank"))?;
        // SAFETY: as above.
        made(|out| unsafe { clc_broadcast(self.0.as_ptr(), pointer(tensor), root, out) }).map(RawWork)
    }

    /// `whole` has `own`'s shape with the first axis as often as there are ranks.
    pub(crate) fn all_gather(&mut self, whole: &Tensor, own: &Tensor) -> Outcome<RawWork> {
        // SAFETY: as above; c10d checks shapes.
        made(|out| unsafe { clc_all_gather(self.0.as_ptr(), pointer(whole), pointer(own), out) }).map(RawWork)
    }

    /// `rows` hold a number for each rank of the group, whatever it is called by.
    pub(crate) fn all_to_all(&mut self, received: &Tensor, sent: &Tensor, rows: &[[i64; 2]]) -> Outcome<RawWork> {
        let of = |side: usize| rows.iter().map(|rows| rows[side]).collect::<Vec<_>>();
        let (into, from) = (of(0), of(1));
        // SAFETY: as above; the caller has a pair for each rank; c10d checks that they add up to the tensors' rows.
        made(|out| unsafe { clc_all_to_all(self.0.as_ptr(), pointer(received), pointer(sent), into.as_ptr(), from.as_ptr(), out) })
            .map(RawWork)
    }

    pub(crate) fn barrier(&mut self) -> Outcome<RawWork> {
        // SAFETY: as above.
        made(|out| unsafe { clc_barrier(self.0.as_ptr(), out) }).map(RawWork)
    }
}

impl Drop for RawGroup {
    fn drop(&mut self) {
        // SAFETY: nobody else has the handle; operations that are under way are waited for inside.
        unsafe { clc_group_close(self.0.as_ptr()) }
    }
}

/// An operation that has begun.
#[derive(Debug)]
pub(crate) struct RawWork(NonNull<WorkHandle>);

// SAFETY: c10d's works are bound to no thread, and are made to be waited for on another one.
unsafe impl Send for RawWork {}

impl RawWork {
    pub(crate) fn wait(&mut self, limit: Duration) -> Outcome<()> {
        // SAFETY: the work lives as long as `self`.
        checked(unsafe { clc_work_wait(self.0.as_ptr(), milliseconds(limit)) })
    }

    /// Whether it is over; where it is not, a wait that failed was too short.
    pub(crate) fn is_over(&mut self) -> bool {
        // SAFETY: as above.
        unsafe { clc_work_ended(self.0.as_ptr()) }
    }
}

impl Drop for RawWork {
    fn drop(&mut self) {
        // SAFETY: nobody else has the handle; c10d keeps what is under way alive by itself.
        unsafe { clc_work_close(self.0.as_ptr()) }
    }
}
