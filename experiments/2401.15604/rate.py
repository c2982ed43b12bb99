"""The excess risk of score estimation by the number of points: at the best time, at the time of the held-out loss, at the end.

Two Gaussians on a line at one noise level. The denoised mean is learned by the gradient flow of a very wide network of one hidden
layer, in closed form (its neural tangent kernel), from clean points as labels of noised ones. The excess risk is the mean square
distance to the exact denoised mean over fresh points; the error of the score is a fixed multiple of it.
"""

from __future__ import annotations

import numpy as np
from problem import path_of, score_factor

from scorelab import viz
from scorelab.run.figure import Claim, Figure

FIGURE = Figure(
    __doc__,
    answers="",
    claims="Labels are noisy: gradient descent that is stopped early estimates the score ever better from more points, and one "
    "that interpolates does not.",
    look_for="The risk at the best time falls with a power of n; the risk at the end stays where the label noise is.",
    minutes=dict(small=1, full=None, gpu=None),
    options=dict(seeds=20, most=3200, held=4000),
    small=dict(seeds=8, most=800, held=2000),
)

TIMES = np.concatenate([np.geomspace(1e-2, 1e4, 121), [1e12]])


def measure(n: int, seed: int, held: int) -> dict:
    """Risks of one draw: at the best time, at the one that half of the held-out points choose, and at the end."""
    path = path_of(n, seed, held, TIMES)
    risk, chosen = path["risk"], int(np.argmin(path["held_out"]))
    best = int(np.argmin(risk))
    return dict(
        best=float(risk[best]), time=float(TIMES[best]), chosen=float(risk[chosen]), end=float(risk[-1]),
        train=float(path["train"][-1]), label_noise=path["label_noise"],
    )  # fmt: skip


def main(record) -> None:
    o = record.options
    sizes = [n for n in (50, 100, 200, 400, 800, 1600, 3200) if n <= o.most]
    found = record.cells(measure, {f"n {n}, seed {seed}": (n, seed, o.held) for n in sizes for seed in range(o.seeds)})
    of = lambda what: np.array([[found[f"n {n}, seed {seed}"][what] for seed in range(o.seeds)] for n in sizes])
    best, chosen, end, noise, time = of("best"), of("chosen"), of("end"), of("label_noise"), of("time")
    # One line through all sizes for each seed.
    slope = lambda risk: np.polyfit(np.log(sizes), np.log(risk), 1)[0]
    slopes, of_end, of_time = slope(best), slope(end), slope(time)
    spread = lambda values: float(values.std(ddof=1))
    print(f"train MSE at the end at most {of('train').max():.2g}, score error {score_factor():.3f} times that of the denoised mean")
    ratio = chosen / best
    share = end[-1] / noise[-1]
    claims = [
        Claim(
            says="With early stopping the error of the score falls with the number of samples.", value=float(slopes.mean()),
            spread=spread(slopes), unit=f"is the slope of the risk at the best time in n, from {sizes[0]} to {sizes[-1]}",
            verdict="reproduced" if slopes.mean() < min(-0.3, -3 * spread(slopes) / np.sqrt(o.seeds)) else "not reproduced",
            why=f"A line through the logarithms for each of {o.seeds} seeds. The best time grows with the slope "
            f"{of_time.mean():.2f}. At the end the slope is {of_end.mean():.2f}.",
        ),
        Claim(
            says="A network that interpolates learns the label noise.", value=float(share.mean()), spread=spread(share),
            unit=f"of the label noise is the risk at the end for n = {sizes[-1]}",
            verdict="reproduced" if share.mean() > 0.5 and of_end.mean() > -0.1 else "not reproduced",
            why=f"{end.mean(1)[-1]:.3f} of {noise.mean(1)[-1]:.3f}, against {best.mean(1)[-1]:.4f} at the best time.",
        ),
        Claim(
            says="Held-out denoising loss can stop it (our question).", value=float(ratio[-1].mean()), spread=spread(ratio[-1]),
            unit=f"times the best risk at the time that {o.held // 2} held-out labels choose, n = {sizes[-1]}",
            verdict="reproduced" if ratio[-1].mean() < 2 else "not reproduced",
            why=f"By size: {', '.join(f'{n}: {r:.2f}' for n, r in zip(sizes, ratio.mean(1), strict=True))}. Twice is allowed.",
        ),
    ]  # fmt: skip
    series = {
        "best time": (np.array(sizes), best), "time of the held-out loss": (np.array(sizes), chosen),
        "end of the flow": (np.array(sizes), end), "label noise": (np.array(sizes), noise.mean(1)),
    }  # fmt: skip
    figure = viz.lines(
        series, reference=("label noise",), xlabel="number of points", ylabel="excess risk of the denoised mean", logx=True,
        logy=True, markers=True, mean=True,
    )  # fmt: skip
    numbers = dict(
        sizes=sizes, best=best, chosen=chosen, end=end, label_noise=noise, time=time, slope=slopes, slope_at_the_end=of_end
    )
    record.write(numbers, claims=claims, rate=figure)


if __name__ == "__main__":
    FIGURE.make(main)
