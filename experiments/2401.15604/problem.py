"""One noise level of two Gaussians on a line: clean points, their noised ones, and what is known of both in closed form."""

from __future__ import annotations

import math

import jax
import numpy as np

import scorelab as sl

LAW = sl.densities.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], 0.04)
PROCESS = sl.processes.Gaussian(schedule=sl.schedules.VPLinear())
# That of the Ornstein-Uhlenbeck process dx = -x dt + sqrt(2) dW at t = 1/2.
RATIO = math.sqrt(math.e - 1)
TIME = float(PROCESS.schedule.time(-2 * math.log(RATIO)))


def drawn(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noised points, their clean ones, which are the labels, and the denoised means, which the labels are noisy values of."""
    keys = jax.random.split(jax.random.key(seed))
    clean = LAW.sample(keys[0], n)
    noised = PROCESS.noised(jax.random.normal(keys[1], clean.shape), clean, TIME).y
    return np.asarray(noised), np.asarray(clean), np.asarray(LAW.denoise(PROCESS, noised, TIME))


def score_factor() -> float:
    """The squared error of the score for one of the denoised mean, alpha^2 / sigma^4."""
    return float(PROCESS.alpha(TIME)) ** 2 / float(PROCESS.sigma(TIME)) ** 4


def path_of(n: int, seed: int, held: int, times: np.ndarray) -> dict:
    """The excess risk of the kernel over the time of the flow, and the loss of held-out labels by which it can be stopped."""
    x, y, exact = drawn(n, 2 * seed)
    x_held, y_held, exact_held = drawn(held, 2 * seed + 1)
    path = sl.diagnostics.kernel_path(sl.diagnostics.relu_ntk(x), y, sl.diagnostics.relu_ntk(x_held, x), times)
    # Half of the held-out points choose the time, and the other half measure.
    half = held // 2
    error = np.mean((path.values - exact_held) ** 2, axis=-1)
    return dict(
        risk=error[:, half:].mean(axis=1),
        held_out=np.mean((path.values[:, :half] - y_held[:half]) ** 2, axis=(1, 2)),
        train=path.train_mse,
        label_noise=float(np.mean((y - exact) ** 2)),
    )
