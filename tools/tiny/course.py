"""A course of training: steps until its time is spent, over as many sittings as it takes."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tools.tiny.checkpoints import Ema, TrainingState

logger = logging.getLogger(__name__)

SAVE_EVERY = 600.0  # seconds
SAY_EVERY = 50  # steps
WARMUP = 100  # steps


@dataclass(frozen=True)
class Course:
    """How a module is trained.

    Attributes:
        path: of the state, which is resumed if it is there.
        seconds: of training in all, over all sittings. The learning rate falls with them.
        lr: the highest learning rate.
        decay: of the moving average, a step.
        clock: what the seconds are counted by.
    """

    path: Path
    seconds: float
    lr: float
    decay: float
    clock: Callable[[], float] = time.monotonic

    def learning_rate(self, step: int, done: float) -> float:
        """Linear warm-up, then a half cosine down to nearly zero; `done` runs from 0 to 1."""
        ramp = min(1.0, (step + 1) / WARMUP)
        return self.lr * ramp * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))

    def run(
        self,
        module: nn.Module,
        parameters: list[nn.Parameter],
        loss_of: Callable[[int, float], Tensor],
        stop: Callable[[], bool],
    ) -> bool:
        """Resume, train and save, until the seconds are spent or `stop()` holds.

        Args:
            module: whose state is kept; `parameters` are those of it that are trained.
            loss_of: the loss of a step, by its number and by the share of the course that is done.

        Returns:
            Whether the course is at its end.
        """
        optimizer = torch.optim.AdamW(parameters, lr=self.lr, betas=(0.9, 0.99), weight_decay=0.0)
        state = TrainingState(self.path, module, optimizer, Ema(module, self.decay))
        state.resume()
        began, saved = self.clock(), time.monotonic()
        spent, first, total = state.seconds, state.step, 0.0
        while (done := state.seconds / self.seconds) < 1 and not stop():
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate(state.step, done)
            loss = loss_of(state.step, done)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            state.ema.update(module, state.step)
            total += loss.item()
            state.step += 1
            now = self.clock()
            state.seconds = spent + now - began
            if state.step % SAY_EVERY == 0:
                speed = (now - began) / (state.step - first)
                said = (self.path.stem, state.step, 100 * done, total / SAY_EVERY, speed)
                logger.info("%s step %d, %.1f %%, loss %.4f, %.2f s a step", *said)
                total = 0.0
            if time.monotonic() - saved > SAVE_EVERY:
                state.save()
                saved = time.monotonic()
        if state.step > first:
            state.save()
        return state.seconds >= self.seconds
