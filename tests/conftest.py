"""Property tests run the same examples everywhere, and no clock fails them.

`pytest --hypothesis-profile=default` looks for new examples.
"""

from hypothesis import HealthCheck
from hypothesis import settings

settings.register_profile(
  "same_everywhere",
  deadline=None,
  derandomize=True,
  suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("same_everywhere")
