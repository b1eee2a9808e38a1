"""Every test: CPU, offline, seeded, few threads."""

from __future__ import annotations

import os
import sys

# Before anything imports the libraries that read them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("OMP_NUM_THREADS", "1")
if not sys.warnoptions:  # the command line silences warnings unless someone asked for them; the tests did
    sys.warnoptions.append("default")

import pytest


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Each test starts from the same random state, whatever ran before it."""
    import random

    import numpy
    import torch

    torch.set_num_threads(1)
    random.seed(0)
    numpy.random.seed(0)  # noqa: NPY002  (libraries draw from the global generator)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_leaks(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each test has its own caches and finds no other's; settings of the person who runs the tests do not count."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("DROPE_CACHE", str(cache / "drope"))
