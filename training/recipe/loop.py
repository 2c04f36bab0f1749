"""The run: read, step, watch, save; `train` drives it to its end and can be interrupted and resumed anywhere."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from copy import deepcopy
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from marigold3d.errors import InputError, OutputError
from marigold3d.progress import Progress, Steps
from training.recipe import noise, parallel
from training.recipe.checkpoint import Checkpoints, RunState, all_checkpoints, read_state, sampler_of
from training.recipe.config import Recipe
from training.recipe.data import latent_batches, validation_samples
from training.recipe.errors import DivergedError
from training.recipe.latents import LatentBatch
from training.recipe.monitor import EventFiles, Monitor, Silent
from training.recipe.networks import load_networks, prepare_for_training
from training.recipe.objectives import objective_of
from training.recipe.schedule import learning_rate
from training.recipe.validation import judge, sample_depth


class Training:
    """A recipe on its way: networks, optimiser, and the number of steps done. Every random number follows from the
    seed, the step and the sample, so that this is all there is to save.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.accelerator = parallel.accelerator_of(recipe)
        device = self.accelerator.device
        self.networks = load_networks(Path(recipe.base), recipe.prediction_type, recipe.zero_snr)
        prepare_for_training(self.networks, device, recipe.gradient_checkpointing, recipe.sharded)
        unet = self.networks.unet
        self.average = deepcopy(unet).requires_grad_(False).eval() if recipe.ema_decay else None
        self.objective = objective_of(recipe, self.networks, device, self.average)
        if recipe.sharded:
            parallel.shard(unet)
            if self.average is not None:
                parallel.shard(self.average)
        self.bare_unet = unet
        self.unet = unet if recipe.sharded else self.accelerator.prepare_model(unet)
        optimiser = torch.optim.Adam(unet.parameters(), lr=recipe.rate.peak)
        self.optimiser = self.accelerator.prepare_optimizer(optimiser)
        self.batches = latent_batches(recipe, self.networks, device, self.objective.needs_pixels)
        self.sampler = sampler_of(recipe, self.networks)
        self.checkpoints = Checkpoints(recipe, self.networks)
        self.validation = self._validation_set()
        self.step = 0

    def micro_batches(self) -> Generator[LatentBatch, None, None]:
        """This process's micro-batches, from the present step to the last."""
        rank, world, count = self.accelerator.process_index, self.accelerator.num_processes, self.recipe.micro_batches
        return self.batches.stream(range(self.step * count + rank, self.recipe.steps * count, world))

    def advance(self, batches: Iterator[LatentBatch]) -> dict[str, float]:
        """One step: accumulate the gradients of its micro-batches, then move. Returns loss, rate and gradient norm.

        Raises DivergedError before the weights are touched if loss or gradient is not finite.
        """
        recipe, accelerator = self.recipe, self.accelerator
        torch.manual_seed(self._network_seed())  # dropout, where a network has it
        rate = learning_rate(recipe.rate, self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        own = recipe.micro_batches // accelerator.num_processes
        total = torch.zeros((), device=accelerator.device)
        for turn in range(own):
            with (
                parallel.without_sync(accelerator, self.unet, last=turn == own - 1),
                accelerator.autocast(),
            ):
                loss = self.objective.loss(self.unet, next(batches)) / own
                accelerator.backward(loss)
            total += loss.detach()
        loss_now = parallel.mean_over_processes(accelerator, total)
        norm = self._clipped_norm()
        self._check_finite(loss_now, norm)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        if self.average is not None:
            parallel.blend(self.average, self.bare_unet, ema_decay(recipe.ema_decay, self.step))
        return {"loss": loss_now, "rate": rate, "gradient_norm": norm}

    def judge(self) -> Any:
        """Judge the network (its average, if there is one) on the validation samples; None without any."""
        if not self.validation:
            return None
        recipe, device = self.recipe, self.accelerator.device
        unet = self.bare_unet if self.average is None else self.average
        unet.eval()
        depths = []
        with torch.no_grad(), self.accelerator.autocast():
            for sample in self.validation:
                rgb = self._whole_latents(sample.rgb.to(device).float() / 255.0)[None]
                depths.append(
                    sample_depth(
                        unet,
                        self.networks,
                        self.sampler,
                        rgb,
                        1 if recipe.objective == "end_to_end" else recipe.validation.denoising_steps,
                        recipe.seed,
                        from_zeros=recipe.objective == "end_to_end",
                    )[0].cpu()
                )
        self.bare_unet.train()
        return judge(depths, self.validation, recipe.validation.pictures)

    def save(self) -> None:
        """Write a checkpoint, from the first process; all must call."""
        unet = parallel.gather_weights(self.bare_unet)
        average = parallel.gather_weights(self.average) if self.average is not None else None
        optimiser = parallel.gather_optimiser(self.bare_unet, self._plain_optimiser())
        failure = None
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler else None
            try:
                self.checkpoints.save(RunState(self.step, unet, average, optimiser, scaler))
            except OutputError as error:
                failure = error
        if parallel.any_process(self.accelerator, failure is not None):  # no process waits for one that has stopped
            raise failure or OutputError("the first process could not write a checkpoint")

    def restore(self) -> None:
        """Go on from the newest checkpoint in `out`. Raises InputError if there is none, or it is another run's."""
        folder = self.checkpoints.newest()
        if folder is None:
            raise InputError(f"{self.recipe.out} holds no checkpoint to resume from: leave out --resume")
        state = read_state(folder, self.recipe)
        parallel.scatter_weights(self.bare_unet, state.unet, self.accelerator)
        if self.average is not None and state.average is not None:
            parallel.scatter_weights(self.average, state.average, self.accelerator)
        parallel.scatter_optimiser(self.bare_unet, self._plain_optimiser(), state.optimiser, self.accelerator)
        if self.accelerator.scaler and state.scaler:
            self.accelerator.scaler.load_state_dict(state.scaler)
        self.step = state.step

    def _plain_optimiser(self) -> torch.optim.Optimizer:
        return self.optimiser.optimizer

    def _network_seed(self) -> int:
        rng = noise.generator(self.recipe.seed, noise.Stream.NETWORK, self.step)
        return int(torch.randint(2**31, (), generator=rng)) + self.accelerator.process_index

    def _clipped_norm(self) -> float:
        norm = self.accelerator.clip_grad_norm_(self.bare_unet.parameters(), self.recipe.gradient_clip or math.inf)
        return parallel.whole(norm)

    def _check_finite(self, loss: float, norm: float) -> None:
        scaled = self.recipe.precision == "fp16"  # then gradients may overflow: the scaler skips the step and backs off
        if math.isfinite(loss) and (math.isfinite(norm) or scaled):
            return
        newest = self.checkpoints.newest()
        kept = f"{newest} is the last good checkpoint" if newest else "there is no checkpoint yet"
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
        raise DivergedError(f"{what} at step {self.step + 1}, so training stops; {kept}: lower rate.peak and --resume")

    def _validation_set(self) -> list[Any]:
        settings = self.recipe.validation
        return validation_samples(settings.sources, settings.samples) if settings.sources else []

    def _whole_latents(self, rgb: Tensor) -> Tensor:
        height, width = (side - side % self.networks.reduction for side in rgb.shape[-2:])
        return rgb[..., :height, :width]


def ema_decay(decay: float, step: int) -> float:
    """The running average forgets its start: (1 + step) / (10 + step), until that exceeds `decay`."""
    return min(decay, (1 + step) / (10 + step))


def train(recipe: Recipe, resume: bool = False) -> Steps[Path]:
    """Run a recipe, step by step, to its end or until it is interrupted; returns its newest checkpoint.

    Ctrl-C and SIGTERM finish the step under way, save, and raise KeyboardInterrupt. Raises Marigold3DErrors.
    """
    if not resume and all_checkpoints(Path(recipe.out)):
        raise OutputError(f"{recipe.out} holds a run already: continue it with --resume, or choose another out")
    training = Training(recipe)
    if resume:
        training.restore()
    main = training.accelerator.is_main_process
    monitor: Monitor = EventFiles(Path(recipe.out), training.step) if main else Silent()
    try:
        yield from _run(training, monitor)
    finally:
        monitor.close()
    newest = training.checkpoints.newest()
    return newest or Path(recipe.out)


def _run(training: Training, monitor: Monitor) -> Steps[None]:
    recipe, began, first = training.recipe, time.monotonic(), training.step
    losses: list[float] = []
    if first == 0:
        _judge(training, monitor, math.nan, 0.0)
    with _stop_requests() as requests, closing(training.micro_batches()) as batches:
        while training.step < recipe.steps:
            values = training.advance(batches)
            losses.append(values["loss"])
            step, seconds = training.step, time.monotonic() - began
            if step % recipe.log_every == 0:
                monitor.scalars(step, {f"train/{name}": value for name, value in values.items()})
            overtime = recipe.minutes is not None and seconds > 60.0 * recipe.minutes
            stop = parallel.any_process(training.accelerator, bool(requests) or overtime)
            last = stop or step == recipe.steps
            if step % recipe.validation.every == 0 or step == recipe.steps:
                _judge(training, monitor, sum(losses) / len(losses), seconds)
                losses = []
            if step % recipe.checkpoint.every == 0 or last:
                training.save()
            yield Progress("train", step - first, recipe.steps - first, values)
            if stop:
                break
        if requests:
            raise KeyboardInterrupt


def _judge(training: Training, monitor: Monitor, loss: float, seconds: float) -> None:
    judgement = training.judge()
    if judgement is None:
        return
    row = {
        "step": training.step,
        "samples": training.step * training.recipe.batch,
        "abs_rel": judgement.abs_rel,
        "delta1": judgement.delta1,
        "loss": loss,
        "rate": learning_rate(training.recipe.rate, training.step),
        "seconds": seconds,
    }
    monitor.judged(training.step, judgement, row)


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM add themselves to; the second one acts as ever. Main thread only, else empty."""
    requests: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        requests.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    except ValueError:  # not the main thread: whoever runs us there deals with signals
        before.clear()
    try:
        yield requests
    finally:
        restore()
