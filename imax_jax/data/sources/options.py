"""The readers' options: what each may be, told before hours of reading."""

from __future__ import annotations

from collections.abc import Mapping

Choices = Mapping[str, tuple[object, ...]]


def check_choices(source: str, choices: Choices, given: Mapping[str, object]) -> None:
  """Raises a ValueError that names the option, what it may be, and what was given.

  A value must be of the same type too: 1 is not True, nor is 2024 "2024".
  """
  for name, value in given.items():
    if name not in choices:
      raise ValueError(f"{source} option {name}: expected one of {', '.join(choices)}")
    allowed = choices[name]
    if not any(type(value) is type(one) and value == one for one in allowed):
      expected = " or ".join(map(repr, allowed))
      raise ValueError(f"{source} option {name}: expected {expected}, got {value!r}")
