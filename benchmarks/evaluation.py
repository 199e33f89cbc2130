"""Evaluation beside the usual: Hugging Face's `generate` on the same weights.

  python -m benchmarks.evaluation [--image_tokens 256] [--vocab 512] [--images 64]

Questions as the paper's IMAX has them (`mix`): 7.46 an image, its seven tasks in its
proportions, prompts and answers as long as theirs. The same LLaMA decoder and connector,
the same dtype, the same device, two threads on a CPU. Contenders take turns, --rounds
times; what is compiled or warmed is not timed:

  peer    transformers' generate: inputs_embeds of image, prompt; rows padded on the left,
          sorted by task and length, --peer_rows at a time; greedy, its cache, sdpa
  ours    `evaluate.generate`, --rows at a time

Drawn weights would never end an answer. So the model is built to count: the last token of
a prompt says how many are to come, each token is one of several that stand for what is
left, and the end token follows the last. Which of them is said is up to all layers and all
that they attend to: the texts must be equal, or there is no time to compare.

On a GPU: --dtype bfloat16 for its usual speed (texts then differ here and there, as they
do between any two programs; how many is printed), --width and --depth for a size that
fills it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs room too

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers import models
from tokenizers import pre_tokenizers

from benchmarks import mix
from imax_jax import tree as tree_lib
from imax_jax.data import templates
from imax_jax.data import tokenizer as tokenizer_lib
from imax_jax.evaluate.generate import Generator
from imax_jax.models.vlm import Vlm
from imax_jax.weights import export

_PLAIN = 64  # tokens that prompts are made of; the rest count
_LONGEST = 160  # tokens of an answer
_TEMPLATE = templates.Template(before="w4 w5 w6 w7", after="w8 w9 {prompt}", begins=1)


def fields(options: argparse.Namespace) -> dict[str, Any]:
  side = int(options.image_tokens**0.5)
  return {
    "encoder": {
      "image_px": 4 * side, "patch_px": 4, "channels": 1, "width": 64, "depth": 1,
      "num_heads": 2, "mlp_width": 64,
    },
    "connector": {"width": options.width, "merge": 1, "depth": 2},
    "decoder": {
      "width": options.width, "depth": options.depth, "num_heads": options.width // 64,
      "num_kv_heads": options.width // 64, "mlp_width": options.width * 11 // 4,
      "vocab_size": options.vocab, "rope_base": 1e4, "norm_eps": 1e-5,
      "dtype": options.dtype, "kernel_dtype": options.dtype,
      "unroll": options.depth if options.depth < 8 else 1,
    },
  }  # fmt: skip


# ── The model that counts, and its questions ────────────────────────────────────────


def word_tokenizer(vocab: int) -> transformers.PreTrainedTokenizerFast:
  """A word a token: "w17" is 17."""
  names = [tokenizer_lib.PAD, tokenizer_lib.BOS, tokenizer_lib.EOS]
  names += [f"w{number}" for number in range(len(names), vocab)]
  words = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}))
  words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token=names[0], bos_token=names[1], eos_token=names[2]
  )


def choices(vocab: int) -> int:
  """How many tokens say the same count."""
  return (vocab - _PLAIN) // _LONGEST


def counting(options: argparse.Namespace, params: tree_lib.Tree) -> dict[str, Any]:
  """`params` with an embedding and a head that count down."""
  rng, width = np.random.default_rng(2), options.width
  basis = np.linalg.qr(rng.normal(size=(width, width)))[0].T
  counts, free = basis[:_LONGEST], basis[_LONGEST:]

  def beside(many: int) -> np.ndarray:
    """Vectors of length about 1 that say no count."""
    return np.asarray(rng.normal(size=(many, len(free))) @ free) / len(free) ** 0.5

  several = choices(options.vocab)
  of_count = np.repeat(np.arange(_LONGEST), several)
  said = slice(_PLAIN, _PLAIN + len(of_count))
  embed = width**0.5 * beside(options.vocab)
  embed[said] = width**0.5 * (0.8 * counts[of_count] + 0.6 * beside(len(of_count)))
  head = 0.2 * beside(options.vocab)
  # Count c follows c + 1, and the end token follows count 0.
  head[said][:-several] += 2 * counts[of_count[several:]]
  head[2] = 2 * counts[0]
  changed = {"decoder/embed/embedding": embed, "decoder/head/kernel": head.T}
  return tree_lib.map_paths(
    lambda path, leaf: np.asarray(changed.get(path, leaf)).astype(leaf.dtype), params
  )


def questions(
  options: argparse.Namespace,
) -> tuple[list[tuple[int, str]], list[str]]:
  """((image, prompt), its task) of every question."""
  asked, tasks, several = [], [], choices(options.vocab)
  rng = np.random.default_rng(3)
  for number, image in enumerate(
    mix.images(options.images, options.image_tokens, _PLAIN)
  ):
    for entry in image.entries:
      length = min(len(entry.answer_ids), _LONGEST)
      last = _PLAIN + (length - 1) * several + rng.integers(several)
      words = [f"w{token}" for token in [*entry.prompt_ids[3:], last]]
      asked.append((number, " ".join(words)))
      tasks.append(entry.entry.task)
  return asked, tasks


# ── The contenders ──────────────────────────────────────────────────────────────────


def ours(
  options: argparse.Namespace,
  params: Any,
  tokenizer: Any,
  features: np.ndarray,
  asked: Sequence[tuple[int, str]],
) -> Callable[[], list[str]]:
  style = templates.Style(_TEMPLATE, _TEMPLATE)
  generator = Generator(
    Vlm(**fields(options)), tokenizer, options.image_tokens, _LONGEST + 1,
    rows=options.rows, style=style,
  )  # fmt: skip
  placed = jax.device_put(params)

  def run() -> list[str]:
    return [generated.text for generated in generator(placed, features, asked)]

  return run


def peer(
  options: argparse.Namespace,
  params: tree_lib.Tree,
  tokenizer: Any,
  features: np.ndarray,
  asked: Sequence[tuple[int, str]],
  tasks: Sequence[str],
) -> Callable[[], list[str]]:
  device = "cuda" if torch.cuda.is_available() else "cpu"
  dtype = getattr(torch, options.dtype)
  flat, width = tree_lib.flatten(params), options.width
  with tempfile.TemporaryDirectory() as folder:
    decoder = fields(options)["decoder"]
    export.write_merged(folder, flat, decoder, dtype=options.dtype)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
  model = model.to(device).eval()
  connector = torch.nn.Sequential(
    torch.nn.Linear(64, width), torch.nn.GELU(), torch.nn.Linear(width, width)
  )
  for number, layer in ((0, connector[0]), (1, connector[2])):
    kernel, bias = (flat[f"connector/dense_{number}/{x}"] for x in ("kernel", "bias"))
    layer.load_state_dict(
      {"weight": torch.tensor(np.array(kernel).T), "bias": torch.tensor(np.array(bias))}
    )
  connector = connector.to(device)
  layout = templates.layout_of(tokenizer, _TEMPLATE)
  ids = [layout.prompt_ids(text) for _, text in asked]
  order = sorted(range(len(asked)), key=lambda i: (tasks[i], len(ids[i])))
  embed = model.get_input_embeddings()

  def rows(part: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings padded on the left, and their mask."""
    shown = torch.from_numpy(features[[asked[i][0] for i in part]]).to(device)
    images = connector(shown).to(dtype)
    whole = [
      torch.cat(
        [
          embed(torch.tensor(layout.prefix_ids, device=device)),
          image,
          embed(torch.tensor(ids[i], device=device)),
        ]
      )
      for i, image in zip(part, images, strict=True)
    ]
    longest = max(map(len, whole))
    x = torch.zeros(len(part), longest, width, dtype=dtype, device=device)
    mask = torch.zeros(len(part), longest, dtype=torch.long, device=device)
    for row, one in enumerate(whole):
      x[row, -len(one) :], mask[row, -len(one) :] = one, 1
    return x, mask

  def run() -> list[str]:
    texts = [""] * len(asked)
    with torch.inference_mode():
      for at in range(0, len(order), options.peer_rows):
        part = order[at : at + options.peer_rows]
        x, mask = rows(part)
        out = model.generate(
          inputs_embeds=x, attention_mask=mask, do_sample=False, use_cache=True,
          max_new_tokens=_LONGEST + 1, eos_token_id=2, pad_token_id=0,
        )  # fmt: skip
        said = tokenizer.batch_decode(out.cpu(), skip_special_tokens=True)
        for i, text in zip(part, said, strict=True):
          texts[i] = text
    return texts

  return run


# ── Side by side ────────────────────────────────────────────────────────────────────


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--image_tokens", type=int, default=256, choices=(64, 256))
  parser.add_argument("--vocab", type=int, default=512)
  parser.add_argument("--width", type=int, default=512)
  parser.add_argument("--depth", type=int, default=2)
  parser.add_argument("--images", type=int, default=64)
  parser.add_argument("--rows", type=int, default=128)
  parser.add_argument("--peer_rows", type=int, default=32)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  return parser.parse_args()


def main() -> None:
  options = parse()
  torch.set_num_threads(2)
  if options.dtype == "float32":
    jax.config.update("jax_default_matmul_precision", "highest")
  tokenizer = word_tokenizer(options.vocab)
  asked, tasks = questions(options)
  size = (options.images, options.image_tokens, 64)
  features = np.random.default_rng(1).normal(size=size).astype(np.float32)
  line = jnp.zeros((1, 4), jnp.int32)
  names = ("text", "image", "slot", "segment", "position")
  batch = dict.fromkeys(names, line) | {"pixels": features[:1]}
  made = jax.jit(Vlm(**fields(options)).init)(jax.random.key(0), batch)["params"]
  params = counting(options, made)
  contenders = {
    "peer": peer(options, params, tokenizer, features, asked, tasks),
    "ours": ours(options, params, tokenizer, features, asked),
  }
  texts = {name: run() for name, run in contenders.items()}
  check(options, texts)
  seconds: dict[str, list[float]] = {name: [] for name in contenders}
  cores: dict[str, list[float]] = {name: [] for name in contenders}
  for _ in range(options.rounds):
    for name, run in contenders.items():
      began, worked = time.perf_counter(), time.process_time()
      run()
      seconds[name].append(time.perf_counter() - began)
      cores[name].append(time.process_time() - worked)
  for name, times in seconds.items():
    ratios = [one / own for one, own in zip(seconds["peer"], times, strict=True)]
    sys.stdout.write(
      f"  {name}  {statistics.median(times):7.2f} s, "
      f"{len(asked) / statistics.median(times):7.1f} answers/s, "
      f"{statistics.median(ratios):5.2f} times the peer "
      f"({min(ratios):.2f} to {max(ratios):.2f}); {statistics.median(cores[name]):.2f} s "
      "of processors\n"
    )


def check(options: argparse.Namespace, texts: dict[str, list[str]]) -> None:
  """Says how many answers are equal; in float32 all must be."""
  tokens = sum(len(text.split()) + 1 for text in texts["peer"])
  pairs = list(zip(*texts.values(), strict=True))
  equal = sum(one == other for one, other in pairs)
  sys.stdout.write(
    f"{jax.devices()[0].device_kind}, {options.dtype}, {options.image_tokens} image "
    f"tokens, {options.depth} layers of {options.width}, vocabulary {options.vocab:,}: "
    f"{options.images} images, {len(pairs)} answers of {tokens / len(pairs):.1f} tokens, "
    f"{len(set(texts['peer']))} distinct; {equal} of {len(pairs)} equal\n"
  )
  if options.dtype == "float32" and equal < len(pairs):
    sys.exit("evaluation: the contenders do not do the same work")


if __name__ == "__main__":
  main()
