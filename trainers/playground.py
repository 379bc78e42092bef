"""An environment, what samples in it, and held-out problems: where policies play and are judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from ..agents import LoraPolicy, SamplingParams
from ..agents.engines import ENGINES
from ..renderers import get_renderer
from .checkpoints import find_adapter
from .config import RunConfig, at_least, one_of
from .deadlines import Calls, DeadlineEngine
from .evaluation import argument_of, check_env_id, evaluate, held_out_tasks
from .json_argument import JSON_OBJECT
from .reward_models import load_reward_model
from .rollouts import EnvPool, EpisodeGroup, Sampler, Task, sampling_seed, stream
from .run_directory import transcript_rows

SCORER_ARGUMENTS = ("scorer", "comparer")


@dataclass(frozen=True, kw_only=True)
class PlayConfig(RunConfig):
    """Fields of the trainers that play."""

    env: str = "loragym/Arithmetic-v0"
    """Gymnasium id of the environment; your own as 'your_module:YourId-v0'."""
    env_kwargs: Annotated[dict[str, Any], JSON_OBJECT] = field(default_factory=dict)
    """Arguments of the environment, as JSON."""
    reward_model: str = ""
    """A trained reward model, a run of `reward` or its adapter's folder, that the environment is to judge by."""
    max_tokens: int = 64
    """Most tokens of one reply."""
    temperature: float = 1.0
    """Sampling temperature; the learner scores at the same one."""
    episode_retries: int = 2
    """How often an episode that its environment ends with an error is played again before it is left out."""
    episode_timeout: float = 600.0
    """Seconds that an environment may take for one reset, step or score_group before that counts as an error; 0 for no
    limit, and then environments run in the main thread."""
    engine_timeout: float = 1800.0
    """Seconds that the engine may go without finishing a reply before the run stops; 0 for no limit."""
    max_concurrent: int = 256
    """Most episodes being sampled at once."""
    engine: str = "torch"
    """What samples: torch (the base model itself) or vllm (docs/vllm.md)."""
    engine_options: Annotated[dict[str, Any], JSON_OBJECT] = field(default_factory=dict)
    """Options of the vllm engine, as JSON, such as {"mode": "server"}."""
    eval_every: int = 20
    """Steps between evaluations on held-out problems; 0 evaluates only at the ends."""
    eval_problems: int = 200
    """Held-out problems of an evaluation."""
    transcripts_per_step: int = 2
    """Groups whose first conversations are kept in each step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_tokens", "max_concurrent"):
            at_least(self, name, 1)
        for name in (
            "eval_every",
            "transcripts_per_step",
            "eval_problems",
            "episode_retries",
            "episode_timeout",
            "engine_timeout",
        ):
            at_least(self, name, 0)
        if not self.temperature > 0:
            raise ValueError(f"temperature is above 0, or all episodes of a group are the same; got {self.temperature}")
        if self.reward_model:
            find_adapter(self.reward_model)
        one_of(self, "engine", ENGINES)
        ENGINES[self.engine].check(self.lora(), self.dtype, self.temperature, self.engine_options)

    def check_world(self) -> None:
        """Shows before a model loads what is wrong with engine and environment.

        Raises:
            ValueError: the environment cannot be made, or does not take a reward model.
            ImportError: the engine is not installed.
        """
        ENGINES[self.engine].require(self.lora(), self.engine_options)
        if self.reward_model:
            self.scorer_argument()  # without its reward model the environment cannot be made yet
        else:
            check_env_id(self.env, self.env_kwargs)
            held_out_tasks(self.env, self.env_kwargs, self.eval_problems)

    def scorer_argument(self) -> str:
        """The environment's argument that takes a reward model."""
        return argument_of(self.env, SCORER_ARGUMENTS, "a reward model")


class Playground:
    """What a policy needs to play, made once for a run.

    Args:
        config: names environment, engine and renderer.
        policy: a policy of the base model that everybody plays with.

    Attributes:
        env_kwargs: the environment's arguments, with the reward model where there is one.
    """

    def __init__(self, config: PlayConfig, policy: LoraPolicy) -> None:
        self.config = config
        self.renderer = get_renderer(policy.base.tokenizer, config.renderer)
        self.calls = Calls(config.episode_timeout)
        self.pool = EnvPool(calls=self.calls)
        self.env_kwargs: Mapping[str, Any] = config.env_kwargs
        if config.reward_model:
            model = load_reward_model(policy.base, config.reward_model, renderer=self.renderer)
            self.env_kwargs = {**config.env_kwargs, config.scorer_argument(): model}
        self.held_out = held_out_tasks(config.env, self.env_kwargs, config.eval_problems)
        engine = ENGINES[config.engine].make(policy.base, policy.config, config.max_concurrent, config.engine_options)
        self.engine = DeadlineEngine(engine, config.engine_timeout)

    @property
    def last_sign(self) -> float:
        """When an environment or the engine answered last, by `time.monotonic`."""
        return max(self.calls.last_sign, self.engine.last_sign)

    @property
    def patience(self) -> float:
        """Seconds without any sign of life after which something hangs; 0 for no limit."""
        limits = self.config.episode_timeout, self.config.engine_timeout
        return sum(limits) if all(limits) else 0.0

    def tasks(self, number: int, count: int, first: int = 0) -> list[Task]:
        """The problems of a step, a function of the run's seed, from the `first` on."""
        seeds = [sampling_seed(self.config.seed, number, i) % 2**31 for i in range(first, first + count)]
        return [Task(self.config.env, self.env_kwargs, seed) for seed in seeds]

    def play(
        self,
        sampler: Sampler,
        tasks: Sequence[Task],
        group_size: int,
        *,
        seed: Sequence[int],
        temperature: float | None = None,
        pool: EnvPool | None = None,
    ) -> list[EpisodeGroup]:
        """Episodes of a policy's snapshot; see `rollouts.collect`."""
        groups = dict(self.stream(sampler, tasks, group_size, seed=seed, temperature=temperature, pool=pool))
        return [groups[index] for index in range(len(tasks))]

    def stream(
        self,
        sampler: Sampler,
        tasks: Sequence[Task],
        group_size: int,
        *,
        seed: Sequence[int],
        temperature: float | None = None,
        pool: EnvPool | None = None,
    ) -> Iterator[tuple[int, EpisodeGroup]]:
        """The same one by one as they are over; see `rollouts.stream`."""
        return stream(
            sampler,
            self.renderer,
            tasks,
            group_size,
            self.sampling(self.config.temperature if temperature is None else temperature),
            seed=seed,
            context_length=self.engine.context_length,
            pool=pool or self.pool,
            retries=self.config.episode_retries,
        )

    def evaluate(self, policy: LoraPolicy) -> dict[str, float]:
        """Held-out figures, greedy and at temperature 1, as `test/greedy/...` and `test/sampled/...`."""
        if not self.held_out:
            return {}
        metrics: dict[str, float] = {}
        for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
            figures = evaluate(
                self.engine.sampler(policy),
                self.renderer,
                self.held_out,
                self.sampling(temperature),
                context_length=self.engine.context_length,
                pool=self.pool,
                retries=self.config.episode_retries,
            )
            metrics |= {f"test/{name}/{key}": value for key, value in figures.items()}
        return metrics

    def sampling(self, temperature: float) -> SamplingParams:
        """How replies are sampled."""
        return SamplingParams(max_tokens=self.config.max_tokens, temperature=temperature)

    def transcripts(self, groups: Sequence[EpisodeGroup]) -> list[dict[str, Any]]:
        """A few conversations of a step, to keep."""
        kept = [(g.task, e) for g in groups[: self.config.transcripts_per_step] for e in g.episodes[:2]]
        return transcript_rows([(f"{task.env_id} seed {task.seed}", e.reward, e.messages) for task, e in kept])

    def close(self) -> None:
        """Releases environments and engine."""
        self.pool.close()
        self.engine.close()
