"""Schedules over training."""

import pytest

from dds_train.training.schedules import Ramp


def test_ramp_is_a_half_cosine_then_constant() -> None:
    ramp = Ramp(1.0, 7.5, 0.3)
    assert ramp(0) == 1
    assert ramp(0.15) == pytest.approx(4.25)
    assert ramp(0.3) == ramp(1) == 7.5
    assert Ramp(1.0, 7.5, 0.0)(0) == 7.5
    with pytest.raises(ValueError, match="fraction"):
        Ramp(1, 2, 1.5)
