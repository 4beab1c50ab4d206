//! Where tensors live: CUDA made known to libtorch, devices looked up, threads limited.

use std::path::{Path, PathBuf};

use circuitlab_core::config::DeviceName;
use tch::{Cuda, Device};

use crate::{Error, Result};

/// More threads than this are a slip of the keyboard, and making them takes for ever.
const MOST_THREADS: usize = 1024;

/// Makes CUDA usable where it is installed; everywhere else the run is a CPU run. Returns whether the library was
/// loaded.
///
/// A program links `libtorch_cpu` alone, since the linker drops libraries that no symbol is taken from. This opens
/// `libtorch_cuda` beside it. Call it first thing: libtorch keeps its first answer about CUDA for good.
pub fn load_cuda() -> bool {
    let Some(folder) = libtorch_folder() else {
        tracing::debug!("no libtorch_cpu in this process; the run is a CPU run");
        return false;
    };
    let library = folder.join("libtorch_cuda.so");
    match open_for_good(&library) {
        Ok(()) => {
            tracing::debug!(library = %library.display(), "loaded CUDA support");
            true
        }
        Err(reason) => {
            tracing::debug!(library = %library.display(), %reason, "no CUDA support; the run is a CPU run");
            false
        }
    }
}

/// The device of that name.
///
/// # Errors
/// [`Error::Invalid`] when it is a CUDA device that this machine or this libtorch does not have.
pub fn resolve(name: DeviceName) -> Result<Device> {
    let Device::Cuda(index) = name.0 else { return Ok(name.0) };
    let count = if Cuda::is_available() { usize::try_from(Cuda::device_count()).unwrap_or(0) } else { 0 };
    if index < count {
        return Ok(name.0);
    }
    let reason = match count {
        0 => "libtorch finds no CUDA device (is this a CPU-only libtorch, or is the NVIDIA driver missing?); use `cpu`".to_owned(),
        1 => "the only CUDA device is `cuda:0`".to_owned(),
        _ => format!("the CUDA devices are `cuda:0` to `cuda:{}`", count - 1),
    };
    Err(Error::Invalid(format!("device `{}` is not available: {reason}", String::from(name))))
}

/// Limits the CPU threads that one operation uses, in libtorch and in this program's own loops; `None` leaves the
/// choice to them. Call it before any tensor work: the pool of the own loops keeps its first size.
///
/// # Errors
/// [`Error::Invalid`] for less than one thread, or more than 1024.
pub fn set_threads(threads: Option<i32>) -> Result<()> {
    let Some(threads) = threads else { return Ok(()) };
    let count = usize::try_from(threads).ok().filter(|count| (1..=MOST_THREADS).contains(count));
    let Some(count) = count else { return Err(Error::Invalid(format!("`{threads}` threads: expected 1 to {MOST_THREADS}"))) };
    tch::set_num_threads(threads);
    if rayon::ThreadPoolBuilder::new().num_threads(count).build_global().is_err() {
        tracing::debug!(threads, "the thread pool is in use already and keeps its size");
    }
    Ok(())
}

/// The folder of the `libtorch_cpu` that runs in this process, by the system's list of mapped files. Only Linux has
/// that list, and only there does libtorch have CUDA besides Windows.
fn libtorch_folder() -> Option<PathBuf> {
    folder_in_maps(&std::fs::read_to_string("/proc/self/maps").ok()?)
}

/// Finds the library in lines such as `7f00-7f01 r-xp 00000000 08:01 123   /opt/my torch/lib/libtorch_cpu.so`.
fn folder_in_maps(maps: &str) -> Option<PathBuf> {
    let mut files = maps.lines().filter_map(|line| line.find('/').map(|start| Path::new(&line[start..])));
    let library = files.find(|file| file.file_name().is_some_and(|name| name == "libtorch_cpu.so"))?;
    library.parent().map(Path::to_path_buf)
}

#[cfg(unix)]
#[allow(unsafe_code, reason = "loading a library runs its initialisers")]
fn open_for_good(library: &Path) -> Result<(), libloading::Error> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: the file lies beside the libtorch_cpu of this process, so it is the same build of libtorch, whose
    // initialisers do no more than register CUDA kernels; the handle is never closed, so nothing registered dangles.
    let handle = unsafe { Library::open(Some(library), RTLD_NOW | RTLD_GLOBAL) }?;
    std::mem::forget(handle);
    Ok(())
}

#[cfg(not(unix))]
fn open_for_good(_: &Path) -> Result<(), &'static str> {
    Err("not supported on this system")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_found_among_mapped_files() {
        let maps = "5500-5501 r-xp 00000000 08:01 1    /usr/bin/circuitlab\n\
            7f00-7f01 r-xp 00000000 08:01 2    /opt/my torch/lib/libtorch_cpu.so\n\
            7f02-7f03 rw-p 00000000 00:00 0    [stack]\n";
        assert_eq!(folder_in_maps(maps), Some(PathBuf::from("/opt/my torch/lib")));
        assert_eq!(folder_in_maps("5500-5501 r-xp 00000000 00:00 0\n/\n"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_runs_a_libtorch() {
        assert!(tch::Tensor::from_slice(&[1.0_f32]).numel() == 1);
        let folder = libtorch_folder().expect("linked");
        assert!(folder.join("libtorch_cpu.so").exists());
        // With or without CUDA installed, CPU work goes on.
        load_cuda();
        assert!((tch::Tensor::from_slice(&[1.0_f32, 2.0]).sum(tch::Kind::Float).double_value(&[]) - 3.0).abs() < 1e-9);
    }

    #[test]
    fn a_missing_device_is_refused_in_words() {
        load_cuda();
        assert_eq!(resolve(DeviceName(Device::Cpu)).expect("always there"), Device::Cpu);
        let error = resolve(DeviceName(Device::Cuda(99))).expect_err("too many").to_string();
        assert!(error.starts_with("device `cuda:99` is not available: "), "{error}");
    }

    #[test]
    fn threads_are_one_or_more() {
        assert!(set_threads(Some(0)).is_err() && set_threads(Some(-3)).is_err());
        set_threads(None).expect("nothing to do");
    }
}
