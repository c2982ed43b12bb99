"""The local dimension of handwritten digits by class, from the networks that come with the package.

The symmetrised Jacobian of the network at noised training images, and the slope of its density over the noise level at the clean
ones, over the noise ratio. Pixels are from -1 to 1. No truth is known: images have no edge in their spectra, so the number
belongs to a noise level, and what can be compared is classes and methods.
"""

from __future__ import annotations

import numpy as np

from scorelab import pretrained, viz
from scorelab.diagnostics import NoiseSlope, SymmetricJacobian, intrinsic_dimension
from scorelab.run.figure import Claim, Figure

FIGURE = Figure(
    __doc__,
    answers="",
    claims="Local intrinsic dimension can be read off models of images, and differs between classes of digits: ones are simplest.",
    look_for="Ones lie lowest, and eights highest, while the noise is below a third. Hardly any point has a clear gap, unlike on "
    "a manifold: the count falls smoothly with the noise.",
    minutes=dict(small=1, full=None, gpu=None),
    options=dict(data=("digits", "mnist"), each=50),
    small=dict(each=12),
)

# The claims are about the third of them.
SIGMAS = np.array([0.1, 0.15, 0.25, 0.4, 0.7, 1.2, 2.0])
AT = 2
# Of the slope of MNIST, whose exact divergence takes 784 products.
PROBES = {"digits": 0, "mnist": 64}


def measure(options) -> dict:
    """Dimensions by method and class, ``(classes, levels, each)``, and the share of clear points by level."""
    who = pretrained.load(f"{options.data}-edm")
    arrays = who.data()
    rng = np.random.default_rng(0)
    chosen = np.concatenate([rng.choice(np.flatnonzero(arrays.label == c), options.each, replace=False) for c in range(10)])
    x = np.asarray(who.transform.encode(arrays.x[chosen]))
    found = {}
    for name, method in (("symmetric", SymmetricJacobian()), ("slope", NoiseSlope(probes=PROBES[options.data]))):
        out = intrinsic_dimension(who.model, x, SIGMAS, method=method)
        by_class = out.dimension.reshape(len(SIGMAS), 10, options.each).transpose(1, 0, 2)
        found[name] = dict(dimension=by_class, clear=out.clear.mean(axis=1))
    return dict(sigmas=SIGMAS, found=found)


def figure_of(numbers):
    """Means of the classes over the noise ratio."""
    content = [
        viz.Panel(
            series={f"class {c}": (numbers["sigmas"], np.asarray(each["dimension"])[c].mean(-1)) for c in range(10)},
            title=name, xlabel="noise ratio", ylabel="dimension, mean of the class", logx=True, markers=True,
        )
        for name, each in numbers["found"].items()
    ]  # fmt: skip
    return viz.panels(content, columns=2, width=9.0, height=3.2)


def claims(numbers, each) -> list[Claim]:
    """At one noise ratio; spreads are over images."""
    of = {name: np.asarray(found["dimension"])[:, AT] for name, found in numbers["found"].items()}
    means = {name: value.mean(1) for name, value in of.items()}
    one, others = of["symmetric"][1], np.delete(means["symmetric"], 1)
    lowest = {name: int(value.argmin()) for name, value in means.items()}
    second = np.delete(of["symmetric"], 1, axis=0)[others.argmin()]
    error = np.hypot(one.std(ddof=1), second.std(ddof=1)) / np.sqrt(each)
    apart = one.mean() + 2 * error < others.min()
    clear = float(np.asarray(numbers["found"]["symmetric"]["clear"])[AT])
    together = float(np.corrcoef(means["symmetric"], means["slope"])[0, 1])
    return [
        Claim(
            says="Ones have the lowest dimension.", value=one.mean(), spread=one.std(ddof=1),
            unit=f"dimensions of ones, {others.min():.1f} of the lowest other class",
            verdict="reproduced" if apart else "in shape" if 1 in lowest.values() else "not reproduced",
            why=f"Symmetric Jacobian at the noise ratio {SIGMAS[AT]}; two standard errors of the difference, "
            f"{2 * error:.1f}, are asked for. The lowest "
            f"class of each method: {lowest}.",
        ),
        Claim(
            says="The methods agree about classes.", value=together, spread=0.0, unit="is the correlation of the class means",
            verdict="reproduced" if together > 0.8 else "in shape" if together > 0.3 else "not reproduced",
            why=f"Symmetric Jacobian and slope. A clear gap have {clear:.2f} of the points.",
        ),
    ]  # fmt: skip


def main(record) -> None:
    numbers = record.cell("dimensions", measure, record.options)
    record.write(numbers, claims=claims(numbers, record.options.each), classes=figure_of(numbers))


if __name__ == "__main__":
    FIGURE.make(main)
