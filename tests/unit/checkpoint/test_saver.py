"""The thread that writes checkpoints works on the device of its rank."""

from __future__ import annotations

import datetime
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megatron_resrl.checkpoint import Retention, TrainerState, saver


class Devices:
    """CUDA's: a new thread is on device 0, whatever the others have chosen."""

    def __init__(self) -> None:
        self._chosen = threading.local()
        self._chosen.index = 3

    def set_device(self, device: torch.device) -> None:
        self._chosen.index = device.index

    def current(self) -> torch.device:
        return torch.device("cuda", getattr(self._chosen, "index", 0))


class Pending:
    """A save that notes where it is finished."""

    folder = Path("step_1")

    def __init__(self, devices: Devices) -> None:
        self.devices = devices
        self.finished_on: list[tuple[torch.device, threading.Thread]] = []

    def finish(self) -> Path:
        self.finished_on.append((self.devices.current(), threading.current_thread()))
        return self.folder


def test_saver_thread_is_on_the_device_of_its_rank(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    devices = Devices()
    pending = Pending(devices)
    monkeypatch.setattr(saver, "device", devices.current)
    monkeypatch.setattr(torch.cuda, "set_device", devices.set_device)
    monkeypatch.setattr(saver, "begin_save", lambda *args, **kwargs: pending)
    monkeypatch.setattr(saver, "any_rank", bool)
    monkeypatch.setattr(dist, "new_group", lambda **kwargs: None)
    steps: list[int] = []
    with saver.CheckpointSaver(
        tmp_path,
        None,
        Retention(1),
        background=True,
        timeout=datetime.timedelta(seconds=10),
        on_saved=steps.append,
    ) as background:
        background.save(TrainerState(step=1, sampler={}))
    ((device, thread),) = pending.finished_on
    assert thread is not threading.main_thread()
    assert device == torch.device("cuda", 3)
    assert steps == [1]
