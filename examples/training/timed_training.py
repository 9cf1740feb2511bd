"""Training for a given time: AdamW, a rate that falls to 0 within it, and a moving average of the weights."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

WEIGHT_DECAY, BETAS = 1e-4, (0.9, 0.99)
REFILL_STEPS, REPORT_STEPS, SAVE_SECONDS = 50, 200, 300


class Pool(Protocol):
    """Stacks in memory, of which batches are drawn; others may be written meanwhile."""

    def __len__(self) -> int: ...

    def refill(self) -> None:
        """Take in what is new."""


P = TypeVar("P", bound=Pool)


@dataclass(frozen=True)
class Schedule:
    """How long, and how fast.

    Attributes
    ----------
    minutes
        Of training, earlier sessions of a run that is gone on with included.
    fewest_stacks
        It waits until there are so many.
    """

    minutes: float
    learning_rate: float
    warm_up_steps: int
    ema_decay: float
    fewest_stacks: int = 8

    def rate(self, step: int, spent_seconds: float) -> float:
        falling = 0.5 + 0.5 * math.cos(math.pi * min(spent_seconds / (60 * self.minutes), 1.0))
        return self.learning_rate * min(1.0, (step + 1) / self.warm_up_steps) * falling


def train_for(
    network: nn.Module,
    pool_from: Callable[[int], P],
    loss: Callable[[P], Tensor],
    output: Path,
    schedule: Schedule,
    *,
    resume: bool,
    validate: Callable[[nn.Module], list[str]] = lambda average: [],
) -> None:
    """Train what of `network` wants a gradient; `last.pt` in `output` is its state, to `resume` from.

    Parameters
    ----------
    pool_from
        Makes the pool of a training that begins at a step.
    loss
        Of `network` on a batch of a pool.
    validate
        Lines about the moving average, printed whenever it is saved.
    """
    output.mkdir(parents=True, exist_ok=True)
    average = copy.deepcopy(network).requires_grad_(False)
    learning = [values for values in network.parameters() if values.requires_grad]
    optimiser = torch.optim.AdamW(learning, schedule.learning_rate, BETAS, weight_decay=WEIGHT_DECAY)
    parts = {"network": network, "average": average, "optimiser": optimiser}
    step, spent, checkpoint = 0, 0.0, output / "last.pt"
    if resume and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        step, spent = state["step"], state["spent"]
    pool = pool_from(step)
    pool.refill()
    while len(pool) < schedule.fewest_stacks:
        print(f"{len(pool)} usable stacks, {schedule.fewest_stacks} are needed: waiting for more", flush=True)
        time.sleep(5)
        pool.refill()

    def save() -> None:
        state = {name: part.state_dict() for name, part in parts.items()}
        torch.save({**state, "step": step, "spent": spent}, checkpoint.with_suffix(".part"))
        checkpoint.with_suffix(".part").replace(checkpoint)
        for line in validate(average):
            print(f"step {step} {line}", flush=True)

    saved, running = spent, 0.0
    while spent < 60 * schedule.minutes:
        begin = time.monotonic()
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(step, spent)
        value = loss(pool)
        optimiser.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        if torch.isfinite(torch.nn.utils.clip_grad_norm_(learning, 1.0)):
            optimiser.step()
        step += 1
        decay = min(schedule.ema_decay, step / (step + 20))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
        running += value.item()
        if step % REFILL_STEPS == 0:
            pool.refill()
        if step % REPORT_STEPS == 0:
            print(f"step {step}, {spent:.0f} s, loss {running / REPORT_STEPS:.4f}", flush=True)
            running = 0.0
        spent += time.monotonic() - begin
        if spent - saved > SAVE_SECONDS:
            saved = spent
            save()
    save()
