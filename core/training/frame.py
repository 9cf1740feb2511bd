"""What all training loops share: they resume, stop, validate, save and tell alike.

A loop shows its algorithm::

    frame = Frame(config, output_dir, fabric, steps=1000, validate_every=100)
    frame.begin(resume=True, network=network, average=average, optimiser=optimiser)
    for step, (noisy, target, snr) in frame.batches(training, 32, judge):
        loss = ...                    # one step
        frame.add(loss=loss)
    ...                               # `frame.best` is what the run is for
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from pydantic import BaseModel
from torch import Tensor, nn

from ..errors import Aborted, CryohushError
from ..io.files import writing_failed
from ..job_context import QUIET, JobContext
from ..progress import duration
from .checkpoint import load_checkpoint, save_checkpoint
from .record import Line, Preview, Record, meanings_of, values_of

CHECKPOINT_NAME = "last.pt"
SCORE = "score"

Batch = tuple[Tensor, Tensor, Tensor]
# What judges the network so far: figures by name, `score` the one to choose by, and a picture.
Judge = Callable[[], tuple[dict[str, float], Preview]]


class Data(Protocol):
    """Endless batches, a function of the batch number: what a loop learns from, or is judged with.

    Attributes
    ----------
    structures
        What the images are of, for the card of the model.
    target
        What the targets are, in a word or two: `clean`, `other frames`.
    pixel_size_angstrom
        Of all images; None where it differs or is not known.
    """

    structures: list[str]
    target: str
    pixel_size_angstrom: float | None

    def batch(self, number: int, size: int) -> Batch:
        """The batch of that number: what the network sees, what it should make of it, and the SNR.

        The first `(n, c, y, x)` has the noisy image as its first channel; a network that takes more than the
        image finds that in the others, which no loop but its own looks at. The target is `(n, 1, y, x)`, the
        SNR `(n,)`, NaN where it is not known.
        """


class Frame:
    """A run of a training loop, from its first step or from where an earlier one stopped.

    Parameters
    ----------
    config
        A run goes on only with the configuration that it began with.
    output_dir
        Made if missing; gets `last.pt`, `log.jsonl`, `curves.png`, `validation.png` and `tensorboard/`.
    fabric
        Devices and processes; only the first process writes and tells.
    steps, validate_every
        How many there are, and after how many the network is judged; it is after the last one, too.
    patience
        Stop after so many validations without a better score; None never does.
    context
        Asked and told before and after each step.

    Attributes
    ----------
    folder
        `output_dir`.
    context
        As given; in all processes but the first nobody is told anything.
    """

    def __init__(
        self,
        config: BaseModel,
        output_dir: Path,
        fabric: Fabric,
        *,
        steps: int,
        validate_every: int,
        patience: int | None = None,
        context: JobContext = QUIET,
    ) -> None:
        self._config, self.folder, self._fabric = config, output_dir, fabric
        self._steps, self._validate_every, self._patience = steps, validate_every, patience
        self.context = context
        if not fabric.is_global_zero:
            self.context = JobContext(should_stop=context.should_stop, command=context.command)
        self._first = 0
        self._parts: dict[str, Any] = {}
        self._history = _History()
        self._record: Record | None = None
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise writing_failed(output_dir, error) from error

    def begin(self, *, resume: bool, average: nn.Module, **parts: Any) -> None:
        """Name all that changes from step to step (anything with `state_dict`); bring it back when resuming.

        Parameters
        ----------
        resume
            Go on from `last.pt`, if there is one.
        average
            The network that is judged and kept.

        Raises
        ------
        CryohushError
            `last.pt` belongs to another configuration or is damaged.
        OutputError
            A file cannot be written.
        """
        self._parts = {"average": average, "history": self._history, **parts}
        if self._patience is not None:
            self._parts["best"] = copy.deepcopy(average)
        if resume and self.checkpoint.exists():
            self._first = load_checkpoint(self.checkpoint, self._config, self._parts)
            self.context.log(f"resumed at step {self._first}")
        if self._fabric.is_global_zero:
            self._record = Record(self.folder, self._first)

    def steps(self, judge: Judge) -> Iterator[int]:
        """Each step that is left. Between them the network is judged, told of and saved when it is time.

        Raises
        ------
        CryohushError
            A loss or the score is not finite; `last.pt` holds the state before.
        Aborted
            The run was asked to stop; `last.pt` holds the state.
        """
        began = since_last = time.monotonic()
        self.context.progress(self._first, self._steps)
        try:
            for step in range(self._first, 0 if self._has_enough() else self._steps):
                if self._is_stopped():
                    self._save(step)
                    raise Aborted(f"stopped at step {step}; run again with --resume to go on")
                yield step
                done = step + 1
                self.context.progress(done, self._steps)
                if done % self._validate_every == 0 or done == self._steps:
                    self._validate(done, judge, time.monotonic() - since_last)
                    since_last = time.monotonic()
                    each = (since_last - began) / (done - self._first)
                    self.context.log(
                        f"step {done}/{self._steps} {self._history.last_values()}, "
                        f"{duration(each * (self._steps - done))} to go"
                    )
                    self._save(done)
                    if self._fabric.broadcast(self._has_enough()):
                        self.context.log(f"stopped: no better for {self._patience} validations")
                        return
        finally:
            if self._record is not None:
                self._record.close()

    def batches(self, data: Data, size: int, judge: Judge) -> Iterator[tuple[int, Batch]]:
        """Each step that is left with its batch, the next of which is made meanwhile; see `steps`.

        Several processes take different batches.
        """

        def number(step: int) -> int:
            return step * self._fabric.world_size + self._fabric.global_rank

        with ThreadPoolExecutor(1) as making:
            following = making.submit(data.batch, number(self._first), size)
            for step in self.steps(judge):
                noisy, target, snr = (tensor.to(self._fabric.device) for tensor in following.result())
                if step + 1 < self._steps:
                    following = making.submit(data.batch, number(step + 1), size)
                yield step, (noisy.contiguous(memory_format=torch.channels_last), target, snr)

    def add(self, **losses: Tensor) -> None:
        """Count the losses of a step, whose means are told with the next validation."""
        self._history.add(losses)

    @property
    def checkpoint(self) -> Path:
        """The file that holds the state."""
        return self.folder / CHECKPOINT_NAME

    @property
    def best(self) -> nn.Module:
        """The network to keep: the average, as it was at its best score where patience is set."""
        network: nn.Module = self._parts["average" if self._patience is None else "best"]
        return network

    @property
    def last_line(self) -> Line:
        """The last line of the log."""
        return self._history.lines[-1]

    def _is_stopped(self) -> bool:
        stop = self.context.should_stop()
        # one that stopped alone would keep the others waiting for ever
        return bool(self._fabric.broadcast(stop)) if self._fabric.world_size > 1 else stop

    def _validate(self, done: int, judge: Judge, seconds: float) -> None:
        means = self._history.take_means()
        self._refuse_if_diverged(means.values(), done)
        scores, preview = judge()
        self._refuse_if_diverged([scores[SCORE]] if SCORE in scores else [], done)
        first = not self._history.lines
        self._history.append({"step": done, **means, **scores}, seconds)
        if self._patience is not None and self._history.since_best() == 0:
            self._parts["best"].load_state_dict(self._parts["average"].state_dict())
        if self._record is not None:
            last = done == self._steps or self._has_enough()
            self._record.write(self._history.lines, preview, last=last)
        if first:
            for meaning in meanings_of(self._history.lines[-1]):
                self.context.log(meaning)

    def _refuse_if_diverged(self, values: Any, step: int) -> None:
        if not all(map(math.isfinite, values)):
            raise CryohushError(
                f"the loss is not finite near step {step}: lower optimisation.learning_rate; "
                f"{self.checkpoint} holds the last good state"
            )

    def _has_enough(self) -> bool:
        return self._patience is not None and self._history.since_best() >= self._patience

    def _save(self, step: int) -> None:
        if self._fabric.is_global_zero:
            save_checkpoint(self.checkpoint, self._config, step, self._parts)


class _History:
    """The lines of the log so far, and the losses since the last one; a part of the checkpoint."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, losses: dict[str, Tensor]) -> None:
        for name, loss in losses.items():
            loss = loss.detach().float()
            self._sums[name] = self._sums[name] + loss if name in self._sums else loss.clone()
            self._counts[name] = self._counts.get(name, 0) + 1

    def take_means(self) -> dict[str, float]:
        means = {name: total.item() / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means

    def append(self, line: Line, seconds: float) -> None:
        """Add a line, and to it the seconds since the run began, of which `seconds` since the last one."""
        earlier = self.lines[-1]["seconds"] if self.lines else 0.0
        self.lines.append({"step": line["step"], "seconds": earlier + seconds, **line})

    def last_values(self) -> str:
        return " ".join(f"{name} {value:.5f}" for name, value in values_of(self.lines[-1]).items())

    def since_best(self) -> int:
        """Validations since the lowest score."""
        scores = [line[SCORE] for line in self.lines]
        return len(scores) - 1 - scores.index(min(scores)) if scores else 0

    def state_dict(self) -> dict[str, Any]:
        sums = {name: total.cpu() for name, total in self._sums.items()}
        return {"lines": self.lines, "sums": sums, "counts": self._counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.lines, self._sums, self._counts = state["lines"], state["sums"], state["counts"]
