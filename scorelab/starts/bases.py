r"""The start of a composition of interpolants: the product of powers of their bases."""

from __future__ import annotations

import itertools
from collections.abc import Callable  # noqa: F401 (the reference reads the signature of the fields that are inherited)
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from scorelab.arrays import Array, Key, Pytree, is_traced
from scorelab.densities import Gaussian, GaussianMixture
from scorelab.models.bridge import ExactBridge, Pieces, require_mixture
from scorelab.models.exact import ExactModel
from scorelab.models.guidance import Conditioned
from scorelab.processes.base import require_same_process
from scorelab.processes.bridge import Base
from scorelab.pytrees import partly_static
from scorelab.starts.tempered import Tempered, TemperedWarning, power_of, product_of
from scorelab.validation import require_spec
from scorelab.warn import warn

# Directions of so many combinations of components are tried, at so many times.
_COMBINATIONS, _TIMES, _DIMENSIONS = 64, 12, 128


@partly_static("exponents", "laws", "target")
@dataclass(frozen=True, kw_only=True)
class TemperedBase(Tempered):
    r"""Points at ``t = 1`` with the log-weights that make them of :math:`\prod_i \rho_i^{b_i}\,e^R`, :math:`\rho_i` the bases.

    Of Gaussian bases the product itself is drawn. Of others the shared base is, or an equal mixture of them where they differ.
    Weights are all 0 where the exponents sum to one, the base is shared and ``R`` is 0.

    Args:
        exponents: as in :class:`Tempered`.
        laws: Gaussians with the moments of the data of the experts, one for all or one for each; () where they are not known. Only
            the look at the product needs them.
        target: the composition of interpolants, a :class:`scorelab.fk.Composition`.

    Raises:
        ValueError: a base without a density (points) where a density is needed; a path with the data at both ends; exponents whose
            product has no law at ``t = 1``, or at a later time of exact experts without a tilt.

    Warns:
        TemperedWarning: a product without a law at a later time, by the given moments; negative exponents of experts of whose
            data nothing is known.
    """

    def __post_init__(self):
        super().__post_init__()
        for law in self.laws:
            require_spec(self, Gaussian, laws=law)

    def on_grid(self, process, times):
        """Itself on a grid that begins at 1, after a look at the bases, and at whether the product has a law at every time."""
        require_same_process("Tempered", sampled=process, target=self.target.process)
        if times[0] != 1:
            raise ValueError(f"the bases of interpolants on a grid that begins at t = {times[0]:.6g}: expected t = 1")
        for model in self.target.models:
            if model.process.base is None:
                raise ValueError(f"the expert under {model.process!r} has the data at both ends: expected one with a base")
        self._require_densities()
        if not is_traced(self.exponents, self.laws, self.target.models):
            self._look(process, times)
        return self, times

    def suit(self, where, model, t, cond=None):
        """As the bases: ValueError under a condition where base rows belong to those of the data."""
        for expert in self.target.models:
            Base(expert.process.base).suit(where, expert, t, cond)

    def check_arrays(self, count, event):
        super().check_arrays(count, event)
        for base in self._bases():
            Base(base).check_arrays(count, event)

    def draw(self, keys: Key, ids: Int[Array, " batch"], process, t: Float[Array, ""], event) -> Float[Array, " batch *event"]:
        drawn = [Base(law).draw(keys, ids, process, t, event) for law in self._proposals(t)]
        if len(drawn) == 1:
            return drawn[0]
        # A stream of its own beside those of the points.
        which = jax.vmap(lambda key: jax.random.randint(jax.random.fold_in(key, 1), (), 0, len(drawn)))(keys)
        return jnp.stack(drawn)[which, jnp.arange(len(keys))]

    def log_prob(self, y: Float[Array, " batch *event"], process, t: Float[Array, ""] | float) -> Float[Array, " batch"]:
        """The log-density of the points that are drawn."""
        parts = jnp.stack([Base(law).log_prob(y, process, t) for law in self._proposals(t)])
        return jax.nn.logsumexp(parts, axis=0) - jnp.log(len(parts))

    def log_weight(
        self, y: Float[Array, " batch *event"], process, t: Float[Array, ""] | float, cond: Pytree = None
    ) -> Float[Array, " batch"]:
        r""":math:`\sum_i b_i\log\rho_i(y) + R(y, t) - \log q(y)`."""
        bases, exponents, tilt = self._bases(), self._at(t), self.target.log_tilt(y, t, cond)
        if len(bases) == 1 and not isinstance(bases[0], Gaussian):
            excess = sum(exponents) - 1
            return tilt + (excess * Base(bases[0]).log_prob(y, process, t) if self._has_density(bases[0]) else 0.0)
        powers = exponents if len(bases) == len(exponents) else (sum(exponents),)
        logs = sum(b * Base(base).log_prob(y, process, t) for b, base in zip(powers, bases, strict=True))
        return logs + tilt - self.log_prob(y, process, t)

    @staticmethod
    def _has_density(base: Any) -> bool:
        return callable(getattr(base, "log_prob", None))

    def _bases(self) -> list[Any]:
        """One where it is shared, else one for each expert."""
        processes = [model.process for model in self.target.models]
        shared = all(process.shares_base(processes[0]) for process in processes)
        return [process.base for process in (processes[:1] if shared else processes)]

    def _proposals(self, t: Any) -> list[Any]:
        """The laws of which an equal mixture is drawn."""
        bases, exponents = self._bases(), self._at(t)
        if not all(isinstance(base, Gaussian) for base in bases):
            return bases
        return [power_of(bases[0], sum(exponents)) if len(bases) == 1 else product_of(bases, exponents)]

    def _require_densities(self) -> None:
        bases = self._bases()
        with jax.ensure_compile_time_eval():
            total = sum(self._at(jnp.ones(())))
        free = len(bases) == 1 and not is_traced(total) and abs(float(total) - 1) < 1e-6
        points = [i for i, base in enumerate(bases) if not self._has_density(base)]
        if points and not free:
            raise ValueError(
                f"the base of expert {points[0]} of a composition is points, which have no density to weigh the start by: expected "
                f"a law of densities, or one base for all experts and exponents whose sum is 1 (it is {total})"
            )

    def _look(self, process: Any, times: np.ndarray) -> None:
        with jax.ensure_compile_time_eval():
            found = [self._pieces(i) for i in range(len(self.target.models))]
            exact = all(isinstance(_bare(model), ExactModel | ExactBridge) for model in self.target.models)
            exponents = [np.array([float(b) for b in self._at(jnp.asarray(t, jnp.float32))]) for t in times]
        if any(pieces is None for pieces in found):
            times, exponents = times[:1], exponents[:1] if all(np.all(b >= 0) for b in exponents) else self._unknown(exponents)
            with jax.ensure_compile_time_eval():
                found = [self._of_base(i) for i in range(len(found))]
        for i in _few(len(times), found):
            b, known = exponents[i], all(pieces is not None for pieces in found)
            if sum(b) > 0 and (np.all(b >= 0) or not known or _falls_off(b, self._precisions(found, float(times[i])))):
                continue
            message = (
                f"a composition of interpolants with the exponents {exponents[i].tolist()} at t = {times[i]:.4g}: expected a "
                "product that falls off in every direction"
            )
            if i == 0:
                raise ValueError(message)
            if exact and self.target.tilt is None:
                raise ValueError(f"{message}; end at a larger t or with smaller exponents")
            warn(f"{message}, which that of the moments does not: log_z and weights may mean nothing", TemperedWarning)
            return

    def _unknown(self, exponents: list[np.ndarray]) -> list[np.ndarray]:
        warn(
            f"a composition of interpolants has the exponents {exponents[-1].tolist()}, and nothing is known of the data of an "
            "expert: whether the product has a law is not checked; expected laws=[...], Gaussians with the moments of the data",
            TemperedWarning,
        )
        return exponents[:1]

    def _pieces(self, i: int) -> Pieces | None:
        """The joint law of data and base of an expert, or of Gaussians in their place; None where it is not known."""
        model = _bare(self.target.models[i])
        if isinstance(model, ExactBridge):
            return model.pieces
        law = model.law if isinstance(model, ExactModel) else self.laws[min(i, len(self.laws) - 1)] if self.laws else None
        base = model.process.base
        if law is None or not isinstance(base, Gaussian | GaussianMixture):
            return None
        return Pieces.independent(require_mixture("", law), require_mixture("", base))

    def _of_base(self, i: int) -> Pieces | None:
        """The base in the place of the data as well."""
        base = self.target.models[i].process.base
        if not isinstance(base, Gaussian | GaussianMixture):
            return None
        return Pieces.independent(require_mixture("", base), require_mixture("", base))

    def _precisions(self, found: list[Any], t: float) -> list[np.ndarray]:
        """Of every component of every expert at a time, ``(K, d, d)``."""
        out = []
        for model, pieces in zip(self.target.models, found, strict=True):
            c = model.process.coefficients(np.float64(t))
            p, q, s = (np.asarray(a, np.float64) for a in (pieces.data_covs, pieces.base_covs, pieces.cross))
            cov = c.alpha**2 * p + c.beta**2 * q + c.alpha * c.beta * (s + np.swapaxes(s, 1, 2)) + c.gamma**2 * np.eye(p.shape[1])
            values, basis = np.linalg.eigh(cov)
            out.append(np.einsum("kij,kj,klj->kil", basis, 1 / np.maximum(values, 1e-12 * values.max()), basis))
        return out


def _bare(model: Any) -> Any:
    return model.model if isinstance(model, Conditioned) and model.cond is None else model


def _few(count: int, found: list[Any]) -> list[int]:
    """Numbers of the times to look at."""
    size = max((pieces.data_means.shape[1] for pieces in found if pieces is not None), default=1)
    most = _TIMES if size <= _DIMENSIONS else 2
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, most)).round()})


def _falls_off(exponents: np.ndarray, precisions: list[np.ndarray]) -> bool:
    r"""Whether :math:`\sum_i b_i\min_k v^\top A_{ik}v > 0` in all directions that are tried: the widest component has the tail.

    Exact on the line and for Gaussians. In more dimensions, of mixtures, a direction that is not tried may be missed.
    """
    chosen = itertools.islice(itertools.product(*precisions), _COMBINATIONS)
    directions = np.concatenate([np.linalg.eigh(np.einsum("i,ijk->jk", exponents, np.stack(one)))[1].T for one in chosen])
    forms = np.stack([np.einsum("vi,kij,vj->kv", directions, a, directions).min(0) for a in precisions])
    values = exponents @ forms
    return bool(np.all(values > 1e-12 * (np.abs(exponents) @ forms)))
