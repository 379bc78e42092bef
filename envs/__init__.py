"""The worlds: text environments and what they are made from.

Importing this package registers the environments of `CATALOGUE` with Gymnasium, by name only: the module of an
environment is imported when one is made.
"""

import gymnasium

from .checks import (
    BadEnvironment,
    checked_group_score,
    checked_reset,
    checked_step,
    env_attribute,
    scores_groups,
)
from .core import GroupScore, Outcome, ProblemEnv, TextEnv
from .spaces import Messages, Replies
from .splits import Split
from .transcript import transcript

__all__ = [
    "CATALOGUE",
    "BadEnvironment",
    "GroupScore",
    "Messages",
    "Outcome",
    "ProblemEnv",
    "Replies",
    "Split",
    "TextEnv",
    "checked_group_score",
    "checked_reset",
    "checked_step",
    "env_attribute",
    "scores_groups",
    "transcript",
]

_ENVIRONMENTS = {
    "loragym/Arithmetic-v0": (
        "loragym.envs.math.arithmetic:Arithmetic",
        "Add, subtract or multiply two integers; answer with the number alone.",
    ),
    "loragym/Bargaining-v0": (
        "loragym.envs.games.bargaining:bargaining_seat",
        "One seat of a bargain: divide items by alternating offers, not knowing what they are worth to the other.",
    ),
    "loragym/Calculator-v0": (
        "loragym.envs.tools.calculator:Calculator",
        "Solve a word problem with large numbers by calling a calculator.",
    ),
    "loragym/ConnectFour-v0": (
        "loragym.envs.games.connect_four:connect_four_seat",
        "One seat of connect four, against a random opponent, one that looks ahead, or one of yours.",
    ),
    "loragym/Countdown-v0": (
        "loragym.envs.math.countdown:Countdown",
        "Reach a target from a few numbers with +, -, * and /.",
    ),
    "loragym/DeepMath-v0": (
        "loragym.envs.math.word_problems:DeepMath",
        "Hard problems of mathematics with checked answers, from the data set DeepMath-103K.",
    ),
    "loragym/GSM8K-v0": (
        "loragym.envs.math.word_problems:GSM8K",
        "Grade-school word problems, from the data set GSM8K.",
    ),
    "loragym/GuessNumber-v0": (
        "loragym.envs.games.guess_number:GuessNumber",
        "Find a hidden number in ten guesses from the hints too low and too high.",
    ),
    "loragym/KuhnPoker-v0": (
        "loragym.envs.games.kuhn_poker:kuhn_poker_seat",
        "One seat of Kuhn poker: three cards, one bet, against a random or an equilibrium opponent.",
    ),
    "loragym/Ledger-v0": (
        "loragym.envs.tools.ledger:Ledger",
        "Carry out payments in a bank with tools that look up and book.",
    ),
    "loragym/MATH-v0": (
        "loragym.envs.math.word_problems:Math",
        "Competition problems, from the data set MATH; MATH-500 is held out.",
    ),
    "loragym/Mixture-v0": (
        "loragym.envs.mixture:Mixture",
        "Several environments as one, in proportion to their weights.",
    ),
    "loragym/Pairwise-v0": (
        "loragym.envs.preference.pairwise:Pairwise",
        "Replies are compared with one another by a function or a preference model of yours.",
    ),
    "loragym/Polaris-v0": (
        "loragym.envs.math.word_problems:Polaris",
        "Problems chosen for learning to reason, from the data set Polaris-53K.",
    ),
    "loragym/Prompts-v0": (
        "loragym.envs.prompts:Prompts",
        "Reply to prompts from any data, rewarded by a function of yours, or by nothing.",
    ),
    "loragym/ReasoningGym-v0": (
        "loragym.envs.math.reasoning_gym:ReasoningGym",
        "Any procedural data set of the package reasoning-gym.",
    ),
    "loragym/RewardModel-v0": (
        "loragym.envs.preference.scoring:RewardModel",
        "Replies are scored one by one by a function or a reward model of yours.",
    ),
    "loragym/Rubric-v0": (
        "loragym.envs.preference.rubric:Rubric",
        "Replies are judged by a rubric of criteria, by a function or a chat agent of yours.",
    ),
    "loragym/Search-v0": (
        "loragym.envs.tools.search.env:Search",
        "Answer a question by searching a collection of documents.",
    ),
    "loragym/Shorter-v0": (
        "loragym.envs.preference.pairwise:Shorter",
        "Of the replies to a prompt the shorter ones win.",
    ),
    "loragym/TextArena-v0": (
        "loragym.envs.games.text_arena:TextArena",
        "Play any game of TextArena (extra `textarena`), one seat or all alone.",
    ),
    "loragym/TicTacToe-v0": (
        "loragym.envs.games.tic_tac_toe:tic_tac_toe_seat",
        "One seat of tic-tac-toe, against a random or a perfect opponent or one of yours.",
    ),
    "loragym/TwentyQuestions-v0": (
        "loragym.envs.games.twenty_questions:TwentyQuestions",
        "Find out what somebody thinks of in twenty questions that are answered yes or no.",
    ),
    "loragym/Wrapped-v0": (
        "loragym.envs.wrappers:wrapped",
        "Any environment in any wrappers, named in its arguments.",
    ),
}

CATALOGUE: dict[str, str] = {env_id: description for env_id, (_, description) in _ENVIRONMENTS.items()}
"""What each registered id is about, in one line."""

for _env_id, (_entry_point, _) in _ENVIRONMENTS.items():
    # Registering an id again would warn, as when the module is reloaded.
    if _env_id not in gymnasium.registry:
        gymnasium.register(_env_id, entry_point=_entry_point)
