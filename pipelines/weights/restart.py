"""The restart file of a long training run: written atomically, read strictly, refused by a run with other settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import click
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from amsam_med.files import atomic_path

STATEFUL = ("network", "average", "optimizer")


class RestartableRun:
    """A training run that is continued where it stopped; a subclass sets the attributes.

    Attributes:
        PROGRESS: Names of the attributes that change as the run goes on, all of them plain numbers.
        folder: Where the restart file lies.
        settings: What may not change from one restart to the next; plain values.
        network: What is trained.
        average: The average of its weights.
        optimizer: Its optimiser.
    """

    PROGRESS: ClassVar[tuple[str, ...]]
    folder: Path
    settings: dict[str, Any]
    network: nn.Module
    average: AveragedModel
    optimizer: torch.optim.Optimizer

    @property
    def checkpoint(self) -> Path:
        """The restart file."""
        return self.folder / "checkpoint.pt"

    def save(self) -> None:
        """Write the restart file, with torch's generator; a kill at any moment leaves the earlier one whole."""
        state = {"settings": self.settings, "rng": torch.get_rng_state()}
        state |= {name: getattr(self, name) for name in self.PROGRESS}
        state |= {name: getattr(self, name).state_dict() for name in STATEFUL}
        with atomic_path(self.checkpoint) as path:
            torch.save(state, path)

    def restore(self) -> None:
        """Continue from the restart file, if there is one.

        Raises:
            click.ClickException: It belongs to a run with other settings.
        """
        if not self.checkpoint.is_file():
            return
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        if state["settings"] != self.settings:
            raise click.ClickException(
                f"{self.folder} holds a run with {state['settings']}, this one has {self.settings}; give another folder"
            )
        for name in self.PROGRESS:
            setattr(self, name, state[name])
        torch.set_rng_state(state["rng"])
        for name in STATEFUL:
            getattr(self, name).load_state_dict(state[name])
