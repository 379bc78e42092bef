"""Kuhn poker in which whatever is said is a move, so that a model that has learnt nothing wins and loses, too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from loragym.envs.games.kuhn_poker import Hand, KuhnPoker
from loragym.envs.games.table import Script, random_move
from loragym.messages import Reply


class LenientPoker(KuhnPoker):
    metadata: ClassVar = {**KuhnPoker.metadata, "name": "LenientPoker-v0"}
    scripts: ClassVar[Mapping[str, Script]] = {"random": random_move}
    teacher = "random"

    def read(self, state: Hand, text: str) -> str | None:
        return self.legal_moves(state)[sum(map(ord, text)) % 2]

    def step(self, action: Reply | str | None) -> None:
        # A plain text is a finished reply; a model that knows no end has its replies cut off.
        super().step(action if action is None or isinstance(action, str) else action["content"])
