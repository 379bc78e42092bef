"""Supervised learning on chats of several turns.

Without data of your own the chats are made by a program: a user asks small things one after the other (sums and what
follows from them, days and months, letters of words, units, which of two is more) and each answer can be computed. So
there are as many as are wanted, all of them right, and none of a held-out chat's opening questions is trained on.

    python -m loragym.recipes.chat_sl
    python -m loragym.recipes.chat_sl --data HuggingFaceH4/no_robots --test-split test --model Qwen/Qwen3-1.7B
    loragym sweep chat_sl --over learning-rate=3e-5,1e-4,3e-4,1e-3,3e-3,1e-2 --metric test/nll
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from loragym.envs.datasets import write_rows
from loragym.envs.splits import is_held_out
from loragym.messages import Message, assistant, user
from loragym.renderers import TrainOn
from loragym.trainers import SupervisedConfig, supervised
from loragym.trainers.command_line import config_from
from loragym.trainers.display import what_next
from loragym.trainers.reports import print_held_out

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)  # fmt: skip
LENGTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
WORDS = (
    "apple", "bridge", "candle", "desert", "engine", "forest", "garden", "hammer", "island", "jacket",
    "kitchen", "ladder", "mirror", "needle", "orange", "pencil", "quarry", "ribbon", "saddle", "temple",
    "umbrella", "valley", "window", "yellow", "anchor", "basket", "copper", "dragon", "feather", "glacier",
    "harbor", "insect", "jungle", "kettle", "lantern", "marble", "nephew", "oyster", "pebble", "quiver",
    "rocket", "silver", "tunnel", "velvet", "walnut",
)  # fmt: skip
UNITS = (
    ("kilometres", "metres", 1000),
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60),
    ("days", "hours", 24),
    ("weeks", "days", 7),
    ("kilograms", "grams", 1000),
    ("metres", "centimetres", 100),
    ("dozens", "pieces", 12),
)
Turns = Iterator[tuple[str, str]]
"""What is asked and what is right, turn by turn."""


@dataclass(frozen=True, kw_only=True)
class Config(SupervisedConfig):
    """A supervised run on chats."""

    chats: int = 1200
    """How many chats are made where no data are given; about a tenth of them is held out."""


DEFAULTS = Config(
    run_dir="runs/chat_sl",
    train_on=TrainOn.ALL_ASSISTANT,
    max_length=512,
    batch_size=32,
    epochs=1,
    learning_rate=5e-4,
    eval_every=8,
)


def main(argv: Sequence[str] | None = None) -> None:
    config = config_from(DEFAULTS, prog="loragym train chat_sl", description=__doc__, argv=argv)
    given = {field.name: getattr(config, field.name) for field in fields(SupervisedConfig)}
    if not config.data:
        folder = Path(config.run_dir).parent / f"chats-{config.chats}"
        if not folder.is_dir():
            write_chats(folder, config.chats)
        given |= {"data": str(folder), "test_split": "test"}
    summary = supervised.train(SupervisedConfig(**given))
    print_held_out(summary, {"test/nll": "nll, nats a token", "test/bits_per_byte": "bits per byte"})
    print(f"{summary['conversations']} conversations, {summary['trained_tokens_per_second']:.0f} tokens/s trained\n")
    print(what_next(config.run_dir))


def write_chats(folder: Path, count: int) -> None:
    """Writes train.jsonl and test.jsonl; a chat's opening question decides where it goes."""
    made = [chat(np.random.default_rng([count, number])) for number in range(count)]
    for split in ("test", "train"):
        rows = [{"messages": m} for m in made if is_held_out(m[0]["content"]) == (split == "test")]
        write_rows(folder / f"{split}.jsonl", rows)


def chat(rng: np.random.Generator) -> list[Message]:
    """A chat of two to five turns about one or two things."""
    messages: list[Message] = []
    for kind in rng.permutation(len(KINDS))[: int(rng.integers(1, 3))]:
        for asked, said in KINDS[kind](rng):
            messages += [user(asked), assistant(said)]
    return messages


def sums(rng: np.random.Generator) -> Turns:
    x, y, z = (int(n) for n in rng.integers(2, 50, size=3))
    yield f"What is {x} plus {y}?", f"{x} plus {y} is {x + y}."
    yield f"And if I add {z} more?", f"Then it is {x + y + z}."
    if rng.random() < 0.5:
        yield "Is that an even number?", "Yes, it is even." if (x + y + z) % 2 == 0 else "No, it is odd."


def days(rng: np.random.Generator) -> Turns:
    today, later = int(rng.integers(7)), int(rng.integers(2, 20))
    day = DAYS[(today + later) % 7]
    yield f"Today is {DAYS[today]}. Which day is it in {later} days?", f"In {later} days it is {day}."
    yield "And the day before that?", f"The day before is {DAYS[(today + later - 1) % 7]}."


def months(rng: np.random.Generator) -> Turns:
    at, later = int(rng.integers(12)), int(rng.integers(1, 11))
    found = (at + later) % 12
    yield f"Which month is {later} months after {MONTHS[at]}?", f"It is {MONTHS[found]}."
    yield "How many days does it have in a common year?", f"{MONTHS[found]} has {LENGTHS[found]} days."


def letters(rng: np.random.Generator) -> Turns:
    word = WORDS[int(rng.integers(len(WORDS)))]
    place = int(rng.integers(1, 5))
    yield f"How many letters are in the word {word}?", f"The word {word} has {len(word)} letters."
    ordinal = ("first", "second", "third", "fourth")[place - 1]
    yield f"What is its {ordinal} letter?", f"The {ordinal} letter is {word[place - 1]}."
    yield "And its last one?", f"The last letter is {word[-1]}."


def units(rng: np.random.Generator) -> Turns:
    large, small, factor = UNITS[int(rng.integers(len(UNITS)))]
    count, more = int(rng.integers(2, 13)), int(rng.integers(2, 6))
    yield f"How many {small} are {count} {large}?", f"{count} {large} are {count * factor} {small}."
    yield f"And {count + more} {large}?", f"{count + more} {large} are {(count + more) * factor} {small}."


def larger(rng: np.random.Generator) -> Turns:
    x, y = (int(n) for n in rng.choice(np.arange(10, 1000), size=2, replace=False))
    yield f"Which is larger, {x} or {y}?", f"{max(x, y)} is larger."
    yield "By how much?", f"It is larger by {abs(x - y)}."


KINDS: tuple[Callable[[np.random.Generator], Turns], ...] = (sums, days, months, letters, units, larger)


if __name__ == "__main__":
    main()
