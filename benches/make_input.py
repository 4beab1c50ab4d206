#!/usr/bin/env python3
"""Writes an input of `circuitlab bench step` and of benches/dense_reference.py: a CLT in the regime of a trained one, and a batch.

    benches/make_input.py OUT.safetensors [--layers 6] [--d-model 256] [--d-features 4096] [--batch 512] [--active 32] [--seed 1]

Inputs x and targets y are drawn from a normal distribution. An encoder's columns are uniform with variance 1 / d_model, so that
pre-activations spread by one around their bias. Each bias is set so that its feature fires on a given number of the rows, with the
threshold midway between the last row that fires and the first that does not, out of rounding's reach. These numbers differ by at
most one from feature to feature, and a row has exactly `--active` active features in each layer on average.

A file that is there and was made with the same settings is left as it is.
"""

import argparse
import os
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

# To be raised with each change of what is written.
RECIPE = "1"
THRESHOLD = 0.03
SCALARS = {"lambda": 2e-3, "mu": 3e-6, "bandwidth": 1.0, "lr": 1e-4}


def uniform(shape, limit, generator):
    return torch.empty(shape).uniform_(-limit, limit, generator=generator)


def rows_that_fire(options):
    """How many of the rows each feature fires on: [d_features]."""
    total = options.batch * options.active
    ends = torch.arange(options.d_features + 1) * total // options.d_features
    return ends.diff()


def biases(pre_acts, counts):
    """What moves feature f's `counts[f]` largest pre-activations, and no others, above the threshold."""
    ordered = pre_acts.sort(dim=0, descending=True).values
    # Rows above all and below all, for features that never or always fire.
    ordered = torch.cat([ordered[:1] + 1, ordered, ordered[-1:] - 1])
    last, next_one = ordered.gather(0, counts[None]), ordered.gather(0, counts[None] + 1)
    return THRESHOLD - (last + next_one).squeeze(0) / 2


def made(options):
    layers, d_model, d_features, batch = options.layers, options.d_model, options.d_features, options.batch
    generator = torch.Generator().manual_seed(options.seed)
    tensors = {name: torch.randn(batch, layers, d_model, generator=generator) for name in ("x.0", "y.0")}
    encoder = uniform((layers, d_model, d_features), (3 / d_model) ** 0.5, generator)
    counts = rows_that_fire(options)
    tensors["init.W_enc"] = encoder
    tensors["init.b_enc"] = torch.stack([biases(tensors["x.0"][:, layer] @ encoder[layer], counts) for layer in range(layers)])
    tensors["init.log_threshold"] = torch.full((layers, d_features), THRESHOLD).log()
    tensors["init.b_dec"] = torch.zeros(layers, d_model)
    for layer in range(layers):
        tensors[f"init.W_dec.{layer}"] = uniform((layers - layer, d_features, d_model), (layers * d_model) ** -0.5, generator)
    return tensors | {name: torch.tensor(value) for name, value in SCALARS.items()}


def settings_of(path):
    """What a file was made with; nothing where it is none of ours, or cut off."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata()
    except (OSError, SafetensorError):
        return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT.safetensors")
    for flag, default in (("layers", 6), ("d-model", 256), ("d-features", 4096), ("batch", 512), ("active", 32), ("seed", 1)):
        parser.add_argument(f"--{flag}", type=int, default=default, metavar="COUNT")
    options = parser.parse_args()
    if not 0 <= options.active <= options.d_features or min(options.layers, options.d_model, options.d_features, options.batch) < 1:
        sys.exit("make_input: expected sizes of at least 1, and --active of at most --d-features")
    settings = {name: str(value) for name, value in vars(options).items() if name != "out"} | {"recipe": RECIPE}
    if settings_of(options.out) == settings:
        return
    part = options.out.with_name(f"{options.out.name}.part.{os.getpid()}")
    try:
        save_file(made(options), part, metadata=settings)
        part.replace(options.out)
    finally:
        part.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
