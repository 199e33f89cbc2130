"""Rules over parameter paths: freezing, sharding, decay and loading are all made of them.

A parameter's path is its keys joined by "/": "decoder/layers/attn/q/lora_a". A rule is a
pair (regular expression, value). One matcher serves all: the first rule that matches the
whole path wins, every leaf must match some rule, and every rule must be used.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

Tree = Mapping[str, Any]
Rules = Sequence[tuple[str, Any]]


def flatten(tree: Tree, prefix: str = "") -> dict[str, Any]:
  """{"a": {"b": 1}} -> {"a/b": 1}; the keys of each level in sorted order."""
  flat: dict[str, Any] = {}
  for key in sorted(tree):
    value, path = tree[key], f"{prefix}{key}"
    if isinstance(value, Mapping):
      flat |= flatten(value, f"{path}/")
    else:
      flat[path] = value
  return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """{"a/b": 1} -> {"a": {"b": 1}}."""
  tree: dict[str, Any] = {}
  for path, value in flat.items():
    *parents, leaf = path.split("/")
    node = tree
    for key in parents:
      node = node.setdefault(key, {})
    node[leaf] = value
  return tree


def digest(tree: Tree, *facts: str) -> str:
  """64 hexadecimal digits of all leaves' paths, types, shapes and values, and of `facts`.

  The same on every machine and however the leaves are placed or stored.
  """
  found = hashlib.sha256("\n".join(facts).encode())
  for path, leaf in flatten(tree).items():
    array = np.ascontiguousarray(leaf)
    found.update(f"\n{path} {array.dtype} {array.shape}\n".encode())
    found.update(array.reshape(-1).view(np.uint8).data)
  return found.hexdigest()


def map_paths(function: Callable[[str, Any], Any], tree: Tree) -> dict[str, Any]:
  """Applies `function(path, leaf)` to every leaf."""
  return unflatten({path: function(path, leaf) for path, leaf in flatten(tree).items()})


def first_match(rules: Rules, tree: Tree, *, name: str = "rules") -> dict[str, Any]:
  """The value of the first rule that matches each path, as {path: value}.

  Raises:
    ValueError: a leaf that no rule matches, or a rule that decides no leaf.
  """
  values, used = {}, set()
  patterns = [_compile(pattern, name) for pattern, _ in rules]
  for path in flatten(tree):
    for number, (pattern, (_, value)) in enumerate(zip(patterns, rules, strict=True)):
      if pattern.fullmatch(path):
        values[path] = value
        used.add(number)
        break
    else:
      raise ValueError(
        f"{name}: no rule matches parameter {path!r}; rules are "
        f"{[pattern for pattern, _ in rules]}. Add a rule that covers it."
      )
  idle = [pattern for number, (pattern, _) in enumerate(rules) if number not in used]
  if idle:
    raise ValueError(
      f"{name}: {idle} decide no parameter: misspelt, or shadowed by an earlier rule. "
      f"Paths begin like {list(flatten(tree))[:3]}."
    )
  return values


def _compile(pattern: str, name: str) -> re.Pattern[str]:
  try:
    return re.compile(pattern)
  except re.error as error:
    raise ValueError(
      f"{name}: {pattern!r} is no regular expression: {error}"
    ) from error


def split(tree: Tree, rules: Rules) -> tuple[dict[str, Any], dict[str, Any]]:
  """(trainable, frozen) by rules whose values are true or false."""
  chosen = first_match(rules, tree, name="trainable")
  flat = flatten(tree)
  return (
    unflatten({path: leaf for path, leaf in flat.items() if chosen[path]}),
    unflatten({path: leaf for path, leaf in flat.items() if not chosen[path]}),
  )


def merge(*trees: Tree) -> dict[str, Any]:
  """The inverse of `split`.

  Raises:
    ValueError: a path that two of the trees hold, or that is a folder in one of them
      and a leaf in another.
  """
  merged: dict[str, Any] = {}
  for tree in trees:
    flat = flatten(tree)
    twice = sorted(merged.keys() & flat.keys())
    if twice:
      raise ValueError(f"merge: {twice[:3]} stand in more than one tree")
    merged |= flat
  for path in merged:
    parts = path.split("/")
    for end in range(1, len(parts)):
      if "/".join(parts[:end]) in merged:
        raise ValueError(
          f"merge: {'/'.join(parts[:end])!r} is a leaf and holds {path!r}"
        )
  return unflatten(merged)


def check_same(expected: Tree, got: Tree, *, name: str) -> None:
  """Raises a ValueError that prints both sides unless paths and shapes agree."""
  want, have = flatten(expected), flatten(got)
  lines = [f"missing    {path} {want[path].shape}" for path in want if path not in have]
  lines += [
    f"unexpected {path} {have[path].shape}" for path in have if path not in want
  ]
  lines += [
    f"shape      {path}: expected {want[path].shape}, got {have[path].shape}"
    for path in want
    if path in have and want[path].shape != have[path].shape
  ]
  if lines:
    raise ValueError(f"{name} does not fit the model:\n{listed(lines)}")


def listed(lines: Sequence[str], most: int = 8) -> str:
  """The first of many differences, a line each, and how many more there are."""
  shown = [f"  {line}" for line in lines[:most]]
  more = [f"  … and {len(lines) - most} more"] if len(lines) > most else []
  return "\n".join([*shown, *more])
