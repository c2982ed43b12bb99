"""Additive Gaussian diffusion: the identity chart over any schedule."""

from __future__ import annotations

from dataclasses import dataclass

from scorelab.processes.linear_gaussian import LinearGaussian


@dataclass(frozen=True, kw_only=True)
class Gaussian(LinearGaussian):
    r"""The additive process :math:`x_t = \alpha_t x_0 + \sigma_t\epsilon` over any schedule.

    As an SDE, :math:`dx = f_t x\,dt + g_t\,dw` with :math:`f = \dot\alpha/\alpha` and
    :math:`g^2 = -\sigma^2\,\mathrm{d}\lambda/\mathrm{d}t` (Song et al. 2021; Kingma et al. 2021).
    """
