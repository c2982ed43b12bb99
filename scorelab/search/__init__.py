"""Searches for samples of large reward: best of N, pruning on the way, the noise of a generator. None samples a tilt."""

from scorelab.search.best import best_of
from scorelab.search.noise import NoiseCurves, OptimisedNoise, optimise_noise
from scorelab.search.pruning import Pruned, Pruning, prune

__all__ = ["NoiseCurves", "OptimisedNoise", "Pruned", "Pruning", "best_of", "optimise_noise", "prune"]
