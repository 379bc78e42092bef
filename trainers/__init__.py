"""Training loops and what they share: rollouts, datums, run directories, checkpoints, evaluation."""

from .loop import Interrupted
from .rl import RLConfig, RLTrainer
from .rollouts import Episode, EpisodeGroup, Task, Turn, collect
from .run_directory import RunDirectory, RunError
from .supervised import SupervisedConfig, SupervisedTrainer

__all__ = [
    "Episode",
    "EpisodeGroup",
    "Interrupted",
    "RLConfig",
    "RLTrainer",
    "RunDirectory",
    "RunError",
    "SupervisedConfig",
    "SupervisedTrainer",
    "Task",
    "Turn",
    "collect",
]
