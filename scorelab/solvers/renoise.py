"""Sampling with few steps of a generator: denoise all the way, then noise again to the next level."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scorelab.solvers.base import Nodes
from scorelab.solvers.exponential import Multistep, MultistepRow


@dataclass(frozen=True, kw_only=True)
class Renoise(Multistep):
    r"""Denoise, then noise afresh: :math:`y_s = \alpha_s D(y_t, t) + b_s + \sigma_s z`.

    The sampler of models that map noise to a sample in one step: multistep consistency sampling (Song et al. 2023, arXiv
    2303.01469, Algorithm 1) and the students of DMD2 (Yin et al. 2024, arXiv 2405.14867). One step is the generator itself, and
    with an exact generator every node has the exact law. It discretises no SDE: a posterior mean in the place of ``D`` has
    less variance than the data, and a bias remains however many steps are taken.
    """

    order = 0
    stochastic = True
    history = 0

    def table(self, process, times):
        nodes = Nodes.at(process, times)
        steps = len(nodes.t) - 1
        b, o = nodes.alpha[1:, None], nodes.offset[1:]
        return MultistepRow(t=nodes.t[:-1], step=np.arange(steps), a=np.zeros(steps), b=b, o=o, n=nodes.sigma[1:])
