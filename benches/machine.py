"""What the machine is, and how much memory a program takes on it."""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path


def cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def first_line(path, beginning=""):
    """The rest of the first line that begins so; nothing where there is none."""
    try:
        with open(path) as file:
            return next((line[len(beginning):].strip(" \t:\n") for line in file if line.startswith(beginning)), "")
    except OSError:
        return ""


def printed(command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def describe(program):
    """Facts that the figures depend on."""
    # In a process of its own, so that this one stays small beside what it measures.
    torch = printed([sys.executable, "-c", "import torch; print(torch.__version__, torch.backends.cpu.get_cpu_capability())"])
    here = Path(__file__).resolve().parent
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    processor = first_line("/proc/cpuinfo", "model name") or printed(["sysctl", "-n", "machdep.cpu.brand_string"]) or platform.machine()
    return {
        "processor": f"{processor}, {cores()} cores, {memory:.0f} GB of memory",
        "system": f"{platform.system()} {platform.release()}",
        "huge pages": first_line("/sys/kernel/mm/transparent_hugepage/enabled") or "unknown",
        "THP_MEM_ALLOC_ENABLE": os.environ.get("THP_MEM_ALLOC_ENABLE", "not set"),
        "load when it began": "{:.2f}, {:.2f}, {:.2f} (1, 5, 15 minutes)".format(*os.getloadavg()),
        "PyTorch and its vector instructions": torch,
        "circuitlab": printed([program, "--version"]) or "unknown",
        "revision of this folder": printed(["git", "-C", here, "describe", "--always", "--dirty"]) or "unknown",
        "time": time.strftime("%Y-%m-%d %H:%M"),
    }


def peak_of(command):
    """The largest `own` (pages of no file: heap, stack, tensors) and `resident` bytes of a program; nothing on systems without /proc.

    The kernel keeps the largest resident size (VmHWM). It keeps none of its own pages (RssAnon), so these are looked at every millisecond.
    """
    if not Path("/proc/self/status").exists():
        return {}
    peaks = {"own": 0, "resident": 0}
    with subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                break
            fields = dict(line.split(":", 1) for line in status.splitlines() if line.startswith(("RssAnon", "VmHWM")))
            for name, key in (("own", "RssAnon"), ("resident", "VmHWM")):
                # A process that is ending has neither.
                peaks[name] = max(peaks[name], 1024 * int(fields.get(key, "0").split()[0]))
            time.sleep(0.001)
    if process.returncode:
        raise OSError(f"`{' '.join(map(str, command))}` failed ({process.returncode})")
    return peaks
