"""Pretraining of the foundation network: the whole loop.

A run is a folder: `config.json`, `state.safetensors` with weights, averaged weights and the optimiser's moments,
`log.jsonl` with one line a report. The state is replaced whole every so many steps; batch and learning rate are pure
functions of seed and step, so a run killed at any moment goes on from its last state as if it had never stopped.

The weights that count are a running average (Polyak and Juditsky, SIAM J Control Optim 30 (1992) 838-855).

On one process and CPU nothing but torch is needed. Several processes, started by `torchrun`, other accelerators and
half precision go through Lightning Fabric; each process then draws a batch of its own and gradients are averaged, so
two processes train as one with twice the batch.
"""

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stimopt.errors import CheckpointError, ConfigError
from stimopt.tensors import generator, map_tensors, named_under, stream_seed

from .ieeg_batches import Batch, Patient, draw_batch
from .ieeg_judging import PASTS, judged
from .ieeg_losses import losses, total
from .ieeg_recipe import Recipe, recipe_of
from .ieeg_start import go_on_from
from .ieeg_transformer import IeegTransformer

Report = dict[str, Any]
_STATE, _LOG, _CONFIG = "state.safetensors", "log.jsonl", "config.json"


@dataclass(frozen=True)
class Machine:
    """What a run is computed on. Numbers agree between machines to rounding only, on one CPU thread to the bit.

    Attributes:
        devices: Processes that train together; more than one are started by `torchrun`.
        accelerator: "cpu", "cuda", "mps" or "auto", one device a process.
        precision: "32", or "bf16-mixed" for products in half precision; likelihoods stay in single precision.
    """

    devices: int = 1
    accelerator: Literal["cpu", "cuda", "mps", "auto"] = "cpu"
    precision: Literal["32", "bf16-mixed"] = "32"

    def __post_init__(self) -> None:
        if self.devices not in (1, processes()):
            raise ConfigError(
                f"devices is {self.devices}, but {processes()} processes run; start the same command with "
                f"'torchrun --nproc-per-node {self.devices} -m stimopt ...'."
            )

    @property
    def first(self) -> bool:
        """Whether this process is the first, which alone writes."""
        return int(os.environ.get("RANK", "0")) == 0


@dataclass
class _Run:
    """What changes while training, and on what it is trained."""

    network: IeegTransformer
    told: nn.Module  # its losses, shared between processes where there are several
    optimizer: torch.optim.Optimizer
    averaged: dict[str, Tensor]
    fabric: Any  # None on one process, CPU and single precision
    step: int = 0


@dataclass
class _Tally:
    """Losses, windows and time since the last report."""

    losses: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    windows: int = 0
    seconds: float = 0.0


class _Told(nn.Module):
    """Network and losses as one module: gradients of what passes through it are shared between processes."""

    def __init__(self, network: IeegTransformer) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Callable[[], Batch], full: bool | None, seed: int) -> dict[str, Tensor]:
        """The losses of a batch, which comes in a function because Fabric takes no frozen dataclasses."""
        return losses(self.network, batch(), full=full, seed=seed)[1]


def pretrain(
    patients: Sequence[Patient], recipe: Recipe, folder: Path, *, validation: Sequence[Patient] = (),
    resume: bool = False, progress: Callable[[Report], None] | None = None,
    tick: Callable[[int], None] | None = None, machine: Machine | None = None,
) -> IeegTransformer:  # fmt: skip
    """Train a network from its first weights, or go on.

    Args:
        patients: To learn from.
        recipe: How.
        folder: Of the run; created.
        validation: Patients on whom the averaged weights are judged at every report; never learned from.
        resume: Whether to go on from the folder's last state; it must be of the same recipe.
        progress: Told each report.
        tick: Told the number of each step when it is done.
        machine: On what; one process and one CPU by default.

    Returns:
        The network with averaged weights, on the CPU.

    Raises:
        CheckpointError: If the folder holds a run and `resume` is false, or a run of another recipe.
        ConfigError: If the machine needs Lightning Fabric and it is not installed.
    """
    run, tally = _begun(recipe, folder, resume, _fabric(machine or Machine())), _Tally()
    while run.step < recipe.steps:
        _stepped(run, patients, recipe, tally)
        if tick:
            tick(run.step)
        if run.step % recipe.every == 0 or run.step == recipe.steps:
            report = _report(run, tally) | _validated(run, validation, recipe)
            if _rank(run.fabric) == 0:
                _save(run, folder, report)
                if progress:
                    progress(report)
            tally = _Tally()
    if run.fabric:
        run.fabric.barrier()
    return with_weights(run.network.cpu(), run.averaged)


def processes() -> int:
    """How many processes `torchrun` started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def with_weights(network: IeegTransformer, weights: dict[str, Tensor]) -> IeegTransformer:
    """The network with these weights, frozen."""
    network.load_state_dict(weights)
    return network.requires_grad_(False).eval()


def begun(recipe: Recipe) -> IeegTransformer:
    """The network that a run of this recipe begins with.

    Raises:
        CheckpointError: If it starts from a checkpoint that is not there, or of another network.
    """
    network = IeegTransformer(recipe.size, generator(recipe.seed, "weights"))
    if recipe.start_from is not None:
        go_on_from(network, Path(recipe.start_from[0]), recipe.start_from[1])
    return network


def read_run(folder: Path) -> tuple[Recipe, IeegTransformer, int]:
    """The recipe of a run, its averaged network and how many steps it has made.

    Raises:
        CheckpointError: If the folder holds no run.
    """
    recipe = _recipe(folder)
    state, told = _state(folder)
    network = IeegTransformer(recipe.size, generator(recipe.seed, "weights"))
    return recipe, with_weights(network, named_under(state, "averaged.")), int(told["step"])


def _fabric(machine: Machine) -> Any:
    """Lightning Fabric with its processes joined; None where torch alone does."""
    if processes() == 1 and machine.accelerator == "cpu" and machine.precision == "32":
        return None
    try:
        lightning = import_module("lightning_fabric")
    except ImportError as error:
        raise ConfigError(
            "several processes, accelerators and half precision need Lightning Fabric, which is not installed; "
            "pip install 'stimopt[pretrain]', or train with one process on the CPU in precision 32."
        ) from error
    here, strategy = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), "auto"
    if processes() > 1:  # which weights a step uses depends on what was drawn, alike for all processes
        strategy = import_module("lightning_fabric.strategies").DDPStrategy(find_unused_parameters=True)
    fabric = lightning.Fabric(
        accelerator=machine.accelerator, devices=here, num_nodes=processes() // here, strategy=strategy,
        precision="32-true" if machine.precision == "32" else machine.precision,
    )  # fmt: skip
    fabric.launch()
    return fabric


def _rank(fabric: Any) -> int:
    return fabric.global_rank if fabric else 0


def _begun(recipe: Recipe, folder: Path, resume: bool, fabric: Any) -> _Run:
    network = begun(replace(recipe, start_from=None) if (folder / _STATE).exists() else recipe)
    told: nn.Module = _Told(network)
    if fabric:
        told = fabric.setup_module(told)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=recipe.rate, betas=(0.9, 0.98), weight_decay=recipe.decay, fused=True
    )
    averaged = {k: v.detach().clone() for k, v in network.state_dict().items()}
    run = _Run(network, told, optimizer, averaged, fabric)
    if (folder / _STATE).exists():
        if not resume:
            raise CheckpointError(f"{folder} holds a run already; resume it or choose another folder.")
        if _plain(_recipe(folder)) != _plain(recipe):
            raise CheckpointError(f"{folder} holds a run of another recipe; choose another folder.")
        _restore(run, folder)
    elif _rank(fabric) == 0:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / _CONFIG, json.dumps(_plain(recipe), indent=1).encode())
    if _rank(fabric) == 0:
        _write(folder / _LOG, _lines_until(folder / _LOG, run.step))
    if fabric:
        fabric.barrier()  # nobody saves before everybody has looked
    return run


def _stepped(run: _Run, patients: Sequence[Patient], recipe: Recipe, tally: _Tally) -> None:
    """One step of the optimiser and of the average, counted in the tally."""
    began = time.perf_counter()
    known = patients[: recipe.joined(run.step)]
    drawn = draw_batch(known, recipe.draw, recipe.seed, run.step, _rank(run.fabric))
    device = next(run.network.parameters()).device
    batch = map_tensors(drawn, lambda x: x.to(device))
    chance = float(torch.rand((), generator=generator(recipe.seed, "hubs", run.step)))
    for group in run.optimizer.param_groups:
        group["lr"] = recipe.rate * pace(run.step, recipe)
    run.optimizer.zero_grad(set_to_none=True)
    own = stream_seed(recipe.seed, "own", run.step, _rank(run.fabric))
    found = run.told(lambda: batch, False if chance < recipe.hubs_only else None, own)
    loss = total(found, recipe.weights)
    run.fabric.backward(loss) if run.fabric else loss.backward()
    torch.nn.utils.clip_grad_norm_(run.network.parameters(), 1.0)
    run.optimizer.step()
    run.step += 1
    kept = min(recipe.average, run.step / (run.step + 10))
    with torch.no_grad():
        for name, value in run.network.state_dict().items():
            run.averaged[name].lerp_(value, 1 - kept)
    for name, value in {"loss": loss, **found}.items():
        tally.losses[name] = tally.losses.get(name, 0.0) + float(value.detach())
    tally.steps, tally.windows = tally.steps + 1, tally.windows + batch.truth.shape[:2].numel()
    tally.seconds += time.perf_counter() - began


def pace(step: int, recipe: Recipe) -> float:
    """Learning rate's share at a step: a rise, then half a cosine to a hundredth."""
    if step < recipe.rise:
        return (step + 1) / recipe.rise
    way = (step - recipe.rise) / max(1, recipe.steps - recipe.rise)
    return 0.01 + 0.99 * (1 + math.cos(math.pi * way)) / 2


def _report(run: _Run, tally: _Tally) -> Report:
    """Mean losses since the last report, over all processes, and how fast windows were learned from."""
    means = {name: value / tally.steps for name, value in tally.losses.items()}
    if run.fabric:
        shared = run.fabric.all_reduce(torch.tensor(list(means.values()), dtype=torch.float64), reduce_op="mean")
        means = dict(zip(means, shared.tolist(), strict=True))
    speed = {
        "seconds_per_step": tally.seconds / tally.steps,
        "windows_per_second": processes() * tally.windows / tally.seconds,
    }
    return {"step": run.step, **speed, **means}


def _validated(run: _Run, patients: Sequence[Patient], recipe: Recipe) -> dict[str, float]:
    """Shares of variance forecast, of windows and of effects, and coverage of 90 % intervals, at new sites."""
    if not patients or _rank(run.fabric) > 0:
        return {}
    network = IeegTransformer(recipe.size, generator(recipe.seed, "weights")).to(next(run.network.parameters()).device)
    network = with_weights(network, run.averaged)
    found = {past: judged(network, patients, past) for past in PASTS}
    return {f"validation_{name}_{past}": value for past, row in found.items() for name, value in row.items()}


def _save(run: _Run, folder: Path, report: Report) -> None:
    """The report, then the state: a line without its state is dropped when the run goes on."""
    tensors = {f"network.{k}": v for k, v in run.network.state_dict().items()}
    tensors |= {f"averaged.{k}": v for k, v in run.averaged.items()}
    for name, parameter in run.network.named_parameters():
        for key, value in run.optimizer.state.get(parameter, {}).items():
            tensors[f"moment.{key}.{name}"] = value
    with open(folder / _LOG, "a", encoding="utf-8") as file:
        file.write(json.dumps(report) + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft = folder / f".{_STATE}"
    told = {"step": str(run.step), "processes": str(processes())}
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, draft, told)
    _replaced(draft, folder / _STATE)


def _restore(run: _Run, folder: Path) -> None:
    state, told = _state(folder)
    if int(told.get("processes", "1")) != processes():
        raise CheckpointError(
            f"{folder} holds a run of {told.get('processes', '1')} processes and {processes()} would go on, with other "
            "batches; start as many, or choose another folder."
        )
    run.step = int(told["step"])
    run.network.load_state_dict(named_under(state, "network."))
    run.averaged = {name: value.to(run.averaged[name]) for name, value in named_under(state, "averaged.").items()}
    keys = sorted({name.split(".", 2)[1] for name in state if name.startswith("moment.")})
    for name, parameter in run.network.named_parameters():
        moments = {key: state[f"moment.{key}.{name}"] for key in keys if f"moment.{key}.{name}" in state}
        if moments:  # a parameter that no step has used yet has none
            run.optimizer.state[parameter] = {key: value.to(parameter) for key, value in moments.items()}


def _state(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    path = folder / _STATE
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no pretraining run; give the folder of one.")
    with safe_open(path, "pt") as file:
        told = dict(file.metadata())
    return load_file(path), told


def _recipe(folder: Path) -> Recipe:
    try:
        return recipe_of(json.loads((folder / _CONFIG).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError) as error:
        raise CheckpointError(f"{folder} holds no pretraining run ({error}); give the folder of one.") from error


def _plain(recipe: Recipe) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    return plain


def _lines_until(log: Path, step: int) -> bytes:
    """The reports up to a step; later ones belong to steps that will be made again, and a torn line to none."""
    kept = []
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
        try:
            report = json.loads(line)
        except ValueError:
            continue
        if report["step"] <= step:
            kept.append(line + "\n")
    return "".join(kept).encode()


def _write(path: Path, content: bytes) -> None:
    draft = path.with_name("." + path.name)
    draft.write_bytes(content)
    _replaced(draft, path)


def _replaced(draft: Path, path: Path) -> None:
    """A whole file in another's place, on disk before anything else is done."""
    with open(draft, "rb") as file:
        os.fsync(file.fileno())
    os.replace(draft, path)
