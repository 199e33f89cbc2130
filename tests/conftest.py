"""Property tests run the same examples everywhere, and no clock fails them.

`pytest --hypothesis-profile=default` looks for new examples.

Compiling is what the time goes to. Programs of toy sizes are compiled quickly (LLVM without
its optimisations, a loop a fusion; what XLA does before that is as in any run) and once:
workers, and the processes that tests start, share a folder of programs while the run lasts.
"""

import importlib.metadata
import os
import tempfile

import pytest
from hypothesis import HealthCheck
from hypothesis import settings

# Before JAX is imported, and in the environment: for the processes that tests start, too.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
_QUICK = ["--xla_cpu_parallel_codegen_split_count=1"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
  # Later ones have no other way, and end where they meet a flag that they do not know.
  _QUICK.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(_QUICK))
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  _PROGRAMS = tempfile.TemporaryDirectory(prefix="imax_jax-programs-")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _PROGRAMS.name
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

settings.register_profile(
  "same_everywhere",
  deadline=None,
  derandomize=True,
  suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("same_everywhere")

# The files that take longest come first, or one of two workers ends with them alone.
_LONGEST = (
  "test_study.py", "test_hosts.py", "test_disk.py", "test_checkpoint.py", "test_resume.py",
  "test_models.py", "test_features.py", "test_generate.py", "test_fisher_model.py",
  "test_parity.py", "test_topology.py", "test_peers.py", "test_accumulation.py",
  "test_parameters.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  place = {name: number for number, name in enumerate(_LONGEST)}
  items.sort(key=lambda item: place.get(item.path.name, len(place)))
