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

SAVE_EVERY = 600.0  # seconds, or four times in a short course
SAY_EVERY = 50  # steps
WARMUP = 100  # steps


def adam(parameters: list[nn.Parameter], lr: float) -> torch.optim.AdamW:
    """The optimiser, and gradients of zero, to which each step's are added: they are laid out as
    their parameters are, as the fused optimiser needs it. A new gradient of a 1x1 convolution may
    be laid out otherwise."""
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    return torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)


def descend(loss: Tensor, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """One step of the optimiser down a loss; nothing in it waits for a GPU."""
    optimizer.zero_grad(set_to_none=False)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


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
        optimizer = adam(parameters, self.lr)
        state = TrainingState(self.path, module, optimizer, Ema(module, self.decay))
        state.resume()
        began, saved = self.clock(), time.monotonic()
        said, every = began, min(SAVE_EVERY, self.seconds / 4)
        spent, first = state.seconds, state.step
        total = torch.zeros((), device=parameters[0].device)
        while (done := state.seconds / self.seconds) < 1 and not stop():
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate(state.step, done)
            loss = loss_of(state.step, done)
            descend(loss, parameters, optimizer)
            state.ema.update(state.step)
            total += loss.detach()  # which is not looked at here: a GPU would have to be waited for
            state.step += 1
            now = self.clock()
            state.seconds = spent + now - began
            if state.step % SAY_EVERY == 0:
                loss_said = total.item() / min(SAY_EVERY, state.step - first)
                speed = (now - said) / min(SAY_EVERY, state.step - first)
                what = (self.path.stem, state.step, 100 * done, loss_said, speed)
                logger.info("%s step %d, %.1f %%, loss %.4f, %.3f s a step", *what)
                total.zero_()
                said = now
            if time.monotonic() - saved > every:
                state.save()
                saved = time.monotonic()
        if state.step > first:
            state.save()
        return state.seconds >= self.seconds
