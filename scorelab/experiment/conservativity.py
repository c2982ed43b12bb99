"""Whether the score of a trained model is a gradient, as a diagnostic."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from scorelab import diagnostics, viz
from scorelab.experiment.diagnose import ByNoiseLevel, Finding, points
from scorelab.validation import require_int, require_positive


@dataclass(frozen=True, kw_only=True)
class Conservativity(ByNoiseLevel):
    """How far the score of the model is from a gradient (:func:`scorelab.diagnostics.conservativity`).

    Attributes:
        probes: Rademacher probes for each point; 0 for exact norms.
        radius: of the loops, in units of the noise.
        nodes: points of a loop, an even number; 0 for no loops.
    """

    name: str = "conservativity"
    probes: int = 4
    radius: float = 0.5
    nodes: int = 32

    def __post_init__(self):
        super().__post_init__()
        require_int(self, 0, probes=self.probes, nodes=self.nodes)
        require_positive(self, radius=self.radius)
        if self.nodes % 2 or self.nodes == 2:
            raise ValueError(f"Conservativity.nodes = {self.nodes}: expected 0, or an even number of at least 4")

    def check(self, experiment):
        """Whether the process has these noise ratios, and the points more than one element."""
        super().check(experiment)
        if math.prod(shape := experiment.data.load().event_shape) < 2:
            raise ValueError(f"Conservativity for points of shape {shape}: expected two elements, one is always a gradient")

    def __call__(self, model, data, key):
        """Asymmetry and loops by noise ratio, and the level below which a loop is not resolved."""
        x, cond = points(data, self.n)
        found = diagnostics.conservativity(
            model, x, self.sigmas, probes=self.probes, radius=self.radius, nodes=self.nodes, cond=cond, key=key
        )
        values = dict(
            largest_asymmetry=found.asymmetry.max(), sigmas=self.sigmas,
            asymmetry=found.asymmetry, asymmetry_error=found.asymmetry_error, mean_square=found.mean_square,
            standard_error=found.standard_error,
        )  # fmt: skip
        panel = functools.partial(viz.Panel, xlabel="noise ratio", logx=True)
        panels = [panel(series={"asymmetry": (self.sigmas, found.asymmetry)}, ylabel="asymmetry of the Jacobian")]
        if self.nodes:
            values |= dict(loop=found.loop, loop_error=found.loop_error, circulation=found.circulation, quadrature=found.quadrature)
            loops = {"loop": (self.sigmas, found.loop), "not resolved below": (self.sigmas, found.quadrature)}
            panels.append(panel(series=loops, ylabel="integral round a loop"))
        return Finding(values=values, figure=viz.panels(panels, reference=("not resolved below",), height=2.8))
