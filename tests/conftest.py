"""Property tests run the same examples everywhere, and no clock fails them.

`pytest --hypothesis-profile=default` looks for new examples.
"""

import pytest
from hypothesis import HealthCheck
from hypothesis import settings

settings.register_profile(
  "same_everywhere",
  deadline=None,
  derandomize=True,
  suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("same_everywhere")

# The files that take longest come first, or one of two workers ends with them alone.
_LONGEST = (
  "test_study.py", "test_checkpoint.py", "test_hosts.py", "test_disk.py", "test_features.py",
  "test_generate.py", "test_accumulation.py", "test_resume.py", "test_fisher_model.py",
  "test_peers.py", "test_parameters.py", "test_topology.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  place = {name: number for number, name in enumerate(_LONGEST)}
  items.sort(key=lambda item: place.get(item.path.name, len(place)))
