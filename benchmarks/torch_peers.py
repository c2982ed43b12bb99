"""scorelab's samplers beside diffusers and k-diffusion: the same weights, grid and start noise, on the CPU.

    python -m benchmarks.run --only peers.torch

Needs ``pip install '.[peers]'``, ``pip install --no-deps k-diffusion==0.1.1.post1`` and Linux, for the pinning.
The networks of the table are rewritten here in torch, as torch runs them fastest (channels last, fused
multiply-adds, activations in place, ``inference_mode``), and given the Flax parameters. Before anything is timed,
the outputs of the two networks and the samples of every compared pair must agree.

What is timed is one call that draws samples, as a user makes it: the start noise, the grid and the steps. The
torch side is eager, as both libraries are by default, and once more compiled by torch. Each pass runs in a process
of its own, pinned to as many cores as it may have threads before JAX and torch start theirs, since XLA sizes its
thread pool by the cores it is allowed: first one core, where the ratio of CPU seconds is the figure to read, then
two, where it is wall seconds. scorelab makes a device of each core, as the command line does by default.
Thread pools spin for a while after they have worked, hence a short pause before every call.

Every line says how many cores other programs kept busy meanwhile. Wall seconds with two threads mean little
unless that is near zero: where one of torch's two threads loses its core, the other waits for it after every
operation, and a call can take ten times as long.
"""

import argparse
import contextlib
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax.traverse_util import flatten_dict
from torch import nn

import scorelab as sl
from benchmarks.common import EDM, interleaved, model_of

THREADS = (1, 2)
PAUSE = 0.02
OUTPUT_TOLERANCE, SAMPLE_TOLERANCE = 1e-5, 1e-4

# solver -> (scorelab, function of k_diffusion.sampling, scheduler of diffusers)
SOLVERS = {
    "Euler": (sl.solvers.ProbabilityFlowEuler(), "sample_euler", "EDMEulerScheduler"),
    "Heun": (sl.solvers.Heun(), "sample_heun", None),
    "DPM-Solver++ 2M": (sl.solvers.DPMSolverPP(order=2), "sample_dpmpp_2m", "EDMDPMSolverMultistepScheduler"),
}


# ------------------------------------------------------------------------------------- the networks, in torch
# Submodules have the names of the Flax modules ("in", a keyword, is "first"): one rule copies them all.


def modulate(h, film):
    """(1 + scale) h + shift, the two halves of ``film`` (batch, 2 channels) on axis 1 of h."""
    scale, shift = film.reshape(*film.shape, *[1] * (h.ndim - 2)).chunk(2, 1)
    return torch.addcmul(shift, h, 1.0 + scale)


class Embedding(nn.Module):
    """``layers.Embedding`` without labels."""

    def __init__(self, width):
        super().__init__()
        features = 2 * max(8, width // 4)
        frequencies = torch.from_numpy(np.geomspace(0.25, 64.0, features // 2).astype(np.float32))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.hidden, self.out = nn.Linear(features, width), nn.Linear(width, width)

    def forward(self, c_noise):
        angles = c_noise[:, None] * self.frequencies
        return F.silu(self.out(F.silu(self.hidden(torch.cat([angles.cos(), angles.sin()], -1)))))


class Layer(nn.Module):
    """``mlp.Layer``."""

    def __init__(self, width, embed):
        super().__init__()
        self.film, self.dense = nn.Linear(embed, 2 * width), nn.Linear(width, width)

    def forward(self, h, emb):
        u = modulate(F.layer_norm(h, h.shape[1:], eps=1e-6), self.film(emb))
        return self.dense(F.silu(u, inplace=True)).add_(h)


class MLP(nn.Module):
    """``mlp.MLP``."""

    def __init__(self, net, event):
        super().__init__()
        self.embedding = Embedding(net.embed)
        self.first, self.out = nn.Linear(*event, net.width), nn.Linear(net.width, *event)
        for i in range(net.depth):
            self.add_module(f"layer{i}", Layer(net.width, net.embed))
        self.layers = [getattr(self, f"layer{i}") for i in range(net.depth)]

    def forward(self, x, c_noise):
        emb = self.embedding(c_noise)
        h = self.first(x)
        for layer in self.layers:
            h = layer(h, emb)
        return self.out(F.silu(h))


class Conv(nn.Conv2d):
    """SAME convolution: at stride 2 an even size is padded at the end only."""

    def __init__(self, channels, features, kernel=3, stride=1):
        super().__init__(channels, features, kernel, stride, padding=kernel // 2 if stride == 1 else 0)

    def forward(self, x):
        if self.stride == (2, 2):
            height, width = x.shape[2:]
            x = F.pad(x, (width % 2, 1, height % 2, 1))
        return super().forward(x)


def group_norm(channels):
    return nn.GroupNorm(sl.models.nets.layers.group_count(channels), channels, eps=1e-5)


class ResBlock(nn.Module):
    """``unet.ResBlock``."""

    def __init__(self, channels, features, embed):
        super().__init__()
        self.film = nn.Linear(embed, 2 * features)
        self.norm1, self.conv1 = group_norm(channels), Conv(channels, features)
        self.norm2, self.conv2 = group_norm(features), Conv(features, features)
        self.skip = Conv(channels, features, kernel=1) if channels != features else nn.Identity()

    def forward(self, x, emb):
        h = self.conv1(F.silu(self.norm1(x), inplace=True))
        h = modulate(self.norm2(h), self.film(emb))
        return self.conv2(F.silu(h, inplace=True)).add_(self.skip(x))


class UNet(nn.Module):
    """``unet.UNet`` with one block a level and no attention, for sizes that halve exactly."""

    def __init__(self, net, event):
        super().__init__()
        if net.blocks != 1 or any(net.attention) or event[0] % 2 ** (len(net.channels) - 1):
            raise ValueError(f"{net} on {event}: expected one block, no attention and sizes that halve")
        widths, embed = net.channels, 4 * net.channels[0]
        self.levels = len(widths)
        self.embedding = Embedding(embed)
        self.first = Conv(event[-1], widths[0])
        skips, h = [widths[0]], widths[0]
        for i, width in enumerate(widths):
            if i:
                self.add_module(f"down{i}", Conv(h, width, stride=2))
                skips.append(width)
            self.add_module(f"down{i}_0", ResBlock(width if i else h, width, embed))
            skips.append(h := width)
        self.middle_0, self.middle_1 = ResBlock(h, h, embed), ResBlock(h, h, embed)
        for i, width in reversed(list(enumerate(widths))):
            if i < self.levels - 1:
                self.add_module(f"up{i}", Conv(h, width))
                h = width
            for j in range(2):
                self.add_module(f"up{i}_{j}", ResBlock(h + skips.pop(), width, embed))
                h = width
        self.norm, self.out = group_norm(h), Conv(h, event[-1])

    def forward(self, x, c_noise):
        part, emb = self._modules, self.embedding(c_noise)
        skips = [h := self.first(x)]
        for i in range(self.levels):
            if i:
                skips.append(h := part[f"down{i}"](h))
            skips.append(h := part[f"down{i}_0"](h, emb))
        h = self.middle_1(self.middle_0(h, emb), emb)
        for i in reversed(range(self.levels)):
            if i < self.levels - 1:
                h = part[f"up{i}"](F.interpolate(h, scale_factor=2, mode="nearest"))
            for j in range(2):
                h = part[f"up{i}_{j}"](torch.cat([h, skips.pop()], 1), emb)
        return self.out(F.silu(self.norm(h), inplace=True))


def torch_name(path):
    """The torch name of a Flax parameter."""
    *modules, leaf = path
    return ".".join([*("first" if m == "in" else m for m in modules), "bias" if leaf == "bias" else "weight"])


def torch_weight(leaf):
    """A Flax parameter in torch's layout: (in, out) -> (out, in), (h, w, in, out) -> (out, in, h, w)."""
    axes = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}[leaf.ndim]
    return torch.tensor(np.asarray(leaf).transpose(axes).copy())


def torch_network(model, event):
    """The torch network with the parameters of ``model``, all of them: loading is strict."""
    net = model.denoiser.net
    peer = {"MLP": MLP, "UNet": UNet}[type(net).__name__](net, event)
    flat = flatten_dict(model.params["params"])
    peer.load_state_dict({torch_name(path): torch_weight(leaf) for path, leaf in flat.items()})
    return peer.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def to_torch(y):
    """A channel-last JAX batch as torch wants it."""
    y = torch.tensor(np.array(y))
    return y.movedim(-1, 1).contiguous(memory_format=torch.channels_last) if y.ndim == 4 else y


def to_numpy(y):
    return (y.movedim(1, -1) if y.ndim == 4 else y).numpy()


# ---------------------------------------------------------------------------------------------- the samplers
# All take unit start noise, in their own layout, or None to draw it.


def scorelab_sampler(model, process, solver, grid, shape):
    """``run(noise)``: scorelab's sample()."""
    first = float(grid.times(process)[0])

    def run(noise=None):
        start = sl.starts.Prior() if noise is None else sl.starts.Fixed(first * noise)
        arguments = dict(solver=solver, grid=grid, key=jax.random.key(3), shape=shape, start=start, mesh="auto")
        return jax.block_until_ready(sl.sample(model, **arguments).x)

    return run


def draw(noise, shape):
    """The noise, or a new batch of it."""
    if noise is not None:
        return noise
    if len(shape) == 2:
        return torch.randn(shape)
    batch, height, width, channels = shape
    return torch.randn(batch, channels, height, width).contiguous(memory_format=torch.channels_last)


def edm_denoiser(net, std):
    """The EDM preconditioning of the network, called as k-diffusion does: x, sigma (batch,) -> D."""

    def denoise(x, sigma):
        s = sigma.reshape(-1, *[1] * (x.ndim - 1))
        root = (s**2 + std**2).sqrt()
        return x * (std / root) ** 2 + net(x / root, sigma.log() / 4) * (s * std / root)

    return denoise


@functools.cache
def k_diffusion_sampling():
    """``k_diffusion.sampling`` without the training code that ``k_diffusion`` imports."""
    sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "references"))
    from make import import_k_diffusion_sampling

    return import_k_diffusion_sampling()


def k_diffusion_sampler(net, std, function, times, shape):
    """``run(noise)``: a function of ``k_diffusion.sampling``."""
    sampling, denoise = k_diffusion_sampling(), edm_denoiser(net, std)

    @torch.inference_mode()
    def run(noise=None):
        sigmas = sampling.get_sigmas_karras(len(times) - 1, times[-2], times[0], rho=7.0)
        return getattr(sampling, function)(denoise, times[0] * draw(noise, shape), sigmas, disable=True)

    return run


def diffusers_sampler(net, std, name, times, shape):
    """``run(noise)``: the loop of a diffusers pipeline around one of its EDM schedulers."""
    import diffusers

    scheduler = getattr(diffusers, name)(sigma_min=times[-2], sigma_max=times[0], sigma_data=std, rho=7.0)

    @torch.inference_mode()
    def run(noise=None):
        scheduler.set_timesteps(len(times) - 1)
        x = times[0] * draw(noise, shape)
        for t in scheduler.timesteps:
            output = net(scheduler.scale_model_input(x, t), t.expand(len(x)))
            x = scheduler.step(output, t, x, return_dict=False)[0]
        return x

    return run


# ------------------------------------------------------------------------------------------------ agreement


def relative(a, b):
    return float(np.abs(a - b).max() / np.abs(b).max())


@torch.inference_mode()
def output_difference(model, peer, shape):
    """Largest relative difference of the two networks' outputs over noise levels."""
    differences = []
    for i, sigma in enumerate(np.geomspace(80, 0.002, 7)):
        x = jax.random.normal(jax.random.key(i), shape)
        c_noise = jnp.full(len(x), np.log(sigma) / 4, jnp.float32)
        ours = jax.jit(model.denoiser.net.apply)(model.params, x, c_noise)
        differences.append(relative(to_numpy(peer(to_torch(x), to_torch(c_noise))), np.asarray(ours)))
    return max(differences)


def sample_differences(functions, shape):
    """Relative difference of each peer's samples from scorelab's, from one start noise."""
    noise = jax.random.normal(jax.random.key(2), shape)
    ours = np.asarray(functions["scorelab"](noise))
    theirs = {name: fn(to_torch(noise)) for name, fn in functions.items() if name != "scorelab"}
    return {name: relative(to_numpy(y), ours) for name, y in theirs.items()}


def require(differences, tolerance, what):
    for name, value in differences.items():
        if not value <= tolerance:
            raise AssertionError(f"{what}: {name} differs by {value:.1e}, more than {tolerance:.0e}")


# -------------------------------------------------------------------------------------------------- timing


def others_seconds():
    """CPU seconds of the machine, so far, that are not this process's."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    ticks = user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK") - time.process_time()


def samplers(model, process, peer, compiled, solver, grid, shape):
    ours, function, scheduler = SOLVERS[solver]
    std, times = model.denoiser.data_std, grid.times(process).tolist()
    functions = {
        "scorelab": scorelab_sampler(model, process, ours, grid, shape),
        "k-diffusion": k_diffusion_sampler(peer, std, function, times, shape),
        "k-diffusion, compiled": k_diffusion_sampler(compiled, std, function, times, shape),
    }
    if scheduler is not None:
        functions["diffusers"] = diffusers_sampler(peer, std, scheduler, times, shape)
    return functions


def compare(name, threads, rounds):
    """One network: check, then time every solver in every library."""
    model, event, batch, steps = model_of(name)
    grid, shape = sl.grids.Karras(steps), (batch, *event)
    peer = torch_network(model, event)
    # By torch's own compiler, which is not the default of either library.
    compiled = torch.compile(peer, dynamic=False)
    outputs = output_difference(model, peer, shape)
    require({"the torch network": outputs}, OUTPUT_TOLERANCE, f"output of {name}")
    results = []
    for solver in SOLVERS:
        functions = samplers(model, EDM, peer, compiled, solver, grid, shape)
        differences = sample_differences(functions, shape)
        require(differences, SAMPLE_TOLERANCE, f"samples of {name}, {solver}")
        for row in timed(functions, rounds):
            row |= dict(samples_differ=differences[row["peer"]], networks_differ=outputs)
            results.append(dict(net=name, solver=solver, threads=threads) | row)
    return results


def timed(functions, rounds):
    """Time the functions; one row for each peer of scorelab."""
    start, others = time.perf_counter(), others_seconds()
    wall, cpu = interleaved(functions, rounds, PAUSE)
    others = max(0.0, others_seconds() - others) / (time.perf_counter() - start)
    for peer in list(functions)[1:]:
        pair = lambda table, peer=peer: np.quantile(np.divide(table["scorelab"], table[peer]), [0.25, 0.5, 0.75]).tolist()
        seconds = dict(scorelab_s=statistics.median(wall["scorelab"]), peer_s=statistics.median(wall[peer]))
        yield dict(peer=peer, cpu=pair(cpu), wall=pair(wall), other_cores=others) | seconds


@contextlib.contextmanager
def pinned(cores):
    """Programs started within the block may use these cores only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def against_peers(rounds):
    """Every comparison: for 1 and 2 threads a pass in a process of its own; one dict per comparison."""
    results, cores = [], sorted(os.sched_getaffinity(0))
    for threads in THREADS:
        if threads > len(cores):
            print(f"threads {threads}: left out, {len(cores)} core(s) allowed")
            continue
        with tempfile.NamedTemporaryFile("r", suffix=".json") as file, pinned(cores[:threads]):
            options = ["--threads", str(threads), "--rounds", str(rounds), "--out", file.name]
            subprocess.run([sys.executable, "-m", "benchmarks.torch_peers", *options], check=True)
            results += json.load(file)
    return results


def main():
    """One pass; ``against_peers`` starts it pinned."""
    parser = argparse.ArgumentParser(description="One pass of against_peers().")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sl.use_all_cores(options.threads)
    results = [row for name in ("MLP", "UNet") for row in compare(name, options.threads, options.rounds)]
    Path(options.out).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
