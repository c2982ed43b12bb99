r"""What distillations with a fake score share: three networks, their optimisers, and the order of their updates.

One step is ``n_aux`` updates of the fake score and of the discriminator on fresh samples of the student, then one update of the
student. Gradients are taken with respect to one tree each, so that no update can reach another network.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scorelab.arrays import Array, Key, Pytree
from scorelab.distill.fake import FakeScore, LearnedScore, NoScore
from scorelab.distill.generator import FewStep, Student
from scorelab.distill.normalisation import Bins
from scorelab.distill.ratio import Ratio, UnitRatio
from scorelab.distill.state import DistillState, StudentBatch
from scorelab.distill.statistics import RunningStatistics
from scorelab.distill.teachers import network_of
from scorelab.losses import Batch, KarrasTimes, Times
from scorelab.losses.base import require_floating
from scorelab.models.base import Model, require_model
from scorelab.models.rewards import rewards_of
from scorelab.processes.base import require_same_process
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.training.ema import EMA, Average, average_specs, moved_averages
from scorelab.training.learner import Learner, accumulated, clipped, joined, optimised, parts, require_parts
from scorelab.training.parallel import gathered
from scorelab.validation import require_choice, require_int, require_number, require_positive, require_spec

# The default of a part that __post_init__ finds by the teacher and the objective, so that no learner has it.
UNSTATED: Any = None

# One object, since optax transformations compare by identity and equal learners share a compilation. Numbers of f-distill.
ADAMW = optax.adamw(1e-4, weight_decay=0.01)


@dataclass(frozen=True)
class Distillation(Learner):
    r"""A student from a teacher and a model of the student's own law; a new objective states ``student_loss``.

    Attributes:
        teacher: the model to distil, with its guidance if it has any: exact or learned. Its arrays are arguments of the
            compiled step and no part of the state.
        student: the generator; None for one step of the teacher's network, from the teacher's parameters.
        fake: the score of the student; None for the teacher's network, from the teacher's parameters, trained at the times below.
        ratio: the estimator of the log-ratio of teacher over student; None for what the objective can do with.
        times: the law of the noise levels.
        optimizer: an optax transformation.
        fake_optimizer: the same for the fake score. A schedule counts updates, of which it gets ``n_aux`` in a step.
        ratio_optimizer: the same for the ratio, with as many updates.
        n_aux: updates of fake score and discriminator in a step, each with fresh samples and noise, and the data of the batch.
        warmup: steps in which only these two are updated.
        reward: a reward that the student's samples are to have, ``reward(x)`` or with ``with_cond`` ``reward(x, cond)``.
        reward_weight: its weight; the loss gains ``-reward_weight * mean(reward)``.
        with_cond: see ``reward``.
        pair_weight: weight of the mean squared distance to a teacher's own samples from the same noise, ``batch["pair_x"]`` from
            ``batch["pair_noise"]`` under ``batch["pair_cond"]`` (the regression of DMD).
        clip_norm: as in :class:`scorelab.training.ScoreLearner`, for each of the three.
        ema: averages of the student.
        unroll: auxiliary updates without a loop: compiles for longer; on the CPU the gradient of a convolution is slow in loops.
        accumulate: parts of the batch that are differentiated one after another, as in :class:`scorelab.training.ScoreLearner`, in
            all updates of a step. All is drawn for the whole batch, and weights that are normalised over it are found in a first
            pass without gradients. So gradients, loss and metrics are those of the batch up to rounding. The regulariser of a
            discriminator alone draws other noise.

    Metrics: ``loss`` (the sum of the three), ``student_loss``, ``fake_loss``, ``ratio_loss``, ``grad_norm`` (of the student, before
    clipping) and those of the objective. By noise level: :meth:`diagnostics`.
    """

    teacher: Model
    student: Student = UNSTATED
    _: KW_ONLY
    fake: FakeScore = UNSTATED
    ratio: Ratio = UNSTATED
    times: Times = field(default_factory=KarrasTimes)
    optimizer: optax.GradientTransformation = ADAMW
    fake_optimizer: optax.GradientTransformation = ADAMW
    ratio_optimizer: optax.GradientTransformation = ADAMW
    n_aux: int = 5
    warmup: int = 0
    reward: Any = None
    reward_weight: float = 1.0
    with_cond: bool = False
    pair_weight: float = 0.0
    clip_norm: float | None = 10.0
    ema: Average | tuple[Average, ...] | None = field(default_factory=EMA)
    unroll: bool = False
    accumulate: int = 1

    # NaN there says that nothing was seen at a noise level.
    statistics = ("running",)
    # Whether the loss of an objective is a mean over examples, so that it is the mean of the losses of parts. What couples
    # examples, as a mean over the batch does, an objective states in ``weights``.
    by_example = False

    def __post_init__(self):
        def default(name, value):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value())

        require_model(type(self).__name__, self.teacher, "teacher")
        require_spec(self, LinearGaussian, process=self.process)
        require_spec(self, Times, times=self.times)
        network = network_of(self.teacher)

        def of_teacher(kind):
            if network is None:
                raise ValueError(
                    f"{type(self).__name__}.{kind} = None with the teacher {type(self.teacher).__name__}: expected one, since "
                    "there is no network to take over"
                )
            return network.denoiser

        default("student", lambda: FewStep(denoiser=of_teacher("student")))
        default("fake", lambda: LearnedScore.at(of_teacher("fake"), self.times) if self.uses_fake else NoScore())
        default("ratio", self.default_ratio)
        require_spec(self, Student, student=self.student)
        require_spec(self, FakeScore, fake=self.fake)
        require_spec(self, Ratio, ratio=self.ratio)
        object.__setattr__(self, "fake", self.fake.timed(self.times))
        for name in ("optimizer", "fake_optimizer", "ratio_optimizer"):
            require_spec(self, optax.GradientTransformation, **{name: getattr(self, name)})
        require_int(self, 0, n_aux=self.n_aux, warmup=self.warmup)
        require_int(self, 1, accumulate=self.accumulate)
        require_number(self, -1e6, 1e6, reward_weight=self.reward_weight)
        require_number(self, 0.0, 1e6, pair_weight=self.pair_weight)
        require_choice(self, (True, False), unroll=self.unroll, with_cond=self.with_cond)
        if self.clip_norm is not None:
            require_positive(self, clip_norm=self.clip_norm)
        average_specs(self, self.ema)
        self._check_parts()

    def _check_parts(self):
        owner = type(self).__name__
        if not self.n_aux and isinstance(self.fake, LearnedScore):
            raise ValueError(f"{owner}.n_aux = 0 with a LearnedScore: expected at least 1, or it never learns")
        if self.uses_fake and isinstance(self.fake, NoScore):
            raise ValueError(f"{owner}.fake = NoScore(): expected a LearnedScore or a KnownScore, which it looks at")
        if self.reward is not None and not callable(self.reward):
            raise TypeError(f"{owner}.reward = {self.reward!r}: expected a function of x, or None")
        if self.pair_weight and self.student.calls > 1:
            raise ValueError(f"{owner}.pair_weight = {self.pair_weight}: expected 0 for a student of several steps")
        if self.accumulate > 1:
            self._check_by_example()
        for name, part in {"student": self.student, "fake": self.fake, "ratio": self.ratio}.items():
            if part.process is not None:
                require_same_process(owner, teacher=self.process, **{name: part.process})

    def _check_by_example(self):
        owner = f"{type(self).__name__}.accumulate = {self.accumulate}"
        # It speaks of the loss that stands beside it, not of one that a subclass has put in its place.
        stated = next(vars(cls) for cls in type(self).__mro__ if "student_loss" in vars(cls) or "by_example" in vars(cls))
        if not stated.get("by_example", False):
            raise ValueError(f"{owner}: expected 1, or by_example = True beside student_loss, where it is a mean over examples")
        whole = dict(
            student=(type(self.student).draw, Student.draw, "noise and made"),
            fake=(type(self.fake).loss, FakeScore.loss, "draw and error"),
            ratio=(type(self.ratio).loss, Ratio.loss, "draw and error"),
        )
        for name, (own, halves, wanted) in whole.items():
            if own is not halves:
                part = type(getattr(self, name)).__name__
                raise ValueError(
                    f"{owner} with {name} = {part}, which has a {own.__name__} of its own: expected 1, or {wanted} there"
                )

    @property
    def process(self) -> LinearGaussian:
        """That of the teacher."""
        return self.teacher.process

    # What an objective states ----------------------------------------------------------------------------------------
    @abc.abstractmethod
    def student_loss(self, drawn: StudentBatch) -> tuple[Array, tuple[Array, Mapping[str, Array], Mapping[str, Array]]]:
        """A scalar, and (the new means of the bins, values ``(batch,)`` for the running statistics, scalar metrics).

        With ``by_example`` the scalar and the metrics are means over examples.
        """

    def summary(self, seen: Mapping[str, Array]) -> Mapping[str, Array]:
        """Further metrics, of the values of the whole batch."""
        return {}

    def weights(self, logit: Array, index: Array, means: Array) -> Any:
        """What couples the examples of a batch, from log-ratios, bins and means of bins: ``(for each example, for all)``.

        Where ``weighs`` says so, it is in ``StudentBatch.weights`` of each part when the batch is taken in parts.
        """
        return (), ()

    @property
    def weighs(self) -> bool:
        """Whether examples are coupled, by :meth:`weights`."""
        return False

    def default_ratio(self) -> Ratio:
        """The ratio where none is given."""
        return UnitRatio()

    @property
    def uses_fake(self) -> bool:
        """Whether the objective looks at the fake score."""
        return True

    @property
    def bin_count(self) -> int:
        """Number of noise levels of the running statistics."""
        return 10

    @property
    def bins(self) -> Bins:
        """The noise levels."""
        return Bins.of(self.times, self.process, self.bin_count)

    # The learner -----------------------------------------------------------------------------------------------------
    def init(self, key: Key, batch: Batch) -> DistillState:
        """The state before the first update; networks begin as the teacher where they are told to."""
        x, cond = batch["x"], batch.get("cond")
        require_floating(x)
        network = network_of(self.teacher)
        keys = jax.random.split(key, 3)
        params, fake, ratio = (
            part.init(k, x, cond, network) for part, k in zip((self.student, self.fake, self.ratio), keys, strict=True)
        )
        return DistillState(
            step=jnp.zeros((), jnp.int32), params=params, fake=fake, ratio=ratio,
            opt_states=(self.optimizer.init(params), self.fake_optimizer.init(fake), self.ratio_optimizer.init(ratio)),
            averages=tuple(spec.init(params) for spec in average_specs(self, self.ema)),
            means=jnp.ones(self.bin_count, jnp.float32), running=RunningStatistics.empty(self.bin_count),
        )  # fmt: skip

    def update(self, state: DistillState, batch: Batch, key: Key) -> tuple[DistillState, dict[str, Array]]:
        """``n_aux`` updates of the other two, one of the student; see the class for the metrics."""
        key_aux, key_student = jax.random.split(key)
        state, metrics = self.aux_step(state, batch, key_aux)
        state, more = self.student_step(state, batch, key_student)
        total = metrics["fake_loss"] + metrics["ratio_loss"] + more["student_loss"]
        return state, {**metrics, **more, "loss": total}

    def aux_step(self, state: DistillState, batch: Batch, key: Key) -> tuple[DistillState, dict[str, Array]]:
        """The updates of fake score and discriminator; nothing of the student changes."""
        if not self.n_aux:
            return state, dict(fake_loss=jnp.float32(0), ratio_loss=jnp.float32(0))
        cond, real = batch.get("cond"), self.process.encode(batch["x"])
        bins = self.bins
        student = gathered(state.params)

        def one(held, key):
            fake, ratio, opt_fake, opt_ratio = held
            key_draw, key_fake, key_ratio = jax.random.split(key, 3)
            made = jax.lax.stop_gradient(self._made(student, key_draw, real, cond))
            ours = {"x": self.process.decode(made), "cond": cond}
            fake_loss, grads = self._fake_gradient(fake, key_fake, ours)
            fake, opt_fake, _ = self._moved(self.fake_optimizer, grads, opt_fake, fake, fake_loss)
            judged, losses = None, (fake_loss, jnp.float32(0))
            if jax.tree.leaves(ratio):
                (ratio_loss, judged), grads = self._ratio_gradient(ratio, key_ratio, real, made, cond)
                ratio, opt_ratio, _ = self._moved(self.ratio_optimizer, grads, opt_ratio, ratio, ratio_loss)
                losses = (fake_loss, ratio_loss)
            return (fake, ratio, opt_fake, opt_ratio), (losses, judged)

        held = (state.fake, state.ratio, *state.opt_states[1:])
        # A loop of one pass would still be a loop, in which the CPU takes the gradient of a convolution ten times longer. So says 1
        # and True; 0 is no loop at all.
        unroll = 0 if self.unroll or self.n_aux == 1 else 1
        held, (losses, judged) = jax.lax.scan(one, held, jax.random.split(key, self.n_aux), unroll=unroll)
        running = state.running
        if judged is not None:
            for name, points, sign in (("real", judged[0], 1.0), ("fake", judged[1], -1.0)):
                right = (0.5 * (1 + sign * jnp.sign(points.logit))).astype(jnp.float32).reshape(-1)
                running = RunningStatistics.add(
                    running, bins, bins.index(self.process, points.t.reshape(-1)), name, dict(right=right)
                )
        state = replace(state, fake=held[0], ratio=held[1], opt_states=(state.opt_states[0], *held[2:]), running=running)
        return state, dict(fake_loss=jnp.mean(losses[0]), ratio_loss=jnp.mean(losses[1]))

    def student_step(self, state: DistillState, batch: Batch, key: Key) -> tuple[DistillState, dict[str, Array]]:
        """The update of the student; nothing of the other two changes. In the warm-up only statistics move."""
        if self.accumulate == 1:
            objective = lambda params: self.objective(params, state, batch, key)
            (loss, (means, seen, index, metrics)), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
        else:
            (loss, (means, seen, index, metrics)), grads = self._student_gradient(state, batch, key)
        metrics = {**metrics, **self.summary(seen)}
        params, opt_state, norm = self._moved(self.optimizer, grads, state.opt_states[0], state.params, loss)
        step = state.step + 1
        moving = step > self.warmup
        count, specs = jnp.maximum(step - self.warmup, 1), average_specs(self, self.ema)
        averages = moved_averages(specs, state.averages, params, count, state.opt_states[0], opt_state)
        new = (params, (opt_state, *state.opt_states[1:]), averages)
        old = (state.params, state.opt_states, state.averages)
        params, opt_states, averages = jax.tree.map(lambda n, o: jnp.where(moving, n, o), new, old) if self.warmup else new
        running = RunningStatistics.add(state.running, self.bins, index, "student", seen)
        state = replace(state, step=step, params=params, opt_states=opt_states, averages=averages, means=means, running=running)
        return state, {**metrics, "student_loss": loss, "grad_norm": norm}

    def objective(self, params: Pytree, state: DistillState, batch: Batch, key: Key) -> tuple[Array, tuple]:
        """The loss of the student as a function of its parameters, and (means, values, bins, metrics)."""
        key_draw, key_times, key_noise = jax.random.split(key, 3)
        params = gathered(params)
        y0 = self.student.draw(params, key_draw, self.process.encode(batch["x"]), batch.get("cond"))
        t = self.times(key_times, self.process, len(y0))
        noise = jax.random.normal(key_noise, y0.shape, y0.dtype)
        return self._judged(params, self._student_batch(state, y0, t, noise, batch.get("cond")), batch)

    def _student_batch(self, state: DistillState, y0: Array, t: Array, noise: Array, cond: Pytree) -> StudentBatch:
        """What the loss looks at, of samples that were made."""
        noised = self.process.noised(noise, y0, t)
        fake_params, student, ratio = gathered((state.fake, state.params, state.ratio))
        fake = self.fake.model(fake_params, student, self.process)
        index = self.bins.index(self.process, t)

        def logit(y):
            l = self.ratio.logit(ratio, y, t, cond, self.teacher, fake)
            return l.astype(jnp.promote_types(l.dtype, jnp.float32))

        return StudentBatch(y0=y0, noised=noised, t=t, index=index, cond=cond, fake=fake, logit=logit, means=state.means)

    def _judged(self, params: Pytree, drawn: StudentBatch, batch: Batch) -> tuple[Array, tuple]:
        """The loss of :meth:`objective`."""
        cond = drawn.cond
        loss, (means, seen, metrics) = self.student_loss(drawn)
        if self.reward is not None:
            x = self.process.decode(drawn.y0)
            reward = jnp.mean(rewards_of(type(self).__name__, self.reward, x, cond, self.with_cond))
            loss, metrics = loss - self.reward_weight * reward, {**metrics, "reward": reward}
        if self.pair_weight:
            missing = {"pair_x", "pair_noise", *(("pair_cond",) if cond is not None else ())} - set(batch)
            if missing:
                raise ValueError(f"batch has no {sorted(missing)}: expected them, since pair_weight = {self.pair_weight}")
            made = self.student.bind(params)(batch["pair_noise"], batch.get("pair_cond"))
            pairs = jnp.mean(jnp.square(made - batch["pair_x"]))
            loss, metrics = loss + self.pair_weight * pairs, {**metrics, "pair_loss": pairs}
        return loss, (means, seen, drawn.index, metrics)

    # A batch in parts ------------------------------------------------------------------------------------------------
    def _parts(self, tree: Pytree, n: int) -> Pytree:
        owner = type(self).__name__
        require_parts(owner, n, self.accumulate)
        return parts(tree, n, self.accumulate, owner)

    def _made(self, params: Pytree, key: Key, like: Array, cond: Pytree) -> Array:
        """Samples of the student, without a gradient."""
        if self.accumulate == 1:
            return self.student.draw(params, key, like, cond)
        rows = self._parts((self.student.noise(key, like), cond), len(like))
        return joined(jax.lax.map(lambda part: self.student.made(params, *part), rows))

    def _fake_gradient(self, fake: Pytree, key: Key, ours: Batch) -> tuple[Array, Pytree]:
        """The loss of the fake score on samples of the student, and its gradient."""
        if self.accumulate == 1 or not jax.tree.leaves(fake):
            return jax.value_and_grad(lambda fake: self.fake.loss(gathered(fake), key, ours))(fake)
        rows = self._parts(self.fake.draw(key, ours), len(ours["x"]))
        losses, grads = accumulated(jax.value_and_grad(lambda fake, part: self.fake.error(gathered(fake), part)), fake, (rows,))
        return jnp.mean(losses), grads

    def _ratio_gradient(self, ratio: Pytree, key: Key, real: Array, made: Array, cond: Pytree) -> tuple[tuple, Pytree]:
        """The loss of the discriminator with who was judged how, and its gradient."""
        if self.accumulate == 1:
            arguments = (key, real, made, cond, self.teacher, self.process, self.times)
            return jax.value_and_grad(lambda ratio: self.ratio.loss(gathered(ratio), *arguments), has_aux=True)(ratio)
        rows = self._parts(self.ratio.draw(key, real, made, cond, self.process, self.times), len(real))
        judging = lambda ratio, points, key: self.ratio.error(gathered(ratio), points, key, self.teacher)
        gradient = jax.value_and_grad(judging, has_aux=True)
        (losses, judged), grads = accumulated(gradient, ratio, (rows, jax.random.split(key, self.accumulate)))
        return (jnp.mean(losses), judged), grads

    def _student_gradient(self, state: DistillState, batch: Batch, key: Key) -> tuple[tuple[Array, tuple], Pytree]:
        """:meth:`objective` and its gradient."""
        key_draw, key_times, key_noise = jax.random.split(key, 3)
        like, cond = self.process.encode(batch["x"]), batch.get("cond")
        n = len(like)
        z = self.student.noise(key_draw, like)
        made = jax.eval_shape(self.student.made, state.params, z, cond)
        noise = jax.random.normal(key_noise, made.shape, made.dtype)
        rows = self._parts((z, self.times(key_times, self.process, n), noise, {"cond": cond}), n)
        # As many pairs as there are, not as many as examples.
        pairs = {name: value for name, value in batch.items() if name.startswith("pair_")} if self.pair_weight else {}
        pairs = self._parts(pairs, len(jax.tree.leaves(pairs)[0])) if pairs else {}
        rows = (*rows[:-1], rows[-1] | pairs)

        def drawn(params, z, t, noise, batch):
            y0 = self.student.made(params, z, batch.get("cond"))
            return self._student_batch(state, y0, t, noise, batch.get("cond"))

        each, common = None, None
        if self.weighs:

            def look(part):
                seen = drawn(gathered(state.params), *part)
                return seen.logit(seen.noised.y), seen.index

            logit, index = joined(jax.lax.map(look, rows))
            each, common = self.weights(logit, index, state.means)
            each = self._parts(each, n)

        def objective(params, part, each):
            params = gathered(params)
            return self._judged(params, drawn(params, *part)._replace(weights=(each, common) if self.weighs else None), part[-1])

        (losses, (means, seen, index, metrics)), grads = accumulated(
            jax.value_and_grad(objective, has_aux=True), state.params, (rows, each)
        )
        mean = lambda tree: jax.tree.map(lambda value: jnp.mean(value, axis=0), tree)
        # The means of the bins are those of the whole batch in every part.
        return (mean(losses), (means[0], joined(seen), joined(index), mean(metrics))), grads

    def model(self, state: DistillState) -> Model:
        """The student with its first average: a model for ``sample`` where it is a network, else its generator."""
        return self.student.model(self._averaged(state))

    def generator(self, state: DistillState) -> Any:
        """The student with its first average, called as ``(z, cond)``."""
        return self.student.bind(self._averaged(state))

    def learning_rate(self) -> Callable[[int], float] | None:
        """That of the student, which does not move in the warm-up."""
        rate = super().learning_rate()
        return rate and (lambda step: rate(step - self.warmup) if step > self.warmup else 0.0)

    def diagnostics(self, state: DistillState) -> dict[str, np.ndarray]:
        """By noise level, ``(bins,)`` each: see :class:`scorelab.distill.statistics.RunningStatistics`."""
        return RunningStatistics.read(state.running, self.bins)

    def _averaged(self, state: DistillState) -> Pytree:
        specs = average_specs(self, self.ema)
        return specs[0].params(state.averages[0]) if specs else state.params

    def _moved(self, optimizer, grads, opt_state, params, loss):
        grads, norm = clipped(grads, self.clip_norm)
        return *optimised(optimizer, grads, opt_state, params, loss), norm
