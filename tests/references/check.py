"""Recompute every stored trajectory from textbook formulas in NumPy, and print the largest difference.

    python tests/references/check.py

Needs NumPy only. Nothing is shared with ``make.py``: the denoiser is written again, and where a formula is
the integral of an interpolating polynomial, which the libraries write out, it is done here by quadrature. A
case agrees when the difference is rounding (below 1e-9). Lines with "if" show how far off a misreading is.

Notation: a step goes from node i (alpha, sigma) to node i+1 (alpha', sigma'), lam = log(alpha / sigma),
h = lam' - lam, D the denoised sample, E = (x - alpha D) / sigma the predicted noise, z the step's noise.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
AGREES = 1e-9

Array = np.ndarray
GAUSS_NODES, GAUSS_WEIGHTS = np.polynomial.legendre.leggauss(60)


@dataclass(frozen=True)
class Problem:
    """One case: its grid, its noise, its options and the exact denoiser."""

    alpha: Array
    sigma: Array
    noise: Array
    options: dict
    denoiser: Callable[[Array, float, float], Array]

    @property
    def steps(self) -> int:
        return len(self.sigma) - 1

    @property
    def lam(self) -> Array:
        with np.errstate(divide="ignore"):
            return np.log(self.alpha) - np.log(self.sigma)

    def denoised(self, x: Array, i: int) -> Array:
        return self.denoiser(x, self.alpha[i], self.sigma[i])


def mixture_denoiser(weights: Array, means: Array, covs: Array) -> Callable[[Array, float, float], Array]:
    """E[x0 | x] by Tweedie: (x + sigma^2 grad log p(x)) / alpha, or the mixture's mean at alpha = 0."""

    def denoiser(x: Array, alpha: float, sigma: float) -> Array:
        if alpha == 0:
            return np.broadcast_to(weights @ means, x.shape)
        noised = alpha**2 * covs + sigma**2 * np.eye(2)
        delta = x[:, None] - alpha * means
        pull = np.einsum("kij,nkj->nki", np.linalg.inv(noised), delta)
        log_joint = np.log(weights) - 0.5 * np.einsum("nki,nki->nk", pull, delta)
        log_joint -= 0.5 * np.log(np.linalg.det(noised))
        posterior = np.exp(log_joint - log_joint.max(1, keepdims=True))
        posterior /= posterior.sum(1, keepdims=True)
        return (x - sigma**2 * np.einsum("nk,nki->ni", posterior, pull)) / alpha

    return denoiser


# ------------------------------------------------------------------------------------- polynomial quadratures


def integrate_interpolant(nodes: Array, start: float, end: float, weight: Callable[[Array], Array]) -> Array:
    """The c_j with int_start^end weight(u) p(u) du = sum_j c_j p(nodes_j) for p of degree < len(nodes)."""
    u = 0.5 * (end - start) * GAUSS_NODES + 0.5 * (end + start)
    scaled = 0.5 * (end - start) * GAUSS_WEIGHTS * weight(u)
    basis = [np.prod([(u - m) / (n - m) for m in nodes if m != n], axis=0) for n in nodes]
    return np.array([np.sum(scaled * b) for b in basis])


def exponential_coefficients(p: Problem, i: int, nodes: list[int], rate: float = 1.0) -> Array:
    """c_j = int over the step in lam of rate e^{-rate (lam' - u)} times the Lagrange polynomial of node j."""
    start, end = p.lam[i], p.lam[i + 1]
    if np.isinf(end):
        return np.array([1.0])
    return integrate_interpolant(p.lam[nodes], start, end, lambda u: rate * np.exp(-rate * (end - u)))


def past(i: int, order: int) -> list[int]:
    return [i - j for j in range(order)]


def order_rule(order: int, end: str) -> Callable[[Problem, int], int]:
    """The order of step i: 1, 2, .., order at the start, and at the end one of

    "full": unchanged; "last": 1 on the last step; "lowered": .., 3, 2, 1 on the last steps.
    """

    def rule(p: Problem, i: int) -> int:
        remaining = p.steps - i
        cap = {"full": order, "last": 1 if remaining == 1 else order, "lowered": remaining}[end]
        return min(i + 1, order, cap)

    return rule


# ---------------------------------------------------------------------------------------------------- solvers
# Each returns the states at all nodes from the first one.


def euler(p: Problem, x: Array) -> list[Array]:
    """Euler in sigma (alpha = 1), each step after an optional churn."""
    states = [x]
    for i in range(p.steps):
        x, s = churned(p, x, i)
        x = x + (p.sigma[i + 1] - s) * (x - p.denoiser(x, 1.0, s)) / s
        states.append(x)
    return states


def heun(p: Problem, x: Array) -> list[Array]:
    """Karras et al. (2022), algorithm 2: trapezoid in sigma, Euler on the step to zero."""
    states = [x]
    for i in range(p.steps):
        x, s = churned(p, x, i)
        slope = (x - p.denoiser(x, 1.0, s)) / s
        dt = p.sigma[i + 1] - s
        if p.sigma[i + 1] > 0:
            guess = x + dt * slope
            slope = 0.5 * (slope + (guess - p.denoised(guess, i + 1)) / p.sigma[i + 1])
        x = x + dt * slope
        states.append(x)
    return states


def churned(p: Problem, x: Array, i: int) -> tuple[Array, float]:
    """Noise added to reach (1 + gamma) sigma, gamma = min(s_churn / steps, sqrt 2 - 1) inside the window."""
    churn, s = p.options.get("s_churn", 0.0), p.sigma[i]
    if not churn or not p.options["s_tmin"] <= s <= p.options["s_tmax"]:
        return x, s
    s_hat = s * (1 + min(churn / p.steps, np.sqrt(2) - 1))
    return x + p.options["s_noise"] * np.sqrt(s_hat**2 - s**2) * p.noise[i], s_hat


def flow_euler(p: Problem, x: Array) -> list[Array]:
    """Euler on dx/dsigma = n - x0 = (x - D) / sigma with alpha = 1 - sigma."""
    states = [x]
    for i in range(p.steps):
        x = x + (p.sigma[i + 1] - p.sigma[i]) * (x - p.denoised(x, i)) / p.sigma[i]
        states.append(x)
    return states


def ddim(p: Problem, x: Array) -> list[Array]:
    """x' = alpha' D + sqrt(sigma'^2 - v) E + sqrt(v) z.

    v = eta^2 sigma'^2 (1 - (alpha sigma' / (alpha' sigma))^2): for eta = 1, the variance of q(x' | x, x0).
    With alpha = 1 this is the ancestral Euler step, sigma_up^2 = v and sigma_down^2 = sigma'^2 - v.
    """
    states = [x]
    for i in range(p.steps):
        a, s, a1, s1 = p.alpha[i], p.sigma[i], p.alpha[i + 1], p.sigma[i + 1]
        v = p.options["eta"] ** 2 * s1**2 * (1 - (a * s1 / (a1 * s)) ** 2)
        d = p.denoised(x, i)
        x = a1 * d + np.sqrt(s1**2 - v) * (x - a * d) / s + np.sqrt(v) * p.noise[i]
        states.append(x)
    return states


def linear_multistep(p: Problem, x: Array) -> list[Array]:
    """Adams-Bashforth in sigma (alpha = 1) with exactly integrated polynomials, at full order to the end."""
    states, slopes = [x], []
    for i in range(p.steps):
        slopes.append((x - p.denoised(x, i)) / p.sigma[i])
        nodes = past(i, min(i + 1, p.options["order"]))
        c = integrate_interpolant(p.sigma[nodes], p.sigma[i], p.sigma[i + 1], np.ones_like)
        x = x + sum(w * slopes[j] for w, j in zip(c, nodes, strict=True))
        states.append(x)
    return states


def dpmpp(
    order: Callable[[Problem, int], int],
    form: str = "midpoint",
    eta: float = 0.0,
    curvature: float = 0.5,
) -> Callable[[Problem, Array], list[Array]]:
    """Multistep DPM-Solver++ with D a polynomial in lam, and its stochastic form.

    x' = (sigma'/sigma) e^{-eta h} x + alpha' int k e^{-k (lam' - u)} D(u) du
         + sigma' sqrt(1 - e^{-2 eta h}) z,   k = 1 + eta.

    Order 1 holds D constant. Order 2 ("midpoint") adds half the linear extrapolation,
    (1 - e^{-kh}) (D - D_-1) / (2 r), r = h_-1 / h; order 2 ("integral", the libraries' "heun") integrates the
    line. Order 3 integrates the parabola with its second-degree part scaled by ``curvature``: 1 is the exact
    integral, 1/2 is what both libraries compute.
    """
    k = 1 + eta

    def solver(p: Problem, x: Array) -> list[Array]:
        states, d = [x], []
        for i in range(p.steps):
            d.append(p.denoised(x, i))
            h, q = p.lam[i + 1] - p.lam[i], order(p, i)
            if q == 2 and form == "midpoint":
                r = (p.lam[i] - p.lam[i - 1]) / h
                mean = -np.expm1(-k * h) * (d[i] + (d[i] - d[i - 1]) / (2 * r))
            else:
                mean = weighted(p, i, past(i, q), d, k)
            if q == 3:
                # the parabola less its second-degree part: the line with the parabola's slope at node i
                lam = p.lam
                f01, f12 = ((d[i - j] - d[i - j - 1]) / (lam[i - j] - lam[i - j - 1]) for j in (0, 1))
                f012 = (f01 - f12) / (lam[i] - lam[i - 2])
                slope = f01 + f012 * (lam[i] - lam[i - 1])
                line = -np.expm1(-k * h) * d[i] + (h + np.expm1(-k * h) / k) * slope
                mean = line + curvature * (mean - line)
            decay = np.exp(-eta * h) if eta else 1.0
            x = p.sigma[i + 1] / p.sigma[i] * decay * x + p.alpha[i + 1] * mean
            if eta:
                x = x + p.sigma[i + 1] * np.sqrt(-np.expm1(-2 * eta * h)) * p.noise[i]
            states.append(x)
        return states

    return solver


def weighted(p: Problem, i: int, nodes: list[int], d: list[Array], rate: float = 1.0) -> Array:
    c = exponential_coefficients(p, i, nodes, rate)
    return sum(w * d[j] for w, j in zip(c, nodes, strict=True))


def unipc(p: Problem, x: Array) -> list[Array]:
    """UniPC with D a polynomial in lam. Returns predicted states (where D is evaluated), not corrected ones.

    At node i, first correct: redo the step that led here, from the corrected node i-1, with the polynomial
    also through the new D. Then predict from the corrected node, keeping the D found at the predicted one.

    Predictors of order 3 and correctors of order 2 and more are the exact integral of the polynomial,
    whatever B(h) is. The order-2 predictor and the order-1 corrector are simplified: beyond the constant term
    they add alpha' B (D_-1 - D) / (2 r) with r = (lam_-1 - lam) / h, and alpha' B (D' - D) / 2, where B = h
    for "bh1" and B = 1 - e^{-h} for "bh2".
    """
    states, corrected, d, previous = [x], [], [], 0
    bh1 = p.options["solver_type"] == "bh1"
    for i in range(p.steps):
        d.append(p.denoised(x, i))
        if i:
            h = p.lam[i] - p.lam[i - 1]
            b = h if bh1 else -np.expm1(-h)
            if previous == 1:
                mean = -np.expm1(-h) * d[i - 1] + 0.5 * b * (d[i] - d[i - 1])
            else:
                mean = weighted(p, i - 1, [i, *past(i - 1, previous)], d)
            x = p.sigma[i] / p.sigma[i - 1] * corrected[i - 1] + p.alpha[i] * mean
        corrected.append(x)
        previous = order_rule(p.options["solver_order"], "lowered")(p, i)
        if previous == 2:
            h = p.lam[i + 1] - p.lam[i]
            b, r = (h if bh1 else -np.expm1(-h)), (p.lam[i - 1] - p.lam[i]) / h
            mean = -np.expm1(-h) * d[i] + 0.5 * b * (d[i - 1] - d[i]) / r
        else:
            mean = weighted(p, i, past(i, previous), d)
        x = p.sigma[i + 1] / p.sigma[i] * x + p.alpha[i + 1] * mean
        states.append(x)
    return states


def deis(order: Callable[[Problem, int], int]) -> Callable[[Problem, Array], list[Array]]:
    """log-rho DEIS: d(x / alpha) = E d rho, rho = sigma / alpha, with E a polynomial in log rho = -lam."""

    def solver(p: Problem, x: Array) -> list[Array]:
        states, e = [x], []
        for i in range(p.steps):
            e.append((x - p.alpha[i] * p.denoised(x, i)) / p.sigma[i])
            nodes = past(i, order(p, i))
            c = integrate_interpolant(-p.lam[nodes], -p.lam[i], -p.lam[i + 1], np.exp)
            total = sum(w * e[j] for w, j in zip(c, nodes, strict=True))
            x = p.alpha[i + 1] * (x / p.alpha[i] + total)
            states.append(x)
        return states

    return solver


# ------------------------------------------------------------------------------------------------------ cases

SOLVERS = {
    "k_diffusion.npz": {
        "euler": euler,
        "euler_churn": euler,
        "euler_ancestral": ddim,
        "heun": heun,
        "heun_churn": heun,
        "lms_4": linear_multistep,
        "dpmpp_2m": dpmpp(order_rule(2, "last")),
        "dpmpp_2m_sde_eta0": dpmpp(order_rule(2, "last")),
        "dpmpp_2m_sde_eta1": dpmpp(order_rule(2, "last"), eta=1.0),
        "dpmpp_2m_sde_heun_eta1": dpmpp(order_rule(2, "last"), form="integral", eta=1.0),
        "dpmpp_3m_sde_eta0": dpmpp(order_rule(3, "last"), form="integral"),
        "dpmpp_3m_sde_eta1": dpmpp(order_rule(3, "last"), form="integral", eta=1.0),
    },
    "diffusers.npz": {
        "ddim_eta0": ddim,
        "ddim_eta1": ddim,
        "dpmpp_1": dpmpp(order_rule(1, "last")),
        "dpmpp_2": dpmpp(order_rule(2, "last")),
        "dpmpp_2_full_order": dpmpp(order_rule(2, "last")),
        "dpmpp_2_heun": dpmpp(order_rule(2, "last"), form="integral"),
        "dpmpp_3": dpmpp(order_rule(3, "lowered")),
        "dpmpp_3_full_order": dpmpp(order_rule(3, "last")),
        "sde_dpmpp_1": dpmpp(order_rule(1, "last"), eta=1.0),
        "sde_dpmpp_2": dpmpp(order_rule(2, "last"), eta=1.0),
        "unipc_2_bh1": unipc,
        "unipc_2_bh2": unipc,
        "unipc_3_bh1": unipc,
        "unipc_3_bh2": unipc,
        "deis_2": deis(order_rule(2, "lowered")),
        "deis_3": deis(order_rule(3, "lowered")),
        "deis_3_full_order": deis(order_rule(3, "full")),
        "euler_discrete": euler,
        "heun_discrete": heun,
        "edm_euler": euler,
        "edm_dpmpp_2": dpmpp(order_rule(2, "lowered")),
        "edm_dpmpp_3": dpmpp(order_rule(3, "lowered")),
        "flow_euler": flow_euler,
        "flow_unipc_2": unipc,
    },
}

MISREADINGS = {
    "k_diffusion.npz": {
        "third order with the exact parabola": (
            "dpmpp_3m_sde_eta0",
            dpmpp(order_rule(3, "last"), form="integral", curvature=1.0),
        ),
        "third order warmed up by the midpoint form": ("dpmpp_3m_sde_eta0", dpmpp(order_rule(3, "last"))),
        "2M with the integrated line": ("dpmpp_2m", dpmpp(order_rule(2, "last"), form="integral")),
    },
    "diffusers.npz": {
        "third order with the exact parabola": ("dpmpp_3", dpmpp(order_rule(3, "lowered"), curvature=1.0)),
        "third order warmed up by the integrated line": (
            "dpmpp_3",
            dpmpp(order_rule(3, "lowered"), form="integral"),
        ),
        "third order, second last step not lowered": ("dpmpp_3", dpmpp(order_rule(3, "last"))),
    },
}


def relative_difference(a: list[Array], b: Array) -> float:
    """Largest difference at a grid node relative to the largest entry at that node, over all nodes."""
    return float(max(np.abs(p - q).max() / np.abs(q).max() for p, q in zip(a, b, strict=True)))


def main() -> None:
    for file, solvers in SOLVERS.items():
        with np.load(HERE / file) as stored:
            arrays = dict(stored)
        denoiser = mixture_denoiser(*(arrays[f"mixture/{name}"] for name in ("weights", "means", "covs")))
        probes = [denoiser(x, *level) for x, level in zip(arrays["probe/x"], arrays["probe/alpha_sigma"], strict=True)]
        print(f"{file}: denoiser {relative_difference(probes, arrays['probe/denoised']):.1e}")
        assert set(solvers) == set(arrays["cases"].tolist())

        def difference(name: str, solver) -> float:
            info = json.loads(str(arrays[f"{name}/info"]))
            grid = (arrays[f"{name}/{axis}"] for axis in ("alpha", "sigma"))
            x = arrays[f"{name}/x"]
            return relative_difference(solver(Problem(*grid, arrays["noise"], info["options"], denoiser), x[0]), x)

        for name, solver in solvers.items():
            found = difference(name, solver)
            print(f"  {name:24s} {found:.1e}{'' if found < AGREES else '   DIFFERS'}")
        for label, (name, solver) in MISREADINGS[file].items():
            print(f"  {name:24s} {difference(name, solver):.1e}   if {label}")


if __name__ == "__main__":
    main()
