"""The U-Nets of diffusers against an oracle, and against the names and counts of tensors at published sizes."""

import dataclasses
import json
import math

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab import grids, models, processes, sample, schedules, solvers
from scorelab.errors import WeightsError
from scorelab.pretrained import scheduler, store, unet2d
from tests.pretrained.crafted import FILES
from tests.references.drawn import digest, drawn, listing
from tests.stepping import walk

STORED = np.load(FILES.parent / "pretrained_unet2d.npz")
CASES, RUNS, PUBLISHED, SCHEDULES = (STORED[name].tolist() for name in ("cases", "runs", "published", "schedules"))
pytestmark = pytest.mark.usefixtures("quick_compilation")
LINEAR = schedules.Discrete(alphas_cumprod=tuple(STORED["schedule/linear"].tolist()))


def told(key):
    return json.loads(str(STORED[key]))


def case_of(name, schedule=LINEAR):
    """The network of a case and its published tensors."""
    info = told(f"{name}/info")
    tensors = drawn(info["shapes"])
    assert digest(tensors) == info["sha256"], "NumPy draws other numbers: make the file anew"
    fourier = info["config"].get("time_embedding_type") == "fourier"
    return unet2d.network(info["config"], None if fourier else schedule, name=name), tensors, info


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """Name, network, published tensors and info of a case."""
    return request.param, *case_of(request.param)


def asked(name, net):
    """What the network here is asked where the oracle was asked the stored input, and by what its output is multiplied."""
    x, times = STORED[f"{name}/x"], STORED[f"{name}/times"]
    if net.schedule is not None:
        return x, -net.schedule.log_snr(np.float64(times)) / 8, 1.0
    # Told the noise level: the input is scaled, and the output is the noise, not the score.
    each = times[:, None, None, None]
    return x / np.sqrt(1 + each**2), np.log(times) / 4, -1 / each


# Of the largest number: in float64 the sums are formed in another order; in float32 the oracle itself is 1.5e-6 off its float64.
MOST = dict(output=dict(float64=1e-12, float32=1e-5), gradient=dict(float64=1e-11, float32=2e-5))


# Of which the gradient to the weights is looked at as well, since that takes as long to compile again: they have all layers.
WEIGHTS = {"ncsnpp", "sd2"}


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.long)])
def test_output_and_gradients_are_those_of_the_oracle(case, dtype):
    name, net, tensors, info = case
    with jax.enable_x64(dtype == "float64"):
        whole = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)
        tree, direction = (whole(unet2d.params(net, t)) for t in (tensors, drawn(info["shapes"], seed=11)))
        x, c_noise, factor = asked(name, net)
        cond = jnp.asarray(STORED[f"{name}/cond"]) if f"{name}/cond" in STORED else None
        cond = cond if cond is None or cond.dtype.kind == "i" else cond.astype(dtype)
        x, c_noise, factor, cotangent = (jnp.asarray(v, dtype) for v in (x, c_noise, factor, STORED[f"{name}/cotangent"]))

        @jax.jit
        def ask(tree, x, cond):
            asked = lambda tree, x: factor * net.apply(tree, x, c_noise, cond)
            if name not in WEIGHTS:
                out, pull = jax.vjp(lambda x: asked(tree, x), x)
                return out, *pull(cotangent), None
            out, pull = jax.vjp(asked, tree, x)
            own, gradient = pull(cotangent)
            return out, gradient, sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum(a * b), own, direction)))

        out, gradient, along = ask(tree, x, cond)
        assert out.dtype == gradient.dtype == dtype
        scale = np.sqrt(1 + STORED[f"{name}/times"][:, None, None, None] ** 2) if net.schedule is None else 1.0
        for found, part in ((out, "output"), (gradient / scale, "gradient")):
            wanted = STORED[f"{name}/{part}"]
            # Each image by itself: a gradient at a high noise level is small.
            most = np.abs(wanted).max((1, 2, 3), keepdims=True)
            assert np.max(np.abs(np.asarray(found) - wanted) / most) < MOST[part][dtype], part
        if along is not None:
            # A sum of tens of thousands of products of both signs, each as large as a tenth of it.
            assert abs(along - STORED[f"{name}/along"]) < 10 * MOST["gradient"][dtype] * abs(STORED[f"{name}/along"])


@pytest.mark.parametrize("name", ["sd1", *(pytest.param(name, marks=pytest.mark.long) for name in ("sd2", "adm", "ncsnpp"))])
def test_in_bfloat16_all_is_bfloat16_but_what_needs_more(name):
    net, tensors, _ = case_of(name)
    x, c_noise, factor = asked(name, net)
    cond = jnp.asarray(STORED[f"{name}/cond"]) if f"{name}/cond" in STORED else None
    ask = jax.jit(lambda tree, x: net.apply(tree, x, jnp.asarray(c_noise, jnp.float32), cond))
    found = ask(unet2d.params(net, tensors), jnp.asarray(x, jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    wanted = STORED[f"{name}/output"].reshape(2, -1)
    found = (np.asarray(found, np.float64) * factor).reshape(2, -1)
    # A number of bfloat16 is 4e-3 off, and the network some forty layers deep.
    assert np.all(np.abs(found - wanted).max(1) < 3e-2 * np.abs(wanted).max(1))
    assert np.all(np.sum(found * wanted, 1) > 0.999 * np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1))


def test_published_names_come_back(case):
    _, net, tensors, info = case
    tree = unet2d.params(net, tensors)
    # Flat at the top, where the features of a denoiser are looked for.
    blocks = {"conv_in", "down_blocks_0_resnets_0", "mid_block_resnets_1", "up_blocks_1_resnets_1", "conv_norm_out"}
    assert blocks <= set(tree["params"])
    found = unet2d.published(tree)
    assert sorted(found) == sorted(info["shapes"])
    assert all(array.tobytes() == tensors[name].tobytes() for name, array in found.items())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_the_published_names(name):
    info = told(f"published/{name}")
    net = unet2d.network(info["config"])
    # No memory: every leaf is one number, repeated.
    leaves = {tuple(at.split("/")): np.broadcast_to(np.float32(0), shape) for at, shape in unet2d.shapes(net).items()}
    found = {key: array.shape for key, array in unet2d.published({"params": flax.traverse_util.unflatten_dict(leaves)}).items()}
    assert (len(found), sum(map(math.prod, found.values()))) == (info["tensors"], info["numbers"])
    assert listing(found) == info["sha256"]


def test_other_tensors_are_refused_and_named(case):
    _, net, tensors, _ = case
    less = {name: value for name, value in tensors.items() if name != "time_embedding.linear_1.bias"}
    with pytest.raises(WeightsError, match="1 missing: time_embedding/linear_1/bias: expected"):
        unet2d.params(net, less)
    with pytest.raises(WeightsError, match="1 unexpected: down_blocks_0_resnets_7/conv1/kernel"):
        unet2d.params(net, tensors | {"down_blocks.0.resnets.7.conv1.weight": np.zeros((3, 3, 3, 3), np.float32)})
    with pytest.raises(WeightsError, match=r"1 of another shape: conv_in/kernel \(3, 3, 2, 1\)"):
        unet2d.params(net, tensors | {"conv_in.weight": np.zeros((1, 2, 3, 3), np.float32)})


def test_the_first_names_of_attention_are_known():
    net, tensors, _ = case_of("ddpm")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(name):
        for new, was in old.items():
            name = name.replace(f".{new}.", f".{was}.")
        return name

    first = {renamed(name): value for name, value in tensors.items()}
    assert first.keys() != tensors.keys()
    wanted, found = unet2d.params(net, tensors), unet2d.params(net, first)
    assert jax.tree.all(jax.tree.map(np.array_equal, wanted, found))
    with pytest.raises(WeightsError, match=r"tensors .* and .* for the one mid_block_attentions_0/to_q/kernel"):
        unet2d.params(net, tensors | {"mid_block.attentions.0.query.weight": tensors["mid_block.attentions.0.to_q.weight"]})


def test_frequencies_under_two_names_are_one():
    net, tensors, _ = case_of("ncsnpp")
    unet2d.params(net, tensors | {"time_proj.W": tensors["time_proj.weight"]})
    with pytest.raises(WeightsError, match="1 unexpected: time_proj/W"):
        unet2d.params(net, tensors | {"time_proj.W": 2 * tensors["time_proj.weight"]})


# The noise of schedulers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_levels_are_those_of_diffusers(name):
    config, wanted = told(f"schedule/{name}/config"), STORED[f"schedule/{name}"]
    assert wanted.dtype == np.float32
    schedule, predict = scheduler.read(config)
    # The rounded numbers themselves, widened.
    assert np.array_equal(scheduler.levels(config), wanted.astype(np.float64))
    i = np.arange(len(wanted), dtype=np.float64)
    assert predict == "eps"
    assert np.max(np.abs(schedule.alpha(i) / np.sqrt(wanted.astype(np.float64)) - 1)) < 1e-12
    assert np.max(np.abs(schedule.sigma(i) / np.sqrt(1 - wanted.astype(np.float64)) - 1)) < 1e-12
    # Of an index up to N.
    assert np.max(np.abs(schedule.time(schedule.log_snr(i)) - i)) < 1e-12 * len(wanted)


# Betas of a config without any, `inspect.signature` of every class in diffusers 0.42.1: beta_start, beta_end, beta_schedule.
DEFAULTS = {
    **dict.fromkeys(
        ("DDIMInverse", "DDIMParallel", "DDIM", "DDPMParallel", "DDPM", "DEISMultistep", "DPMSolverMultistep",
         "DPMSolverSinglestep", "EulerAncestralDiscrete", "EulerDiscrete", "LMSDiscrete", "PNDM", "UniPCMultistep"),
        (0.0001, 0.02, "linear"),
    ),
    **dict.fromkeys(("DPMSolverSDE", "HeunDiscrete", "KDPM2AncestralDiscrete", "KDPM2Discrete"), (0.00085, 0.012, "linear")),
    "LCM": (0.00085, 0.012, "scaled_linear"),
}  # fmt: skip
# The last of `alphas_cumprod` of such a scheduler, float32.
LAST = {
    (0.0001, 0.02, "linear"): 4.035830352222547e-05,
    (0.00085, 0.012, "linear"): 0.0015789627796038985,
    (0.00085, 0.012, "scaled_linear"): 0.00466009508818388,
}


def test_betas_that_are_not_said_are_those_of_the_class():
    assert {f"{name}Scheduler" for name in DEFAULTS} == set(scheduler._CLASSES)
    for name, usual in DEFAULTS.items():
        config = dict(_class_name=f"{name}Scheduler")
        found = scheduler.levels(config)
        assert found[-1] == LAST[usual], name
        stated = dict(zip(("beta_start", "beta_end", "beta_schedule"), usual, strict=True))
        for field in stated:
            # One that is said leaves the others as they are.
            assert np.array_equal(scheduler.levels(config | {field: stated[field]}), found), name
        assert scheduler.read(config).schedule == scheduler.read(config | stated).schedule


def test_zero_terminal_noise_is_refused_where_the_noise_is_predicted():
    config = dict(_class_name="DDIMScheduler", rescale_betas_zero_snr=True)
    noise = scheduler.read(config | dict(prediction_type="v_prediction"))
    assert noise.predict == "v"
    assert noise.schedule.alpha(np.float64(999)) == 0
    with pytest.raises(WeightsError, match="rescale_betas_zero_snr with prediction_type = 'epsilon'"):
        scheduler.read(config)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (dict(_class_name="FlowMatchEulerDiscreteScheduler"), "scheduler 'FlowMatchEulerDiscreteScheduler': expected"),
        (dict(), "scheduler None: expected"),
        (dict(_class_name="DDPMScheduler", beta_schedule="sigmoid"), "beta_schedule = 'sigmoid': expected linear"),
        (dict(_class_name="DDPMScheduler", beta_end=2), r"beta_start = 0\.0001, beta_end = 2"),
        (dict(_class_name="DDPMScheduler", prediction_type="flow"), "prediction_type = 'flow'"),
        (dict(_class_name="DDPMScheduler", num_train_timesteps=2), "num_train_timesteps = 2"),
        (dict(_class_name="DDPMScheduler", trained_betas=["a"] * 5), "expected a list of three or more numbers"),
        (dict(_class_name="DDPMScheduler", trained_betas=[0.1, 0.2, 1.5]), "betas from 0.1 to 1.5"),
        (dict(_class_name="EulerDiscreteScheduler", timestep_type="continuous"), "timestep_type = 'continuous': expected 'disc"),
        (dict(_class_name="UniPCMultistepScheduler", use_flow_sigmas=True), "use_flow_sigmas = True: expected False"),
        (dict(_class_name="ScoreSdeVeScheduler", sigma_min=3, sigma_max=2), r"VE\.sigma_max = 2"),
        (dict(_class_name="ScoreSdeVeScheduler", sigma_max="90"), "sigma_max = '90': expected a finite number"),
        (dict(_class_name="DDPMScheduler", prediction_type=[]), r"prediction_type = \[\]: expected epsilon"),
        (dict(_class_name="DDPMScheduler", rescale_betas_zero_snr=1), "rescale_betas_zero_snr = 1: expected true or false"),
        (dict(_class_name="DDPMScheduler", trained_betas=[0.1, 0.2, 10**400]), "trained_betas = .*: expected a list of three"),
        (dict(_class_name="DDPMScheduler", trained_betas=[0.1, 0.2, "0.3"]), "trained_betas = .*: expected a list of three"),
    ],
)
def test_other_schedulers_are_refused(config, reason):
    with pytest.raises(WeightsError, match=reason):
        scheduler.read(config)


# Models ----------------------------------------------------------------------------------------------------------------------


def folder(path, name, config):
    _, tensors, info = case_of(name)
    return store.write_folder(path, tensors, dict(kind="diffusers", network=info["config"], scheduler=config))


BOUNDED = {
    "ddpm_clipped": lambda model: models.Clipped(model=model),
    "ddim_clipped": lambda model: models.Clipped(model=model),
    "ddpm_threshold": lambda model: models.DynamicThreshold(model=model, quantile=0.9, limit=1.8),
    "ddim_clipped_kept": lambda model: models.Clipped(model=model),
}


@pytest.mark.parametrize(
    ("dtype", "name"),
    [("float64", name) for name in RUNS] + [pytest.param("float32", name, marks=pytest.mark.long) for name in RUNS],
)
def test_samples_are_those_of_diffusers(name, dtype, tmp_path):
    info, wanted = told(f"runs/{name}/info"), STORED[f"runs/{name}"]
    with jax.enable_x64(dtype == "float64"):
        model = unet2d.model(folder(tmp_path / "out", "ddpm", info["config"]))
        model = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), model)
        # Its last step goes to the first level, or to clean data.
        ends = info["config"].get("set_alpha_to_one", True)
        grid = grids.Explicit((*info["timesteps"], *(() if ends else (0,))), clean=ends)
        solver = solvers.DDIM(eta=1.0 if "DDPM" in info["config"]["_class_name"] else info["options"]["eta"])
        solver = solvers.KeptNoise(solver=solver) if name.endswith("kept") else solver
        bounded = BOUNDED.get(name, lambda model: model)(model)
        times = grid.times(model.process)
        start, noise = (np.asarray(STORED[f"runs/{part}"], dtype) for part in ("start", "noise"))
        found = jax.jit(lambda model, y, z: walk(solver, model.process, model, times, y, z))(bounded, start, noise)
    most = np.abs(wanted).max((1, 2, 3, 4), keepdims=True)
    # In float64 ten steps of a network that is 1e-12 off. What float32 costs, the oracle itself says by a run in it; where clipped
    # means are kept apart by 1 / alpha = 60 it is 4e-5, elsewhere below 1e-6.
    assert np.max(np.abs(np.asarray(found) - wanted) / most) < (1e-9 if dtype == "float64" else 10 * info["float32_difference"])


def test_one_network_answers_under_two_processes(tmp_path):
    # The prediction for a point and a noise ratio is the same, whatever the noise has been scaled by.
    config = told("runs/ddim_eta0/info")["config"]
    with jax.enable_x64(True):
        vp = unet2d.model(folder(tmp_path / "out", "ddpm", config))
        ve = dataclasses.replace(vp.denoiser, process=processes.Gaussian(schedule=schedules.EDM())).bind(vp.params)
        x = STORED["ddpm/x"]
        ask = jax.jit(lambda model, x, t: model(x, t))
        for t in (3.0, 417.25):
            alpha, sigma = (float(f(np.float64(t))) for f in (vp.process.alpha, vp.process.sigma))
            a, b = ask(vp, jnp.asarray(x), t), ask(ve, jnp.asarray(x / alpha), sigma / alpha)
            assert np.max(np.abs(a.denoised - b.denoised)) < 1e-9 * np.max(np.abs(a.denoised))


def test_a_network_that_is_told_the_noise_level_is_a_model_under_it(tmp_path):
    config = dict(_class_name="ScoreSdeVeScheduler", sigma_min=0.02, sigma_max=90.0)
    model = unet2d.model(folder(tmp_path / "out", "ncsnpp", config))
    assert model.process.schedule == schedules.VE(sigma_min=0.02, sigma_max=90.0)
    x, times = STORED["ncsnpp/x"], STORED["ncsnpp/times"]
    t = model.process.schedule.time(-2 * np.log(times))
    # Tweedie: the published output is the score.
    wanted = x + times[:, None, None, None] ** 2 * STORED["ncsnpp/output"]
    found = jax.jit(lambda model, x, t: model(x, t).denoised)(model, jnp.asarray(x, jnp.float32), jnp.asarray(t, jnp.float32))
    most = np.abs(wanted).max((1, 2, 3), keepdims=True)
    # Float32: the time of a noise level of 40 is 6e-8 off, times the logarithm of the range, times the largest frequency.
    assert np.max(np.abs(found - wanted) / most) < 2e-5


def text_model(tmp_path, **more):
    config = dict(_class_name="PNDMScheduler", beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    return unet2d.model(folder(tmp_path / "out", "sd1", config), **more)


def test_no_condition_is_the_empty_text(tmp_path):
    context = jnp.asarray(STORED["sd1/cond"], jnp.float32)
    empty = np.asarray(context[1] / 2)
    model = text_model(tmp_path, null_context=empty)
    assert np.array_equal(model.params["params"]["null_context"], empty)
    assert "null_context" not in unet2d.published(model.params)
    x, t = jnp.asarray(STORED["sd1/x"][:, :8, :8], jnp.float32), 300.0
    ask = jax.jit(lambda model, context: model(x, t, context).denoised)
    given, free = ask(model, jnp.stack([jnp.asarray(empty)] * 2)), ask(model, jnp.full_like(context, jnp.nan))
    # A row that is not given, beside one that is.
    mixed, strong = ask(model, context.at[1].set(jnp.nan)), ask(model, context)
    assert np.array_equal(free, given)
    assert np.array_equal(mixed, jnp.stack([strong[0], given[1]]))
    # Float32: differences of denoised means of the size of ten.
    guided = ask(models.ClassifierFreeGuidance(model=model, scale=7.5), context)
    np.testing.assert_allclose(guided, given + 7.5 * (strong - given), rtol=1e-5, atol=1e-4)
    out = sample(
        models.ClassifierFreeGuidance(model=model, scale=3.0), solver=solvers.DDIM(), grid=grids.Explicit((981, 401, 1, 0)),
        shape=(2, 4, 4, 3), key=jax.random.key(0), cond=context,
    )  # fmt: skip
    assert np.all(np.isfinite(out.x))


def test_what_is_no_condition_is_refused(tmp_path):
    x = jnp.zeros((2, 8, 8, 3))
    model = text_model(tmp_path)
    with pytest.raises(ValueError, match=r"without null_context: expected .* or the context of the empty text"):
        model(x, 3.0)
    with pytest.raises(ValueError, match=r"cond has shape \(2, 5, 24\)"):
        model(x, 3.0, jnp.zeros((2, 5, 24)))
    with pytest.raises(ValueError, match=r"null_context has shape \(3, 24\): expected finite numbers of shape \(77, 24\)"):
        unet2d.with_null(model.denoiser.net, model.params, np.zeros((3, 24)))
    adm = case_of("adm")
    classes = models.Denoiser(net=adm[0], process=model.process, predict="eps", data_std=1.0).bind(unet2d.params(*adm[:2]))
    with pytest.raises(ValueError, match="cond has labels 0 to 5: expected integer labels 0 to 4"):
        classes(x, 3.0, jnp.array([0, 5]))
    with pytest.raises(ValueError, match="cond = None for UNet2DModel with classes"):
        classes(x, 3.0)
    with pytest.raises(ValueError, match="expected sides that 2 \\*\\* 2 divides"):
        classes(jnp.zeros((2, 6, 6, 3)), 3.0, jnp.array([0, 4]))
    # Inside jit, where labels are not known, the answer is none.
    assert np.isnan(jax.jit(lambda label: classes(x, 3.0, label).denoised)(jnp.array([0, -1]))[1]).all()


def test_a_folder_of_another_kind_is_no_model(tmp_path):
    other = store.write_folder(tmp_path / "a", dict(a=np.zeros(1)), dict(kind="tensors", network={}))
    with pytest.raises(WeightsError, match="kind 'tensors': expected diffusers"):
        unet2d.model(other)
    with pytest.raises(WeightsError, match=r"no scheduler: expected the content of its scheduler_config\.json"):
        unet2d.model(folder(tmp_path / "b", "ddpm", None))
    with pytest.raises(WeightsError, match="time_embedding_type = 'positional' with scheduler 'ScoreSdeVeScheduler'"):
        unet2d.model(folder(tmp_path / "c", "ddpm", dict(_class_name="ScoreSdeVeScheduler")))
    net, tensors, _ = case_of("ddpm", None)
    with pytest.raises(ValueError, match=r"UNet2DModel\.schedule = None: expected the Discrete levels"):
        net.apply(unet2d.params(net, tensors), jnp.zeros((1, 8, 8, 3)), jnp.zeros(1))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (dict(_class_name="UNet3DConditionModel"), "_class_name = 'UNet3DConditionModel': expected UNet2DModel or"),
        (dict(colour=3), "fields colour of UNet2DModel"),
        (dict(act_fn="mish"), "act_fn = 'mish': expected 'silu' or 'swish'"),
        (dict(down_block_types=["KDownBlock2D", "DownBlock2D"]), "down_block_types has 'KDownBlock2D': expected"),
        (dict(up_block_types=["UpBlock2D"]), "2 down_block_types, 1 up_block_types and 2 block_out_channels"),
        (dict(norm_num_groups=7), "cannot reshape"),
        (dict(block_out_channels=[32, 0]), "UNet2DModel.block_out_channels = 0"),
        (dict(block_out_channels="32"), "block_out_channels = '32': expected a list"),
        (dict(layers_per_block=None), "UNet2DModel.layers_per_block = None"),
        (dict(norm_eps="small"), "UNet2DModel.norm_eps = 'small'"),
        (dict(sample_size=[1, [2]]), r"UNet2DModel.sample_size = \[1, \[2\]\]"),
        (dict(attention_head_dim=100), r"attention_head_dim = 100: expected an integer of at most 64"),
        (dict(out_channels=4), "out_channels = 4: expected 3 or 6"),
        (dict(time_embedding_type="learned"), "time_embedding_type = 'learned'"),
        (dict(class_embed_type="timestep"), "class_embed_type = 'timestep': expected None"),
        (dict(center_input_sample="false"), "UNet2DModel.center_input_sample = 'false': expected true or false"),
        (dict(flip_sin_to_cos=1.5), r"flip_sin_to_cos = 1\.5: expected true or false"),
        (dict(add_attention=math.nan), "add_attention = nan: expected true or false"),
        (dict(norm_num_groups=[]), r"norm_num_groups = \[\]: expected an integer"),
        (dict(attn_norm_num_groups=True), "attn_norm_num_groups = True: expected an integer"),
        (dict(attention_head_dim=True), "attention_head_dim = True: expected an integer"),
        (dict(mid_block_type=[]), r"mid_block_type = \[\]: expected a text or null"),
        (dict(norm_eps=10**400), "norm_eps = 1000.*: expected a finite number"),
        (dict(conv_in_kernel=True), "conv_in_kernel = True: expected 3"),
        (dict(layers_per_block=[]), r"layers_per_block = \(\): expected an integer, or one for each of 2 levels"),
        (dict(layers_per_block=[1]), r"layers_per_block = \(1,\): expected an integer, or one for each of 2 levels"),
        (dict(layers_per_block=10**9), "layers_per_block = 1000000000: expected an integer of at most 65,536"),
        (dict(layers_per_block=100), "402 blocks: expected at most 256"),
        (dict(block_out_channels=[32, 10**9]), r"block_out_channels = \[32, 1000000000\]: expected a list of at most 16"),
        (dict(_class_name=[]), r"_class_name = \[\]: expected UNet2DModel or"),
    ],
)
def test_other_networks_are_refused(config, reason):
    with pytest.raises(WeightsError, match=reason):
        unet2d.network(told("ddpm/info")["config"] | config)


def test_networks_under_texts_say_what_they_are_not():
    config = told("sd1/info")["config"]
    for more, reason in (
        (dict(addition_embed_type="text_time"), "addition_embed_type = 'text_time', a U-Net of SDXL: expected None"),
        (dict(only_cross_attention=True), "only_cross_attention = True: expected False"),
        (dict(attention_head_dim=[4]), r"attention_head_dim = \(4,\): expected an integer, or one for each of 2"),
        (dict(in_channels=9, out_channels=4), "out_channels = 4: expected 9 or 18"),
        (dict(cross_attention_dim=[24, 24]), r"cross_attention_dim = \[24, 24\]: expected an integer"),
        (dict(use_linear_projection=[]), r"use_linear_projection = \[\]: expected true or false"),
        (dict(transformer_layers_per_block=[100, 2]), "306 blocks: expected at most 256"),
    ):
        with pytest.raises(WeightsError, match=reason):
            unet2d.network(config | more)
