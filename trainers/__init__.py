"""Training loops and what they share: rollouts, datums, run directories, checkpoints, evaluation."""

from .distillation import DistillationConfig, DistillationTrainer
from .dpo import DPOConfig, DPOTrainer
from .reward import RewardConfig, RewardTrainer
from .reward_models import JudgeRewardModel, ScalarRewardModel, load_reward_model
from .rl import RLConfig, RLTrainer
from .rollouts import Episode, EpisodeGroup, Task, Turn, collect
from .run_directory import RunDirectory, RunError
from .selfplay import Game, Speaker, against, everywhere, play_games, seat_groups
from .stopping import Interrupted, Terminated
from .supervised import SupervisedConfig, SupervisedTrainer
from .table_rl import TableRLConfig, TableRLTrainer

__all__ = [
    "DPOConfig",
    "DPOTrainer",
    "DistillationConfig",
    "DistillationTrainer",
    "Episode",
    "EpisodeGroup",
    "Game",
    "Interrupted",
    "JudgeRewardModel",
    "RLConfig",
    "RLTrainer",
    "RewardConfig",
    "RewardTrainer",
    "RunDirectory",
    "RunError",
    "ScalarRewardModel",
    "Speaker",
    "SupervisedConfig",
    "SupervisedTrainer",
    "TableRLConfig",
    "TableRLTrainer",
    "Task",
    "Terminated",
    "Turn",
    "against",
    "collect",
    "everywhere",
    "load_reward_model",
    "play_games",
    "seat_groups",
]
