"""Held-out problems and how well a policy does on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import gymnasium
import numpy as np

from ..agents import SamplingParams
from ..envs import env_attribute
from ..envs.making import takes_argument
from ..renderers import Renderer
from .data import episode_metrics
from .deadlines import Calls
from .rollouts import EnvPool, Sampler, Task, collect, sampling_seed

T = TypeVar("T")

MAKING_SECONDS = 1800.0
"""How long making an environment may take, the first time, when it fetches data."""
HELD_OUT = 0x7E57
"""First coordinate of the seeds of held-out problems; training seeds begin with the run's own."""


def check_env_id(env_id: str, kwargs: Mapping[str, Any]) -> None:
    """Makes the environment once, so that a wrong id or argument shows before a model loads.

    Raises:
        ValueError: it cannot be made; the error says why.
        Hangs: it takes longer than `MAKING_SECONDS`, which is enough to fetch data.
    """
    try:
        _looked_at(env_id, kwargs, lambda env: None)
    except (gymnasium.error.Error, TypeError, ValueError, ImportError) as error:
        raise ValueError(
            f"cannot make the environment {env_id!r} with {dict(kwargs)}: {error}. An environment of your own is named "
            "as 'your_module:YourId-v0', so that the module that registers it is imported"
        ) from error


def _looked_at(env_id: str, kwargs: Mapping[str, Any], look: Callable[[gymnasium.Env[Any, Any]], T]) -> T:
    """What is found in an environment that is made for it, within a deadline."""

    def made() -> T:
        env = gymnasium.make(env_id, disable_env_checker=True, **kwargs)
        found = look(env)
        env.close()
        return found

    calls = Calls(MAKING_SECONDS)
    try:
        return calls.run(f"making and closing the environment {env_id}", made)
    finally:
        calls.close()


def takes_split(env_id: str) -> bool:
    """Whether the environment has held-out problems: an argument `split`."""
    return takes_argument(env_id, "split")


def argument_of(env_id: str, names: Sequence[str], purpose: str) -> str:
    """The first of `names` that is an argument of the environment.

    Raises:
        ValueError: it takes none of them.
    """
    found = next((name for name in names if takes_argument(env_id, name)), None)
    if found is None:
        raise ValueError(f"{env_id} takes no argument {' or '.join(names)}, so it has no use for {purpose}")
    return found


def held_out_tasks(env_id: str, kwargs: Mapping[str, Any], count: int) -> list[Task]:
    """`count` problems to evaluate on: of the split `test` if the environment takes an argument `split`.

    Without one, or with `split=None` among the arguments (all problems), they come from other seeds than training's;
    whether training meets the same problems is then a matter of how many there are. Numbered problems are taken evenly,
    each once.
    """
    if takes_split(env_id) and kwargs.get("split", "train") is not None:
        kwargs = {**kwargs, "split": "test"}
    available = _looked_at(env_id, kwargs, lambda env: env_attribute(env, "num_problems"))
    if available is None:
        return [Task(env_id, kwargs, seed=sampling_seed(HELD_OUT, i) % 2**31) for i in range(count)]
    indices = np.unique(np.linspace(0, available - 1, min(count, available)).astype(int)).tolist()
    return [Task(env_id, kwargs, seed=sampling_seed(HELD_OUT, i) % 2**31, options={"index": i}) for i in indices]


def evaluate(
    sampler: Sampler,
    renderer: Renderer,
    tasks: Sequence[Task],
    params: SamplingParams,
    *,
    context_length: int,
    pool: EnvPool | None = None,
    retries: int | None = None,
) -> dict[str, float]:
    """Means over one episode of each task; the same tasks and parameters give the same figures."""
    groups = collect(
        sampler,
        renderer,
        tasks,
        1,
        params,
        seed=(HELD_OUT,),
        context_length=context_length,
        pool=pool,
        retries=retries,
    )
    return {name: value for name, value in episode_metrics(groups).items() if not name.startswith("groups/")}
