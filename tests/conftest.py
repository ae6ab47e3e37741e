"""Fixtures that several test modules share."""

from pathlib import Path

import numpy as np
import pytest

PROJECT = Path(__file__).resolve().parents[1]
DATA = PROJECT.parent / "shared" / "data"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240501)


@pytest.fixture
def real_data() -> Path:
    if not DATA.is_dir():
        pytest.skip("the real recordings (shared/data beside the project) are not here")
    return DATA
