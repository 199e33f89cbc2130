"""The benchmark of the full-size model, at toy size: its phases, its weights, its refusal."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import full_size
from imax_jax.weights import load as weights


def _options(tmp_path: Path, *more: str):
  return full_size.parse([f"--workdir={tmp_path}", "--tiny", "--row_tokens=96", *more])


def test_a_start_loads_steps_and_answers(tmp_path, capsys) -> None:
  options = _options(tmp_path, "--depth=1")
  full_size.write_foundation(full_size.configure(options), tmp_path)
  rows = tmp_path / "phases.jsonl"
  full_size.start(options, full_size.Log(rows, 1))
  said = capsys.readouterr().out
  losses = [float(part.split()[1]) for part in said.split("\n") for part in
            part.split("] ")[-1].split(", ") if part.startswith("loss ")]  # fmt: skip
  forward, first, second = losses
  # LoRA's B is zero at first, so that dropout and the pair change nothing.
  assert first == pytest.approx(forward, abs=2e-3)
  assert second < first
  assert "7 lora_a leaves: norm 0\n" in said
  phases = [json.loads(line) for line in rows.read_text("utf8").splitlines()]
  assert [row["phase"] for row in phases] == [
    "load", "forward: compile", "forward", "step: trace", "step: compile", "step 1",
    "step 2", "answer, with compiling", "answer",
  ]  # fmt: skip
  for row in phases:
    with rows.open("a", encoding="utf8") as file:
      file.write(json.dumps(row | {"start": 2, "seconds": 1234.5}) + "\n")
  table = full_size.table(rows)
  assert table.count("1234.5") == len(phases)


def test_weights_are_seeded_and_layers_differ(tmp_path) -> None:
  found = []
  for _ in range(2):
    config = full_size.configure(_options(tmp_path, "--kernel_dtype=nf4"))
    full_size.write_foundation(config, tmp_path)
    found.append(
      weights.load_params(Path(config.foundation) / "foundation.safetensors")
    )
  once, again = found
  for path, value in once.items():
    np.testing.assert_array_equal(value, again[path], err_msg=path)
  kernel = np.asarray(once["decoder/layers/mlp/down/kernel"], np.float32)
  # A uniform distribution of variance 1 / in.
  assert kernel.std() == pytest.approx(128**-0.5, rel=0.02)
  assert np.any(kernel[0] != kernel[1])
  assert not {path for path in once if "connector" in path or "lora" in path}


def test_an_older_jax_is_refused_with_the_reason() -> None:
  with pytest.raises(SystemExit, match=r"needs jax 0\.12 .* this is 0\.10\.2.* 27 GB"):
    full_size.check_jax((0, 10, 2))
  full_size.check_jax((0, 12, 0, 1))
