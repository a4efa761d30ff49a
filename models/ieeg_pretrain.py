"""Pretraining of the foundation network: the whole loop.

A run is a folder: `config.json`, `state.safetensors` with weights, averaged weights and the optimiser's moments,
`log.jsonl` with one line a report. The state is replaced whole every so many steps; batch and learning rate are pure
functions of seed and step, so a run killed at any moment goes on from its last state as if it had never stopped.

The weights that count are a running average (Polyak and Juditsky, SIAM J Control Optim 30 (1992) 838-855).
"""

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stimopt.errors import CheckpointError, ConfigError
from stimopt.tensors import generator

from .ieeg_batches import Batch, Draw, Patient, draw_batch
from .ieeg_losses import Weights, losses, total
from .ieeg_transformer import IeegTransformer, TransformerSize


@dataclass(frozen=True)
class Recipe:
    """Everything that a pretraining run depends on, besides its corpus.

    Attributes:
        steps: Of AdamW.
        seed: Of weights and batches.
        rate: Highest learning rate.
        rise: Steps until it is reached.
        decay: Weight decay.
        average: How much of the averaged weights is kept at each step.
        hubs_only: Share of steps in which channels hear each other through hubs alone.
        every: Steps between saved states and reports.
        size: Of the network.
        draw: Of batches.
        weights: Of losses.
    """

    steps: int = 2000
    seed: int = 0
    rate: float = 1.5e-3
    rise: int = 60
    decay: float = 0.03
    average: float = 0.995
    hubs_only: float = 0.2
    every: int = 50
    size: TransformerSize = field(default_factory=TransformerSize)
    draw: Draw = field(default_factory=Draw)
    weights: Weights = field(default_factory=Weights)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.every < 1:
            raise ConfigError(f"steps is {self.steps} and every {self.every}; both must be 1 or more.")


@dataclass
class _Run:
    """What changes while training."""

    network: IeegTransformer
    optimizer: torch.optim.Optimizer
    averaged: dict[str, Tensor]
    step: int = 0


def pretrain(
    patients: Sequence[Patient], recipe: Recipe, folder: Path, *, validation: Sequence[Patient] = (),
    resume: bool = False, progress: Callable[[dict[str, Any]], None] | None = None,
) -> IeegTransformer:  # fmt: skip
    """Train a network from its first weights, or go on.

    Args:
        patients: To learn from.
        recipe: How.
        folder: Of the run; created.
        validation: Patients on whom the averaged weights are judged at every report; never learned from.
        resume: Whether to go on from the folder's last state; it must be of the same recipe.
        progress: Told each report.

    Returns:
        The network with averaged weights.

    Raises:
        CheckpointError: If the folder holds a run and `resume` is false, or a run of another recipe.
    """
    run = _begun(recipe, folder, resume)
    torch.manual_seed(0)  # nothing below draws from it; should anything ever do, it would at least repeat
    began, since = time.perf_counter(), run.step
    sums: dict[str, float] = {}
    while run.step < recipe.steps:
        found = _stepped(run, patients, recipe)
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        if run.step % recipe.every == 0 or run.step == recipe.steps:
            count = (run.step - 1) % recipe.every + 1
            seconds = time.perf_counter() - began
            report = {"step": run.step, "seconds_per_step": seconds / (run.step - since)}
            report |= {name: value / count for name, value in sums.items()}
            if validation:
                report |= {f"validation_{k}": v for k, v in _validated(run, validation, recipe).items()}
            _save(run, folder, report)
            sums = {}
            if progress:
                progress(report)
    return with_weights(run.network, run.averaged)


def with_weights(network: IeegTransformer, weights: dict[str, Tensor]) -> IeegTransformer:
    """The network with these weights, frozen."""
    network.load_state_dict(weights)
    return network.requires_grad_(False).eval()


def read_run(folder: Path) -> tuple[Recipe, IeegTransformer, int]:
    """The recipe of a run, its averaged network and how many steps it has made.

    Raises:
        CheckpointError: If the folder holds no run.
    """
    recipe = _recipe(folder)
    state, step = _state(folder)
    network = IeegTransformer(recipe.size, generator(recipe.seed, "weights"))
    return recipe, with_weights(network, _named(state, "averaged.")), step


def _begun(recipe: Recipe, folder: Path, resume: bool) -> _Run:
    network = IeegTransformer(recipe.size, generator(recipe.seed, "weights"))
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=recipe.rate, betas=(0.9, 0.98), weight_decay=recipe.decay, fused=True
    )
    run = _Run(network, optimizer, {k: v.detach().clone() for k, v in network.state_dict().items()})
    if (folder / "state.safetensors").exists():
        if not resume:
            raise CheckpointError(f"{folder} holds a run already; resume it or choose another folder.")
        if _plain(_recipe(folder)) != _plain(recipe):
            raise CheckpointError(f"{folder} holds a run of another recipe; choose another folder.")
        _restore(run, folder)
        return run
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "config.json", json.dumps(_plain(recipe), indent=1).encode())
    return run


def _stepped(run: _Run, patients: Sequence[Patient], recipe: Recipe) -> dict[str, Tensor]:
    batch = draw_batch(patients, recipe.draw, recipe.seed, run.step)
    chance = float(torch.rand((), generator=generator(recipe.seed, "hubs", run.step)))
    for group in run.optimizer.param_groups:
        group["lr"] = recipe.rate * pace(run.step, recipe)
    run.optimizer.zero_grad(set_to_none=True)
    _, found = losses(run.network, batch, full=False if chance < recipe.hubs_only else None)
    loss = total(found, recipe.weights)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.network.parameters(), 1.0)
    run.optimizer.step()
    run.step += 1
    kept = min(recipe.average, run.step / (run.step + 10))
    with torch.no_grad():
        for name, value in run.network.state_dict().items():
            run.averaged[name].lerp_(value, 1 - kept)
    return {"loss": loss, **found}


def pace(step: int, recipe: Recipe) -> float:
    """Learning rate's share at a step: a rise, then half a cosine to a hundredth."""
    if step < recipe.rise:
        return (step + 1) / recipe.rise
    way = (step - recipe.rise) / max(1, recipe.steps - recipe.rise)
    return 0.01 + 0.99 * (1 + math.cos(math.pi * way)) / 2


@torch.no_grad()
def _validated(run: _Run, patients: Sequence[Patient], recipe: Recipe) -> dict[str, float]:
    """Shares of variance forecast, of windows and of effects, and coverage of 90 % intervals, at new sites."""
    network = IeegTransformer(recipe.size, generator(recipe.seed, "weights"))
    network = with_weights(network, run.averaged)
    found: dict[str, float] = {}
    for past in (0, 5, 20):
        for name, value in judged(network, patients, past).items():
            found[f"{name}_{past}"] = value
    return found


@torch.no_grad()
def judged(network: IeegTransformer, patients: Sequence[Patient], past: int, asked: int = 12) -> dict[str, float]:
    """Medians over patients, at sites that the past trials did not hold where there are enough."""
    draw = Draw(1, asked, (past,), 64, (8, 8), 0.0, 0.0, 0.0, 1.0)
    rows: dict[str, list[float]] = {}
    for number, patient in enumerate(patients):
        batch = draw_batch([patient], draw, 7, number)
        answer = network(batch.subject, batch.past, batch.asked, batch.rate_hz)
        for name, value in _scores(answer.mean, answer, batch).items():
            rows.setdefault(name, []).append(value)
    return {name: float(torch.tensor(values).median()) for name, values in rows.items()}


def _scores(mean: Tensor, answer: Any, batch: Batch) -> dict[str, float]:
    truth = batch.truth.unflatten(1, (-1, batch.branches))
    told = mean.unflatten(1, (-1, batch.branches))
    there = batch.subject.there[0]
    single = _explained(told[0, :, 0][:, there], truth[0, :, 0][:, there])
    scores = {"r2": single}
    if batch.branches > 1:
        wanted, got = (x[0, :, 0][:, there] - x[0, :, -1][:, there] for x in (truth, told))
        scores["effect_r2"] = _explained(got, wanted)
    deviation = ((2 * answer.log_scale).exp() + answer.factors.square().sum(2)).sqrt()
    inside = ((batch.truth - mean).abs() <= 1.6449 * deviation)[:, :, there]
    scores["coverage_90"] = float(inside.float().mean())
    return scores


def _explained(told: Tensor, true: Tensor) -> float:
    """Share of each channel's variance over windows and time, mean over channels that vary."""
    error = (told - true).square().mean((0, 2))
    variance = (true - true.mean((0, 2), keepdim=True)).square().mean((0, 2))
    moved = variance > 1e-4
    return float((1 - error[moved] / variance[moved]).clamp_min(-2).mean()) if bool(moved.any()) else math.nan


def _save(run: _Run, folder: Path, report: dict[str, Any]) -> None:
    tensors = {f"network.{k}": v for k, v in run.network.state_dict().items()}
    tensors |= {f"averaged.{k}": v for k, v in run.averaged.items()}
    for name, parameter in run.network.named_parameters():
        for key, value in run.optimizer.state[parameter].items():
            tensors[f"moment.{key}.{name}"] = value
    draft = folder / ".state.safetensors"
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, draft, {"step": str(run.step)})
    os.replace(draft, folder / "state.safetensors")
    with open(folder / "log.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(report) + "\n")


def _restore(run: _Run, folder: Path) -> None:
    state, run.step = _state(folder)
    run.network.load_state_dict(_named(state, "network."))
    run.averaged = _named(state, "averaged.")
    for name, parameter in run.network.named_parameters():
        keys = {k.split(".", 2)[1] for k in state if k.startswith("moment.")}
        run.optimizer.state[parameter] = {key: state[f"moment.{key}.{name}"] for key in sorted(keys)}


def _state(folder: Path) -> tuple[dict[str, Tensor], int]:
    from safetensors import safe_open

    path = folder / "state.safetensors"
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no pretraining run; give the folder of one.")
    with safe_open(path, "pt") as file:
        step = int(file.metadata()["step"])
    return load_file(path), step


def _recipe(folder: Path) -> Recipe:
    try:
        plain = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:
        raise CheckpointError(f"{folder} holds no pretraining run ({error}); give the folder of one.") from error
    draw = {**plain["draw"], "past": tuple(plain["draw"]["past"]), "patches": tuple(plain["draw"]["patches"])}
    return Recipe(
        **{
            **plain,
            "size": TransformerSize(**plain["size"]),
            "draw": Draw(**draw),
            "weights": Weights(**plain["weights"]),
        }
    )


def _plain(recipe: Recipe) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    return plain


def _named(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _write(path: Path, content: bytes) -> None:
    draft = path.with_name("." + path.name)
    draft.write_bytes(content)
    os.replace(draft, path)
