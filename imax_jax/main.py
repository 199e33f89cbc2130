"""The door: flags, logging, devices; everything else is imported and tested without it."""

from __future__ import annotations

import difflib
import os
import sys
import threading
import traceback
from pathlib import Path

from absl import flags
from absl import logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "A Python file with get_config(), e.g. configs/phantom.py or configs/phantom.py:tiny. "
  "Override its values with --config.train.peak_lr=2e-3.",
  lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where everything that is made is kept."
)
_DISTRIBUTED = flags.DEFINE_boolean(
  "distributed", False, "Join the other processes of a multi-host launch (see launch/)."
)
# Without these three the cluster is asked: SLURM, a TPU's metadata, Open MPI.
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "distributed: HOST:PORT where process 0 listens."
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes", None, "distributed: how many there are.", lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id", None, "distributed: which of them this is, from 0.", lower_bound=0
)
_HEARTBEAT = flags.DEFINE_integer(
  "heartbeat_seconds",
  100,
  "distributed: a process that was silent for so long is dead, and ends the others.",
  lower_bound=1,
)
_IMAGE = flags.DEFINE_string(
  "image", None, "predict: the radiograph, a JPEG or PNG file."
)
_TASK = flags.DEFINE_string("task", None, "predict: one of the seven tasks.")
_QUESTION = flags.DEFINE_string(
  "question", None, "predict: the question (vqa), organ (rec), box (reg) or ratio."
)
_TEMPERATURE = flags.DEFINE_string(
  "temperature", None, "predict: draw the answer; 1: by the model's probabilities."
)
_TOP_P = flags.DEFINE_string(
  "top_p", None, "predict: from the likeliest tokens that have so much together."
)
_SAMPLE_SEED = flags.DEFINE_string("sample_seed", None, "predict: decides the draw.")
_ENTRY = flags.DEFINE_string("entry", None, "explain: an entry's id.")
_SPLIT = flags.DEFINE_string("split", None, "export: imax_train, imax_test, …")
_STYLE = flags.DEFINE_enum(
  "style",
  "conversations",
  ["llava", "conversations", "messages"],
  "export: LLaVA's list, or lines for LLaMA-Factory and ms-swift.",
)
_PER_IMAGE = flags.DEFINE_boolean(
  "per_image", False, "export: all entries of an image as one conversation."
)
_CHECKPOINT = flags.DEFINE_string(
  "checkpoint",
  None,
  "predict, evaluate, bundle, merge, publish: a run's folder, WORKDIR/runs/imax-s0, or a bundle's.",
)
_RUNS = flags.DEFINE_string(
  "runs", None, "report: work directories A,B,C side by side, those of a row pooled."
)
_DTYPE = flags.DEFINE_enum(
  "dtype", None, ["bfloat16", "float16", "float32"], "merge, publish: of the weights."
)
_SIMULATE = flags.DEFINE_integer(
  "simulate",
  None,
  "compile_report: for so many devices that are not here.",
  lower_bound=1,
)
_ROWS = flags.DEFINE_integer(
  "rows", 1, "compile_report: rows of a batch on each device.", lower_bound=1
)

_USAGE = """Image-centric multi-task training of chest-radiograph models.

  python -m imax_jax.main --config FILE[:ARG] --workdir DIR [VERB …]

Without a verb the config's own list runs. What is done already is not done again.

  build     raw files -> IMAX and DMAX on disk
              python -m imax_jax.main --config configs/phantom.py --workdir runs/phantom build
  select    the same up to the selected entries, without their images: counts, recipe
              … --config configs/imax_data.py --config.data.root=FOLDER select
  explain   where an entry comes from: its file, row and rule
              … explain --entry IMAGE/rec/heart/0
  export    a split as JSON lines for LLaVA, LLaMA-Factory, ms-swift
              … export --split imax_train --style messages --per_image
  convert   published weights -> WORKDIR/foundation, which the config's model starts from
              … --config configs/imax_7b.py --config.published.encoder=eva_vit_g.pth \\
                --config.published.decoder=Llama-2-7b-chat-hf convert
  encode    the frozen encoder's features, which train keeps: checked, and made if missing
              … encode
              … encode --config.train.features_folder=FOLDER   shared by work directories
  train     DMAX, IMAX and the step-matched control, one run a seed
              … train --config.seeds=0,1
  pseudo    the three-stage strategy: label DMAX's missing tasks, pre-train, fine-tune
              … pseudo
  evaluate  greedy answers on the IMAX test split, the 16 metrics, Eq. 1 gains
              … evaluate
              … evaluate --checkpoint FOLDER   one run or bundle: its scores
  fisher    spectra of the Fisher information at four phases of both runs
              … fisher --config.fisher.num_groups=50
  report    results.json and report/index.html
              … report
              … report --runs A,B,C      work directories side by side, in one page
  predict   one image, one task
              … predict --image film.jpg --task rec --question heart \\
                --checkpoint runs/phantom/runs/imax-s0
              … predict … --temperature 0.7 --top_p 0.9 --sample_seed 1   drawn
  bundle    a run as one folder to hand on: adapter, connector, card; PEFT reads it too
              … bundle --checkpoint runs/phantom/runs/imax-s0
  merge     a run's decoder with its adapter added in, as Hugging Face keeps it
              … merge --checkpoint runs/phantom/runs/imax-s0
  publish   a run in the files that the system's own users load: config.publish.layout
              … publish --checkpoint runs/phantom/runs/imax-s0
  compile_report  what a train step takes on a mesh of cards that need not be here
              python -m imax_jax.main --config configs/imax_7b.py --workdir DIR \\
                --simulate 8 --config.mesh.fsdp=4 --config.mesh.tensor=2 compile_report
  foundation  the small pre-trained encoder and decoder that ship with the package
              python -m imax_jax.main --config configs/foundation.py --workdir runs/foundation

Exit codes: 0 done; 1 failed; 2 the command line is at fault; 75 training was stopped by
SIGTERM and has saved, or a step hung: the same command goes on.
"""


class _Refused(Exception):
  """The command line is at fault: exit code 2, one line, no traceback."""


def _near(word: str, words: list[str]) -> str:
  near = difflib.get_close_matches(word, words, n=3, cutoff=0.4)
  return (
    f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(words)}"
  )


def _check_verbs(verbs: list[str]) -> None:
  from imax_jax import experiment

  for verb in verbs:
    if verb not in experiment.VERBS:
      raise _Refused(f"unknown verb {verb!r}: {_near(verb, list(experiment.VERBS))}")


def _join() -> None:
  """Meets the other processes of a multi-host launch, before anything uses a device."""
  coordinator, count, index = (
    _COORDINATOR.value,
    _NUM_PROCESSES.value,
    _PROCESS_ID.value,
  )
  told = [value is not None for value in (coordinator, count, index)]
  if any(told) and not (all(told) and _DISTRIBUTED.value):
    raise _Refused(
      "--coordinator HOST:PORT, --num_processes and --process_id go together, and with "
      "--distributed"
    )
  if not _DISTRIBUTED.value:
    return
  import jax

  # If all is told, a cluster around it is not asked, which would bind one device to us.
  method = "deactivate" if all(told) else None
  try:
    jax.distributed.initialize(
      coordinator,
      count,
      index,
      cluster_detection_method=method,
      heartbeat_timeout_seconds=_HEARTBEAT.value,
    )
  except ValueError as error:
    hint = " Give --coordinator HOST:PORT, --num_processes and --process_id."
    raise _Refused(f"--distributed: {error}{'' if all(told) else hint}") from error


def _simulate(verbs: list[str]) -> None:
  """Makes CPU devices out of nothing, before JAX looks for real ones."""
  if _SIMULATE.value is None:
    return
  if set(verbs) != {"compile_report"}:
    raise _Refused("--simulate is for the verb compile_report alone: it runs nothing")
  import jax

  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", _SIMULATE.value)


def _keep_programs(workdir: Path) -> None:
  """What XLA compiles is kept in the work directory: the next start need not compile.

  JAX_COMPILATION_CACHE_DIR names another folder.
  """
  import jax

  if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    jax.config.update("jax_compilation_cache_dir", str(workdir.resolve() / "programs"))


def _main(argv: list[str]) -> None:
  if not flags.FLAGS["config"].present or _WORKDIR.value is None:
    raise _Refused("--config FILE and --workdir DIR are needed; --help shows examples")
  file = config_flags.get_config_filename(flags.FLAGS["config"])
  if not Path(file.split(":")[0]).is_file():
    raise _Refused(f"--config {file}: no such file; see configs/")
  # JAX is imported after the flags are known to be right: a typing error answers at once.
  from imax_jax import experiment

  verbs = argv[1:] or list(_CONFIG.value.verbs)
  _check_verbs(verbs)
  _simulate(verbs)
  _join()
  _keep_programs(Path(_WORKDIR.value))
  said = (
    _IMAGE, _TASK, _QUESTION, _CHECKPOINT, _TEMPERATURE, _TOP_P, _SAMPLE_SEED, _ENTRY,
    _SPLIT, _STYLE, _DTYPE, _RUNS,
  )  # fmt: skip
  request = {flag.name: flag.value for flag in said}
  request |= {
    "per_image": "yes" if _PER_IMAGE.value else "", "rows": str(_ROWS.value)
  }  # fmt: skip
  try:
    experiment.run(_CONFIG.value, _WORKDIR.value, verbs, request)
  except experiment.UsageError as error:
    raise _Refused(error) from error
  except experiment.Preempted as error:
    raise _Again(str(error), experiment.EXIT_AGAIN) from error


class _Again(Exception):
  """(why, exit code): the work stopped where the same command goes on."""


def _flag_error(error: Exception, argv: list[str]) -> str:
  """One line that names the flag or config key at fault, and near ones."""
  if isinstance(error, flags.UnrecognizedFlagError):
    known = [name for name in flags.FLAGS if "." not in name]
    return f"unknown flag --{error.flagname}: {_near(error.flagname, known)}"
  # ml_collections hands on the whole traceback of a config that refuses its argument.
  refusals = [
    line for line in str(error).splitlines() if line.startswith("ValueError: ")
  ]
  if refusals:
    return refusals[-1].removeprefix("ValueError: ")
  # A KeyError's text is its argument's repr; ml_collections puts its hint in there.
  text = str(error.args[0] if error.args else error)
  text = " ".join(text.replace("\\n", " ").replace("\\", "").replace("'", "").split())
  if "no attribute get_config" in text:
    return "--config: the file has no get_config(), so it is no config; see configs/"
  for word in argv:
    key = word.lstrip("-").split("=")[0]
    if key.startswith("config.") and any(part in text for part in key.split(".")[1:]):
      lone = isinstance(error, AttributeError | KeyError) and "Did you mean" not in text
      return f"config key --{key}: {'no such key; see the config' if lone else text}"
  return text


def _parse(argv: list[str]) -> list[str]:
  try:
    return flags.FLAGS(argv)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
    raise _Refused(_flag_error(error, argv)) from error
  except (FileNotFoundError, ModuleNotFoundError) as error:
    raise _Refused(
      f"--config: {error}; run from the project's folder, which holds configs/"
    ) from error


def _would_wait() -> bool:
  """Whether JAX or orbax would keep a program that has failed from its end."""
  jax = sys.modules.get("jax")
  if jax is not None and jax.distributed.is_initialized():
    return True
  return any(type(t).__module__.startswith("orbax.") for t in threading.enumerate())


def main(argv: list[str] | None = None) -> int:
  """Returns the exit code: 0, 1 (the work failed in a known way), 2 (usage), or 75:
  SIGTERM ended a training run, which has saved; a scheduler may start it again.

  A process of several that fails ends here and at once. At its exit JAX would wait five
  minutes for the others, who wait for it; the launcher or JAX's heartbeat ends those.
  So does one whose checkpoint could not be written: threads of orbax would wait as long
  for a folder that nobody makes.
  """
  try:
    code = _run(list(sys.argv if argv is None else argv))
  except Exception:
    if not _would_wait():
      raise
    traceback.print_exc()
    code = 1
  if code and _would_wait():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  return code


def _run(argv: list[str]) -> int:
  if {"--help", "-h", "-help"} & set(argv[1:]):
    sys.stdout.write(_USAGE)
    return 0
  # XLA's warnings are part of a compile_report, and noise elsewhere.
  level = "1" if "compile_report" in argv else "2"
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", level)
  os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # torch is not missed
  logging.use_absl_handler()
  try:
    _main(_parse(argv))
  except _Refused as error:
    sys.stderr.write(f"imax_jax: {error}\n")
    return 2
  except (ValueError, OSError, FloatingPointError) as error:
    if logging.level_debug():
      raise
    sys.stderr.write(f"imax_jax: {str(error).strip()}\n")
    return 1
  except _Again as again:
    why, code = again.args
    sys.stderr.write(f"imax_jax: {why}; the same command goes on\n")
    return code
  except KeyboardInterrupt:
    sys.stderr.write(
      "imax_jax: interrupted; the same command goes on from what is finished\n"
    )
    return 130
  return 0


if __name__ == "__main__":
  sys.exit(main())
