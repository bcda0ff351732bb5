"""Damaged pictures give a picture or an ImageError, measured and decoded alike; more of them in benchmarks/."""

import sys
import warnings
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
fuzz_pictures = pytest.importorskip("fuzz_pictures")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr("kithkin.images._picture.MAX_PIXELS", fuzz_pictures.MOST_PIXELS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on what is damaged
        yield


def test_the_sound_files_are_read():
    for name, data in fuzz_pictures.corpus().items():
        for target in fuzz_pictures.TARGETS:
            assert fuzz_pictures.try_one(data, "p" + target) == "read", name


def test_damaged_files_are_read_or_refused():
    outcomes = fuzz_pictures.run(600, seed=22)
    assert sum(outcomes.values()) == 600
    assert min(outcomes["read"], outcomes["refused"]) > 60  # or else the damage is too great, or too small, to try much
