"""Bookings in a bank: tools that change a world, whose final state is what is rewarded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

import numpy as np

from ...messages import Message, Reply, reply, system, user
from ..splits import Split, is_held_out
from .env import ToolEnv, final_answer
from .tool import tool

NUM_PROBLEMS = 1_000_000
DONE = "Done."
SYSTEM_PROMPT = (
    "You are a clerk in a bank. Carry out the customer's request with your tools: look up what you need, book each "
    f'payment once, and change nothing else. When everything is booked, reply "{DONE}" and nothing else.'
)
_INDEXED = 0x1ED6E2
_NAMES = ("Ada", "Bela", "Chen", "Dana", "Emeka", "Farah", "Goran", "Hana", "Ines", "Jonas", "Kiri", "Lena")
_MAX_STEPS = 4


class Order(NamedTuple):
    """One thing that is asked for: how it is put, and the payments that carry it out, given the balances before it."""

    text: str
    payments: tuple[tuple[str, str, int], ...]


class _Request(NamedTuple):
    balances: Mapping[str, int]
    orders: tuple[Order, ...]
    after: Mapping[str, int]

    @property
    def text(self) -> str:
        return " ".join(order.text for order in self.orders)


class Ledger(ToolEnv):
    """A customer asks for payments, some of which depend on balances that have to be looked up.

    The tools are `balance`, `list_accounts` and `pay`. The episode ends with a reply without calls, which should be
    "Done.". The reward is `correct + format_coef * (format - 1)`: `correct` is 1 if all balances are then as the
    request has it, so a payment made twice or to the wrong account is wrong, and so is an episode that is cut off or
    runs out of turns; `format` is 1 if the reply is as asked. Payments run one by one, in the order of the calls. No
    request is met by doing nothing.

    Metrics: those of `ToolEnv`; `correct`; `format`; `payments` (made); `accounts_right` (the share of accounts whose
    balance is right).

    Args:
        accounts: how many accounts there are, from 3 to 12.
        orders: how many things are asked for, from 1 to 4.
        split: "train", "test" (about a tenth of the requests) or None for all.
        format_coef: what a final reply other than "Done." costs.
        system_prompt: an instruction that goes first; None for none.
        options: see `ToolEnv`.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        *,
        accounts: int = 4,
        orders: int = 2,
        split: Split | None = "train",
        format_coef: float = 0.1,
        system_prompt: str | None = SYSTEM_PROMPT,
        **options: Any,
    ) -> None:
        if not 3 <= accounts <= len(_NAMES):
            raise ValueError(f"accounts is from 3 to {len(_NAMES)}, got {accounts!r}")
        if not 1 <= orders <= _MAX_STEPS:
            raise ValueError(f"orders is from 1 to {_MAX_STEPS}, got {orders!r}")
        if split not in (*get_args(Split), None):
            raise ValueError(f"split is one of {get_args(Split)} or None for everything, got {split!r}")
        super().__init__(**{"time_limit": None, "max_turns": 3 + 2 * orders, **options})
        self.accounts, self.orders, self.split, self.format_coef = accounts, orders, split, format_coef
        self._prefix = () if system_prompt is None else (system(system_prompt),)

    @tool
    def list_accounts(self) -> list[str]:
        """The names of all who have an account."""
        return list(self._balances)

    @tool
    def balance(self, name: str) -> int:
        """The balance of an account, in euros.

        Args:
            name: whose account it is.
        """
        return self._balances[self._known(name)]

    @tool
    def pay(self, sender: str, recipient: str, amount: int) -> str:
        """Moves money from one account to another.

        Args:
            sender: who pays.
            recipient: who is paid.
            amount: how much, in whole euros; at least 1, and at most the sender's balance.
        """
        payer, payee = self._known(sender), self._known(recipient)
        if payer == payee:
            raise ValueError("the sender and the recipient are the same")
        if not 1 <= amount <= self._balances[payer]:
            raise ValueError(f"the amount is from 1 to {self._balances[payer]}, the balance of {payer}, got {amount}")
        self._balances[payer] -= amount
        self._balances[payee] += amount
        self._payments += 1
        return f"paid; {payer} has {self._balances[payer]}, {payee} has {self._balances[payee]}"

    @property
    def num_problems(self) -> int | None:
        return NUM_PROBLEMS

    def opening(self, options: Mapping[str, Any]) -> tuple[Sequence[Message], dict[str, Any]]:
        index = options.get("index")
        rng = self.np_random if index is None else np.random.default_rng((_INDEXED, index))
        while not self._in_split(request := _draw_request(rng, self.accounts, self.orders)):
            pass
        self._request = request
        self._balances = dict(request.balances)
        self._payments = 0
        return (*self._prefix, user(request.text)), {"problem": request.text}

    def final_reward(self, messages: tuple[Message, ...]) -> tuple[float, dict[str, float]]:
        answer = final_answer(messages)
        finished = answer is not None and answer["stop_reason"] == "stop"
        well_formed = float(finished and answer is not None and answer["content"].strip() == DONE)
        right = [self._balances[name] == balance for name, balance in self._request.after.items()]
        correct = float(finished and all(right))
        share = sum(right) / len(right)
        metrics = {"correct": correct, "format": well_formed, "payments": self._payments, "accounts_right": share}
        return correct + self.format_coef * (well_formed - 1), metrics

    def solution(self) -> list[Reply]:
        """Looks at the balances that matter, books order by order, and says so."""
        said: list[Reply] = []
        for order in self._request.orders:
            names = dict.fromkeys(name for payer, payee, _ in order.payments for name in (payer, payee))
            payments = [
                {"sender": payer, "recipient": payee, "amount": amount} for payer, payee, amount in order.payments
            ]
            said.append(self.calling_all([("balance", {"name": name}) for name in names]))
            said.append(self.calling_all([("pay", payment) for payment in payments]))
        return [*said, reply(DONE)]

    def _known(self, name: str) -> str:
        known = next((holder for holder in self._balances if holder.casefold() == name.strip().casefold()), None)
        if known is None:
            raise ValueError(f"nobody named {name[:40]!r} has an account")
        return known

    def _in_split(self, request: _Request) -> bool:
        name = f"{sorted(request.balances.items())} {request.text}"
        return self.split is None or is_held_out(name) == (self.split == "test")


def _draw_request(rng: np.random.Generator, accounts: int, orders: int) -> _Request:
    names = [_NAMES[place] for place in rng.permutation(len(_NAMES))[:accounts]]
    balances = {name: int(rng.integers(100, 1000)) for name in names}
    state, drawn = dict(balances), []
    for number in range(orders):
        order = None
        while order is None:
            order = _draw_order(rng, state, *(names[place] for place in rng.permutation(accounts)[:3]))
        for payer, payee, amount in order.payments:
            state[payer] -= amount
            state[payee] += amount
        text = f"Then {order.text}" if number else order.text[0].upper() + order.text[1:]
        drawn.append(Order(text, order.payments))
    if state == balances:
        # The payments undo each other: doing nothing would pass for carrying them out.
        return _draw_request(rng, accounts, orders)
    return _Request(balances, tuple(drawn), state)


def _draw_order(rng: np.random.Generator, state: Mapping[str, int], a: str, b: str, c: str) -> Order | None:
    """One of six kinds of order; None if the balances leave nothing to pay."""
    kind = int(rng.integers(6))
    have, other = state[a], state[b]
    if kind == 0 and have >= 10:
        amount = int(rng.integers(1, have + 1))
        return Order(f"pay {amount} euros from {a} to {b}.", ((a, b, amount),))
    if kind == 1 and have:
        return Order(f"move everything that {a} has to {b}.", ((a, b, have),))
    if kind == 2 and have >= 2:
        half = have // 2
        return Order(f"pay half of what {a} has, rounded down to whole euros, to {b}.", ((a, b, half),))
    if kind == 3:
        richer, poorer = (a, b) if have >= other else (b, a)
        amount = (state[richer] - state[poorer]) // 2
        text = (
            f"of {a} and {b}, let the one who has more pay the other, so that both have the same; if one euro is left "
            "over, the payer keeps it."
        )
        return Order(text, ((richer, poorer, amount),)) if amount else None
    if kind == 4 and have >= 20:
        amount = int(rng.integers(1, have // 2 + 1))
        return Order(f"pay {amount} euros from {a} to each of {b} and {c}.", ((a, b, amount), (a, c, amount)))
    limit = int(rng.integers(100, 1000))
    if kind == 5 and have > limit:
        return Order(f"if {a} has more than {limit} euros, pay what is above that to {b}.", ((a, b, have - limit),))
    return None
