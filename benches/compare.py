"""Runs the dense reference and `circuitlab bench step` in turns on the same inputs, and prints tables in markdown.

`scripts/bench-step` starts it with a Python that has PyTorch; benches/README.md says how each number is made.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from machine import cores, describe, peak_of
from tables import print_all

HERE = Path(__file__).resolve().parent


@dataclass
class Input:
    """What is measured on, and the runs on it."""

    name: str
    sizes: tuple  # layers, d_model, d_features, batch, active
    path: Path = None
    parameters: int = 0
    runs: dict = field(default_factory=lambda: {"reference": [], "circuitlab": [], "threaded": [], "dense": []})
    peaks: dict = field(default_factory=dict)

    @property
    def title(self):
        return "L{} D{} F{} B{}, {} active".format(*self.sizes)


INPUTS = {
    "f4096": (6, 256, 4096, 512, 32),
    "f16384": (6, 256, 16384, 512, 32),
    "d768": (12, 768, 6144, 512, 16),
    "active1000": (6, 256, 4096, 512, 1000),
}
QUICK = ["f4096", "active1000"]


class Failure(Exception):
    """One line for the user."""


def call(command):
    """What a program prints."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise Failure(f"`{' '.join(map(str, command))}` failed ({done.returncode}): {last}")
    return done.stdout


def call_json(command):
    """What a program prints with --json."""
    try:
        return json.loads(call(command))
    except json.JSONDecodeError as error:
        raise Failure(f"`{' '.join(map(str, command))}` printed no JSON: {error}") from error


def make(chosen, folder):
    """Writes the input, unless it is there; counts its parameters."""
    chosen.path = folder / f"{chosen.name}.safetensors"
    layers, d_model, d_features, batch, active = chosen.sizes
    numbers = layers * d_features * (d_model + 2 + d_model * (layers + 1) / 2) + layers * d_model
    missing = 4 * numbers - (chosen.path.stat().st_size if chosen.path.exists() else 0)
    if missing > shutil.disk_usage(folder).free:
        raise Failure(f"`{folder}` has no room for an input of {4e-9 * numbers:.1f} GB; choose another with --inputs")
    flags = {"layers": layers, "d-model": d_model, "d-features": d_features, "batch": batch, "active": active}
    call([sys.executable, HERE / "make_input.py", chosen.path, *(part for name, value in flags.items() for part in (f"--{name}", value))])
    chosen.parameters = int(numbers)


def commands(chosen, options):
    """Everything that a round measures, by the name under which its runs are kept."""
    ours = [options.program, "-q", "bench", "step", chosen.path, "--json", "--stages", "--steps", options.steps, "--threads"]
    reference = [sys.executable, HERE / "dense_reference.py", chosen.path, "--json", "--steps", options.steps, "--threads", options.threads]
    made = {"reference": reference, "circuitlab": [*ours, options.threads]}
    if cores() >= 2 * options.threads:
        made["threaded"] = [*ours, 2 * options.threads]
    if options.dense:
        made["dense"] = [*(part for part in ours if part != "--stages"), options.threads, "--dense"]
    return made


def measure(chosen, options, say):
    made = list(commands(chosen, options).items())
    for turn in range(options.rounds):
        start = turn % len(made)
        for name, command in made[start:] + made[:start]:
            say(f"{chosen.title}: round {turn + 1} of {options.rounds}, {name}")
            chosen.runs[name].append(call_json(command))
    say(f"{chosen.title}: memory")
    # Without what --stages measures beside the steps, which takes memory of its own.
    plain = ["--steps", 2, "--threads", options.threads]
    chosen.peaks["circuitlab"] = peak_of([options.program, "-q", "bench", "step", chosen.path, *plain])
    chosen.peaks["reference"] = peak_of([sys.executable, HERE / "dense_reference.py", chosen.path, "--steps", 1, "--threads", options.threads])


def arguments():
    parser = argparse.ArgumentParser(prog="bench-step", description="Measures the training step against the same step in dense PyTorch.")
    parser.add_argument("--program", required=True, help="the optimised `circuitlab`")
    parser.add_argument("--inputs", type=Path, required=True, metavar="FOLDER", help="where inputs are made, and found again (2.4 GB)")
    parser.add_argument("--only", action="append", choices=INPUTS, help="measure on this input; may be given again. Default: all")
    parser.add_argument("--threads", type=int, default=1, help="threads of both programs; the second run of circuitlab has twice as many")
    parser.add_argument("--dense", action="store_true", help="measure `circuitlab bench step --dense` too")
    parser.add_argument("--rounds", type=int, help="rounds, in each of which every program runs once. Default: 3")
    parser.add_argument("--steps", type=int, help="steps of a run that count; one more comes first. Default: 3")
    parser.add_argument("--quick", action="store_true", help="two small inputs, one round, two steps: does it work, not how fast is it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured there too")
    options = parser.parse_args()
    options.only = options.only or (QUICK if options.quick else list(INPUTS))
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.steps = options.steps or (2 if options.quick else 3)
    if min(options.rounds, options.steps, options.threads) < 1 or options.threads > cores():
        parser.error(f"expected at least 1 round, 1 step, and 1 to {cores()} threads on this machine")
    return options


def write_json(path, inputs):
    rows = [{"input": row.title, "parameters": row.parameters, "runs": row.runs, "peaks": row.peaks} for row in inputs]
    with tempfile.NamedTemporaryFile("w", dir=path.resolve().parent, delete=False) as part:
        json.dump(rows, part, indent=1)
    os.replace(part.name, path)


def main():
    options = arguments()
    say = lambda text: print(f"bench-step: {text}", file=sys.stderr, flush=True)
    about, done, failed = describe(options.program), [], None
    try:
        options.inputs.mkdir(parents=True, exist_ok=True)
        for name in options.only:
            chosen = Input(name, INPUTS[name])
            say(f"{chosen.title}: input")
            make(chosen, options.inputs)
            measure(chosen, options, say)
            done.append(chosen)
    except (Failure, OSError, ValueError) as error:
        failed = error
    except KeyboardInterrupt:
        failed = "stopped"
    # What was measured before something failed is not lost.
    if done:
        print_all(done, options, about)
        if options.json:
            write_json(options.json, done)
    if failed:
        sys.exit(f"bench-step: {failed}")


if __name__ == "__main__":
    main()
