"""Small things the training tests share: a linear network, two learners, data."""

from dataclasses import dataclass
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from scorelab.arrays import Array, Pytree
from scorelab.losses import DenoisingScoreMatching, EDMWeighting, LogNormalTimes
from scorelab.models import FunctionModel
from scorelab.models.denoiser import Denoiser
from scorelab.processes import Gaussian
from scorelab.schedules import EDM
from scorelab.training import EMA, Learner, ScoreLearner

PROCESS = Gaussian(schedule=EDM())


class Net(nn.Module):
    """Two hidden layers on (x, c_noise)."""

    width: int = 32
    dtype: str = "float32"
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, c_noise, cond=None, *, train=False):
        # c_noise is far below one for most noise levels: a few powers make the dependence easy to learn.
        c = c_noise[:, None]
        h = jnp.concatenate([x, c, c**2, jnp.tanh(4 * c)], -1).astype(self.dtype)
        for _ in range(2):
            h = nn.silu(nn.Dense(self.width, dtype=self.dtype)(h))
            h = nn.Dropout(self.dropout, deterministic=not train)(h)
        return nn.Dense(x.shape[-1], dtype=self.dtype)(h)


class Points:
    """Batches of N(mean, diag(std^2)) as a pure function of the step, in several shards if asked."""

    def __init__(self, batch_size=32, mean=(0.3, -0.2), std=(0.4, 0.8), bad_step=None):
        self.batch_size, self.mean, self.std, self.bad_step = batch_size, mean, std, bad_step

    def at(self, step):
        rng = np.random.default_rng((7, step))
        x = rng.normal(self.mean, self.std, (self.batch_size, len(self.mean))).astype(np.float32)
        if step == self.bad_step:
            x[0, 0] = np.nan
        return {"x": x}


def learner(ema=EMA(decay=0.9), optimizer=None, clip_norm=1.0, **net):  # noqa: B008
    std = 0.6
    return ScoreLearner(
        Denoiser(net=Net(**net), process=PROCESS, predict="edm", data_std=std),
        DenoisingScoreMatching(PROCESS, weighting=EDMWeighting(data_std=std), times=LogNormalTimes(mean=-0.5, stratified=True)),
        optax.adam(3e-3) if optimizer is None else optimizer,
        ema=ema,
        clip_norm=clip_norm,
    )


class PairState(NamedTuple):
    step: Array
    params: tuple[Pytree, Pytree]
    opt_states: tuple[Pytree, Pytree]


@dataclass(frozen=True)
class Pair(Learner):
    """Two networks taking turns: one fits the data, the other the first; each has an optimiser of its own."""

    net: Net
    optimizer: optax.GradientTransformation
    vector_metric: bool = False
    process = PROCESS

    def init(self, key, batch):
        x = batch["x"]
        params = tuple(self.net.init(k, x[:1], jnp.zeros(1)) for k in jax.random.split(key))
        return PairState(jnp.int32(0), params, tuple(self.optimizer.init(p) for p in params))

    def update(self, state, batch, key):
        x, c = batch["x"], jnp.zeros(len(batch["x"]))

        def turn(which):
            def loss(p):
                other = self.net.apply(state.params[1 - which], x, c)
                target = x if which == 0 else jax.lax.stop_gradient(other)
                return jnp.mean((self.net.apply(p, x, c) - target) ** 2)

            value, grads = jax.value_and_grad(loss)(state.params[which])
            moves, opt = self.optimizer.update(grads, state.opt_states[which], state.params[which])
            mine = (optax.apply_updates(state.params[which], moves), opt)
            theirs = (state.params[1 - which], state.opt_states[1 - which])
            first, second = (mine, theirs) if which == 0 else (theirs, mine)
            return PairState(state.step + 1, (first[0], second[0]), (first[1], second[1])), value

        state, value = jax.lax.cond(state.step % 3 == 2, lambda: turn(1), lambda: turn(0))
        return state, {"loss": jnp.full(2, value) if self.vector_metric else value}

    def model(self, state):
        return FunctionModel(lambda y, t, cond=None: self.net.apply(state.params[1], y, jnp.zeros(len(y))), PROCESS)


def host(tree):
    """An owning copy on the host."""
    return jax.tree.map(np.array, jax.device_get(tree))


def equal(a, b):
    """Bitwise equality of two trees."""
    same = jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), a, b)
    return all(jax.tree.leaves(same))
