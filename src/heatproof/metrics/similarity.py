"""How alike are two maps? Plain functions of the field's names; tied values are those of ``ranking`` (law 3)."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import ndimage, stats
from torch import Tensor

from heatproof.metrics import ranking

# scale -> the range L that ssim takes for maps of that scale; None: what both together span
SCALES = {"second_moment": 2.0, "max_abs": 2.0, "range": 1.0, "percentile": 1.0, "none": None}


def kendall_tau(a: Tensor, b: Tensor) -> float:
    """Kendall's tau-b of two maps, -1 to 1: concordant less discordant pairs, ties taken out of the scale.

    a, b: the same number of values, finite. NaN where one of them is constant. Kendall 1945.

    >>> kendall_tau(torch.tensor([-1.0, 1.0, 1.0]), torch.tensor([0.0, 0.0, 2.0]))
    0.5
    """
    # levels count from the highest down in both, so the sign stays
    found = stats.kendalltau(ranking.levels(a).reshape(-1).numpy(), ranking.levels(b).reshape(-1).numpy())
    return round(float(found.statistic), 15)


def manhattan(a: Tensor, b: Tensor) -> float:
    """The sum of absolute differences, 0 and up, in the maps' units; scale the maps first if they differ in it.

    >>> manhattan(torch.tensor([-1.0, 1.0, 1.0]), torch.tensor([0.0, 0.0, 2.0]))
    3.0
    """
    return float(torch.linalg.vector_norm(a.double() - b.double(), 1))


def euclidean(a: Tensor, b: Tensor) -> float:
    """The root of the summed squared differences, 0 and up, in the maps' units.

    >>> euclidean(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0]))
    5.0
    """
    return float(torch.linalg.vector_norm(a.double() - b.double()))


def mean_squared_error(a: Tensor, b: Tensor) -> float:
    """The mean squared difference, 0 and up, in the maps' units squared.

    >>> mean_squared_error(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0]))
    12.5
    """
    return float((a.double() - b.double()).square().mean())


def scaled(heat: Tensor, scale: str) -> Tensor:
    """A map brought to a scale that two maps can be compared on: the same shape, float64.

    - "second_moment": over the root of its mean square (Binder et al. 2023, arXiv 2211.12486): one hot pixel does not
      press all others to nothing, as it does under the two fixed ranges
    - "max_abs": over its largest absolute value, -1 to 1
    - "range": from 0 at its lowest to 1 at its highest value (Adebayo et al. 2018), so that an even map becomes a loud one
    - "percentile": as "range", between the 1st and the 99th percentile, what lies beyond cut off (the code of Sixt et al.
      2020); a map that is hot in less than a hundredth of its places becomes constant
    - "none": as it is

    Multiplying the map by a positive number changes nothing, but for "none". A map that has no scale (all 0; for a
    range, constant) becomes 0.

    >>> scaled(torch.tensor([3.0, -1.0, 0.0, 0.0]), "max_abs").tolist()
    [1.0, -0.3333333333333333, 0.0, 0.0]
    >>> float(scaled(torch.tensor([3.0, -1.0, 0.0, 0.0]), "second_moment").square().mean().round(decimals=9))
    1.0
    """
    if scale not in SCALES:
        raise ValueError(f"scale: found {scale!r}, accepted are {', '.join(SCALES)}")
    found = heat.double()
    if scale in ("range", "percentile"):
        ends = (0.0, 1.0) if scale == "range" else (0.01, 0.99)
        low, high = (float(np.quantile(found.numpy(), end)) for end in ends)
        found = found.clamp(low, high) - low
    sizes = {"second_moment": found.square().mean().sqrt(), "none": torch.ones(())}
    size = float(sizes.get(scale, found.abs().max()))
    return found / size if size > 0 else found


def constant(heat: Tensor) -> bool:
    """Whether nothing but rounding tells the values apart, as in ``ranking``.

    >>> constant(torch.full((2, 2), 0.1) * (1 + 1e-7)), constant(torch.eye(2))
    (True, False)
    """
    return bool(ranking.maxima(heat).all())


def ssim(a: Tensor, b: Tensor, window: int = 11, sigma: float = 1.5, span: float | None = None) -> float:
    """The mean structural similarity of two maps, -1 to 1: 1 for equal maps.

    a, b: float [H, W], finite. Wang et al. 2004: in every ``window`` x ``window`` patch that lies inside, weighted by a
    Gaussian of ``sigma``, means m, variances v and covariance c give
    (2 m_a m_b + C1) (2 c + C2) / ((m_a^2 + m_b^2 + C1) (v_a + v_b + C2)), C1 = (0.01 L)^2, C2 = (0.03 L)^2. L is ``span``,
    the range of values, or what both maps together span; so scale the maps first (``scaled_ssim``). Maps smaller than the window are read in the
    largest odd window that fits them. NaN where one of them is constant.

    >>> ssim(torch.eye(12), torch.eye(12)), ssim(torch.eye(12), torch.ones(12, 12))
    (1.0, nan)
    """
    if constant(a) or constant(b):
        return math.nan
    one, other = a.double().numpy(), b.double().numpy()
    reach = (min(window, *one.shape) - 1) // 2
    if span is None:
        span = float(max(one.max(), other.max()) - min(one.min(), other.min()))
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    high, wide = one.shape
    inside = slice(reach, high - reach), slice(reach, wide - reach)
    planes = (one, other, one * one, other * other, one * other)
    m_a, m_b, aa, bb, ab = (ndimage.gaussian_filter(p, sigma, radius=reach)[inside] for p in planes)
    top = (2 * m_a * m_b + c1) * (2 * (ab - m_a * m_b) + c2)
    return float((top / ((m_a**2 + m_b**2 + c1) * (aa - m_a**2 + bb - m_b**2 + c2))).mean())


def scaled_ssim(a: Tensor, b: Tensor, scale: str, window: int = 11) -> float:
    """The structural similarity of two maps, each brought to one ``scale`` first; -1 to 1, NaN where one is constant.

    L is the range of the scale: 1 or 2 where the scale is a range. In units of the second moment it is 2 (from minus to plus
    a root mean square; our choice): were it what the maps span, one hot pixel would blow up the constants, and with them
    make all that is small alike. Images have no values below 0, and where two means of opposite sign meet an opposite
    structure the product calls them alike; so maps with negative values are lifted by the lowest of both.

    >>> hot = torch.eye(12).flatten().roll(5).reshape(12, 12)
    >>> round(scaled_ssim(torch.eye(12), 7 * torch.eye(12), "second_moment"), 9), scaled_ssim(torch.eye(12), hot, "range") < 0.5
    (1.0, True)
    """
    if constant(a) or constant(b):
        return math.nan
    one, other = scaled(a, scale), scaled(b, scale)
    low = one.min().minimum(other.min()).clamp(max=0)
    return ssim(one - low, other - low, window, span=SCALES[scale])
