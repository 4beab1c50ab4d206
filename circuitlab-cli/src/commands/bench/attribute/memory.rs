//! How much memory the process has, as Linux tells it.

/// Forgets the most that the process has had, and gives what it has now, in bytes; nothing where the system does not tell.
pub(super) fn reset() -> Option<u64> {
    // 5 stands for the most that was resident.
    #[allow(clippy::disallowed_methods, reason = "the kernel's own file is neither replaced nor kept")]
    std::fs::write("/proc/self/clear_refs", "5").ok()?;
    of("VmRSS:")
}

/// The most that the process has had since, in bytes.
pub(super) fn peak() -> Option<u64> {
    of("VmHWM:")
}

fn of(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(key))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}
