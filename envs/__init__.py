"""The worlds: text environments and what they are made from.

Importing this package registers the environments of `CATALOGUE` with Gymnasium, by name only: the module of an
environment is imported when one is made.
"""

import gymnasium

from .checks import BadEnvironment, checked_reset, checked_step
from .core import Outcome, ProblemEnv, TextEnv
from .spaces import Messages, Replies
from .splits import Split
from .transcript import transcript

__all__ = [
    "CATALOGUE",
    "BadEnvironment",
    "Messages",
    "Outcome",
    "ProblemEnv",
    "Replies",
    "Split",
    "TextEnv",
    "checked_reset",
    "checked_step",
    "transcript",
]

_ENVIRONMENTS = {
    "loragym/Arithmetic-v0": (
        "loragym.envs.math.arithmetic:Arithmetic",
        "Add, subtract or multiply two integers; answer with the number alone.",
    ),
    "loragym/GuessNumber-v0": (
        "loragym.envs.games.guess_number:GuessNumber",
        "Find a hidden number in ten guesses from the hints too low and too high.",
    ),
}

CATALOGUE: dict[str, str] = {env_id: description for env_id, (_, description) in _ENVIRONMENTS.items()}
"""What each registered id is about, in one line."""

for _env_id, (_entry_point, _) in _ENVIRONMENTS.items():
    # Registering an id again would warn, as when the module is reloaded.
    if _env_id not in gymnasium.registry:
        gymnasium.register(_env_id, entry_point=_entry_point)
