"""Several processes and several meshes: one run, whatever it runs on."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from reliability import record

from imax_jax import tree as tree_lib
from imax_jax.train import metrics

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch" / "local.sh"
TINY = f"{ROOT}/configs/phantom.py:tiny"
RUN = "imax-s0"
MADE_BY_TRAINING = ("runs", "features", "encoder_key")


def environment(devices: int = 1, **more: str) -> dict[str, str]:
  made = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
  return os.environ | made | more


def finished(command: list[str], **more) -> str:
  """What a command wrote, which must succeed."""
  done = subprocess.run(
    command, capture_output=True, text=True, timeout=280, check=False, cwd=ROOT, **more
  )
  assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
  return done.stdout


# ── The same checkpoint on other meshes ───────────────────────────────────────────

MESHES = """
import json, shutil, sys
from pathlib import Path
import jax
import jax.numpy as jnp
import numpy as np
from imax_jax import mesh as mesh_lib, tree as tree_lib
from imax_jax.train import loop, optim
from imax_jax.train.checkpoint import Checkpointer
from imax_jax.train.state import init_state

folder = Path(sys.argv[1])
STEPS, CUT, D, V = 6, 3, 16, 32
rng = np.random.default_rng(0)
SHAPES = {
  "embed/embedding": (V, D), "head/kernel": (D, V), "norm/scale": (D,),
  "layers/attn/q/kernel": (2, D, 2 * D), "layers/attn/o/kernel": (2, 2 * D, D),
  "layers/attn/q/lora_a": (2, D, 4), "layers/attn/q/lora_b": (2, 4, 2 * D),
  "layers/attn/o/lora_a": (2, 2 * D, 4), "layers/attn/o/lora_b": (2, 4, D),
}
VALUES = tree_lib.unflatten({
  "decoder/" + path: rng.normal(size=shape).astype(np.float32) / 4
  for path, shape in SHAPES.items()
})

class Rows:
  examples_per_step = 8
  def __len__(self):
    return STEPS
  def __getitem__(self, step):
    text = np.random.default_rng(step).integers(0, V, (8, 5)).astype(np.int32)
    return {"text": text, "loss_weight": np.ones((8, 5), np.float32)}
  def names(self, step):
    return [f"row {step}"]

def loss(trainable, frozen, batch, rng):
  p = tree_lib.merge(trainable, frozen)["decoder"]
  def dense(q, x):
    return x @ q["kernel"] + x @ q["lora_a"] @ q["lora_b"]
  def layer(x, attn):
    return x + dense(attn["o"], jnp.tanh(dense(attn["q"], x))), None
  x, _ = jax.lax.scan(layer, p["embed"]["embedding"][batch["text"]], p["layers"]["attn"])
  logits = x * p["norm"]["scale"] @ p["head"]["kernel"]
  likely = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["text"][..., None], -1)
  return -(batch["loss_weight"] * likely[..., 0]).sum(), batch["loss_weight"].sum()

def go(axes, devices, work, rules=mesh_lib.FSDP, **more):
  mesh = mesh_lib.make_mesh(axes, jax.devices()[:devices])
  placed = mesh_lib.place(VALUES, mesh_lib.shardings(VALUES, mesh, rules))
  trainable, frozen = tree_lib.split(placed, ((".*/lora_[ab]", True), (".*", False)))
  schedule = optim.make_schedule(num_steps=STEPS, peak_lr=5e-3, final_lr=1e-3,
                                 warmup_fraction=0.2, warmup_start_lr=1e-4)
  optimizer = optim.make_optimizer(trainable, schedule, clip_norm=1.0)
  found = None
  if Path(work).exists():
    keeper = Checkpointer(work)
    found = keeper.restore(init_state(trainable, optimizer.update, seed=9)).state
    keeper.close()
  trained = loop.train(
    model_loss=loss, trainable=trainable, frozen=frozen, optimizer=optimizer,
    batches=Rows(), mesh=mesh, workdir=work, seed=9, save_steps=CUT, **more)
  return found, trained

def same(left, right):
  return bool(jax.tree.all(jax.tree.map(np.array_equal, left, right)))

def parts(tree):
  return [leaf.size // leaf.addressable_shards[0].data.size
          for leaf in jax.tree.leaves(tree) if leaf.ndim > 1]

_, trained = go({"fsdp": 8}, 8, folder / "cut", stop_after=CUT)
facts = {}
for name, axes, devices, rules in (
  ("fsdp 8", {"fsdp": 8}, 8, mesh_lib.FSDP),
  ("fsdp 4, tensor 2", {"fsdp": 4, "tensor": 2}, 8, mesh_lib.FSDP),
  ("data 2", {"data": 2}, 2, ((".*", ()),)),
  ("one", {"data": 1}, 1, ((".*", ()),)),
):
  shutil.copytree(folder / "cut", folder / name)
  state, _ = go(axes, devices, folder / name, rules)
  first = state if name == "fsdp 8" else first
  moved = [float(abs(leaf).max()) for leaf in jax.tree.leaves(state.opt_state)]
  facts[name] = {
    "step": int(state.step), "weights": same(state.trainable, trained),
    "optimizer": same(state.opt_state, first.opt_state), "least": min(moved),
    "weights split": parts(state.trainable), "moments split": parts(state.opt_state),
  }
(folder / "facts.json").write_text(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def meshes(tmp_path_factory) -> Path:
  """A run on eight devices, cut at half, and gone on with on other meshes."""
  folder = tmp_path_factory.mktemp("meshes")
  finished([sys.executable, "-c", MESHES, str(folder)], env=environment(8))
  return folder


# In the order of the paths: o's pair, then q's.
@pytest.mark.parametrize(
  ("mesh", "split"),
  [
    ("fsdp 8", [1, 8, 8, 1]),
    ("fsdp 4, tensor 2", [2, 4, 4, 2]),
    ("data 2", [1, 1, 1, 1]),
    ("one", [1, 1, 1, 1]),
  ],
)
def test_a_checkpoint_goes_on_on_another_mesh(meshes, mesh, split):
  facts = json.loads((meshes / "facts.json").read_text())[mesh]
  assert facts["step"] == 3
  assert facts["weights"] and facts["optimizer"]
  assert facts["least"] > 0  # moments and counters that a fresh state has not
  assert facts["weights split"] == split
  assert facts["moments split"] == split * 2
  one = metrics.read_metrics(meshes / "fsdp 8" / "metrics.jsonl")
  other = metrics.read_metrics(meshes / mesh / "metrics.jsonl")
  assert [row["step"] for row in other] == [row["step"] for row in one]
  assert one[0]["loss"] - one[-1]["loss"] > 0.02
  for left, right in zip(one, other, strict=True):
    assert abs(left["loss"] / right["loss"] - 1) < 1e-6


# ── Two processes ─────────────────────────────────────────────────────────────────

CONFIG = """
from configs import phantom
from imax_jax import mesh

def get_config(arg):
  c = phantom.get_config("tiny")
  c.mesh = {arg: -1}
  c.sharding = mesh.FSDP if arg == "fsdp" else c.sharding
  return c
"""
# The door and all behind it, but for two of the three runs.
ONE_RUN = """
import sys
from imax_jax import experiment, main, runs

def train(study):
  found, pixels = study.records("imax_train"), lambda: study.pixels("imax_train")
  runs.fit(study, "imax-s0", found, pixels, **runs.plan(study, "imax-s0"))

experiment._STATIONS["train"] = train
if __name__ == "__main__":  # the workers of `build` import this as well
  sys.exit(main.main())
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
  """A folder with a config, a door that trains one run, and that run by one process."""
  folder = tmp_path_factory.mktemp("hosts")
  (folder / "config.py").write_text(CONFIG)
  (folder / "one_run.py").write_text(ONE_RUN)
  door = folder / "python"
  door.write_text(
    "#!/usr/bin/env bash\n"
    f'if [[ $1 == -m ]]; then shift 2; set -- {folder}/one_run.py "$@"; fi\n'
    f'PYTHONPATH={ROOT} exec {sys.executable} "$@"\n'
  )
  door.chmod(0o755)
  launch(folder, "alone", "data", "build", "train")
  return folder


def launch(folder: Path, name: str, mesh: str, *words: str, processes: int = 1) -> None:
  command = [LAUNCH, "--processes", str(processes), f"{folder}/config.py:{mesh}"]
  env = environment(PYTHON=str(folder / "python"), GRACE="2")
  finished([*map(str, command), str(folder / name), *words], env=env)


def weights(workdir: Path) -> dict[str, np.ndarray]:
  """The run's last weights, on one device whatever they were trained on."""
  import jax
  import orbax.checkpoint as ocp

  where = workdir / "runs" / RUN / "snapshots" / "final"
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  with ocp.StandardCheckpointer() as reader:
    like = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
      reader.metadata(where).item_metadata.tree,
    )
    found = tree_lib.flatten(reader.restore(where, like))
  return {path: np.asarray(leaf) for path, leaf in found.items()}


@pytest.mark.parametrize("mesh", ["data", "fsdp"])
def test_two_processes_train_as_one(alone, mesh):
  shutil.copytree(
    alone / "alone", alone / mesh, ignore=shutil.ignore_patterns(*MADE_BY_TRAINING)
  )
  launch(alone, mesh, mesh, "train", processes=2)
  one = metrics.read_metrics(alone / "alone" / "runs" / RUN / "metrics.jsonl")
  two = metrics.read_metrics(alone / mesh / "runs" / RUN / "metrics.jsonl")
  assert [row["step"] for row in two] == [row["step"] for row in one]
  assert len(two) >= 4
  for left, right in zip(one, two, strict=True):
    assert left["tokens"] == right["tokens"]
    assert abs(left["loss"] / right["loss"] - 1) < 1e-6
  losses = max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(one, two, strict=True))
  expected, got = weights(alone / "alone"), weights(alone / mesh)
  assert expected.keys() == got.keys()
  moved = max(np.abs(leaf).max() for path, leaf in got.items() if "lora_b" in path)
  assert moved > 1e-3  # from zero
  for path, leaf in expected.items():
    np.testing.assert_allclose(got[path], leaf, rtol=0, atol=1e-6, err_msg=path)
  far = max(np.abs(got[path] - leaf).max() for path, leaf in expected.items())
  print(f"{mesh}: losses differ by {losses:.2g} at most, weights by {far:.2g}")


def test_a_signal_to_one_process_ends_all_at_one_step(alone):
  """Each has saved the same step, and says so with 75 (R6)."""
  work = alone / "preempted"
  shutil.copytree(
    alone / "alone", work, ignore=shutil.ignore_patterns(*MADE_BY_TRAINING)
  )
  command = [LAUNCH, "--processes", "2", f"{alone}/config.py:data", work]
  command += ["--config.train.epochs=2000", "train"]
  env = environment(PYTHON=str(alone / "python"), GRACE="20")
  lines = work / "runs" / RUN / "metrics.jsonl"
  with subprocess.Popen(
    [*map(str, command)], env=env, stderr=subprocess.DEVNULL
  ) as run:
    while not (lines.exists() and lines.stat().st_size):
      assert run.poll() is None
      time.sleep(0.1)
    os.kill(process_of(work, 1), signal.SIGTERM)
    assert run.wait(timeout=60) == 75
  found = lines.parent.glob("latest/[0-9]*/sha256.json")
  sealed = max(int(path.parent.name) for path in found)
  for number in (0, 1):
    said = (work / "logs" / f"process-{number}.log").read_text()
    assert f"saved at step {sealed} of" in said, said
  assert sealed > 0
  words = "SIGTERM to one of two processes: both leave with 75 at one saved step"
  record("R6", words, "1 of 1", "1 of 1", True)


def process_of(workdir: Path, number: int) -> int:
  """The process id of one of the processes that work in a directory."""
  for entry in Path("/proc").glob("[0-9]*/cmdline"):
    with contextlib.suppress(OSError):
      words = entry.read_bytes().decode().split("\0")
      ours = f"--process_id={number}" in words and str(workdir) in words
      if ours and "python" in Path(words[0]).name:
        return int(entry.parent.name)
  raise AssertionError(f"no process {number} in {workdir}")


FAILS = f"""#!/usr/bin/env bash
if [[ $1 == -c ]]; then exec {sys.executable} "$@"; fi
shift 2
PYTHONPATH={ROOT} exec {sys.executable} -c '
import sys
import jax
from jax.experimental import multihost_utils
from imax_jax import experiment, main

def train(study):
  multihost_utils.sync_global_devices("both are here")
  if jax.process_index() == 1:
    raise KINDError("of process 1")
  multihost_utils.sync_global_devices("for ever")

experiment._STATIONS["train"] = train
sys.exit(main.main())
' "$@"
"""


@pytest.mark.parametrize("kind", ["Value", "Assertion"])  # known, and a traceback
def test_a_process_that_fails_does_not_wait_for_the_others(tmp_path, kind):
  stub = tmp_path / "stub"
  stub.write_text(FAILS.replace("KIND", kind))
  stub.chmod(0o755)
  work = tmp_path / "work"
  done = subprocess.run(
    [str(LAUNCH), "--processes", "2", TINY, str(work), "train"],
    env=environment(PYTHON=str(stub), GRACE="1"),
    capture_output=True,
    text=True,
    timeout=200,  # JAX's own shutdown would be 300
    check=False,
    cwd=ROOT,
  )
  assert done.returncode == 1, done.stdout + done.stderr
  assert "of process 1" in (work / "logs" / "process-1.log").read_text()


# ── The launcher, with something that is quicker to start ─────────────────────────

STUB = f"""#!/usr/bin/env bash
if [[ $1 == -c ]]; then exec {sys.executable} "$@"; fi
id=${{*: -1}}
id=${{id#--process_id=}}
echo "I am $id with GPUs ${{CUDA_VISIBLE_DEVICES-none}}: $*"
"""


def start(folder: Path, script: str, *arguments: str, **env: str) -> subprocess.Popen:
  """launch/local.sh with a stand-in for Python, which ends with `script`."""
  stub = folder / "stub"
  stub.write_text(STUB + script)
  stub.chmod(0o755)
  # In the background of a shell Ctrl-C would be ignored, and could not be caught.
  return subprocess.Popen(
    ["env", "--default-signal=INT", str(LAUNCH), *arguments],
    env=environment(PYTHON=str(stub), GRACE="1") | env,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def wait_for(test) -> None:
  for _ in range(300):
    if test():
      return
    time.sleep(0.1)
  raise AssertionError("30 seconds have passed")


def is_gone(file: Path) -> bool:
  """Whether the process whose number stands in the file has ended."""
  try:
    os.kill(int(file.read_text()), 0)
  except ProcessLookupError:
    return True
  return False


def test_each_process_is_told_who_it_is(tmp_path):
  work = tmp_path / "work"
  run = start(
    tmp_path, "", "--processes", "3", TINY, str(work), "train", "--config.x=1"
  )
  out, _ = run.communicate(timeout=60)
  assert run.returncode == 0, out
  logs = [(work / "logs" / f"process-{i}.log").read_text() for i in range(3)]
  assert out == logs[0]
  told = "-m imax_jax.main --config {} --workdir {} train --config.x=1 --distributed"
  addresses = set()
  for i, log in enumerate(logs):
    head, _, tail = log.partition(" --coordinator=")
    assert head == f"I am {i} with GPUs none: {told.format(TINY, work)}"
    address, rest = tail.split(" ", 1)
    assert rest == f"--num_processes=3 --process_id={i}\n"
    addresses.add(address)
  assert len(addresses) == 1
  assert addresses.pop().startswith("127.0.0.1:")
  assert work.stat().st_mode & 0o077 == 0


def test_gpus_are_shared_out(tmp_path):
  work = tmp_path / "work"
  env = {"JAX_PLATFORMS": "", "CUDA_VISIBLE_DEVICES": "4,5,6,7"}
  run = start(tmp_path, "", "--processes", "2", TINY, str(work), **env)
  run.communicate(timeout=60)
  logs = [(work / "logs" / f"process-{i}.log").read_text() for i in range(2)]
  assert [log.split(":")[0] for log in logs] == [
    "I am 0 with GPUs 4,5",
    "I am 1 with GPUs 6,7",
  ]
  run = start(tmp_path, "", "--processes", "3", TINY, str(work), **env)
  out, _ = run.communicate(timeout=60)
  assert run.returncode == 2
  assert "4 GPUs are no multiple of 3 processes" in out


@pytest.mark.parametrize(
  "words", [["--processes", "0", "a", "b"], ["--processes"], ["a"]]
)
def test_a_wrong_call_shows_the_usage(tmp_path, words):
  run = start(tmp_path, "", *words)
  out, _ = run.communicate(timeout=60)
  assert run.returncode == 2
  assert out.startswith("usage: ")


def test_the_first_that_fails_ends_the_others(tmp_path):
  script = f"""
if (( id == 1 )); then
  while [[ ! -e {tmp_path}/child ]]; do sleep 0.05; done
  exit 7
fi
trap '' TERM  # as JAX does
sleep 100 & echo $! > {tmp_path}/part; mv {tmp_path}/part {tmp_path}/child
wait
"""
  run = start(tmp_path, script, "--processes", "3", TINY, str(tmp_path / "work"))
  out, _ = run.communicate(timeout=60)
  assert run.returncode == 7
  assert "exit code 7" in out
  wait_for(lambda: is_gone(tmp_path / "child"))


@pytest.mark.parametrize(
  ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_signal_ends_all(tmp_path, sent, code):
  script = f"""
trap 'sleep 0.3; echo last words' INT TERM
sleep 100 & echo $! > {tmp_path}/part-$id; mv {tmp_path}/part-$id {tmp_path}/child-$id
wait
"""
  run = start(tmp_path, script, "--processes", "2", TINY, str(tmp_path / "work"))
  children = [tmp_path / f"child-{i}" for i in range(2)]
  wait_for(lambda: all(child.exists() for child in children))
  run.send_signal(sent)
  run.communicate(timeout=60)
  assert run.returncode == code
  for i in range(2):
    log = tmp_path / "work" / "logs" / f"process-{i}.log"
    assert log.read_text().endswith("last words\n")
  wait_for(lambda: all(is_gone(child) for child in children))
