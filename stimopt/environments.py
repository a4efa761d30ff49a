"""Names for Gymnasium: every task that a package declares is `stimopt/<Name>-v0`.

Tasks are entry points of the group `stimopt.tasks`: a function that returns a `Task`. Importing
this module registers them, for Gymnasium finds no plugins by itself since its version 1.0:

    import stimopt.environments
    gymnasium.make("stimopt/JansenRit-v0")          # or "stimopt.environments:stimopt/JansenRit-v0", without the import
    gymnasium.make_vec("stimopt/JansenRit-v0", num_envs=64)     # the native batch
"""

from importlib.metadata import entry_points
from typing import Any

import gymnasium
from gymnasium.envs.registration import namespace

from .environment import Observe, StimulationEnv, StimulationVectorEnv, signal_of
from .errors import ConfigError
from .task import Task

GROUP = "stimopt.tasks"


def register() -> None:
    """Register all tasks under `stimopt/`, but for those that are; called when this module is imported."""
    for point in entry_points(group=GROUP):
        name = f"{camel(point.name)}-v0"
        if f"stimopt/{name}" in gymnasium.registry:
            continue
        with namespace("stimopt"):
            gymnasium.register(
                id=name,
                entry_point="stimopt.environments:make_environment",
                vector_entry_point="stimopt.environments:make_vector_environment",
                kwargs={"task": point.name},
                order_enforce=False,  # the environments refuse a step out of turn themselves
            )


def camel(name: str) -> str:
    """`stn-gpe` to `StnGpe`."""
    return "".join(part.capitalize() for part in name.split("-"))


def task_named(name: str, **options: Any) -> Task:
    """The task behind an entry point; options go to its function.

    Raises:
        ConfigError: If there is none of that name.
    """
    points = {point.name: point for point in entry_points(group=GROUP)}
    if name not in points:
        raise ConfigError(f"there is no task {name!r}; there are {', '.join(sorted(points)) or 'none'}.")
    task: Task = points[name].load()(**options)
    return task


def make_environment(
    task: str, *, observe: Observe = signal_of, render_mode: str | None = None, **options: Any
) -> StimulationEnv:
    """What `gymnasium.make` calls; options, such as `patient=3`, go to the task."""
    return StimulationEnv(task_named(task, **options), observe, render_mode)


def make_vector_environment(
    task: str, *, num_envs: int = 1, observe: Observe = signal_of, render_mode: str | None = None, **options: Any
) -> StimulationVectorEnv:
    """What `gymnasium.make_vec` calls for the native batch."""
    return StimulationVectorEnv(task_named(task, **options), num_envs, observe, render_mode)


register()
