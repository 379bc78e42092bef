"""A table as a PettingZoo parallel environment: all seats are stepped at once, and one of them is heard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gymnasium.error import ResetNeeded
from pettingzoo.utils.env import ParallelEnv

from ...messages import Message, Reply
from ..spaces import Messages, Replies
from .table import Table

Observations = dict[str, tuple[Message, ...]]


class ParallelTable(ParallelEnv[str, tuple[Message, ...], Reply | str]):
    """Steps all seats of a table at once.

    Only the action of the seat whose turn it is counts; the others' are not looked at, and may be left out. Whose turn
    it is stands in `infos[seat]["to_move"]`. A seat's observation is the messages that are new since the step before,
    empty for most seats that are not to move.

    Args:
        table: the table; from now on this environment's own.
    """

    def __init__(self, table: Table[Any]) -> None:
        self.table = table
        self.metadata = dict(table.metadata)
        self.render_mode = table.render_mode
        self.possible_agents = list(table.possible_agents)
        self.agents: list[str] = []

    def observation_space(self, agent: str) -> Messages:
        return self.table.observation_space(agent)

    def action_space(self, agent: str) -> Replies:
        return self.table.action_space(agent)

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, dict[str, Any]]]:
        """Deals a new game, see `Table.reset`."""
        self.table.reset(seed=seed, options=options)
        self.agents = [seat for seat in self.possible_agents if not self._is_over(seat)]
        self._delivered = dict.fromkeys(self.possible_agents, 0)
        return self._news(self.possible_agents), self._infos(self.possible_agents)

    def step(
        self, actions: Mapping[str, Reply | str]
    ) -> tuple[Observations, dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        """Lets the seat whose turn it is say its action.

        Raises:
            KeyError: that seat's action is missing.
            ResetNeeded: no game is going on.
        """
        table, seats = self.table, list(self.agents)
        if not seats:
            raise ResetNeeded("step() was called with no game going on; call reset() first")
        mover = table.agent_selection
        if mover not in actions:
            raise KeyError(f"it is the turn of {mover!r}, and there are actions of {sorted(actions)} alone")
        table.step(actions[mover])
        self._delivered[mover] = 0
        self.agents = [seat for seat in seats if not self._is_over(seat)]
        return (
            self._news(seats),
            {seat: table.rewards[seat] for seat in seats},
            {seat: table.terminations[seat] for seat in seats},
            {seat: table.truncations[seat] for seat in seats},
            self._infos(seats),
        )

    def render(self) -> str | None:
        """The table's record, see `Table.render`."""
        return self.table.render()

    def close(self) -> None:
        self.table.close()

    def _is_over(self, seat: str) -> bool:
        return self.table.terminations[seat] or self.table.truncations[seat]

    def _news(self, seats: list[str]) -> Observations:
        news = {}
        for seat in seats:
            unheard = self.table.observe(seat)
            news[seat] = unheard[self._delivered[seat] :]
            self._delivered[seat] = len(unheard)
        return news

    def _infos(self, seats: list[str]) -> dict[str, dict[str, Any]]:
        return {
            seat: {**self.table.infos[seat], "to_move": bool(self.agents) and seat == self.table.agent_selection}
            for seat in seats
        }


def parallel_env(table: str, **options: Any) -> ParallelTable:
    """The table of that name as a parallel environment, see `tables.make`."""
    from .tables import make

    return ParallelTable(make(table, **options))
