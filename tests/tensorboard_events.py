"""What TensorBoard would show of a folder of event files, by its own rule of resuming."""

from __future__ import annotations

import struct
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.event_pb2 import SessionLog


def scalars_in(folder: Path) -> dict[str, dict[int, float]]:
  """{name: {step: value}}. A restart takes back what the files before say from its step on."""
  found: dict[str, dict[int, float]] = {}
  for path in sorted(folder.iterdir()):
    data, at = path.read_bytes(), 0
    while at < len(data):
      # A record: its length, a checksum of that, itself, a checksum.
      (length,) = struct.unpack_from("<Q", data, at)
      event = Event.FromString(data[at + 12 : at + 12 + length])
      at += 12 + length + 4
      if event.session_log.status == SessionLog.START:
        for values in found.values():
          for step in [step for step in values if step >= event.step]:
            del values[step]
      for value in event.summary.value:
        found.setdefault(value.tag, {})[event.step] = value.simple_value
  return found
