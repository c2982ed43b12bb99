"""What one chip can do, as its maker states it: the denominators of the rooflines and of model FLOP utilisation."""

from __future__ import annotations

from typing import NamedTuple


class Chip(NamedTuple):
    """The published numbers of a chip.

    Attributes:
        hbm: bytes of memory.
        peak: FLOP/s of bfloat16 products, dense.
        bandwidth: bytes/s between memory and chip.
        link: bytes/s that a chip sends into the network of its slice, over all of its links together.
    """

    hbm: float
    peak: float
    bandwidth: float
    link: float


# docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e, November 2026. `link` is half of the bidirectional bandwidth of a chip
# where that is given (v5e 400 GB/s, v5p 1200 GB/s), and else the all-reduce bandwidth of a pod over its chips (v4 1.1 PB/s over
# 4096, v6e 102.4 TB/s over 256); where both are given they are equal.
TPUS = {
    "v4": Chip(hbm=32 * 2**30, peak=275e12, bandwidth=1200e9, link=270e9),
    "v5e": Chip(hbm=16 * 2**30, peak=197e12, bandwidth=819e9, link=200e9),
    "v5p": Chip(hbm=95 * 2**30, peak=459e12, bandwidth=2765e9, link=600e9),
    "v6e": Chip(hbm=32 * 2**30, peak=918e12, bandwidth=1600e9, link=400e9),
}

# The data sheet of the H200 SXM (nvidia.com/en-us/data-center/h200): 1979 TFLOP/s with sparsity, half of that dense. 790 is the
# dense peak that a chip holds under its power limit, and the one that utilisation is stated against here.
GPUS = {
    "H200": Chip(hbm=141e9, peak=790e12, bandwidth=4.8e12, link=450e9),
}
