"""Student's distribution: how far means of few values are from the true one."""

import math

__all__ = ["student_quantile"]


def student_quantile(p: float, degrees: float) -> float:
    """Return a quantile of Student's distribution.

    That of one or two degrees of freedom is exact; others come from the normal one (Abramowitz and Stegun 26.7.5), and
    are less than 1 % too low for the intervals in use.

    Args:
        p: a probability between 0 and 1.
        degrees: of freedom, at least 1.
    """
    from statistics import NormalDist  # noqa: PLC0415 - serving does not need it, and it loads a dozen modules

    if degrees == 1:
        return math.tan(math.pi * (p - 0.5))
    if degrees == 2:
        return (2 * p - 1) / math.sqrt(2 * p * (1 - p))
    z = NormalDist().inv_cdf(p)
    return z + (
        (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    )
