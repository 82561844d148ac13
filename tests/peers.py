"""torch and transformers, with which parity is measured: offline, quiet and in one thread. A file
of tests that imports them from here is skipped where they are not installed."""

from __future__ import annotations

import os

import pytest

NEEDED = "parity is measured against it: pip install 'gptjax[test-parity]'"

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch", reason=NEEDED)
transformers = pytest.importorskip("transformers", reason=NEEDED)

# threads cost more than they give at width 32, the more so beside other test workers
torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
