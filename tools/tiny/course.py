"""A course of training: steps until its time is spent, over as many sittings as it takes."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from tools.tiny.checkpoints import Ema, TrainingState
from tools.tiny.graphs import CudaCapture, Graphs

logger = logging.getLogger(__name__)

B = TypeVar("B")
SAVE_EVERY = 600.0  # seconds, or four times in a short course
SAY_EVERY = 50  # steps
WARMUP = 100  # steps


def adam(parameters: list[nn.Parameter], lr: float, capturable: bool = False) -> torch.optim.AdamW:
    """The optimiser, and gradients of zero, to which each step's are added: they are laid out as
    their parameters are, as the fused optimiser needs it. A new gradient of a 1x1 convolution may
    be laid out otherwise.

    Args:
        lr: the learning rate, which lies on the device so that a graph reads it anew.
        capturable: whether a step may be captured.
    """
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    rate = torch.tensor(lr, device=parameters[0].device)
    fixed = {"betas": (0.9, 0.99), "weight_decay": 0.0}
    return torch.optim.AdamW(parameters, rate, fused=True, capturable=capturable, **fixed)


def descend(loss: Tensor, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """One step of the optimiser down a loss; nothing in it waits for a GPU."""
    optimizer.zero_grad(set_to_none=False)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def training_step(
    loss_of: Callable[[B], Tensor],
    parameters: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    graphs: bool,
) -> Callable[[B], Tensor]:
    """From a batch to its loss, after which the parameters have gone down it; by CUDA graphs or
    kernel by kernel."""

    def step(batch: B) -> Tensor:
        loss = loss_of(batch)
        descend(loss, parameters, optimizer)
        return loss.detach()

    return Graphs(step, CudaCapture()) if graphs else step


@dataclass(frozen=True)
class Course:
    """How a module is trained.

    Attributes:
        path: of the state, which is resumed if it is there.
        seconds: of training in all, over all sittings. The learning rate falls with them.
        lr: the highest learning rate.
        decay: of the moving average, a step.
        clock: what the seconds are counted by.
        graphs: whether steps are CUDA graphs.
    """

    path: Path
    seconds: float
    lr: float
    decay: float
    clock: Callable[[], float] = time.monotonic
    graphs: bool = False

    def learning_rate(self, step: int, done: float) -> float:
        """Linear warm-up, then a half cosine down to nearly zero; `done` runs from 0 to 1."""
        ramp = min(1.0, (step + 1) / WARMUP)
        return self.lr * ramp * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))

    def run(
        self,
        module: nn.Module,
        parameters: list[nn.Parameter],
        batches: Callable[[int, float], B],
        loss_of: Callable[[B], Tensor],
        stop: Callable[[], bool],
    ) -> bool:
        """Resume, train and save, until the seconds are spent or `stop()` holds.

        Args:
            module: whose state is kept; `parameters` are those of it that are trained.
            batches: the batch of a step, by its number and by the share of the course that is done.
            loss_of: the loss of a batch.

        Returns:
            Whether the course is at its end.
        """
        optimizer = adam(parameters, self.lr, self.graphs)
        state = TrainingState(self.path, module, optimizer, Ema(module, self.decay))
        state.resume()
        train = training_step(loss_of, parameters, optimizer, self.graphs)
        began, saved = self.clock(), time.monotonic()
        said, every = began, min(SAVE_EVERY, self.seconds / 4)
        spent, first = state.seconds, state.step
        total = torch.zeros((), device=parameters[0].device)
        while (done := state.seconds / self.seconds) < 1 and not stop():
            for group in optimizer.param_groups:
                group["lr"].fill_(self.learning_rate(state.step, done))
            # The loss is not looked at here: a GPU would have to be waited for.
            total += train(batches(state.step, done))
            state.ema.update(state.step)
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
