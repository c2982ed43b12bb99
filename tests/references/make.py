"""Sample an exactly known law with k-diffusion and diffusers, and store the trajectories.

    python tests/references/make.py

writes ``k_diffusion.npz`` and ``diffusers.npz`` beside this file. They are the independent references that
scorelab's solvers are compared with, and are read without torch. ``README.md`` says how to read them and
which conventions each library has; ``check.py`` recomputes every trajectory in NumPy.

Needs::

    pip install '.[peers]'
    pip install --no-deps k-diffusion==0.1.1.post1

Only the sampling module of k-diffusion is imported, and its training dependencies are replaced by empty stand-ins. One of them asks
for a numpy below 2, which scorelab does not run with, so no installation has them all.

The model is the exact denoiser of a Gaussian mixture at x = alpha x0 + sigma n, evaluated in float64. What
the libraries compute is float64 too, so that a comparison shows differences of formula, not of rounding:

* k-diffusion follows the dtype of its inputs;
* diffusers rounds its noise levels to float32, and some schedulers cast the sample. The rounded levels stay
  (and stored) but widened to float64, and the casts are widened by showing the scheduler's module a ``torch``
  whose ``float32`` is ``float64``. No formula is touched.

Every case is run a second time in float32 with the library untouched; the difference is stored with it.
"""

import contextlib
import importlib
import importlib.util
import json
import platform
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import diffusers
import numpy as np
import torch

HERE = Path(__file__).parent
COMMAND = "python tests/references/make.py"

WEIGHTS = [0.5, 0.3, 0.2]
MEANS = [[-1.5, 0.5], [1.0, 1.2], [0.6, -1.4]]
COVS = [[[0.20, 0.08], [0.08, 0.10]], [[0.05, -0.03], [-0.03, 0.15]], [[0.12, 0.00], [0.00, 0.02]]]

PARTICLES = 16
VE_STEPS, VE_SIGMA_MIN, VE_SIGMA_MAX = 12, 0.02, 20.0
VP_STEPS = 10

Array = np.ndarray
Tensor = torch.Tensor


# -------------------------------------------------------------------------------------------- the exact model


def denoise(x: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
    """E[x0 | x = alpha x0 + sigma n] for the mixture, in float64 and returned in the dtype of x.

    Component k answers m_k + alpha S_k C_k^-1 (x - alpha m_k) with C_k = alpha^2 S_k + sigma^2 I, and is
    weighted by its posterior probability w_k N(x; alpha m_k, C_k) / sum.
    """
    y, alpha, sigma = x.double(), torch.as_tensor(alpha).double(), torch.as_tensor(sigma).double()
    weights, means, covs = (torch.tensor(p, dtype=torch.float64) for p in (WEIGHTS, MEANS, COVS))
    noised = alpha**2 * covs + sigma**2 * torch.eye(2, dtype=torch.float64)
    delta = y[:, None, :] - alpha * means
    solved = torch.linalg.solve(noised, delta[..., None])[..., 0]
    log_weight = weights.log() - 0.5 * (delta * solved).sum(-1) - 0.5 * torch.logdet(noised)
    component = means + alpha * torch.einsum("kij,nkj->nki", covs, solved)
    return (log_weight.softmax(-1)[..., None] * component).sum(1).to(x.dtype)


def relative_difference(a: Array, b: Array) -> float:
    """Largest difference at a grid node relative to the largest entry at that node, over all nodes."""
    return float(max(np.abs(p - q).max() / np.abs(q).max() for p, q in zip(a, b, strict=True)))


# ------------------------------------------------------------------------------------------------ k-diffusion


@dataclass(frozen=True)
class KDiffusion:
    """One call of a function of ``k_diffusion.sampling``."""

    function: str
    options: dict = field(default_factory=dict)


def k_diffusion_cases() -> dict[str, KDiffusion]:
    churn = {"s_churn": 3.0, "s_tmin": 0.05, "s_tmax": 10.0, "s_noise": 1.003}
    return {
        "euler": KDiffusion("sample_euler"),
        "euler_churn": KDiffusion("sample_euler", churn),
        "euler_ancestral": KDiffusion("sample_euler_ancestral", {"eta": 1.0}),
        "heun": KDiffusion("sample_heun"),
        "heun_churn": KDiffusion("sample_heun", churn),
        "lms_4": KDiffusion("sample_lms", {"order": 4}),
        "dpmpp_2m": KDiffusion("sample_dpmpp_2m"),
        "dpmpp_2m_sde_eta0": KDiffusion("sample_dpmpp_2m_sde", {"eta": 0.0, "solver_type": "midpoint"}),
        "dpmpp_2m_sde_eta1": KDiffusion("sample_dpmpp_2m_sde", {"eta": 1.0, "solver_type": "midpoint"}),
        "dpmpp_2m_sde_heun_eta1": KDiffusion("sample_dpmpp_2m_sde", {"eta": 1.0, "solver_type": "heun"}),
        "dpmpp_3m_sde_eta0": KDiffusion("sample_dpmpp_3m_sde", {"eta": 0.0}),
        "dpmpp_3m_sde_eta1": KDiffusion("sample_dpmpp_3m_sde", {"eta": 1.0}),
    }


def import_k_diffusion_sampling() -> types.ModuleType:
    """Import ``k_diffusion.sampling`` without ``k_diffusion/__init__``, which imports the training code.

    The stand-ins are names the module imports but none of the functions used here touches.
    """
    package = types.ModuleType("k_diffusion")
    package.__path__ = importlib.util.find_spec("k_diffusion").submodule_search_locations
    unused = ["torchvision", "torchvision.transforms", "torchdiffeq", "torchsde"]
    stand_ins = {name: mock.MagicMock() for name in unused}
    with mock.patch.dict(sys.modules, {"k_diffusion": package, **stand_ins}):
        return importlib.import_module("k_diffusion.sampling")


def karras_sigmas(sampling: types.ModuleType) -> Tensor:
    """The library's Karras grid with the final zero, in float64: it follows torch's default dtype."""
    with default_dtype(torch.float64):
        return sampling.get_sigmas_karras(VE_STEPS, VE_SIGMA_MIN, VE_SIGMA_MAX, rho=7.0)


def run_k_diffusion(sampling, case: KDiffusion, sigmas: Tensor, start: Tensor, noise: Tensor) -> Array:
    """The states at the grid nodes, (steps + 1, particles, 2); row i of ``noise`` is what step i draws.

    Samplers with a ``noise_sampler`` argument get the rows through it. Euler and Heun call
    ``torch.randn_like(x)`` once at the top of every step, before churning, so intercepting it gives them
    their noise and also shows the state at the node (their callback only shows the churned one).
    """
    callback_states, node_states = [], []

    def randn_like(x: Tensor) -> Tensor:
        node_states.append(x)
        return noise[len(node_states) - 1]

    options = dict(case.options)
    if "eta" in options:
        rows = iter(noise)
        options["noise_sampler"] = lambda sigma, sigma_next: next(rows)
    with mock.patch.object(torch, "randn_like", randn_like):
        last = getattr(sampling, case.function)(
            lambda x, sigma: denoise(x, 1.0, sigma[0]),
            start,
            sigmas,
            callback=lambda info: callback_states.append(info["x"]),
            disable=True,
            **options,
        )
    states = torch.stack([*(node_states or callback_states), last])
    assert states.dtype == start.dtype
    return states.numpy()


def make_k_diffusion(rng: np.random.Generator) -> dict[str, Array]:
    sampling = import_k_diffusion_sampling()
    sigmas = karras_sigmas(sampling)
    start = sigmas[0] * torch.from_numpy(rng.standard_normal((PARTICLES, 2)))
    noise = torch.from_numpy(rng.standard_normal((VE_STEPS, PARTICLES, 2)))
    arrays = {"noise": noise.numpy()}
    for name, case in k_diffusion_cases().items():
        x = run_k_diffusion(sampling, case, sigmas, start, noise)
        single = run_k_diffusion(sampling, case, sigmas.float(), start.float(), noise.float())
        info = {
            "call": f"k_diffusion.sampling.{case.function}",
            "options": case.options,
            "coordinates": "ve",
            "stochastic": bool(case.options.get("eta") or case.options.get("s_churn")),
            "library_dtype": "follows its inputs (float64 here)",
            "float32_difference": relative_difference(single, x),
        }
        arrays |= case_arrays(name, info, x, np.ones_like(sigmas.numpy()), sigmas.numpy())
    return arrays


# -------------------------------------------------------------------------------------------------- diffusers


@dataclass(frozen=True)
class Output:
    """What a scheduler calls the model's output, written from the exact denoised sample."""

    prediction_type: str | None
    from_denoised: Callable[[object, Tensor, Tensor, Tensor], Tensor]


def edm_network_output(scheduler, denoised: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """The F that the scheduler's preconditioning D = c_skip x + c_out F turns back into the exact D."""
    data = scheduler.config.sigma_data
    skip, out = data**2 / (sigma**2 + data**2), sigma * data / (sigma**2 + data**2) ** 0.5
    network = (denoised - skip * x) / out
    if x.dtype == torch.float64:
        assert torch.allclose(scheduler.precondition_outputs(x, network, sigma), denoised, rtol=0, atol=1e-12)
    return network


SAMPLE = Output("sample", lambda scheduler, denoised, x, sigma: denoised)
EDM = Output("epsilon", edm_network_output)
VELOCITY = Output(None, lambda scheduler, denoised, x, sigma: (x - denoised) / sigma)


@dataclass(frozen=True)
class Diffusers:
    """One diffusers scheduler on one grid. ``coordinates`` says what its sample is at its level s.

    vp: alpha = 1 / sqrt(1 + s^2), sigma = s alpha; ve: alpha = 1, sigma = s; flow: alpha = 1 - s, sigma = s.
    """

    scheduler: str
    config: dict = field(default_factory=dict)
    coordinates: str = "vp"
    output: Output = SAMPLE
    steps: int = VP_STEPS
    step_options: dict = field(default_factory=dict)
    stochastic: bool = False
    sigmas: tuple[float, ...] | None = None
    evaluations: int = 1


def diffusers_cases() -> dict[str, Diffusers]:
    multistep, unipc = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
    vp = {"beta_schedule": "linear", "timestep_spacing": "trailing"}
    plus = {**vp, "algorithm_type": "dpmsolver++", "solver_type": "midpoint", "final_sigmas_type": "zero"}
    sde = {**plus, "algorithm_type": "sde-dpmsolver++"}
    bh1 = {**vp, "predict_x0": True, "solver_type": "bh1", "final_sigmas_type": "sigma_min"}  # zero gives NaN
    bh2 = {**vp, "predict_x0": True, "solver_type": "bh2", "final_sigmas_type": "zero"}
    karras = {"sigma_min": VE_SIGMA_MIN, "sigma_max": VE_SIGMA_MAX, "sigma_data": 0.5, "rho": 7.0}
    edm = {"coordinates": "ve", "output": EDM, "steps": VE_STEPS}
    flow = {"use_flow_sigmas": True, "predict_x0": True, "solver_type": "bh2"}
    from_one = tuple(np.linspace(1.0, 0.1, VP_STEPS).tolist())
    below_one = tuple(np.linspace(0.98, 0.1, VP_STEPS).tolist())
    ddim = {**vp, "clip_sample": False, "set_alpha_to_one": True}
    return {
        "ddim_eta0": Diffusers("DDIMScheduler", ddim, step_options={"eta": 0.0}),
        "ddim_eta1": Diffusers("DDIMScheduler", ddim, step_options={"eta": 1.0}, stochastic=True),
        "dpmpp_1": Diffusers(multistep, {**plus, "solver_order": 1}),
        "dpmpp_2": Diffusers(multistep, {**plus, "solver_order": 2}),
        "dpmpp_2_full_order": Diffusers(multistep, {**plus, "solver_order": 2, "lower_order_final": False}),
        "dpmpp_2_heun": Diffusers(multistep, {**plus, "solver_order": 2, "solver_type": "heun"}),
        "dpmpp_3": Diffusers(multistep, {**plus, "solver_order": 3}),
        "dpmpp_3_full_order": Diffusers(multistep, {**plus, "solver_order": 3, "lower_order_final": False}),
        "sde_dpmpp_1": Diffusers(multistep, {**sde, "solver_order": 1}, stochastic=True),
        "sde_dpmpp_2": Diffusers(multistep, {**sde, "solver_order": 2}, stochastic=True),
        "unipc_2_bh1": Diffusers(unipc, {**bh1, "solver_order": 2}),
        "unipc_2_bh2": Diffusers(unipc, {**bh2, "solver_order": 2}),
        "unipc_3_bh1": Diffusers(unipc, {**bh1, "solver_order": 3}),
        "unipc_3_bh2": Diffusers(unipc, {**bh2, "solver_order": 3}),
        "deis_2": Diffusers("DEISMultistepScheduler", {**vp, "solver_order": 2}),
        "deis_3": Diffusers("DEISMultistepScheduler", {**vp, "solver_order": 3}),
        "deis_3_full_order": Diffusers("DEISMultistepScheduler", {**vp, "solver_order": 3, "lower_order_final": False}),
        "euler_discrete": Diffusers("EulerDiscreteScheduler", vp, coordinates="ve"),
        "heun_discrete": Diffusers("HeunDiscreteScheduler", vp, coordinates="ve", evaluations=2),
        "edm_euler": Diffusers("EDMEulerScheduler", karras, **edm),
        "edm_dpmpp_2": Diffusers("EDMDPMSolverMultistepScheduler", {**karras, "solver_order": 2}, **edm),
        "edm_dpmpp_3": Diffusers("EDMDPMSolverMultistepScheduler", {**karras, "solver_order": 3}, **edm),
        "flow_euler": Diffusers("FlowMatchEulerDiscreteScheduler", coordinates="flow", output=VELOCITY, sigmas=from_one),
        "flow_unipc_2": Diffusers(unipc, {**flow, "solver_order": 2}, coordinates="flow", sigmas=below_one),
    }


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """torch's default dtype within the block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class WideTorch:
    """The torch module, except that ``float32`` means ``float64``."""

    float32 = torch.float64

    def __getattr__(self, name: str):
        return getattr(torch, name)


@contextlib.contextmanager
def widened(scheduler) -> Iterator[None]:
    """Let a scheduler that is set up compute its steps in float64, from its own float32 noise levels."""
    for name in ("sigmas", "alphas_cumprod", "final_alpha_cumprod"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, getattr(scheduler, name).double())
    module = sys.modules[type(scheduler).__module__]
    with mock.patch.object(module, "torch", WideTorch()), default_dtype(torch.float64):
        yield


def set_up(case: Diffusers):
    config = dict(case.config)
    if case.output.prediction_type is not None:
        config["prediction_type"] = case.output.prediction_type
    scheduler = getattr(diffusers, case.scheduler)(**config)
    if case.sigmas is None:
        scheduler.set_timesteps(case.steps)
    else:
        scheduler.set_timesteps(sigmas=np.array(case.sigmas))
    return scheduler


def node_levels(scheduler) -> Tensor:
    """The level s at the steps + 1 grid nodes, the final one included."""
    if isinstance(scheduler, diffusers.DDIMScheduler):
        steps, final = scheduler.alphas_cumprod[scheduler.timesteps], scheduler.final_alpha_cumprod
        cumprod = torch.cat([steps, final[None]])
        return ((1 - cumprod) / cumprod).sqrt()
    if isinstance(scheduler, diffusers.HeunDiscreteScheduler):  # s0, s1, s1, s2, s2, ..., 0
        return torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1::2]])
    return scheduler.sigmas


def alpha_sigma(coordinates: str, level: Tensor) -> tuple[Tensor, Tensor]:
    """The (alpha, sigma) of the scheduler's sample at a level; see `Diffusers`."""
    if coordinates == "vp":
        alpha = 1 / (1 + level**2).sqrt()
        return alpha, level * alpha
    return (torch.ones_like(level) if coordinates == "ve" else 1 - level), level


def run_diffusers(case: Diffusers, unit: Tensor, noise: Tensor) -> dict[str, Array]:
    """``x`` (steps + 1, particles, 2) as the scheduler returns it, its grid, and UniPC's corrected states."""
    scheduler = set_up(case)
    wide = widened(scheduler) if unit.dtype == torch.float64 else contextlib.nullcontext()
    with wide:
        alpha, sigma = alpha_sigma(case.coordinates, node_levels(scheduler))
        x = sigma[0] * unit
        nodes, corrected = [x], []
        for call, timestep in enumerate(scheduler.timesteps):
            node = (call + case.evaluations - 1) // case.evaluations
            options = dict(case.step_options)
            if case.stochastic:
                options["variance_noise"] = noise[node]
            if hasattr(scheduler, "scale_model_input"):  # only silences a warning: the exact model takes x
                scheduler.scale_model_input(x, timestep)
            denoised = denoise(x, alpha[node], sigma[node])
            output = case.output.from_denoised(scheduler, denoised, x, sigma[node])
            x = scheduler.step(output, timestep, x, return_dict=False, **options)[0]
            assert x.dtype == unit.dtype
            if hasattr(scheduler, "last_sample"):
                corrected.append(scheduler.last_sample)
            if (call + 1) % case.evaluations != 1 or call + 1 == len(scheduler.timesteps):
                nodes.append(x)
    arrays = {"x": torch.stack(nodes), "alpha": alpha, "sigma": sigma, "timesteps": scheduler.timesteps}
    if corrected:
        arrays["corrected"] = torch.stack([*corrected, x])
    return {name: array.numpy() for name, array in arrays.items()}


def casts_sample(case: Diffusers) -> bool:
    """Whether the untouched scheduler computes a float64 sample in float32."""
    source = Path(sys.modules[getattr(diffusers, case.scheduler).__module__].__file__).read_text()
    return "sample = sample.to(torch.float32)" in source


def make_diffusers(rng: np.random.Generator) -> dict[str, Array]:
    unit = torch.from_numpy(rng.standard_normal((PARTICLES, 2)))
    noise = torch.from_numpy(rng.standard_normal((VP_STEPS, PARTICLES, 2)))
    arrays = {"noise": noise.numpy()}
    for name, case in diffusers_cases().items():
        run = run_diffusers(case, unit, noise)
        single = run_diffusers(case, unit.float(), noise.float())
        info = {
            "call": f"diffusers.{case.scheduler}",
            "options": {**case.config, **case.step_options},
            "coordinates": case.coordinates,
            "stochastic": case.stochastic,
            "library_dtype": "float32 levels, sample cast to float32 (both widened to float64)"
            if casts_sample(case)
            else "float32 levels (widened to float64)",
            "float32_difference": relative_difference(single["x"], run["x"]),
        }
        arrays |= case_arrays(name, info, run["x"], run["alpha"], run["sigma"])
        arrays |= {f"{name}/{extra}": run[extra] for extra in ("corrected", "timesteps") if extra in run}
    return arrays


# ---------------------------------------------------------------------------------------------------- storage


def case_arrays(name: str, info: dict, x: Array, alpha: Array, sigma: Array) -> dict[str, Array]:
    assert np.isfinite(x).all(), name
    assert len(x) == len(alpha) == len(sigma), name
    print(f"{name:24s} float32 differs by {info['float32_difference']:.1e}")
    named = {"x": x, "alpha": alpha, "sigma": sigma, "info": np.array(json.dumps(info))}
    return {f"{name}/{key}": value for key, value in named.items()}


def common_arrays(rng: np.random.Generator) -> dict[str, Array]:
    """The mixture, its denoiser at a few probe points, and how the file was made."""
    levels = np.array([[1.0, 0.02], [1.0, 1.0], [1.0, 20.0], [0.8, 0.6], [0.0, 1.0]])
    points = rng.standard_normal((len(levels), PARTICLES, 2)) * 1.5
    answers = [denoise(torch.from_numpy(x), *level).numpy() for x, level in zip(points, levels, strict=True)]
    packages = ("torch", "diffusers", "k-diffusion", "numpy", "scipy")
    versions = [f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]
    return {
        "mixture/weights": np.array(WEIGHTS),
        "mixture/means": np.array(MEANS),
        "mixture/covs": np.array(COVS),
        "probe/x": points,
        "probe/alpha_sigma": levels,
        "probe/denoised": np.stack(answers),
        "versions": np.array(versions),
        "command": np.array(COMMAND),
    }


def main() -> None:
    torch.set_num_threads(1)
    for file, make in {"k_diffusion.npz": make_k_diffusion, "diffusers.npz": make_diffusers}.items():
        rng = np.random.default_rng(0)
        arrays = make(rng) | common_arrays(rng)
        cases = [key.removesuffix("/info") for key in arrays if key.endswith("/info")]
        np.savez_compressed(HERE / file, cases=np.array(cases), **arrays)
        print(f"{file}: {len(cases)} cases, {(HERE / file).stat().st_size / 1000:.0f} kB\n")


if __name__ == "__main__":
    main()
