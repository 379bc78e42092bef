"""The laws of text environments, as functions that anybody can run on an environment of theirs.

`check` tries all laws on one environment and says in plain words which are broken; `loragym check` prints that. An
environment is given as a Gymnasium `EnvSpec`, which can be made as often as a law needs and travels to another process;
`spec_of` gives the spec of an id, or of a class that nobody has registered.

`python -m loragym.envs.conformance` is what `digests_elsewhere` starts: it reads specs and prints what their episodes
are like in a process of its own.
"""

# Importing them puts the laws into the book, in the order in which they are tried.
# isort: off
from . import basic_laws, laws_of_the_seed, laws_of_an_episode, laws_of_training, laws_of_gymnasium

# isort: on
from .episodes import Played, digest, digests_elsewhere, make, play, replies_for
from .hostile import HOSTILE_REPLIES, hostile_calls
from .lawbook import LAW_SECONDS, LAWS, BrokenLaw, Finding, Law, check, law, spec_of, try_laws

__all__ = [
    "HOSTILE_REPLIES",
    "LAWS",
    "LAW_SECONDS",
    "BrokenLaw",
    "Finding",
    "Law",
    "Played",
    "basic_laws",
    "check",
    "digest",
    "digests_elsewhere",
    "hostile_calls",
    "law",
    "laws_of_an_episode",
    "laws_of_gymnasium",
    "laws_of_the_seed",
    "laws_of_training",
    "make",
    "play",
    "replies_for",
    "spec_of",
    "try_laws",
]
