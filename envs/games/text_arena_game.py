"""One game of TextArena, made safe to use: seeded, isolated from global state, and counting what goes wrong.

TextArena (https://github.com/LeonGuertler/TextArena) draws from Python's and NumPy's global generators, keeps the
observations of earlier episodes in its wrappers, fetches word lists while its modules are imported and lets exceptions
of its games through. All of that is dealt with here; its rules and texts are left as they are.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .time_limit import TimeUp, time_limit

MAX_PLAYERS = 15
MAX_ACTION_CHARACTERS = 10_000
"""What is longer is cut: some games search a text in a time that grows with its square."""
STEP_SECONDS = 10.0
"""Some games can be brought into an endless loop; they are broken off after this long."""
CRASH_REWARD = -1.0
"""For the player whose text makes a game fail; what most games give for an illegal move."""

Observations = Literal["new", "wrapped"]

_GLOBAL_STATE = threading.RLock()


class GameFailure(Exception):
    """A game of TextArena raised an exception of its own."""


@dataclass(frozen=True, slots=True)
class Said:
    """What became of one text said in a game.

    Attributes:
        illegal: the game did not take it as a move.
        failure: the exception that the game ended with, in words, if it did.
    """

    illegal: bool = False
    failure: str | None = None


class TextArenaGame:
    """One TextArena environment; `begin` starts a game of it, `observe` and `say` go on in turns.

    Args:
        game: the id in TextArena's registry, such as "TicTacToe-v0".
        num_players: how many play; by default the fewest that the game takes.
        observations: "new" (what happened since the player last looked) or "wrapped" (the text that the id's own
            observation wrappers make, which repeats the whole game so far or what they choose of it).
        game_options: arguments of the game's class, over those of the id.

    Raises:
        ImportError: TextArena is not installed, or the game needs a package or word list that is not there.
        ValueError: there is no such game, or it does not take that many players.
    """

    _base: Any
    _wrapped: Any
    _is_worn: bool

    def __init__(
        self,
        game: str,
        *,
        num_players: int | None = None,
        observations: Observations = "new",
        game_options: dict[str, Any] | None = None,
    ) -> None:
        if observations not in ("new", "wrapped"):
            raise ValueError(f'observations is "new" or "wrapped", got {observations!r}')
        self.game, self.observations, self.game_options = game, observations, dict(game_options or {})
        self._make()
        self.num_players = self._fewest_players() if num_players is None else num_players
        if num_players is not None and (problem := self._cannot_play(num_players)) is not None:
            raise ValueError(f"{game} does not take num_players={num_players}: {problem}") from problem

    @property
    def current(self) -> int:
        """The seat whose turn it is."""
        return int(self._state.current_player_id)

    @property
    def rewards(self) -> dict[int, float]:
        """What each seat has got: of a game that is not over, or that failed or gave none, nothing."""
        given = getattr(self._state, "rewards", None) or {}
        return {seat: _as_reward(given.get(seat)) for seat in range(self.num_players)} | self._crash_rewards

    def begin(self, world: int) -> None:
        """Starts a game; the same `world` is the same game always.

        Raises:
            GameFailure: the game cannot be started.
        """
        self.over = False
        self._crash_rewards: dict[int, float] = {}
        if self._is_worn:
            self._make()
        self._is_worn = True
        self._python_state = random.Random(world).getstate()
        self._numpy_bits: Any = np.random.MT19937(world)
        try:
            with self._own_randomness():
                self._wrapped.reset(num_players=self.num_players, seed=world)
        except Exception as error:
            raise GameFailure(f"{self.game} cannot be started with {world=}: {_in_words(error)}") from error

    def observe(self) -> str:
        """What the seat whose turn it is is told; asking again tells only what is new."""
        with self._own_randomness():
            seat, observation = (self._wrapped if self.observations == "wrapped" else self._base).get_observation()
        if isinstance(observation, str):
            return observation.strip()
        return "\n".join(self._line(*entry) for entry in map(_in_order, observation) if self._is_news(seat, *entry))

    def say(self, text: str) -> Said:
        """The seat whose turn it is says `text`, which may be anything."""
        seat, state = self.current, self._state
        errors, flagged = getattr(state, "error_count", 0), self._flagged(seat)
        try:
            with self._own_randomness(), time_limit(STEP_SECONDS):
                done, _ = self._wrapped.step(text[:MAX_ACTION_CHARACTERS])
        except (Exception, TimeUp) as error:  # whatever a game of theirs raises on a text is its answer to it
            self.over = True
            self._crash_rewards = dict.fromkeys(range(self.num_players), 0.0) | {seat: CRASH_REWARD}
            return Said(illegal=True, failure=_in_words(error))
        self.over = bool(done) or bool(state.done)
        illegal = getattr(state, "error_count", 0) > errors or (self._flagged(seat) and not flagged)
        return Said(illegal=illegal)

    def ending(self, seat: int) -> str:
        """Why the game ended, in its own words; empty where it gives none."""
        return str(self._state.game_info.get(seat, {}).get("reason") or "").strip()

    def __getstate__(self) -> dict[str, Any]:
        """Without the wrappers' objects: theirs pass every look-up on, also those that unpickling makes too early."""
        layers, layer = [], self._wrapped
        while layer is not self._base:
            layers.append((type(layer), {name: value for name, value in layer.__dict__.items() if name != "env"}))
            layer = layer.env
        return {**self.__dict__, "_wrapped": layers[::-1]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        layers, self._wrapped = self._wrapped, self._base
        for wrapper, attributes in layers:
            inner, self._wrapped = self._wrapped, object.__new__(wrapper)
            self._wrapped.__dict__.update(attributes, env=inner)

    @property
    def _state(self) -> Any:
        return self._base.state

    def _line(self, sender: int, text: str, kind: str) -> str:
        # A game's own words stand for themselves; what another player says is marked as that.
        name = self._state.role_mapping.get(sender, f"Player {sender}")
        return text.strip() if sender < 0 else f"[{name}] {text.strip()}"

    def _is_news(self, seat: int, sender: int, text: str, kind: str) -> bool:
        # The player knows what it has said itself.
        return not (sender == seat and kind == "PLAYER_ACTION")

    def _flagged(self, seat: int) -> bool:
        return bool(self._state.game_info.get(seat, {}).get("invalid_move", False))

    def _make(self) -> None:
        """A new environment: most games can be reset, but not all forget the game before."""
        text_arena = _text_arena()
        registry = importlib.import_module("textarena.envs.registration").ENV_REGISTRY
        if self.game not in registry:
            near = sorted(name for name in registry if name.lower().startswith(self.game.split("-")[0].lower()))
            games = near or sorted({name.split("-v")[0] for name in registry})
            raise ValueError(f"TextArena has no game {self.game!r}; it has {', '.join(games)}")
        spec = registry[self.game]
        self._python_state = random.Random(0).getstate()
        self._numpy_bits = np.random.MT19937(0)
        with self._own_randomness(), _no_downloads(self.game), _plain_errors(self.game):
            entry_point = spec.entry_point
            if isinstance(entry_point, str):
                module, _, name = entry_point.partition(":")
                entry_point = getattr(importlib.import_module(module), name)
            self._base = entry_point(**{**spec.kwargs, **self.game_options})
            self._wrapped = self._base
            for wrapper in spec.default_wrappers or ():
                if self.observations == "wrapped" or issubclass(wrapper, text_arena.core.ActionWrapper):
                    self._wrapped = wrapper(self._wrapped)
        self._is_worn = False

    def _fewest_players(self) -> int:
        problem: Exception | None = None
        for count in range(1, MAX_PLAYERS + 1):
            problem = self._cannot_play(count)
            if problem is None:
                return count
        raise ValueError(f"{self.game} starts with none of 1 to {MAX_PLAYERS} players: {problem}") from problem

    def _cannot_play(self, count: int) -> Exception | None:
        if self._is_worn:
            self._make()
        self._is_worn = True
        try:
            with self._own_randomness():
                self._base.reset(num_players=count, seed=0)
        except Exception as error:  # assertions, look-ups and more: each game has its own way to refuse
            return error
        single = type(self._state).__name__ == "SinglePlayerState"
        return ValueError(f"it is played by {'one' if single else 'two or more'}") if single != (count == 1) else None

    @contextlib.contextmanager
    def _own_randomness(self) -> Iterator[None]:
        """Lends the game the global generators, in the state in which it left them."""
        with _GLOBAL_STATE:
            outer = random.getstate(), _global_bits()
            random.setstate(self._python_state)
            _set_global_bits(self._numpy_bits)
            try:
                # Some games print.
                with contextlib.redirect_stdout(io.StringIO()):
                    yield
            finally:
                self._python_state = random.getstate()
                random.setstate(outer[0])
                _set_global_bits(outer[1])


def _global_bits() -> Any:
    return getattr(np.random, "get_bit_generator")()  # noqa: B009  (public, and missing from numpy's type stubs)


def _set_global_bits(bits: Any) -> None:
    getattr(np.random, "set_bit_generator")(bits)  # noqa: B009


def _text_arena() -> Any:
    try:
        with _GLOBAL_STATE, contextlib.redirect_stdout(io.StringIO()):
            return importlib.import_module("textarena")
    except ImportError as error:
        raise ImportError(f"TextArena-v0 needs TextArena: pip install 'loragym[textarena]' ({error})") from error


@contextlib.contextmanager
def _plain_errors(game: str) -> Iterator[None]:
    """Says which game cannot be made, and why."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f"TextArena's {game} needs a package that is not installed: {error}") from error
    except SyntaxError as error:
        raise ImportError(f"TextArena's {game} does not run on this Python; a newer one may do: {error}") from error
    except LookupError:
        raise
    except Exception as error:  # a key of a service that is not set, a wrong option: the game says it in its own way
        raise ValueError(f"TextArena's {game} cannot be made: {_in_words(error)}") from error


@contextlib.contextmanager
def _no_downloads(game: str) -> Iterator[None]:
    """Keeps a game from fetching word lists by itself, and says how to get those that are not there."""
    nltk: Any = importlib.import_module("nltk")
    download, nltk.download = nltk.download, lambda *_, **__: True
    try:
        yield
    except LookupError as error:
        if isinstance(error, KeyError | IndexError):
            raise
        raise ImportError(
            f"{game} needs word lists of NLTK that are not on this machine; get them with: "
            "python -m nltk.downloader words averaged_perceptron_tagger_eng"
        ) from error
    finally:
        nltk.download = download


def _as_reward(given: Any) -> float:
    """None counts as nothing. Some games put the reason of an illegal move where its reward should be."""
    if given is None:
        return 0.0
    return float(given) if isinstance(given, int | float) and np.isfinite(given) else CRASH_REWARD


def _in_order(entry: tuple[Any, ...]) -> tuple[int, str, str]:
    """Sender, text and kind of an observation; some games hand them over in another order."""
    sender = next((part for part in entry if isinstance(part, int)), -1)
    text = next((part for part in entry if isinstance(part, str)), "")
    kind = next((str(part.name) for part in entry if hasattr(part, "name")), "")
    return sender, text, kind


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]
