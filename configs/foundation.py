"""The foundation of the phantom study: a small pre-trained encoder and decoder.

Plays the part of EVA-CLIP ViT-G/14 and LLaMA-2-Chat for configs/phantom.py. Its people
are not the study's, and it never sees one of the seven tasks.

  python -m imax_jax.main --config configs/foundation.py --workdir runs/foundation

About 32 minutes on 2 busy cores (films 7, encoder 7, decoder 18), 1.6 GiB. On 400 fresh
films the encoder's probe tells findings from none with AUC .77 (nodule) to .99
(pneumothorax, effusion); organs' coverage is off by .015 of a patch.

Ends with runs/foundation/foundation/{foundation.safetensors,tokenizer.json}; what ships
in imax_jax/assets is a copy. Try your own: --config.foundation=runs/foundation/foundation.
"""

from ml_collections import ConfigDict

from configs import phantom


def get_config(arg: str = "") -> ConfigDict:
  """`arg` is "" or "tiny"."""
  study = phantom.get_config(arg)
  c = ConfigDict()
  c.title = "Phantom foundation"
  c.verbs = ("foundation",)
  c.mesh = study.mesh
  c.sharding = study.sharding
  c.model = study.model
  c.prompt = study.prompt
  c.added_tokens = study.added_tokens
  c.image = study.image
  # The foundation has no low-rank pairs: they belong to what is trained on top of it.
  c.model.decoder.lora_rank = 0
  c.foundation = ""
  c.trainable = ((r"encoder/.*", False), (r".*", True))
  c.films = {"seed": 1, "num_images": 10_000, "film_px": 256}
  c.words = {"seed": 2, "num_patients": 120, "image_px": 64}
  c.dense = {"seed": 0, "num_steps": 1500, "images_per_step": 48, "peak_lr": 1.5e-3}
  c.decoder = {"seed": 0, "num_steps": 5000}
  c.train = phantom.train()
  c.train.entries_per_step = 64
  c.train.row_tokens = 256
  c.train.beta2 = 0.999
  c.train.peak_lr = 2e-3
  c.train.final_lr = 0.0
  c.train.warmup_fraction = 0.05
  if arg == "tiny":
    c.films = {"seed": 1, "num_images": 24, "film_px": 64}
    c.words = {"seed": 2, "num_patients": 6, "image_px": 64}
    c.dense = {"seed": 0, "num_steps": 3, "images_per_step": 4, "peak_lr": 1e-3}
    c.decoder = {"seed": 0, "num_steps": 3}
    c.train.entries_per_step = 16
    c.train.row_tokens = 384
    c.train.save_steps = 2
  return c
