//! What the fuzz targets share: a folder in memory for their input, seeds, and a limit on what may be allocated.
//!
//! Readers of CircuitLab read files, so a target writes its input to one. A panic ends the target, even one that the program would have
//! turned into an error, and so does an allocation out of proportion to the input.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use circuitlab_core::Registry;
use tempfile::TempDir;

/// What may be allocated at once for an input of no bytes. A buffer of zstd's has some megabytes.
const BASE_BYTES: usize = 16 << 20;

/// What may be allocated at once for each byte of input.
const TIMES: usize = 64;

/// The most that may be allocated at once just now.
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Counts nothing, and ends the process at an allocation that is too large. libFuzzer's own limit needs a sanitizer and thus a nightly
/// toolchain.
struct Limited;

#[global_allocator]
static ALLOCATOR: Limited = Limited;

fn check(bytes: usize) {
    if bytes > LIMIT.load(Ordering::Relaxed) {
        // What tells of it allocates too.
        LIMIT.store(usize::MAX, Ordering::Relaxed);
        panic!("{bytes} bytes are allocated at once");
    }
}

// SAFETY: everything is passed on to the system's allocator as it comes.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        check(bytes);
        // SAFETY: the caller's promise is the same.
        unsafe { System.realloc(place, layout, bytes) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the same.
        unsafe { System.dealloc(place, layout) }
    }
}

/// Runs `body`, in which no allocation may be out of proportion to an input of so many bytes.
pub fn limited<T>(bytes: usize, body: impl FnOnce() -> T) -> T {
    LIMIT.store(BASE_BYTES + TIMES * bytes, Ordering::Relaxed);
    let done = body();
    LIMIT.store(usize::MAX, Ordering::Relaxed);
    done
}

/// All first-party plugins.
///
/// # Panics
/// When two share a name.
pub fn registry() -> &'static Registry {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    REGISTRY.get_or_init(|| {
        circuitlab_plugins::link();
        Registry::linked().expect("no name twice")
    })
}

/// The folder of this process, in memory where there is such a place.
///
/// # Panics
/// When none can be made.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let memory = Path::new("/dev/shm");
    let make = || if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    FOLDER.get_or_init(|| make().expect("a folder")).path()
}

/// Writes a file into [`folder`], beside nothing and without a rename: nobody else reads it.
///
/// # Panics
/// When it cannot be written.
pub fn put(name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder().join(name);
    fs::create_dir_all(path.parent().expect("below the folder")).expect("a folder");
    fs::write(&path, bytes).expect("room for it");
    path
}

/// Adds an input to begin with to the corpus that `CIRCUITLAB_FUZZ_SEEDS` names, if it names one.
///
/// # Panics
/// When it cannot be written.
pub fn seed(name: &str, bytes: &[u8]) {
    if let Some(corpus) = std::env::var_os("CIRCUITLAB_FUZZ_SEEDS") {
        fs::create_dir_all(&corpus).expect("a folder");
        fs::write(Path::new(&corpus).join(name), bytes).expect("room for it");
    }
}

/// The repository's top folder.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A small cache in [`folder`], made by the bundled model with this codec.
///
/// # Panics
/// When it cannot be made.
pub fn cache(name: &str, codec: &str) -> PathBuf {
    use circuitlab::cache::{CacheConfig, CacheJob, JobShare, build};
    use circuitlab_core::ModelSource;
    let model = repository().join("examples/shakespeare/model");
    let opened = circuitlab::model::open(registry(), &ModelSource::new(&model)).expect("the bundled model");
    let presets = serde_json::to_value(CacheConfig::default()).expect("plain data");
    let sets = [format!("codec={codec}"), "context=16".to_owned(), "min_tokens=2".to_owned()];
    let config = circuitlab::config::resolve(None, &sets, presets).expect("right settings");
    let (text, out) = ([put("text.txt", b"To be, or not to be: that is the question.")], folder().join(name));
    let job = CacheJob {
        registry: registry(),
        model: opened.as_ref(),
        tokenizer: &model,
        text: &text,
        out: &out,
        config: &config,
        share: JobShare::new(1, 1).expect("the whole"),
        resume: false,
    };
    build(&job, &circuitlab::Silent).expect("a cache");
    out.join("part-001-of-001")
}

/// A manifest's text with the checksum that ends it.
pub fn sealed(text: &str) -> String {
    let open = text.strip_suffix('}').unwrap_or(text);
    format!("{open},\"checksum\":\"{}\"}}\n", circuitlab::text::sha256(open.as_bytes()))
}
