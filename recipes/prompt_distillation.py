"""A long instruction becomes part of the weights: afterwards its prompt can be left out.

The teacher reads a system message and worked examples, some four hundred tokens, and says what a sentence is about. The
student reads the sentence alone, and learns to say what the teacher would: on the student's own replies, from the
teacher's whole distribution. No label is used: the recipe knows the topics, only to report how often each is right.

    python -m loragym.recipes.prompt_distillation
    python -m loragym.recipes.prompt_distillation --mode off_policy --run-dir runs/prompt-distillation-off
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from loragym.envs.datasets import write_rows
from loragym.envs.splits import hash_position
from loragym.messages import Message, assistant, user
from loragym.trainers import DistillationConfig, distillation
from loragym.trainers.command_line import play_config
from loragym.trainers.display import what_next
from loragym.trainers.reports import print_held_out

PARTS: dict[str, tuple[str, str]] = {
    "food": (
        "The soup|My breakfast|The bread|This cheese|The roast chicken|Her apple pie|The salad|Grandmother's stew|"
        "The pizza|Our dinner|The chocolate cake|His pancake",
        "needs more salt|is still too hot to eat|tastes of garlic|was made with butter|has burned in the oven|"
        "smells delicious|is served with rice|comes with a glass of milk|is sweeter than last time|has been eaten up",
    ),
    "animals": (
        "The horse|Our dog|A grey wolf|The old cat|A swarm of bees|The neighbour's rabbit|A young elephant|The parrot|"
        "A brown bear|The sheep|The squirrel|A large spider",
        "hides in the bushes|is hungry again|has a thick winter coat|ran away from the farm|drinks from the river|"
        "protects its young|was bitten by a snake|sleeps in the barn|scratched at the door|lives in the forest",
    ),
    "weather": (
        "Heavy rain|Fog|A cold wind|The storm|Snow|The heat|Thunder and lightning|A warm breeze|Hail|The drizzle|"
        "Freezing rain|A grey sky",
        "is expected tomorrow|will last all week|came from the north|covered the whole valley|has moved on at last|"
        "was forecast for Sunday|surprised us this morning|is usual in April|will return in the evening|"
        "made the roads slippery",
    ),
    "travel": (
        "The train to Berlin|Our plane|The night bus|The ferry|Her suitcase|The taxi|My passport|The hotel by the sea|"
        "Our tour guide|The airport|The next flight|Our holiday",
        "was late again|is waiting at the terminal|was booked in March|cost more than we thought|was cancelled|"
        "takes us to the coast|is on the way to Spain|has to be changed in Paris|was stopped at the border|"
        "will be remembered for years",
    ),
    "sports": (
        "The goalkeeper|Our team|The tennis player|The marathon runner|The coach|The young swimmer|The boxer|"
        "The final match|The referee|The cyclist|The national league|The gymnast",
        "won the gold medal|trained hard for the season|lost in the last minute|broke the world record|"
        "was injured in the second half|scored a point|was cheered by the fans|made it to the championship|"
        "left the field|is ahead by two goals",
    ),
    "music": (
        "The violinist|A famous choir|The guitar|Her favourite song|The orchestra|The old piano|The drummer|This album|"
        "A jazz band|The singer|The opera|His trumpet",
        "is out of tune|was heard on the radio|played until midnight|opened the concert|has a sad melody|"
        "was recorded in a studio|sounds better every time|is known for its rhythm|got a standing ovation|"
        "rehearses on Fridays",
    ),
}  # fmt: skip
SYSTEM = (
    "You sort sentences by topic. You are given one sentence, and you answer with one word, which is the topic that "
    "fits it best. The topics are: food (meals, drinks, cooking), animals (pets, farm animals, wild animals), weather "
    "(rain, snow, wind, heat), travel (trains, planes, ships, hotels), sports (teams, matches, records), music (songs, "
    "concerts, instruments). You never explain your choice, you never repeat the sentence, and you write the word in "
    "small letters without a full stop. If a sentence fits two topics, you choose the one that it says more about."
)
EXAMPLES = (
    ("The potatoes are boiling.", "food"),
    ("My hamster sleeps all day.", "animals"),
    ("It has been raining since Tuesday.", "weather"),
    ("We drove to Italy in spring.", "travel"),
    ("She scored twice in the last match.", "sports"),
    ("He practises the flute every evening.", "music"),
    ("The eagle caught a mouse.", "animals"),
    ("Bake the biscuits for ten minutes.", "food"),
    ("The sun will shine tomorrow.", "weather"),
    ("The ship reached the harbour.", "travel"),
    ("The symphony has four movements.", "music"),
    ("They lost the relay race.", "sports"),
)


def sentences() -> dict[str, str]:
    """All sentences with their topics."""
    return {
        f"{subject} {predicate}.": topic
        for topic, (subjects, predicates) in PARTS.items()
        for subject in subjects.split("|")
        for predicate in predicates.split("|")
    }


def rows(split: str) -> list[dict[str, str]]:
    """Prompts of a split, `train` or `test` (a fifth, chosen by the sentence itself), with the topic as reference."""
    return [
        {"prompt": sentence, "reference": topic}
        for sentence, topic in sentences().items()
        if (hash_position(sentence) < 0.2) == (split == "test")
    ]


def worked_examples() -> list[Message]:
    """What the teacher reads between its system message and the sentence."""
    return [message for sentence, topic in EXAMPLES for message in (user(sentence), assistant(topic))]


def names_the_topic(conversation: tuple[Message, ...], row: Mapping[str, str]) -> float:
    """1 if the reply is the topic's name and nothing else."""
    return float(conversation[-1]["content"].strip() == row["reference"])


DEFAULTS = DistillationConfig(
    run_dir="runs/prompt_distillation",
    env="loragym/Prompts-v0",
    mode="full",
    steps=30,
    problems_per_step=24,
    group_size=2,
    max_tokens=8,
    learning_rate=5e-4,
    schedule="linear",
    eval_every=10,
    eval_problems=96,
    teachers=[{"system": SYSTEM, "messages": worked_examples()}],
)


def main(argv: Sequence[str] | None = None) -> None:
    config = play_config(DEFAULTS, "prompt_distillation", __doc__, argv)
    if config.env == DEFAULTS.env and not config.env_kwargs:
        data = Path(config.run_dir).parent / f"{Path(config.run_dir).name}-data"
        for split in ("train", "test"):
            write_rows(data / f"{split}.jsonl", rows(split))
        reward = "loragym.recipes.prompt_distillation:names_the_topic"
        config = replace(config, env_kwargs={"data": str(data), "reward": reward})
    summary = distillation.train(config)
    print_held_out(
        summary,
        {
            "test/agreement": "same reply as the teacher",
            "test/teacher_kl": "KL to the teacher, a token",
            "test/greedy/reward": "right topic, student",
            "test/teacher/reward": "right topic, teacher",
            "test/prompt_tokens": "prompt tokens, student",
            "test/teacher/prompt_tokens": "prompt tokens, teacher",
        },
    )
    print(what_next(config.run_dir))


if __name__ == "__main__":
    main()
