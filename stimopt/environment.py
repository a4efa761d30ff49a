"""Tasks as Gymnasium environments: one closed loop, or thousands in one native batch.

An action is a point of the task's space, scaled to [-1, 1] a dimension; an observation is the
window that came back, channels by time in uV, or what `observe` makes of it. The reward is
the objective's score and nothing else: charge, energy, and what the envelope refused are in
`info`, so that costs stay costs. A stimulus outside the envelope is refused, silence is
delivered, and `info["violation"]` is 1.

`terminated` is only ever the stop rule's verdict, from which a session does not come back.
The horizon is `truncated`. Vector environments restart a row on the step after it ended
(Gymnasium's NEXT_STEP), and ignore that step's action for that row.

Needs the gym extra: pip install "stimopt[gym]".
"""

from collections.abc import Callable
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from .response import Response
from .rollout import Judged, Situation, begin, decide, merged, silenced
from .stimulus import Stimulus, no_stimulus
from .task import Task
from .tensors import generator

Array = NDArray[Any]
Observe = Callable[[Response], Tensor]  # [row, ...]


def signal_of(response: Response) -> Tensor:
    """The window itself, `[row, channel, time]` in uV."""
    return response.signal_uv


class _Loops:
    """Rows of one task with their random streams: what both kinds of environment stand on."""

    def __init__(self, task: Task, count: int, observe: Observe) -> None:
        self.task, self.count, self.observe = task, count, observe
        self.situation: Situation | None = None
        self.restart(0)
        self.shape = tuple(self._first(self._fresh()).shape[1:])

    def restart(self, seed: int) -> None:
        self._seed, self._sessions, self._decisions = seed, 0, 0

    def _fresh(self) -> Situation:
        self._sessions += 1
        return begin(self.task, self.count, generator(self._seed, "session", self._sessions))

    def _first(self, situation: Situation) -> Array:
        """What is seen before the first decision: the answer of each row to silence, which moves nothing on."""
        silence = self._silence()
        with torch.no_grad():
            response, _ = self.task.system.respond(situation.state, silence, generator(self._seed, "first"))
        return self.seen(response)

    def _silence(self) -> Stimulus:
        template = self.task.space.template
        return no_stimulus(template.montage, (self.count,)).to(template.pulses)

    def begin_all(self) -> Array:
        self.situation = self._fresh()
        return self._first(self.situation)

    def begin_some(self, ended: Tensor, seen: Array) -> Array:
        """Fresh rows where `ended` holds, and what they see first."""
        fresh = self._fresh()
        self.situation = fresh if self.situation is None else merged(ended, fresh, self.situation)
        rows = ended.numpy().reshape(-1, *(1,) * (seen.ndim - 1))
        return np.where(rows, self._first(fresh), seen)

    def decide(self, actions: Array, ended: Tensor) -> Judged:
        """One decision a row, from actions in [-1, 1]; rows that have ended get silence."""
        if self.situation is None:
            raise gymnasium.error.ResetNeeded("call reset before the first step")
        asked = silenced(self.task.space.stimulus(unit_of(actions)), ended)
        self._decisions += 1
        with torch.no_grad():
            judged, self.situation = decide(
                self.task, self.situation, asked, generator(self._seed, "decision", self._decisions)
            )
        return judged

    def horizon_reached(self) -> Array:
        if self.situation is None:
            return np.zeros(self.count, dtype=bool)
        reached: Array = (self.situation.decisions >= self.task.horizon).numpy()
        return reached

    def seen(self, response: Response) -> Array:
        observed: Array = self.observe(response).to("cpu", torch.float32).numpy()
        return observed

    def stopped(self, judged: Judged) -> Array:
        rule = self.task.stop_rule
        if rule is None:
            return np.zeros(self.count, dtype=bool)
        rows = [bool(rule(judged.response[i], judged.delivered[i])) for i in range(self.count)]
        return np.array(rows, dtype=bool)


class StimulationEnv(gymnasium.Env[Array, Array]):
    """One closed loop.

    Args:
        task: What it is about.
        observe: From the response of a window to what the agent sees, rows first.
        render_mode: None; windows are looked at through reports.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  Gymnasium's own declaration

    def __init__(self, task: Task, observe: Observe = signal_of, render_mode: str | None = None) -> None:
        self.task, self.render_mode, self._over = task, render_mode, True
        self._loops = _Loops(task, 1, observe)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (task.space.dimension,), np.float32)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, self._loops.shape, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """A new session; the same seed begins the same one. Without a seed, the next one of the same stream."""
        super().reset(seed=seed)
        if seed is not None:
            self._loops.restart(seed)
        self._over = False
        return self._loops.begin_all()[0], {}

    def step(self, action: Array) -> tuple[Array, SupportsFloat, bool, bool, dict[str, Any]]:
        """One decision: window, score, whether a stop rule ended it, whether the horizon did, costs."""
        if self._over:
            raise gymnasium.error.ResetNeeded("this episode is over and delivers nothing more; call reset first")
        judged = self._loops.decide(np.asarray(action)[None], torch.zeros(1, dtype=torch.bool))
        truncated = bool(self._loops.horizon_reached()[0])
        terminated = bool(self._loops.stopped(judged)[0])
        self._over = terminated or truncated
        info: dict[str, Any] = {name: column[0] for name, column in costs_of(judged).items()}
        info["asked"] = self.task.space.describe(unit_of(action))
        return self._loops.seen(judged.response)[0], float(judged.score[0]), terminated, truncated, info


class StimulationVectorEnv(VectorEnv[Array, Array, Array]):
    """Many closed loops in one native batch; arguments as `StimulationEnv`, and how many."""

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self, task: Task, num_envs: int = 1, observe: Observe = signal_of, render_mode: str | None = None
    ) -> None:
        self.task, self.num_envs, self.render_mode = task, num_envs, render_mode
        self._loops = _Loops(task, num_envs, observe)
        self.single_action_space = gymnasium.spaces.Box(-1.0, 1.0, (task.space.dimension,), np.float32)
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, self._loops.shape, np.float32)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._ended = torch.zeros(num_envs, dtype=torch.bool)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """All rows anew; see `StimulationEnv.reset`."""
        if seed is not None:
            self._loops.restart(seed)
        self._ended = torch.zeros(self.num_envs, dtype=torch.bool)
        return self._loops.begin_all(), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """One decision in every row; rows that ended on the step before begin anew instead."""
        renewed = self._ended
        judged = self._loops.decide(actions, renewed)
        seen = self._loops.seen(judged.response)
        reward = judged.score.numpy().astype(np.float64)
        terminated = self._loops.stopped(judged)
        truncated = self._loops.horizon_reached()
        info = {name: column.copy() for name, column in costs_of(judged).items()}
        if bool(renewed.any()):
            seen = self.begin_ended(seen)
            idle = renewed.numpy()
            reward = np.where(idle, 0.0, reward)
            terminated, truncated = terminated & ~idle, truncated & ~idle
            info = {name: np.where(idle, 0, column).astype(column.dtype) for name, column in info.items()}
        self._ended = torch.from_numpy(terminated | truncated)
        return seen, reward, terminated, truncated, info

    def begin_ended(self, seen: Array) -> Array:
        """Begin anew the rows that have ended, and put what they see first into `seen`."""
        ended, self._ended = self._ended, torch.zeros(self.num_envs, dtype=torch.bool)
        return self._loops.begin_some(ended, seen)


def unit_of(action: Array) -> Tensor:
    """The point of the unit cube that an action in [-1, 1] means; outside is read as the edge."""
    return torch.from_numpy(np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0) * 0.5 + 0.5)


def costs_of(judged: Judged) -> dict[str, Array]:
    """What a decision cost, one number a row."""
    return {
        "charge_uc": judged.charge_uc.numpy(),
        "energy_uj_per_kohm": judged.energy_uj_per_kohm.numpy(),
        "violation": judged.refused.numpy().astype(np.int64),
        "margin": judged.margin.numpy(),
    }
