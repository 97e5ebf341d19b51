"""Student's distribution, beside its tables."""

import pytest

from streaminfer.telemetry.outcomes.student import student_quantile


@pytest.mark.parametrize(
    ("p", "degrees", "expected"),
    [(0.975, 1, 12.7062), (0.975, 2, 4.3027), (0.975, 3, 3.1824), (0.975, 30, 2.0423), (0.99, 9, 2.8214)],
)
def test_agrees_with_tables(p, degrees, expected):
    """Exactly of one and two degrees of freedom, else to less than 1 %."""
    assert student_quantile(p, degrees) == pytest.approx(expected, rel=1e-4 if degrees <= 2 else 0.01)
