"""Rules over parameter paths: what they accept, and what they refuse to guess."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imax_jax import tree as tree_lib

PARAMS = {
  "decoder": {
    "layers": {"q": {"kernel": 1, "lora_a": 2, "lora_b": 3}, "norm": {"scale": 4}},
    "embed": 5,
  },
  "connector": {"kernel": 6, "bias": 7},
}
PATHS = [
  "connector/bias",
  "connector/kernel",
  "decoder/embed",
  "decoder/layers/norm/scale",
  "decoder/layers/q/kernel",
  "decoder/layers/q/lora_a",
  "decoder/layers/q/lora_b",
]
TRAINABLE = ((r".*/lora_[ab]", True), (r"connector/.*", True), (r".*", False))

keys = st.text(alphabet="abcxyz_0", min_size=1, max_size=3)
leaves = st.integers()
trees = st.recursive(
  st.dictionaries(keys, leaves, min_size=1, max_size=3),
  lambda inner: st.dictionaries(keys, inner | leaves, min_size=1, max_size=3),
  max_leaves=12,
)


def test_flatten_joins_keys_and_sorts():
  assert list(tree_lib.flatten(PARAMS)) == PATHS
  assert tree_lib.flatten(PARAMS)["decoder/layers/q/lora_a"] == 2
  assert tree_lib.flatten({}) == {}


@given(trees)
def test_unflatten_inverts_flatten(tree):
  assert tree_lib.unflatten(tree_lib.flatten(tree)) == tree


@given(trees)
def test_map_paths_gives_every_leaf_its_path(tree):
  paths = tree_lib.flatten(tree_lib.map_paths(lambda path, leaf: (path, leaf), tree))
  assert paths == {path: (path, leaf) for path, leaf in tree_lib.flatten(tree).items()}


@given(trees, st.randoms(use_true_random=False))
def test_merge_inverts_split(tree, random):
  paths = list(tree_lib.flatten(tree))
  chosen = {path: random.random() < 0.5 for path in paths}
  rules = list(chosen.items())
  trainable, frozen = tree_lib.split(tree, rules)
  assert list(tree_lib.flatten(trainable)) == [path for path in paths if chosen[path]]
  assert list(tree_lib.flatten(frozen)) == [path for path in paths if not chosen[path]]
  assert tree_lib.merge(trainable, frozen) == tree


def test_the_first_rule_that_matches_wins():
  rules = ((r".*/bias", "b"), (r"connector/.*", "c"), (r".*", "rest"))
  values = tree_lib.first_match(rules, PARAMS)
  assert list(values) == PATHS
  assert values["connector/bias"] == "b"
  assert values["connector/kernel"] == "c"
  assert values["decoder/embed"] == "rest"


def test_a_rule_must_match_the_whole_path():
  with pytest.raises(ValueError, match="no rule matches parameter 'connector/bias'"):
    tree_lib.first_match([("connector", 1), (r"decoder/.*", 2)], PARAMS)


def test_an_uncovered_leaf_is_an_error_that_names_it():
  rules = [(r"decoder/.*", 1), (r".*/kernel", 2)]
  with pytest.raises(ValueError, match=r"freeze: no rule .*'connector/bias'"):
    tree_lib.first_match(rules, PARAMS, name="freeze")


@pytest.mark.parametrize(
  "idle", [r".*/lora_c", r"decoder/embed"], ids=["misspelt", "shadowed"]
)
def test_an_idle_rule_is_an_error_that_names_it(idle):
  rules = [(r"decoder/.*", 1), (idle, 2), (r".*", 3)]
  with pytest.raises(ValueError, match="decide no parameter") as caught:
    tree_lib.first_match(rules, PARAMS)
  assert repr(idle) in str(caught.value)


def test_split_of_lora_and_connector():
  trainable, frozen = tree_lib.split(PARAMS, TRAINABLE)
  assert trainable == {
    "connector": {"kernel": 6, "bias": 7},
    "decoder": {"layers": {"q": {"lora_a": 2, "lora_b": 3}}},
  }
  assert frozen == {
    "decoder": {
      "layers": {"q": {"kernel": 1}, "norm": {"scale": 4}},
      "embed": 5,
    }
  }


def test_merge_refuses_a_path_that_two_trees_hold():
  with pytest.raises(ValueError, match="connector/bias"):
    tree_lib.merge(PARAMS, {"connector": {"bias": 0}})


def test_check_same_accepts_equal_shapes():
  tree_lib.check_same({"a": np.zeros(3)}, {"a": np.ones(3, np.int32)}, name="file")


def test_check_same_prints_both_sides():
  expected = {"a": np.zeros((2, 3)), "b": np.zeros(1), "same": np.zeros(4)}
  got = {"a": np.zeros((3, 2)), "c": np.zeros(5), "same": np.ones(4)}
  with pytest.raises(ValueError, match="weights does not fit") as caught:
    tree_lib.check_same(expected, got, name="weights")
  message = str(caught.value)
  assert "missing    b (1,)" in message
  assert "unexpected c (5,)" in message
  assert "a: expected (2, 3), got (3, 2)" in message
  assert "same" not in message


def test_check_same_shows_eight_and_counts_the_rest():
  expected = {f"leaf{number:02}": np.zeros(1) for number in range(20)}
  with pytest.raises(ValueError, match="and 12 more") as caught:
    tree_lib.check_same(expected, {}, name="weights")
  assert str(caught.value).count("missing") == 8
