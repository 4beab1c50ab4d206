#!/usr/bin/env python3
"""The training step that `circuitlab bench step` takes, in dense PyTorch: every tensor whole, every gradient by autograd.

    benches/dense_reference.py IN.safetensors [--steps 5] [--threads 1] [--json]

With B rows, L layers, D = d_model and F features of a layer, IN holds

    init.W_enc [L, D, F]   init.b_enc, init.log_threshold [L, F]   init.W_dec.{s} [L - s, F, D]   init.b_dec [L, D]
    x.0, y.0 [B, L, D]     the scalars lambda, mu, bandwidth and lr

and a step is

    h_s     = x_s W_enc_s + b_enc_s            theta = exp(log_threshold)      a = h where h > theta, else 0
    y_hat_t = b_dec_t + sum over s <= t of a_s W_dec.{s}[t - s]                norm_f = norm of all decoder rows of the feature
    loss    = mean over rows of  |y - y_hat|^2  +  lambda sum_f tanh(4 a_f norm_f)  +  mu sum_f relu(theta_f - h_f) norm_f
    theta's gradient through a is that of a rectangle of width `bandwidth`: -theta / bandwidth where |h - theta| < bandwidth / 2
    then the gradient is clipped to norm 1, and Adam (0.9, 0.999, 1e-8) takes it.

Where a line could be written in several ways, the plainest stands. Prints a line for each step (one more than `--steps`, the
first is not counted), then the median; l0 is over all layers together.
"""

import argparse
import json
import time

import torch
from safetensors.torch import load_file

TANH_SCALE = 4.0


class JumpReLU(torch.autograd.Function):
    """`pre_acts` [B, L, F] above `theta` [L, F]."""

    @staticmethod
    def forward(context, pre_acts, theta, bandwidth):
        context.save_for_backward(pre_acts, theta)
        context.bandwidth = bandwidth
        return torch.where(pre_acts > theta, pre_acts, 0.0)

    @staticmethod
    def backward(context, grad):
        pre_acts, theta = context.saved_tensors
        window = (pre_acts - theta).abs() < context.bandwidth / 2
        to_theta = -(theta / context.bandwidth) * torch.where(window, grad, 0.0).sum(0)
        return torch.where(pre_acts > theta, grad, 0.0), to_theta, None


class Step:
    """Parameters, optimiser and the one batch of an input."""

    def __init__(self, path):
        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
        self.inputs, self.targets = tensors["x.0"], tensors["y.0"]
        self.sparsity_weight, self.preact_weight, self.bandwidth = (tensors[name].item() for name in ("lambda", "mu", "bandwidth"))
        self.params = {name[5:]: tensor.requires_grad_() for name, tensor in tensors.items() if name.startswith("init.")}
        self.layers = self.inputs.shape[1]
        self.decoders = [self.params[f"W_dec.{source}"] for source in range(self.layers)]
        self.adam = torch.optim.Adam(self.params.values(), lr=tensors["lr"].item(), betas=(0.9, 0.999), eps=1e-8)

    def reconstruct(self, acts):
        def target(layer):
            # A PLT has one decoder for each layer, a CLT one for each layer from its own on.
            sources = [source for source in range(layer + 1) if layer - source < len(self.decoders[source])]
            return sum((acts[:, source] @ self.decoders[source][layer - source] for source in sources), self.params["b_dec"][layer])

        return torch.stack([target(layer) for layer in range(self.layers)], dim=1)

    def losses(self):
        """The three terms, and features active in a row."""
        theta = self.params["log_threshold"].exp()
        pre_acts = torch.einsum("bld,ldf->blf", self.inputs, self.params["W_enc"]) + self.params["b_enc"]
        acts = JumpReLU.apply(pre_acts, theta, self.bandwidth)
        norms = torch.stack([decoder.square().sum(dim=(0, 2)).sqrt() for decoder in self.decoders])
        rows = len(self.inputs)
        mse = (self.reconstruct(acts) - self.targets).square().sum() / rows
        sparsity = self.sparsity_weight * torch.tanh(TANH_SCALE * acts * norms).sum() / rows
        preact = self.preact_weight * (torch.relu(theta - pre_acts) * norms).sum() / rows
        return mse, sparsity, preact, acts

    def take(self):
        began = time.perf_counter()
        mse, sparsity, preact, acts = self.losses()
        self.adam.zero_grad()
        (mse + sparsity + preact).backward()
        torch.nn.utils.clip_grad_norm_(self.params.values(), 1.0)
        self.adam.step()
        seconds = time.perf_counter() - began
        l0 = (acts > 0).sum().item() / len(acts)
        return {"mse": mse.item(), "sparsity": sparsity.item(), "preact": preact.item(), "l0": l0, "seconds": seconds}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", metavar="IN.safetensors")
    parser.add_argument("--steps", type=int, default=5, help="steps that count; one more comes first")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    step, taken = Step(options.input), []
    for index in range(options.steps + 1):
        taken.append(step.take())
        if not options.json:
            terms = "mse {mse:.6f} sparse {sparsity:.6f} preact {preact:.6f} l0 {l0:.3f} seconds {seconds:.4f}".format(**taken[-1])
            print(f"step {index} {terms}", flush=True)
    counted = sorted(row["seconds"] for row in taken[1:])
    median = counted[len(counted) // 2] if counted else float("nan")
    if options.json:
        print(json.dumps({"steps": taken, "median_seconds": median, "torch": torch.__version__}))
    else:
        print("median_seconds", median)


if __name__ == "__main__":
    main()
