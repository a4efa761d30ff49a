"""The native batch as a stable-baselines3 `VecEnv`, which refuses Gymnasium's vector environments.

That library restarts a row within the step that ended it: what came last is then in
`info["terminal_observation"]`, and `info["TimeLimit.truncated"]` says that only the horizon ended it.

Needs the sb3 extra: pip install "stimopt[sb3]".
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from .environment import Array, Observe, StimulationVectorEnv, signal_of
from .task import Task


class StimulationVecEnv(VecEnv):
    """Many closed loops for stable-baselines3; arguments as `StimulationVectorEnv`."""

    def __init__(self, task: Task, num_envs: int = 1, observe: Observe = signal_of) -> None:
        self._inner = StimulationVectorEnv(task, num_envs, observe)
        super().__init__(num_envs, self._inner.single_observation_space, self._inner.single_action_space)
        self._actions: Array = np.zeros((num_envs, task.space.dimension), dtype=np.float32)

    def reset(self) -> Array:
        """All rows anew, from the seed that `seed` set, if it did."""
        seed = self._seeds[0]
        self._reset_seeds()
        return self._inner.reset(seed=seed)[0]

    def step_async(self, actions: Array) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[Array, Array, Array, list[dict[str, Any]]]:
        """One decision in every row; rows that end begin anew at once."""
        seen, reward, terminated, truncated, columns = self._inner.step(self._actions)
        done = terminated | truncated
        infos: list[dict[str, Any]] = [
            {name: column[i] for name, column in columns.items()} for i in range(self.num_envs)
        ]
        if done.any():
            last, seen = seen, self._inner.begin_ended(seen)
            for i in np.flatnonzero(done):
                infos[i]["terminal_observation"] = last[i]
                infos[i]["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
        return seen, reward.astype(np.float32), done, infos

    def close(self) -> None:
        """Nothing to close."""

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        """The attribute of the one native batch, once for each row asked for."""
        return [getattr(self._inner, attr_name)] * len(self._rows(indices))

    def set_attr(self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None) -> None:
        """Set it on the native batch, for all rows at once."""
        setattr(self._inner, attr_name, value)

    def env_method(
        self, method_name: str, *args: Any, indices: int | Iterable[int] | None = None, **kwargs: Any
    ) -> list[Any]:
        """Call it on the native batch once; its answer for each row asked for."""
        return [getattr(self._inner, method_name)(*args, **kwargs)] * len(self._rows(indices))

    def env_is_wrapped(self, wrapper_class: type[Any], indices: int | Iterable[int] | None = None) -> list[bool]:
        """Never: rows of a native batch have no wrappers."""
        return [False] * len(self._rows(indices))

    def get_images(self) -> Sequence[Any]:
        """No pictures; one None a row."""
        return [None] * self.num_envs

    def _rows(self, indices: int | Iterable[int] | None) -> Sequence[int]:
        return list(self._get_indices(indices))
