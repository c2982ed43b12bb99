r"""Feynman-Kac sequential Monte Carlo: a population of weighted particles around any stochastic solver.

At every grid time the model is called, the potential adds to the log-weights, the policy may resample, and the base solver
moves the particles with that prediction. A path has the weight :math:`\prod_k G_k\,p/\tau`, with the ratio of the
base chain ``p`` to a guided proposal :math:`\tau`, and

.. math:: E\Big[\prod_{\text{resamplings}} \tfrac1N\sum_i w_i\Big] = Z

without bias for any number of particles: whatever is decided by the particles of a time, which may be when to resample and
how a reward is believed, leaves the expectation of what comes after as it is. The derivative of ``log_z`` (``jax.grad``) is
that of the weights along whole paths, such as the mean reward of the tilted law for :math:`\lambda`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from scorelab.arrays import Array, Pytree, is_traced, on_host
from scorelab.fk.particles import ParticleState, WeightsWarning, add, gather
from scorelab.fk.policies import Always, EssBelow, Never, Policy, ResampleResult
from scorelab.fk.potentials import Observation, ParticleRow, Potential, Zero
from scorelab.fk.resampling import Resampler, checked, systematic
from scorelab.fk.weights import ess, log_mean_exp
from scorelab.processes.base import Process
from scorelab.processes.predictions import HasProposal, require_capabilities
from scorelab.pytrees import computed, partly_static
from scorelab.randomness import folded, of_row
from scorelab.solvers import DPMSolverPP
from scorelab.solvers.base import Population, Solver, require_moved
from scorelab.validation import require_choice, require_int, require_positive, require_spec
from scorelab.warn import warn

# Streams of a particle's key beside the base solver's own noise, which is drawn from the key itself.
_RESAMPLE, _POTENTIAL, _CLOSE = 1_000_003, 1_000_033, 1_000_037


@partly_static("potential")
@dataclass(frozen=True, kw_only=True)
class FeynmanKac(Population):
    r"""Weighted particles: a solver for :func:`scorelab.sample`, where samples in a row are the particles of a population.

    ``sample(..., shape=(populations * particles, *event))`` runs independent populations side by side; conditions, if any, must
    be the same within each. The result has ``log_weights`` ``(n,)`` and ``log_z``, of each population where ``particles`` is given.
    Averages: :func:`scorelab.fk.weighted_mean`; equally weighted samples: ``resample_final=True``.

    Diagnostics: ``ess`` and ``resampled`` at every model call, ``final_ess``, ``unique_roots`` (how many of the first particles
    have descendants), ``root`` ``(n,)``, ``bad_weights`` (log-weights that were NaN or ``+inf``, or of an ancestor that the
    resampler took out of range, which all count as zero), ``dead`` (populations that ended without any weight above zero),
    ``clipped``, and ``ancestors`` where asked for. ``final_ess`` is that before a last
    resampling. A trajectory (``keep="all"``) shows places, among which lineages jump.

    Attributes:
        base: the solver that moves the particles; under a corrector better not one of first order, whose bias no weight
            repairs, and under a guided proposal one whose step is a mean plus noise. A deterministic one needs
            ``policy=Never()``, since its copies would stay copies.
        potential: the weights (:mod:`scorelab.fk.potentials`, :mod:`scorelab.fk.correctors`).
        resampler: a function ``(key, log_weights) -> indices`` (:mod:`scorelab.fk.resampling`).
        policy: when to resample (:mod:`scorelab.fk.policies`).
        particles: in a population; None for one population of all samples.
        resample_final: resample at the end, and return equal weights. Most schemes keep particles in the order of their
            ancestors, so the first one of a population is no fair draw: take them all, or one by :func:`scorelab.fk.one_of_each`.
        clip: limit every increment of the log-weights to its population's mean plus or minus this number. **A bias**, in exchange
            for variance; None for none.
        record_ancestors: keep the ancestor of every particle at every model call, in ``diagnostics["ancestors"]``
            ``(populations, calls, particles)``, and those of the last resampling in ``"final_ancestors"``.
    """

    base: Solver = field(default_factory=lambda: DPMSolverPP(order=2, eta=1.0))
    potential: Potential = field(default_factory=Zero)
    resampler: Resampler = systematic
    policy: Policy = field(default_factory=EssBelow)
    particles: int | None = None
    resample_final: bool = False
    clip: float | None = None
    record_ancestors: bool = False

    process_type = Process
    needs = ()
    stochastic = True

    def __post_init__(self):
        require_spec(self, Solver, base=self.base)
        require_spec(self, Potential, potential=self.potential)
        require_spec(self, Policy, policy=self.policy)
        require_choice(self, (True, False), resample_final=self.resample_final, record_ancestors=self.record_ancestors)
        if not callable(self.resampler):
            raise TypeError(f"FeynmanKac.resampler = {self.resampler!r}: expected a function (key, log_weights) -> indices")
        if isinstance(self.base, FeynmanKac):
            raise ValueError("FeynmanKac.base is itself a FeynmanKac: expected the solver that moves the particles")
        if self.particles is not None:
            require_int(self, 1, particles=self.particles)
        if self.clip is not None:
            require_positive(self, clip=self.clip)
        if not self.base.stochastic and (self.resample_final or not isinstance(self.policy, Never)):
            raise ValueError(
                f"FeynmanKac.base = {self.base!r}: expected a stochastic solver, such as DDIM(eta=1.0), since copies of a particle "
                "would never separate; or policy=Never() and resample_final=False"
            )

    @computed
    def order(self) -> int:
        """That of the base."""
        return self.base.order

    @computed
    def calls_per_step(self) -> int | None:
        """Those of the base; a potential that closes takes one more on a grid that ends in noise."""
        return self.base.calls_per_step

    @computed
    def along_path(self) -> bool:
        """As the base. A path belongs to a place in the population and not to a particle, so that copies meet different noise."""
        return self.base.along_path

    @computed
    def paints(self) -> bool:
        """As the base."""
        return self.base.paints

    @computed
    def self_conditioned(self) -> bool:
        """As the base."""
        return self.base.self_conditioned

    def informed(self, model, carry: ParticleState):
        """As the base: what it remembers moves with the particles."""
        return self.base.informed(model, carry.base)

    def size(self, n):
        """The particles of one population."""
        return n if self.particles is None else self.particles

    def table(self, process, times):
        """The base's rows, with those of the potential at the node each row begins at."""
        require_spec(f"FeynmanKac.base = {type(self.base).__name__}", self.base.process_type, process=process)
        if process.has_signs:
            raise ValueError(
                f"FeynmanKac under {process!r}: expected signed=False, since a copied particle would need its signs copied"
            )
        base = self.base.table(process, times)
        steps = len(times) - 1
        t, step = base.t, np.asarray(base.step)
        enter, stay = np.append(1, np.diff(step)).astype(np.int32), np.zeros(len(step), np.int32)
        if self.potential.closes and times[-1] > process.clean_time:
            # One more call, at the last time, after which nothing moves.
            base = jax.tree.map(lambda column: np.concatenate([column, column[-1:]]), base)
            t, step = jax.tree.map(lambda column: np.append(column, times[-1]), t), np.append(step, step[-1])
            enter, stay = np.append(enter, np.int32(1)), np.append(stay, np.int32(1))
        node = step + stay
        own = jax.tree.map(lambda column: np.asarray(column)[node], self.potential.table(process, times))
        return ParticleRow(t, step, base=base, potential=own, enter=enter, stay=stay, node=node, progress=node / steps)

    def init(self, process, y, log_weights):
        """The weights of the start, every particle its own root."""
        n = len(log_weights)
        groups = n // self.size(n)
        zeros, none = jnp.zeros(groups, log_weights.dtype), jnp.zeros(groups, jnp.int32)
        root = jnp.tile(jnp.arange(n // groups, dtype=jnp.int32), groups)
        end = zeros, none, root.reshape(groups, -1)
        latest = dict(ess=zeros, resampled=none > 0, clipped=none) | ({"ancestors": end[2]} if self.record_ancestors else {})
        unweighted = jnp.zeros_like(log_weights)
        base, memory = self.base.init(process, y, unweighted), self.potential.init(unweighted)
        return ParticleState(base, memory, root, log_weights, zeros, none, end, latest)

    def check_start(self, start, model, t):
        """As the base and the potential."""
        self.base.check_start(start, model, t)
        self.potential.check_start(start, model, t)

    def decode(self, process, y, carry):
        """As the base."""
        return self.base.decode(process, y, carry.base)

    def query(self, keys, y, carry, row: ParticleRow):
        """As the base; where nothing moves, the particles themselves."""
        asked = self.base.query(keys, y, carry.base, row.base)
        return jax.tree.map(lambda at, asked: jnp.where(row.stay > 0, at, asked), y, asked)

    def ask(self, model, keys, y, row: ParticleRow, cond) -> Observation:
        """The one call of the model, and what the potential finds out by it."""
        self.potential.check(model, self.base)
        seen = self.potential.see(model, folded(of_row(keys), _POTENTIAL), y, row, cond)
        require_capabilities(type(self.base).__name__, seen.prediction, self.base.needs)
        proposal = lambda node: isinstance(node, HasProposal)
        if not proposal(seen.prediction) and any(map(proposal, jax.tree.leaves(seen.prediction, is_leaf=proposal))):
            raise ValueError(
                f"FeynmanKac.base = {self.base!r} with a guided part of a {type(seen.prediction).__name__}: expected parts without "
                "guidance, and a potential in its place, since a step of several parts has no density to weigh it by"
            )
        return seen

    def update(self, keys, y, prediction: Observation, carry, row: ParticleRow):
        """Weigh, perhaps resample, and move; ``prediction`` is what :meth:`ask` returned."""
        seen = prediction
        groups = len(carry.log_z)
        entering = row.enter > 0
        increment, memory = self.potential.weigh(carry.memory, seen.notes, row, groups)
        increment = jnp.where(entering, increment, jnp.zeros_like(carry.log_w))
        memory = jax.tree.map(lambda new, old: jnp.where(entering, new, old), memory, carry.memory)
        log_w, bad, clipped = add(carry.log_w, increment, groups, self.clip)
        moved, lost = self._move(keys, log_w, row)
        record = dict(ess=ess(log_w), resampled=moved.resampled, clipped=clipped)
        if self.record_ancestors:
            record["ancestors"] = moved.index

        y, base, memory, root, prediction = gather(moved, (y, carry.base, memory, carry.root, seen.prediction), groups)
        log_w = moved.log_weights.reshape(-1)
        if isinstance(prediction, HasProposal):
            out, after, ratio = self._guide(keys, y, base, prediction, row)
            log_w = log_w + ratio
        else:
            out, after = self.base.update(keys, y, prediction, base, row.base)
        require_moved(self.base, "update", y, out)
        y, base = jax.tree.map(lambda new, old: jnp.where(row.stay > 0, old, new), (out, after), (y, base))
        return y, ParticleState(base, memory, root, log_w, carry.log_z + moved.log_z, carry.bad + bad + lost, carry.end, record)

    def finish(self, process, keys, y, carry, cond) -> tuple[Pytree, ParticleState]:
        """The last factor, for the samples themselves in the place of any prediction; and the last resampling."""
        groups, working = len(carry.log_z), carry.log_w.dtype
        rest = self.potential.finish(carry.memory, self.base.decode(process, y, carry.base), cond).astype(working)
        log_w, bad, clipped = add(carry.log_w, rest, groups, self.clip)
        end = ess(log_w), clipped, carry.end[2]
        carry = carry._replace(log_w=log_w.reshape(-1), bad=carry.bad + bad, end=end)
        if not self.resample_final:
            return y, carry
        own = folded(self._group_keys(keys, groups), _CLOSE)
        always = jax.vmap(lambda key, lw: Always().move(key, lw, checked(self.resampler), jnp.asarray(0), jnp.asarray(1.0)))
        moved, lost = _among_particles(always(own, log_w))
        y, base, memory, root = gather(moved, (y, carry.base, carry.memory, carry.root), groups)
        log_w, end = moved.log_weights.reshape(-1), (*end[:2], moved.index)
        return y, ParticleState(base, memory, root, log_w, carry.log_z + moved.log_z, carry.bad + lost, end, carry.latest)

    def record(self, carry):
        """The effective sample size of the row, whether it resampled, and so on."""
        return carry.latest

    def outputs(self, carry, records):
        """The weights, the constant, and how the run went."""
        log_w = carry.log_w.reshape(len(carry.log_z), -1)
        roots = carry.root.reshape(log_w.shape)
        seen = jax.vmap(lambda r: jnp.zeros(log_w.shape[1], jnp.int32).at[r].set(1))(roots)
        whole = dict(
            log_z=carry.log_z + log_mean_exp(log_w), final_ess=carry.end[0], unique_roots=jnp.sum(seen, axis=1),
            bad_weights=carry.bad, dead=carry.end[0] == 0, clipped=jnp.sum(records["clipped"], axis=0) + carry.end[1],
            **{name: jnp.moveaxis(records[name], 0, 1) for name in ("ess", "resampled", "ancestors") if name in records},
        )  # fmt: skip
        if self.record_ancestors and self.resample_final:
            whole["final_ancestors"] = carry.end[2]
        if self.particles is None:
            whole = {name: value[0] for name, value in whole.items()}
        return dict(log_weights=carry.log_w, root=carry.root, **whole, **self.base.outputs(carry.base, ()))

    def review(self, diagnostics):
        """Warn about weights that were not numbers, and about populations without any."""
        counts = diagnostics["bad_weights"], diagnostics["final_ess"]
        if is_traced(counts):
            return  # a derivative in a weight: the samples are numbers, and these are not
        bad, dead = np.sum(on_host(counts[0])), np.sum(on_host(counts[1]) == 0)
        if bad or dead:
            warn(
                f"FeynmanKac met {bad} log-weights that were NaN or +inf, or of an ancestor out of range, which count as zero; "
                f"{dead} of {np.size(counts[1])} populations ended without any weight above zero: expected rewards and models "
                "that are numbers, and a potential that is finite somewhere in every population",
                WeightsWarning,
            )

    def _move(self, keys, log_w, row: ParticleRow) -> tuple[ResampleResult, Array]:
        """What the policy decides for each population, and how many are lost; in the middle of a step nothing is done."""

        def decide(key, lw):
            return self.policy.move(key, lw, checked(self.resampler), row.node, row.progress)

        own = self._group_keys(keys, len(log_w))
        mesh = jax.sharding.get_abstract_mesh()
        if not mesh.empty and len(log_w) % mesh.shape[mesh.axis_names[0]]:
            # Populations over several devices: each sums all the weights in the order of one device, so that the indices are the
            # same whatever the number of devices.
            log_w = jax.lax.with_sharding_constraint(log_w, PartitionSpec())
        moved = jax.vmap(decide)(own, log_w)
        # After the last step there is nothing left to resample for.
        now = (row.enter > 0) & (row.stay == 0)
        index = jnp.where(now, moved.index, jnp.arange(log_w.shape[1], dtype=jnp.int32))
        moved = ResampleResult(
            index, jnp.where(now, moved.log_weights, log_w), jnp.where(now, moved.log_z, 0.0), moved.resampled & now
        )
        return _among_particles(moved)

    @staticmethod
    def _group_keys(keys, groups):
        # The first particle's: it does not depend on how many populations run beside this one.
        own = of_row(keys)
        return folded(own[:: len(own) // groups], _RESAMPLE)

    def _guide(self, keys, y, base, prediction: HasProposal, row: ParticleRow) -> tuple[Array, Pytree, Array]:
        r"""The step of the guided proposal, and :math:`\log p/\tau` of it."""
        noise = self.base.noise(row.base)
        if noise is None:
            raise ValueError(
                f"FeynmanKac.base = {self.base!r} with a guided model: expected a solver whose step is a mean plus Gaussian noise, "
                "such as DDIM(eta=1.0) or EulerMaruyama(), to weigh the guidance by"
            )
        # The base solver remembers what was not guided, so that the chain it is compared with is its own.
        plain, after = self.base.update(keys, y, prediction.base, base, row.base)
        guided, _ = self.base.update(keys, y, prediction, base, row.base)
        # A step without noise has no density to weigh by: it is not guided.
        moves = (noise > 0) & (row.stay == 0)
        shift = jnp.where(moves, guided - plain, 0.0)
        scale = jnp.where(moves, noise, 1.0)
        z, axes = self.base.drawn(keys, y, row.base), tuple(range(1, y.ndim))
        ratio = -jnp.sum(z * shift, axis=axes) / scale - jnp.sum(shift**2, axis=axes) / (2 * scale**2)
        return plain + shift, after, ratio


def _among_particles(moved: ResampleResult) -> tuple[ResampleResult, Array]:
    """Particles whose ancestor is none keep their place with weight zero; and how many there are in each population."""
    particles = moved.index.shape[1]
    lost = (moved.index < 0) | (moved.index >= particles)
    index = jnp.where(lost, jnp.arange(particles, dtype=jnp.int32), moved.index)
    log_w = jnp.where(lost, -jnp.inf, moved.log_weights)
    return moved._replace(index=index, log_weights=log_w), jnp.sum(lost, axis=1, dtype=jnp.int32)
