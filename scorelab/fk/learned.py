r"""Learning the intermediate reward of noisy points, for :class:`scorelab.fk.Learned`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from scorelab.arrays import Array, Key, Pytree
from scorelab.losses import Batch, Times, UniformTimes
from scorelab.models.denoiser import Denoiser
from scorelab.models.rewards import rewards_of
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.training.learner import Learner, optimised
from scorelab.validation import require_choice, require_positive, require_spec


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LearnedReward:
    r""":math:`r_\phi(y,t)`: the mean of a network's output over the elements of a point; a pytree with the parameters."""

    params: Pytree
    denoiser: Denoiser = field(metadata={"static": True})

    @property
    def process(self) -> LinearGaussian:
        """That of the noisy points."""
        return self.denoiser.process

    def __call__(self, y: Array, t: Array | float) -> Array:
        """Rewards ``(batch,)`` of points ``(batch, *event)`` of the chart."""
        output = self.denoiser.network_output(self.params, y, t)
        return jnp.mean(output, axis=tuple(range(1, y.ndim)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class RewardState:
    """The state of a :class:`RewardLearner`."""

    step: Array
    params: Pytree
    opt_state: Pytree


@dataclass(frozen=True)
class RewardLearner(Learner):
    r"""A reward of noisy points by regression on noised data; a learner for :func:`scorelab.training.fit`.

    .. math:: \text{mean}\quad& (r_\phi(y_t,t) - r(x_0))^2 \to E[r(x_0)\mid y_t],\\
              \text{twist}\quad& e^{\delta}-\delta-1,\quad \delta=\lambda\,(r(x_0) - r_\phi) \to
              \tfrac1\lambda\log E[e^{\lambda r(x_0)}\mid y_t] .

    The twist is the best intermediate reward there is; its loss is heavy-tailed where :math:`\lambda r` spreads over many units.

    Attributes:
        denoiser: the network with its process and preconditioning (``predict`` has no effect), for unconditional data.
        reward: ``r``, of points of data space ``(batch, *event)``.
        optimizer: an optax transformation.
        target: ``"mean"`` or ``"twist"``.
        scale: :math:`\lambda` of the twist; no effect on the mean.
        times: the law of the noise levels.
    """

    denoiser: Denoiser
    reward: Callable[[Array], Array]
    optimizer: optax.GradientTransformation
    _: KW_ONLY
    target: Literal["mean", "twist"] = "mean"
    scale: float = 1.0
    times: Times = field(default_factory=lambda: UniformTimes(stratified=True))

    def __post_init__(self):
        require_spec(self, Denoiser, denoiser=self.denoiser)
        require_spec(self, optax.GradientTransformation, optimizer=self.optimizer)
        require_spec(self, Times, times=self.times)
        require_choice(self, ("mean", "twist"), target=self.target)
        require_positive(self, scale=self.scale)
        if not callable(self.reward):
            raise TypeError(f"RewardLearner.reward = {self.reward!r}: expected a function of points of data space")

    @property
    def process(self) -> LinearGaussian:
        """That of the denoiser."""
        return self.denoiser.process

    def init(self, key: Key, batch: Batch) -> RewardState:
        """Fresh parameters for data shaped like ``batch``."""
        params = self.denoiser.init(key, batch["x"])
        return RewardState(step=jnp.zeros((), jnp.int32), params=params, opt_state=self.optimizer.init(params))

    def update(self, state: RewardState, batch: Batch, key: Key) -> tuple[RewardState, dict[str, Array]]:
        """One optimiser step; the metric is ``loss``, the mean over the batch."""
        key_times, key_noise = jax.random.split(key)
        x, process = batch["x"], self.denoiser.process
        t = self.times(key_times, process, x.shape[0])
        y = process.perturb(key_noise, x, t).y
        target = rewards_of("RewardLearner", self.reward, x)

        def objective(params):
            difference = target - LearnedReward(params=params, denoiser=self.denoiser)(y, t)
            if self.target == "mean":
                return jnp.mean(difference**2)
            scaled = self.scale * difference
            return jnp.mean(jnp.expm1(scaled) - scaled)

        loss, grads = jax.value_and_grad(objective)(state.params)
        params, opt_state = optimised(self.optimizer, grads, state.opt_state, state.params, loss)
        new = RewardState(step=state.step + 1, params=params, opt_state=opt_state)
        return new, dict(loss=loss)

    def model(self, state: RewardState) -> LearnedReward:
        """What :class:`scorelab.fk.Learned` takes."""
        return LearnedReward(params=state.params, denoiser=self.denoiser)
