"""Laws of every condition in every network that takes it: null rows, None, mistakes, gradients, and what compiles."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab import sample
from scorelab.grids import Karras
from scorelab.models import Denoiser
from scorelab.models.nets import MLP, Augmentation, Composite, DiT, Image, Label, Sequence, Transformer, UNet, Vector
from scorelab.processes import Gaussian
from scorelab.schedules import EDM
from scorelab.solvers import DDIM

ALL = Composite(label=Label(3), vector=Vector(2), altered=Augmentation(2), image=Image(1), tokens=Sequence(3, length=2))
# The same beside sequences and volumes.
LINE, VOLUME = (
    Composite(label=Label(3), vector=Vector(2), image=Image(1, axes=axes), tokens=Sequence(3, length=2)) for axes in (1, 3)
)
# (network with a condition, event): a new network is a row, a new member a part of ALL. Several at once cost one program.
MLPS, UNETS, DITS = MLP(width=16, depth=2, embed=16), UNet(channels=(4, 8)), DiT(patch=4, width=16, depth=2, heads=2)
ROWS = [
    pytest.param(MLPS.clone(condition=Vector(2)), (4, 3), id="mlp-vector"),
    pytest.param(MLPS.clone(condition=Composite(label=Label(3), vector=Vector(2))), (4, 3), id="mlp"),
    pytest.param(UNETS.clone(condition=ALL), (8, 4, 2), id="unet"),
    pytest.param(DITS.clone(condition=ALL), (8, 12, 1), id="dit"),
    pytest.param(UNETS.clone(condition=VOLUME), (4, 2, 2, 2), id="unet of volumes", marks=pytest.mark.long),
    pytest.param(Transformer(width=16, depth=2, heads=2, condition=LINE), (6, 2), id="transformer"),
]
each = pytest.mark.parametrize(("net", "event"), ROWS)
N = 4


def points(event):
    rng = np.random.default_rng(1)
    return rng.normal(size=(N, *event)).astype(np.float32), rng.normal(size=N).astype(np.float32)


def given(condition, event, seed=2):
    """A value of a condition; images are half as large as the event."""
    rng = np.random.default_rng(seed)

    def value(member):
        if isinstance(member, Label):
            return rng.integers(member.num_classes, size=N).astype(np.int32)
        space = tuple(side // 2 for side in event[:-1]) if isinstance(member, Image) else ()
        row = (*space, member.channels) if isinstance(member, Image) else member.row
        return rng.normal(size=(N, *row)).astype(np.float32)

    return condition.joined(tuple(value(member) for _, member in condition.members))


def dropped(condition, cond):
    """The condition with the null value in every row."""
    return jax.tree.map(np.asarray, condition.drop(jax.random.key(0), cond, (1.0,) * len(condition.members)))


@lru_cache
def parameters(net, event):
    """Random parameters with nothing at its zero initialisation."""
    shapes = jax.eval_shape(net.init, jax.random.key(1), *points(event))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        scale = 1.0 if leaf.ndim < 2 else 1 / np.sqrt(np.prod(leaf.shape[:-1]))
        return np.asarray(float(path[-1].key == "scale") + scale * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@partial(jax.jit, static_argnums=0)
def apply(net, params, x, c_noise, cond=None):
    return net.apply(params, x, c_noise, cond)


@each
def test_null_is_none_and_a_null_row_is_the_null_of_that_row(net, event):
    (x, c), params, cond = points(event), parameters(net, event), given(net.condition, event)
    null = dropped(net.condition, cond)
    none, of_null, of_cond = (np.asarray(apply(net, params, x, c, value)) for value in (None, null, cond))
    np.testing.assert_array_equal(of_null, none)
    # The same program, so that rows do not depend on others is exact.
    mixed = jax.tree.map(lambda n, v: np.concatenate([n[:2], v[2:]]), null, cond)
    of_mixed = np.asarray(apply(net, params, x, c, mixed))
    np.testing.assert_array_equal(of_mixed[:2], none[:2])
    np.testing.assert_array_equal(of_mixed[2:], of_cond[2:])
    assert np.abs(of_cond - none).reshape(N, -1).max(1).min() > 1e-3
    # The arrays of null() itself, whose images are one pixel.
    np.testing.assert_array_equal(apply(net, params, x, c, net.condition.null(N)), none)


@each
def test_every_member_acts_and_a_missing_one_is_null(net, event):
    (x, c), params, cond = points(event), parameters(net, event), given(net.condition, event)
    y, other = np.asarray(apply(net, params, x, c, cond)), given(net.condition, event, seed=3)
    for i, (name, member) in enumerate(net.condition.members):
        values, others = list(net.condition.values(cond)), net.condition.values(other)
        values[i] = (values[i] + 1) % 3 if isinstance(member, Label) else others[i]
        changed = np.asarray(apply(net, params, x, c, net.condition.joined(tuple(values))))
        assert np.abs(changed - y).reshape(N, -1).max(1).min() > 1e-3, name
        if name is not None:
            values[i] = None
            without = apply(net, params, x, c, net.condition.joined(tuple(values)))
            left_out = apply(net, params, x, c, {key: value for key, value in cond.items() if key != name})
            np.testing.assert_array_equal(without, left_out)
            assert np.abs(np.asarray(without) - y).max() > 1e-3, name


@each
def test_one_noise_level_for_all_is_that_of_each(net, event):
    (x, _), params, cond = points(event), parameters(net, event), given(net.condition, event)
    for value in (None, cond, jax.tree.map(lambda v: v[0], cond)):
        repeated = value if value is cond or value is None else jax.tree.map(lambda v: np.broadcast_to(v, (N, *v.shape)), value)
        # Sums over other shapes round differently: a few of float32's 6e-8, on numbers of order 10.
        shared = apply(net, params, x, np.full(1, 0.3, np.float32), value)
        np.testing.assert_allclose(shared, apply(net, params, x, np.full(N, 0.3, np.float32), repeated), rtol=2e-5, atol=2e-5)


@each
def test_a_row_that_is_partly_nan_is_refused_and_is_nan_in_jit(net, event):
    (x, c), params, cond = points(event), parameters(net, event), given(net.condition, event)
    for i, (name, member) in enumerate(net.condition.members):
        values = [np.copy(value) for value in net.condition.values(cond)]
        if isinstance(member, Label):
            values[i][1] = -1
        elif values[i][1].size > 1:
            values[i][1].reshape(-1)[0] = np.nan
        wrong = net.condition.joined(tuple(values))
        where = "cond" if name is None else rf'cond\["{name}"\]'
        with pytest.raises(ValueError, match=where + r" has (labels -1 to|1 rows of 4 that are not finite, the first is row 1)"):
            net.condition.check(wrong)
        y = np.asarray(apply(net, params, x, c, wrong))
        assert np.isnan(y[1]).all(), name
        assert np.isfinite(np.delete(y, 1, axis=0)).all(), name


@each
def test_gradients_are_finite_with_null_rows_and_reach_every_parameter(net, event):
    (x, c), params, cond = points(event), parameters(net, event), given(net.condition, event)
    mixed = jax.tree.map(lambda n, v: np.concatenate([n[:2], v[2:]]), dropped(net.condition, cond), cond)
    grads = jax.jit(jax.grad(lambda p: jnp.sum((net.apply(p, x, c, mixed) - x) ** 2)))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.all(np.isfinite(leaf)), path
        assert np.any(leaf), path


def test_zeros_are_no_augmentation():
    net, event = UNETS.clone(condition=ALL), (8, 4, 2)
    (x, c), params, cond = points(event), parameters(net, event), given(net.condition, event)
    zeros, null = ({**cond, "altered": np.full((N, 2), value, np.float32)} for value in (0.0, np.nan))
    of_zeros, of_null, of_none = (apply(net, params, x, c, value) for value in (zeros, null, {**cond, "altered": None}))
    np.testing.assert_array_equal(of_zeros, of_null)
    np.testing.assert_array_equal(of_zeros, of_none)


def test_label_is_num_classes_with_the_same_parameters():
    for net, event in ((MLPS, (4, 3)), (UNETS, (8, 4, 2)), (DITS, (8, 12, 1))):
        short, long = net.clone(num_classes=3), net.clone(condition=Label(3))
        params, (x, c) = parameters(short, event), points(event)
        shapes = jax.eval_shape(long.init, jax.random.key(1), x, c)
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
        labels = np.array([0, 1, 2, 3], np.int32)
        np.testing.assert_array_equal(apply(short, params, x, c, labels), apply(long, params, x, c, labels))


def test_a_coarse_image_is_repeated_to_the_size_of_the_event():
    net, event = UNETS.clone(condition=Image(1)), (8, 4, 2)
    (x, c), params = points(event), parameters(net, event)
    coarse = given(net.condition, event)
    fine = np.kron(coarse, np.ones((1, 2, 2, 1), np.float32))
    np.testing.assert_array_equal(apply(net, params, x, c, coarse), apply(net, params, x, c, fine))


CASES = [
    (Label(3), np.zeros(N, np.float32), r"cond has dtype float32: expected integer labels 0 to 2, or 3 for none"),
    (Label(3), np.zeros(2, np.int32), r"cond has shape \(2,\) for 4 examples"),
    (Label(3), np.array([0, 1, 2, 4]), r"cond has labels 0 to 4: expected 0 to 2"),
    (Vector(2), np.zeros((N, 3), np.float32), r"cond has shape \(4, 3\) for 4 examples: expected floating point numbers \(2\)"),
    (Vector(2), np.zeros((N, 2), np.int32), r"cond has dtype int32: expected floating point"),
    (Vector(2), {"vector": np.zeros((N, 2))}, r"cond has the names \['vector'\]: expected an array"),
    (
        Image(1),
        np.zeros((N, 4, 4, 2), np.float32),
        r"cond has shape \(4, 4, 4, 2\) for 4 examples: expected floating point numbers",
    ),
    (ALL, np.zeros(N, np.int32), r"cond is int\d+ of shape \(4,\): expected a dict with the names \['altered', 'image', 'label'"),
    (ALL, {"labels": np.zeros(N, np.int32)}, r"cond has the name 'labels': expected \['altered', 'image', 'label'"),
    (ALL, {"tokens": np.zeros((N, 3, 3), np.float32)}, r'cond\["tokens"\] has shape \(4, 3, 3\) for 4 examples'),
    (ALL, {"image": np.full((N, 4, 4, 1), np.inf, np.float32)}, r'cond\["image"\] has 4 rows of 4 that are not finite'),
]


@pytest.mark.parametrize(("condition", "cond", "message"), CASES)
def test_what_is_no_condition_is_named(condition, cond, message):
    with pytest.raises(ValueError, match=message):
        condition.check(cond, N)


def test_a_denoiser_refuses_before_it_computes():
    denoiser = Denoiser(net=UNETS.clone(condition=ALL), process=Gaussian(schedule=EDM()))
    params = parameters(denoiser.net, (8, 4, 2))
    with pytest.raises(ValueError, match=r'cond\["vector"\] has 1 rows of 4 that are not finite'):
        denoiser.bind(params)(points((8, 4, 2))[0], 1.0, {"vector": np.array([[0, 0], [0, np.nan], [1, 1], [np.nan] * 2])})


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        ({"label": 3}, r'sample\.cond\["label"\] has a leaf of shape \(\): expected a leading axis of 4, .*np\.full\(4, 3\)'),
        ({"label": np.full(N, 1), "lable": 1}, r"cond has the name 'lable': expected \['label', 'vector'\]"),
        ({"label": [1, 1, 1, 1]}, r'sample\.cond\["label"\] has a leaf of shape \(\): .* in one array: a list is several leaves'),
        ({"vector": np.zeros(2)}, r'sample\.cond\["vector"\] has a leaf of shape \(2,\): expected a leading axis of 4, one row'),
        ({"vector": np.zeros((3, 2))}, r'sample\.cond\["vector"\] has a leaf of shape \(3, 2\)'),
    ],
)
def test_a_walk_names_the_member_after_the_names_are_checked(cond, message):
    net = MLPS.clone(condition=Composite(label=Label(3), vector=Vector(2)))
    model = Denoiser(net=net, process=Gaussian(schedule=EDM())).bind(parameters(net, (4, 3)))
    with pytest.raises(ValueError, match=message):
        sample(model, solver=DDIM(), grid=Karras(2), key=jax.random.key(0), shape=(N, 4, 3), cond=cond)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: MLP(condition=Image(1)),
            r"MLP\.condition = Image\(channels=1, axes=2\) enters as channels: expected",
        ),
        (lambda: MLP(condition=ALL), r"whose image = Image\(channels=1, axes=2\) enters as channels"),
        (lambda: UNet(condition=Label(3), num_classes=3), r"UNet\.num_classes = 3 beside condition"),
        (lambda: UNet(condition=3), r"UNet\.condition = 3: expected None or a Condition"),
        (lambda: UNet(attention=(), condition=Sequence(2, length=1)), r"expected levels that attend"),
        (lambda: Label(0), r"Label\.num_classes = 0"),
        (lambda: Image(1, axes=4), r"Image\.axes = 4"),
        (lambda: Composite(), r"Composite has no members"),
        (lambda: Composite(label=3), r"Composite\.label = 3: expected a Member"),
    ],
)
def test_fields_that_do_not_fit_are_named(build, message):
    with pytest.raises((TypeError, ValueError), match=message):
        build()


def test_a_coarse_image_that_does_not_divide_is_named():
    net, (x, c) = UNETS.clone(condition=Image(1)), points((8, 4, 2))
    with pytest.raises(ValueError, match=r"cond has shape \(4, 3, 4, 1\) beside x of shape \(4, 8, 4, 2\): expected sides"):
        jax.eval_shape(net.init, jax.random.key(0), x, c, np.zeros((N, 3, 4, 1), np.float32))
    with pytest.raises(ValueError, match=r"cond has shape \(4, 0, 4, 1\) beside x of shape \(4, 8, 4, 2\): expected sides"):
        jax.eval_shape(net.init, jax.random.key(0), x, c, np.zeros((N, 0, 4, 1), np.float32))
