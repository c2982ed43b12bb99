r"""Teleportation: the first part of sampling in closed form, with the probability flow of a Gaussian.

At high noise the score of any data is that of the Gaussian with its mean and covariance, to within a fraction that falls
with the square of :math:`\sqrt{\lambda_{\max}}/\sigma`. Its probability flow is known, so the steps at high noise cost no
model call. Source: Wang & Vastola, "The Unreasonable Effectiveness of Gaussian Score Approximation", arXiv 2412.09726.

An interpolant from a Gaussian base :math:`N(n, Q)` and data with the moments :math:`(\mu, P)` has the flow

.. math:: \frac{dy}{dt} = \dot m + \tfrac12\dot C C^{-1}(y - m),\qquad m = \alpha\mu+\beta n,\qquad
          C = \alpha^2P+\beta^2Q+\gamma^2I ,

so that :math:`y_t = m_t + C_t^{1/2}C_1^{-1/2}(y_1 - n)` where P and Q commute, as with an isotropic Q. Where they do not, the
flow map is integrated on the host: the roots are off by several hundredths of the entries.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from scorelab.arrays import Array, Key, is_traced, on_host
from scorelab.densities import Gaussian, GaussianMixture
from scorelab.densities.base import as_parameter
from scorelab.models.base import Wraps
from scorelab.processes.base import Start
from scorelab.processes.interpolant import StochasticInterpolant
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.starts.laws import Prior
from scorelab.validation import require_int, require_positive, require_spec
from scorelab.warn import warn

# Noise ratios in units of the largest standard deviation of the law along any direction: where "auto" jumps to, and below
# which a jump is warned about. Measured in experiments/2412.09726/quality.py.
AUTO, DOUBTFUL = 3.0, 2.0
# Rare modes are a matter of their distance: a jump to a noise ratio of 1/3, 1/2, 0.9 and 1 times the distance of a mode of 1 %
# leaves 57, 83, 97 and 98 % of its share. "auto" jumps to the distance, unless it is this near already.
NEAR = 0.9
# A flow map is integrated in at most so many dimensions: d^2 numbers, with products of d^3.
MOST = 512


class TeleportWarning(UserWarning):
    """A jump in a place where the data, or the model, is not the Gaussian that the jump takes it for."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Teleport(Start):
    r"""Noise, carried to a lower noise level by the probability flow of a Gaussian: no model call, the same noise.

    .. math:: y_t = \alpha_t\mu + b_t + \Big(\frac{\alpha_t^2\Sigma+\sigma_t^2}{\alpha_T^2\Sigma+\sigma_T^2}\Big)^{1/2}
              (y_T - \alpha_T\mu - b_T)

    The solver then walks the rest of the same grid, a multistep solver with its own first steps. A jump over no step is the
    plain start, bit for bit. Under a :class:`scorelab.processes.StochasticInterpolant` with a Gaussian base the noise is
    :math:`\sigma^2 = \beta^2q+\gamma^2`, ``q`` the smallest variance of the base.

    Args:
        law: the Gaussian with the data's moments in the chart (:meth:`scorelab.densities.Gaussian.from_data`), or for
            class-conditional models a mixture of one per class (:meth:`scorelab.densities.GaussianMixture.per_class`).
        sigma_skip: the noise ratio :math:`\sigma_t/\alpha_t` to jump to, in the units of the chart: the last grid time at
            or above it. ``"auto"`` takes three times the largest standard deviation of the law along any direction, or the
            distance of rare points (``law.reach``) where that is more. None where ``skip_steps`` is given.
        skip_steps: the number of grid steps to jump over, instead of ``sigma_skip``.
        label: the component of each sample, ``(n,)`` integers looked up by its id; needed with a mixture.
        start: where the jump begins, without weights.
        t_from: the time at which it begins; None for the first grid time. With it, a short grid can begin where the jump
            ends: ``Teleport(law, skip_steps=0, t_from=process.t_max)`` on ``Karras(5, t_max=...)``. In this form it is also
            a law that :func:`scorelab.likelihood.log_likelihood` takes, from that ``t_max``.

    Raises:
        ValueError: both or neither of ``sigma_skip`` and ``skip_steps``, a value out of range, a jump over the whole grid, a start
            with weights or with a jump of its own.

    Warns:
        TeleportWarning: a jump to less than twice the largest standard deviation, or below the distance of rare points, whose
            modes would lose weight; ``"auto"`` with a law that does not know of such points; a noise ratio that the grid does
            not reach, so that there is no jump; guidance of any kind that acts during the jump, or bounds; a model with
            conditions and a law without.
    """

    law: Gaussian | GaussianMixture
    sigma_skip: float | Literal["auto"] | None = field(default="auto", metadata={"static": True})
    skip_steps: int | None = field(default=None, kw_only=True, metadata={"static": True})
    label: Array | None = field(default=None, kw_only=True)
    start: Start = field(default=Prior(), kw_only=True)
    t_from: Array | float | None = field(default=None, kw_only=True)

    def __post_init__(self):
        # Pytree reconstruction passes placeholders through here, so only laws of the wrong kind are refused.
        if isinstance(self.start, Teleport) or (isinstance(self.start, Start) and self.start.has_signs):
            raise ValueError(f"Teleport.start = {self.start!r}: expected a start without a jump and without signs")
        if self.skip_steps is not None:
            if self.sigma_skip == "auto":
                object.__setattr__(self, "sigma_skip", None)
            require_int(self, 0, skip_steps=self.skip_steps)
        if (self.sigma_skip is None) == (self.skip_steps is None):
            raise ValueError(
                f"Teleport.sigma_skip = {self.sigma_skip!r}, skip_steps = {self.skip_steps!r}: expected exactly one of them"
            )
        if self.sigma_skip not in (None, "auto"):
            require_positive(self, sigma_skip=self.sigma_skip)

    def on_grid(self, process, times):
        """The jump with its beginning fixed, and the times after it; see :class:`Start`."""
        require_spec(self, Gaussian | GaussianMixture, law=self.law)
        require_spec(self, Start, start=self.start)
        require_spec(self, LinearGaussian | StochasticInterpolant, process=process)
        noise = _noise(process)
        if isinstance(noise, _FromGaussian) and not noise.isotropic:
            require_spec("Teleport from a base that is not isotropic", Gaussian, law=self.law)
        if is_traced(self.t_from):
            raise ValueError("Teleport.t_from is traced: expected a number, since the grid is cut on the host")
        begin = float(times[0] if self.t_from is None else self.t_from)
        # As far as the process goes, or a grid that its user takes further.
        slack = 1e-6 * abs(begin)
        if not times[0] - slack <= begin <= max(times[0], process.t_max) + slack:
            raise ValueError(f"Teleport.t_from = {begin}: expected {times[0]}, the first grid time, to t_max = {process.t_max}")
        if self.start.weighs(process):
            raise ValueError(f"Teleport.start = {self.start!r}: expected a start without weights, since a jump would lose them")
        start, left = self.start.on_grid(process, np.append(begin, times[1:]))
        if len(left) < len(times):
            raise ValueError(f"Teleport.start = {self.start!r}: expected a start that skips no part of the grid itself")
        count = self.steps_over(process, times)
        jumps = count > 0 or begin > times[0] + slack
        self._warn(noise, float(times[count]), begin, jumps)
        # Where there is no jump, None says so: the start itself is drawn.
        begun: dict[str, Any] = dict(sigma_skip=None, skip_steps=0, start=start, t_from=begin if jumps else None)
        if not jumps or not isinstance(noise, _FromGaussian) or noise.isotropic or not isinstance(self.law, Gaussian):
            return dataclasses.replace(self, **begun), times[count:]
        if is_traced(self.law):
            raise ValueError("Teleport.law is traced, from a base that is not isotropic: expected numbers, as the jump is a matrix")
        end = float(times[count])
        means = dict(before=noise.mean(self.law, begin), after=noise.mean(self.law, end))
        moved = means | dict(matrix=noise.flow_map(self.law, begin, end))
        begun |= {name: as_parameter(value) for name, value in moved.items()}
        return _Carried(self.law, **begun), times[count:]

    def steps_over(self, process: LinearGaussian | StochasticInterpolant, times: np.ndarray) -> int:
        """The number of steps of the host grid ``times`` that the jump replaces."""
        last = len(times) - 2
        if self.skip_steps is not None:
            if self.skip_steps > last:
                raise ValueError(
                    f"Teleport.skip_steps = {self.skip_steps} on a grid of {last + 1} steps: expected at most {last}, "
                    "since a step by the model has to be left"
                )
            return self.skip_steps
        target = self._target()
        # A node that the caller named by its rounded noise level is that node.
        ratios = np.asarray(_noise(process).noise_ratio(times[: last + 1]))
        return max(int(np.sum(ratios >= target * (1 - 1e-6))) - 1, 0)

    def check_arrays(self, count, event):
        if self.law.event != tuple(event):
            raise ValueError(f"Teleport.law is over points of shape {self.law.event}: expected {tuple(event)}")
        if isinstance(self.law, GaussianMixture) != (self.label is not None):
            wanted = "the class of each sample" if self.label is None else "None with a law that is a single Gaussian"
            raise ValueError(f"Teleport.label = {self.label!r} with a {type(self.law).__name__}: expected {wanted}")
        if self.label is not None and isinstance(self.law, GaussianMixture):
            label, classes = self.label if is_traced(self.label) else on_host(self.label), len(self.law.log_weights)
            if label.ndim != 1 or len(label) < count or not jnp.issubdtype(label.dtype, jnp.integer):
                raise ValueError(f"Teleport.label is {label.dtype} {label.shape}: expected integers (n,) with n >= {count}")
            if not is_traced(label) and (label.min() < 0 or label.max() >= classes):
                raise ValueError(f"Teleport.label has values {label.min()} to {label.max()}: expected 0 to {classes - 1}")
        self.start.check_arrays(count, event)

    def draw(self, keys: Key, ids: Int[Array, " batch"], process, t: Float[Array, ""], event) -> Float[Array, " batch *event"]:
        if (begin := self._begin(t)) is None:
            return self.start.draw(keys, ids, process, t, event)
        y = self.start.draw(keys, ids, process, jnp.asarray(begin, t.dtype), event)
        law, process = self.law, _noise(process)
        if isinstance(law, GaussianMixture) and len(law.log_weights) == 1:
            law = jax.tree.map(lambda leaf: leaf[0], law.components)
        if isinstance(law, Gaussian):
            return law.flow(process, y, begin, t).astype(y.dtype)
        label = jnp.take(jnp.asarray(self.label), ids, mode="fill", fill_value=-1)

        # One class of the batch after the other: gathering a basis per sample would take samples x d x d numbers.
        def fold(out, part):
            k, component = part
            mine = (label == k).reshape(-1, *(1,) * len(event))
            moved = lambda: jnp.where(mine, component.flow(process, y, begin, t).astype(y.dtype), out)
            return jax.lax.cond(jnp.any(mine), moved, lambda: out), None

        classes = jnp.arange(len(law.log_weights))
        # A label that is no class, which only a traced one can be, jumps nowhere.
        return jax.lax.scan(fold, jnp.full_like(y, jnp.nan), (classes, law.components))[0]

    def log_prob(self, y: Float[Array, " batch *event"], process, t: Float[Array, ""] | float) -> Float[Array, " batch"]:
        """The log-density of the points the jump lands on; ValueError with a mixture, whose samples have classes."""
        if (begin := self._begin(t)) is None:
            return self.start.log_prob(y, process, t)
        if isinstance(self.law, GaussianMixture):
            raise ValueError("Teleport.log_prob with a mixture: expected a single Gaussian, a law of the point alone")
        noise = _noise(process)
        back = self.law.flow(noise, y, t, begin)
        return self.start.log_prob(back, process, begin) + self.law.flow_log_det(noise, t, begin)

    def _begin(self, t: Array | float) -> Array | float | None:
        """Where the jump to ``t`` begins, None where there is no jump."""
        if self.sigma_skip is not None or self.skip_steps != 0:
            raise ValueError(
                f"Teleport(sigma_skip={self.sigma_skip!r}, skip_steps={self.skip_steps!r}) without a grid to cut: expected "
                "skip_steps=0 and t_from, the time at which the jump begins"
            )
        return None if self.t_from is None else jnp.asarray(self.t_from, jnp.asarray(t).dtype)

    def _target(self) -> float:
        if self.sigma_skip is not None and self.sigma_skip != "auto":
            return self.sigma_skip
        target, (_, reach) = AUTO * self._spread(), self._reach()
        return target if target >= NEAR * reach else reach

    def _spread(self) -> float:
        """The largest standard deviation of the law, or of a component, along any direction."""
        if is_traced(self.law):
            raise ValueError("Teleport.sigma_skip = 'auto' with a traced law: expected a number, since the grid is cut on the host")
        return float(np.sqrt(max(np.max(np.asarray(w), initial=0.0) for w in (self._gaussian.eigenvalues, self._gaussian.tail))))

    def _reach(self) -> tuple[float, float]:
        """The smallest and the largest reach of the law or of its components; the smallest is negative where one is not known."""
        found = np.asarray(self._gaussian.reach, np.float64)
        return float(found.min()), float(found.max())

    @property
    def _gaussian(self) -> Gaussian:
        return self.law.components if isinstance(self.law, GaussianMixture) else self.law

    def _warn(self, process: Any, t: float, begin: float, jumps: bool) -> None:
        ratio, top = float(process.noise_ratio(t)), float(process.noise_ratio(begin))
        if not jumps:
            if self.skip_steps is None:
                _warn(
                    f"over no step: sigma_skip = {self._target():.3g} lies above the second noise ratio of the grid, which begins "
                    f"at {top:.3g}; expected a lower one, a finer grid or a process with more noise"
                )
            return
        if not is_traced(self.law) and ratio < DOUBTFUL * (spread := self._spread()) * (1 - 1e-6):
            _warn(
                f"to the noise ratio {ratio:.3g}, below {DOUBTFUL:g} times the largest standard deviation of the data "
                f"({spread:.3g}), where its score is not that of a Gaussian: expected sigma_skip >= {DOUBTFUL * spread:.3g}"
            )
        if not is_traced(self.law):
            known, reach = self._reach()
            if ratio < NEAR * reach * (1 - 1e-6):
                _warn(
                    f"to the noise ratio {ratio:.3g}, below the distance of rare points of the data ({reach:.3g}), which would "
                    f"lose weight: expected sigma_skip >= {reach:.3g}"
                )
            if self.sigma_skip == "auto" and known < 0:
                _warn(
                    f"to {ratio:.3g}, chosen from moments alone, where modes that are rare and further away than that would lose "
                    "weight: expected a law that knows how far the data reach (Gaussian.from_data of points, or matched() of a "
                    "GaussianMixture), or a number for sigma_skip"
                )

    def suit(self, where, model, t, cond=None):
        """As ``start`` where it begins, and a warning about guidance, bounds or conditions that the jump to ``t`` ignores."""
        self.start.suit(where, model, t if self.t_from is None else float(self.t_from), cond)
        if self.t_from is None:
            return
        noise = _noise(model.process)
        top, ratio = (float(noise.noise_ratio(float(time))) for time in (self.t_from, t))
        while isinstance(model, Wraps):
            if (active := model.active()) is not None and active[0] < top and active[1] > ratio:
                _warn(
                    f"over the noise ratios {top:.3g} to {ratio:.3g}, where {type(model).__name__} is active: the jump follows the "
                    f"law without it; expected guidance with interval=(0, {ratio:.3g}), a jump that ends above it, or none"
                )
            model, cond = model.model, model.asks_under(cond)
        if cond is not None and not isinstance(self.law, GaussianMixture):
            _warn(
                "with conditions and the law of all data: what the condition says about the mean is ignored until "
                f"{ratio:.3g}; expected GaussianMixture.per_class and label for classes"
            )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Carried(Teleport):
    """A jump by a matrix.

    Attributes:
        before: the mean where it begins.
        after: the mean where it ends.
        matrix: the flow map between, ``(d, d)``.
    """

    before: Array = field(kw_only=True)
    after: Array = field(kw_only=True)
    matrix: Array = field(kw_only=True)

    def draw(self, keys, ids, process, t, event):
        y = self.start.draw(keys, ids, process, t, event)
        flat = (y - self.before).reshape(len(y), -1)
        return (self.after + jnp.matmul(flat, self.matrix.T, precision="highest").reshape(y.shape)).astype(y.dtype)

    def log_prob(self, y, process, t):
        flat = (y - self.after).reshape(len(y), -1)
        back = self.before + jnp.linalg.solve(self.matrix, flat.T).T.reshape(y.shape)
        return self.start.log_prob(back, process, t) - jnp.linalg.slogdet(self.matrix)[1]


class _FromGaussian:
    r"""An interpolant from a Gaussian base, as the law of its noise: :math:`\sigma^2 = \beta^2q+\gamma^2` around :math:`\beta n`.

    With ``q`` the smallest variance of the base: what the flow of a law asks of a process where there is but one, and otherwise
    the noise by which a jump is judged.
    """

    def __init__(self, process: StochasticInterpolant):
        base = process.base
        if not isinstance(base, Gaussian):
            raise TypeError(
                f"Teleport under an interpolant from {'the data' if base is None else type(base).__name__}: expected a Gaussian "
                "base, since no other has a flow in closed form"
            )
        if process.joined:
            raise ValueError(f"Teleport under the coupling {process.coupling!r}: expected data and base that are independent")
        across = [float(base.tail)] if len(base.eigenvalues) < base.size else []
        variances = np.append(on_host(base.eigenvalues).astype(np.float64), across)
        if not variances.min() > 0:
            raise ValueError(f"Teleport from a base with the variance {variances.min():.3g}: expected variances above 0")
        self.process, self.base, self.least, self.t_max = process, base, variances.min(), process.t_max
        self.isotropic = bool(np.ptp(variances) <= 1e-6 * variances.max())

    def alpha(self, t):
        return self.process.path.alpha(t, self.process.gamma)

    def offset(self, t):
        return self.process.path.beta(t, self.process.gamma) * self.base.mean

    def sigma(self, t):
        beta = self.process.path.beta(t, self.process.gamma)
        return (beta**2 * self.least + self.process.gamma.squared(t)) ** 0.5

    def noise_ratio(self, t):
        t = np.asarray(t, np.float64)
        with np.errstate(divide="ignore"):
            return self.sigma(t) / self.alpha(t)

    def mean(self, law: Gaussian, t: float) -> np.ndarray:
        r""":math:`\alpha\mu + \beta n`."""
        c = self.process.coefficients(np.float64(t))
        return np.asarray(c.alpha * on_host(law.mean).astype(np.float64) + c.beta * on_host(self.base.mean).astype(np.float64))

    def flow_map(self, law: Gaussian, s: float, t: float) -> np.ndarray:
        """What the flow makes of a deviation from the mean, from ``s`` to ``t``, ``(d, d)``."""
        p, q = (_covariance(each) for each in (law, self.base))
        eye = np.eye(len(p))

        def covariance(t):
            c = self.process.coefficients(np.float64(t))
            return c.alpha**2 * p + c.beta**2 * q + c.gamma**2 * eye

        if np.linalg.norm(p @ q - q @ p) <= 1e-6 * np.linalg.norm(p) * np.linalg.norm(q):
            (values, basis), (before, turned) = (np.linalg.eigh(covariance(time)) for time in (t, s))
            return (basis * np.sqrt(values)) @ basis.T @ (turned / np.sqrt(before)) @ turned.T
        if len(p) > MOST:
            raise ValueError(
                f"Teleport in {len(p)} dimensions, from a base whose covariance does not commute with that of the law: expected at "
                f"most {MOST}, or an isotropic base"
            )
        from scipy.integrate import solve_ivp  # a tenth of a second to import, and only this needs it

        def rate(t, flat):
            c = self.process.coefficients(np.float64(t))
            half = c.alpha * c.d_alpha * p + c.beta * c.d_beta * q + c.rate * eye
            return (half @ np.linalg.solve(covariance(t), flat.reshape(p.shape))).ravel()

        found = solve_ivp(rate, (s, t), eye.ravel(), method="DOP853", rtol=1e-10, atol=1e-12)
        return found.y[:, -1].reshape(p.shape)


def _noise(process: Any) -> Any:
    """The process itself where it is linear-Gaussian."""
    return _FromGaussian(process) if isinstance(process, StochasticInterpolant) else process


def _covariance(law: Gaussian) -> np.ndarray:
    basis, inside, across = (on_host(a).astype(np.float64) for a in (law.basis, law.eigenvalues, law.tail))
    return (basis * inside) @ basis.T + across * (np.eye(law.size) - basis @ basis.T)


def _warn(what: str) -> None:
    warn(f"Teleport jumps {what}", TeleportWarning)
