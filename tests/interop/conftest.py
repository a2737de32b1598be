"""Tests without network access and without progress bars."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

import pytest

transformers = pytest.importorskip("transformers", reason="the oracle is transformers itself")
transformers.logging.disable_progress_bar()
