"""What tests share: the surroundings they run in, a tiny model, and the bundled one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Both are read when torch and huggingface_hub are imported, so they stand before any test's imports. On one thread sums
# have one order, and matrices this small are no faster on more. No test reaches a model hub, unless it starts one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@pytest.fixture(scope="session")
def tiny() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """`tiny_model()`, shared by all tests, for a base model never changes; a test that changes one makes its own."""
    from loragym.agents.testing import tiny_model

    return tiny_model()


@pytest.fixture(scope="session")
def bundled() -> Path:
    """The folder of the bundled model, in the user's cache; for tests marked `model`."""
    from loragym.agents.bundled import fetch_bundled

    return fetch_bundled()
