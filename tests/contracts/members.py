"""The members of each kind: a new process, density, solver or network adds one row here and inherits every law."""

import numpy as np

from scorelab import densities, processes, schedules, solvers
from scorelab.models.nets import MLP, DiT, Transformer, UNet

SCHEDULES = [
    schedules.VPLinear(),
    schedules.VPLinear(beta_min=0.5, beta_max=12.0),
    schedules.VPCosine(),
    schedules.VE(),
    schedules.VE(sigma_min=0.002, sigma_max=80.0),
    schedules.EDM(),
    schedules.RectifiedFlow(),
    schedules.Discrete(),
    schedules.Discrete(alphas_cumprod="scaled_linear", beta_start=0.00085, beta_end=0.012, zero_terminal=True),
    schedules.ZeroTerminal(),
    schedules.GBMClock(),
    schedules.GBMClock(volatility=schedules.Ramp(0.3, 1.2)),
]

# The multiplicative processes have enough noise at t_max that their prior is the law there, and a drift of order one.
PROCESSES = [
    *(processes.Gaussian(schedule=s) for s in SCHEDULES if not isinstance(s, schedules.GBMClock)),
    processes.GeometricBrownianMotion(sigma=25.0, mu=25.0**2 / 2 + 2.0),
    processes.GeometricBrownianMotion(sigma=schedules.Ramp(10.0, 40.0)),
]


def _covariances(k, d, seed):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(k, d, d)) / np.sqrt(d)
    return 0.3 * a @ a.transpose(0, 2, 1) + 0.05 * np.eye(d)


def _orthonormal(d, r, seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(d, r)))[0]


def _field(side, mean=0.0, exponent=3.0):
    return densities.GaussianField((side, side, 1), densities.PowerLaw(exponent=exponent, knee=1.0), mean=mean, variance=0.5)


DENSITIES = {
    "gaussian_full": densities.Gaussian(np.array([0.5, -0.2]), np.array([[0.6, 0.2], [0.2, 0.3]])),
    "gaussian_diagonal": densities.Gaussian(np.array([0.5, -0.2, 1.0]), np.array([0.4, 0.1, 0.2])),
    "gaussian_isotropic": densities.Gaussian(np.zeros((2, 2, 1)), 0.3),
    "gaussian_low_rank": densities.Gaussian.low_rank(np.ones(5), _orthonormal(5, 2, 0), np.array([1.0, 0.3]), 0.05),
    "mixture_full": densities.GaussianMixture(
        [0.5, 0.3, 0.2], np.array([[-1.0, 0.5], [1.2, 0.0], [0.0, -1.0]]), _covariances(3, 2, 1)
    ),
    "mixture_low_rank": densities.GaussianMixture.of(
        [1.0, 2.0],
        [
            densities.Gaussian.low_rank(np.full(4, mean), _orthonormal(4, 2, seed), np.array([0.5, 0.2]), 0.04)
            for seed, mean in enumerate((-0.5, 0.6))
        ],
    ),
    "field": densities.GaussianField(
        (4, 6, 2), densities.Matern(length=1.0), mean=np.linspace(-1, 1, 6)[:, None], variance=[0.5, 0.2]
    ),
    "conditioned_field": _field(4, 0.3).given(np.eye(16)[[0, 5, 6]] + 0.1, [0.4, -0.2, 1.0], [0.05, 0.01, 0.2]),
    "mixture_of_fields": densities.Mixture([0.6, 0.4], [_field(4, 0.5, 4.0), _field(4, -0.5, 2.0)]),
    "isotropic_mixture": densities.IsotropicMixture(np.random.default_rng(0).normal(size=(300, 2)), 0.04, block=128),
    "rings": densities.Rings(),
    "checkerboard": densities.checkerboard(),
    "eight_gaussians": densities.eight_gaussians(),
    "swiss_roll": densities.swiss_roll(),
    "pinwheel": densities.pinwheel(),
}

# Solver -> the order its authors prove. UniPC's corrector raises the order of its predictor by one.
DETERMINISTIC = {
    solvers.DDIM(): 1,
    solvers.DPMSolverPP(order=1): 1,
    solvers.DPMSolverPP(order=2): 2,
    solvers.DPMSolverPP(order=3): 3,
    solvers.DEIS(order=1): 1,
    solvers.DEIS(order=2): 2,
    solvers.DEIS(order=3): 3,
    solvers.DEIS(order=4): 4,
    solvers.UniPC(predictor_order=1): 2,
    solvers.UniPC(predictor_order=2): 3,
    solvers.UniPC(predictor_order=2, variant="bh1"): 3,
    solvers.UniPC(predictor_order=3): 4,
    solvers.Heun(): 2,
    solvers.ProbabilityFlowEuler(): 1,
}

# Solver -> weak order on a Gaussian. Order 3 with noise is held to 2 by its lower-order starting steps.
STOCHASTIC = {
    solvers.DDIM(eta=1.0): 1,
    solvers.DDIM(eta=0.5): 1,
    solvers.DPMSolverPP(order=1, eta=1.0): 1,
    solvers.DPMSolverPP(order=2, eta=1.0): 2,
    solvers.DPMSolverPP(order=3, eta=1.0): 2,
    solvers.EulerMaruyama(): 1,
    solvers.EulerMaruyama(coords="ambient"): 1,
    solvers.Milstein(): 1,
    solvers.Brownian(solver=solvers.DPMSolverPP(order=2, eta=1.0)): 2,
}

# bh1 cannot step to sigma = 0, which the laws below do; its order is tested above.
SOLVERS = [*(s for s in DETERMINISTIC if s != solvers.UniPC(predictor_order=2, variant="bh1")), 
    *STOCHASTIC, solvers.Heun(churn=8.0), solvers.PredictorCorrector(), solvers.Renoise(), solvers.Diffrax(),
]  # fmt: skip

# Network -> event: the smallest members that have every part.
CLASSES = 3
NETWORKS = {
    "mlp": (MLP(width=16, depth=2, embed=16, num_classes=CLASSES), (4, 3, 1)),
    "unet": (UNet(channels=(4, 8), num_classes=CLASSES), (7, 6, 2)),
    "unet of volumes": (UNet(channels=(4, 8), num_classes=CLASSES), (3, 4, 2, 1)),
    "dit": (DiT(patch=4, width=16, depth=2, heads=2, num_classes=CLASSES), (6, 12, 1)),
    "transformer": (Transformer(width=16, depth=2, heads=2, num_classes=CLASSES), (5, 2)),
}
