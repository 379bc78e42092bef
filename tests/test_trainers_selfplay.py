"""Self-play: one trajectory per seat, each with its own words and rewards, whoever finishes first."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from floors import imports
from loragym.agents import AdamParams, BaseModel, LoraConfig, SamplingParams
from loragym.agents.testing import tiny_model
from loragym.envs.games.kuhn_poker import CARDS
from loragym.envs.games.table import Table
from loragym.envs.games.tables import TABLES
from loragym.envs.games.tic_tac_toe import best_moves
from loragym.messages import Message
from loragym.renderers import get_renderer
from loragym.trainers import Game, Speaker, Task, against, everywhere, play_games, seat_groups
from loragym.trainers import selfplay as selfplay_module
from loragym.trainers.data import agreement_metrics, episode_datums, episode_metrics, training_data
from loragym.trainers.selfplay import finished, game_metrics
from scripted_sampler import END, TOKENIZER, ScriptedSampler, encode

RENDERER = get_renderer(TOKENIZER)
PARAMS = SamplingParams(max_tokens=16)


def speaker(sampler: Any, *, context_length: int = 10**6, **options: Any) -> Speaker:
    return Speaker(sampler=sampler, renderer=RENDERER, params=PARAMS, context_length=context_length, **options)


def board_in(prompt: str) -> str:
    """The state of tic-tac-toe in a prompt's last message."""
    last = prompt.rsplit("user\n", 1)[-1]
    return "".join(re.findall(r"[XO1-9]", last.split("You are")[0]))


def free_cell(prompt: str, params: SamplingParams) -> str:
    """A free cell by the request's own random numbers."""
    cells = [cell for cell in board_in(prompt) if cell.isdigit()]
    assert params.seed is not None
    return cells[params.seed % len(cells)]


def perfect(prompt: str, params: SamplingParams) -> str:
    return best_moves(board_in(prompt))[0]


def acts(prompt: str, params: SamplingParams) -> str:
    """Plays Kuhn poker at random."""
    assert params.seed is not None
    choices = re.findall(r"Say (\w+) or (\w+)\.", prompt)[-1]
    return choices[params.seed % 2]


def tic_tac_toe(*seeds: int, **kwargs: Any) -> list[Task]:
    return [Task("loragym/TicTacToe-v0", kwargs, seed) for seed in seeds]


def kuhn(*seeds: int, **kwargs: Any) -> list[Task]:
    return [Task("KuhnPoker-v0", kwargs, seed) for seed in seeds]


def said_in(game: Game, seat: str) -> list[str]:
    return [TOKENIZER.decode(turn.tokens[:-1]) for turn in game.episodes[seat].turns]


def as_data(games: Sequence[Sequence[Game]]) -> list[Any]:
    return [
        (game.players, game.scores, game.record, {seat: (e.turns, e.messages) for seat, e in game.episodes.items()})
        for alike in games
        for game in alike
    ]


def test_every_seat_has_its_own_trajectory_with_its_own_words_and_the_games_reward_at_its_last() -> None:
    games = play_games(tic_tac_toe(*range(8)), 2, everywhere(speaker(ScriptedSampler(free_cell))), seed=(0,))
    outcomes = set()
    for game in (game for alike in games for game in alike):
        moves = [line.split(": ")[1] for line in game.record if re.fullmatch("[XO]: .", line)]
        assert said_in(game, "X") == moves[::2] and said_in(game, "O") == moves[1::2]
        for seat, episode in game.episodes.items():
            assert [turn.reward for turn in episode.turns[:-1]] == [0.0] * (len(episode.turns) - 1)
            assert episode.reward == episode.turns[-1].reward == game.scores[seat]
            assert episode.stop_reason == game.stop_reason == "completed"
            assert episode.metrics["illegal"] == 0.0 and episode.metrics["moves"] == len(episode.turns)
            roles = [message["role"] for message in episode.messages]
            assert roles == ["system", *["user", "assistant"] * len(episode.turns), "user"]
        assert sum(game.scores.values()) == 0.0
        outcomes.add(game.scores["X"])
    assert outcomes >= {1.0, -1.0}


def test_prompts_extend_what_was_said_before_to_the_token_and_the_mask_is_on_sampled_tokens_alone() -> None:
    ((game,),) = play_games(tic_tac_toe(3), 1, everywhere(speaker(ScriptedSampler(free_cell))), seed=(0,))
    for seat, episode in game.episodes.items():
        for turn, following in itertools.pairwise(episode.turns):
            before = [*turn.prompt, *turn.tokens]
            assert following.prompt[: len(before)] == before
        (datum,) = episode_datums(episode, 1.0)
        trained = [target for target, mask in zip(datum.targets, datum.mask, strict=True) if mask]
        assert trained == [token for turn in episode.turns for token in turn.tokens]
        assert trained == [token for text in said_in(game, seat) for token in [*encode(text), END]]
        assert [a for a, mask in zip(datum.advantages, datum.mask, strict=True) if not mask] == [0.0] * sum(
            not mask for mask in datum.mask
        )


def test_no_seats_tokens_hold_the_others_card() -> None:
    games = play_games(kuhn(*range(12)), 2, everywhere(speaker(ScriptedSampler(acts))), seed=(5,))
    for game in (game for alike in games for game in alike):
        cards = re.findall(r"jack|queen|king", game.record[0])
        for seat, own, other in (("first", *cards), ("second", *reversed(cards))):
            last = game.episodes[seat].turns[-1]
            # The rules name all cards.
            heard = TOKENIZER.decode([*last.prompt, *last.tokens]).split("nothing else.")[1]
            assert f"Your card is the {own}." in heard and other not in heard
    assert {tuple(game.players.values()) for alike in games for game in alike} == {("policy", "policy")}
    assert set(CARDS) == {"jack", "queen", "king"}


def test_a_group_is_one_deal_and_one_seat() -> None:
    games = play_games(kuhn(1, 2, 3), 4, everywhere(speaker(ScriptedSampler(acts))), seed=(0,))
    groups = seat_groups(games)
    assert len(groups) == 3 * 2 and all(len(group.episodes) == 4 for group in groups)
    for group in groups:
        openings = {episode.messages[0]["content"] + episode.messages[1]["content"][:25] for episode in group.episodes}
        assert len(openings) == 1
    assert [group.task.seed for group in groups] == [1, 1, 2, 2, 3, 3]
    data, metrics = training_data(groups)
    mixed = [group for group in groups if len(set(group.rewards)) > 1]
    assert mixed and len(data) == 4 * len(mixed) and metrics == {"groups/dropped": float(6 - len(mixed))}
    for group in mixed:
        advantages = np.array(group.rewards) - np.mean(group.rewards)
        first = data[4 * mixed.index(group)]
        assert max(first.advantages, key=abs) == pytest.approx(advantages[0])
    assert episode_metrics(groups)["episodes"] == 24.0


def test_replies_do_not_depend_on_who_finishes_first() -> None:
    tasks = [*tic_tac_toe(0, 1), *kuhn(2, 3)]

    def answer(prompt: str, params: SamplingParams) -> str:
        return free_cell(prompt, params) if "tic-tac-toe" in prompt else acts(prompt, params)

    expected = play_games(tasks, 3, everywhere(speaker(ScriptedSampler(answer))), seed=(7,))
    for order, at_once in ((random.Random(1), 1), (random.Random(2), 5), (None, 100)):
        sampler = ScriptedSampler(answer, order=order, at_once=at_once)
        assert as_data(play_games(tasks, 3, everywhere(speaker(sampler)), seed=(7,))) == as_data(expected)
    assert as_data(play_games(tasks, 3, everywhere(speaker(ScriptedSampler(answer))), seed=(8,))) != as_data(expected)


def test_every_reply_of_every_seat_draws_from_its_own_random_numbers() -> None:
    sampler = ScriptedSampler(free_cell)
    games = play_games(tic_tac_toe(0, 1), 3, everywhere(speaker(sampler)), seed=(0,))
    replies = sum(len(episode.turns) for alike in games for game in alike for episode in game.episodes.values())
    assert len({params.seed for params in sampler.seen}) == len(sampler.seen) == replies
    assert {params.stop for params in sampler.seen} == {tuple(RENDERER.stop_sequences)}


def test_games_are_played_at_once() -> None:
    class Counting(ScriptedSampler):
        most = 0

        def step(self) -> dict[int, Any]:
            self.most = max(self.most, self.pending)
            return super().step()

    sampler = Counting(free_cell)
    play_games(tic_tac_toe(*range(5)), 4, everywhere(speaker(sampler)), seed=(0,))
    assert sampler.most == 20


def test_another_policy_plays_the_other_seat_and_only_the_learners_episodes_are_taken() -> None:
    learner, frozen = ScriptedSampler(free_cell), ScriptedSampler(perfect, order=random.Random(0), at_once=3)
    table = {"X": speaker(learner), "O": speaker(frozen, name="step-100")}
    games = play_games(tic_tac_toe(*range(6)), 2, table, seed=(0,))
    assert learner.seen and frozen.seen
    assert all(game.players == {"X": "policy", "O": "step-100"} for alike in games for game in alike)
    assert all(game.scores["O"] >= 0 for alike in games for game in alike)
    groups = seat_groups(games)
    assert [len(group.episodes) for group in groups] == [2] * 6
    assert all("you are X" in episode.messages[0]["content"] for group in groups for episode in group.episodes)
    assert len(seat_groups(games, "step-100")) == 6 and len(seat_groups(games, "policy", "step-100")) == 12
    metrics = game_metrics(games)
    assert metrics["score/step-100/O"] == -metrics["score/policy/X"] == metrics["score/O"] >= 0
    assert metrics["games"] == 12.0 and metrics["games/ended_illegally"] == 0.0


def first_cell(messages: tuple[Message, ...]) -> str:
    return next(c for c in messages[-1]["content"] if c.isdigit())


def test_a_casting_goes_round_seats_and_opponents_and_groups_are_of_like_players() -> None:
    casting = against(speaker(ScriptedSampler(free_cell)), "random", first_cell)
    games = play_games(tic_tac_toe(0, 1), 8, casting, seed=(0,))
    players = [tuple(game.players.values()) for game in games[0]]
    four = [("policy", "random"), ("random", "policy"), ("policy", "first_cell"), ("first_cell", "policy")]
    assert players == four * 2
    groups = seat_groups(games)
    assert [len(group.episodes) for group in groups] == [2] * 8
    assert all(list(game.episodes) == [s for s, p in game.players.items() if p == "policy"] for game in games[0])
    with pytest.raises(ValueError, match="no opponents"):
        against(speaker(ScriptedSampler(free_cell)))


def test_scripts_meet_a_group_with_the_same_random_numbers() -> None:
    """A sampler that always says the same meets the same game in every member: the world is the task's seed."""
    sampler = ScriptedSampler(lambda prompt, params: next(c for c in board_in(prompt) if c.isdigit()))
    games = play_games(tic_tac_toe(*range(8)), 3, {"X": speaker(sampler), "O": "random"}, seed=(0,))
    records = [{game.record for game in alike} for alike in games]
    assert all(len(alike) == 1 for alike in records)
    assert len(set.union(*records)) > 3


def test_an_illegal_reply_is_paid_and_counted_by_the_tables_rule() -> None:
    sampler = ScriptedSampler(lambda prompt, _: "5" if "you are X" in prompt else "mumble")
    ((game,),) = play_games(tic_tac_toe(0), 1, everywhere(speaker(sampler)), seed=(0,))
    assert game.scores == {"X": 1.0, "O": -1.0} and game.stop_reason == "illegal"
    assert [game.episodes[seat].metrics["illegal"] for seat in "XO"] == [0.0, 1.0]
    assert game_metrics([[game]])["games/ended_illegally"] == 1.0
    ((game,),) = play_games(tic_tac_toe(0, illegal="retry:2"), 1, everywhere(speaker(sampler)), seed=(0,))
    assert said_in(game, "O") == ["mumble"] * 3
    assert "try again" in game.episodes["O"].messages[3]["content"]


def test_a_reply_that_was_cut_off_is_illegal() -> None:
    sampler = ScriptedSampler(lambda *_: "5", cut_off=1)
    ((game,),) = play_games(tic_tac_toe(0), 1, everywhere(speaker(sampler)), seed=(0,))
    assert game.stop_reason == "illegal" and game.scores["X"] == -1.0
    assert TOKENIZER.decode(game.episodes["X"].turns[0].tokens) == "5"


def test_a_seat_that_never_spoke_has_an_episode_and_no_part_in_the_lesson() -> None:
    sampler = ScriptedSampler(lambda *_: "mumble")
    games = play_games(tic_tac_toe(0), 2, everywhere(speaker(sampler)), seed=(0,))
    for game in games[0]:
        assert game.episodes["O"].turns == [] and game.episodes["O"].reward == 1.0
        assert game.episodes["X"].reward == -1.0
    (group,) = seat_groups(games)
    assert group.rewards == [-1.0, -1.0]


def test_a_seat_that_outgrows_its_context_says_nothing_and_the_others_game_goes_on() -> None:
    sampler = ScriptedSampler(free_cell)
    players = {"X": speaker(sampler, context_length=400), "O": speaker(ScriptedSampler(free_cell), name="other")}
    for rule in ("lose", "retry:1", "random"):
        games = play_games(tic_tac_toe(*range(6), illegal=rule), 1, players, seed=(0,))
        short = [game for (game,) in games if game.episodes["X"].stop_reason == "context"]
        assert len(short) > 2
        for game in short:
            episode = game.episodes["X"]
            assert all(len(turn.prompt) < 400 for turn in episode.turns)
            assert episode.metrics["illegal"] >= 1.0
            assert episode.reward == game.scores["X"] == episode.turns[-1].reward
            assert game.episodes["O"].stop_reason == game.stop_reason
            assert game.stop_reason == ("completed" if rule == "random" else "illegal")


def test_mistakes_are_named_with_the_game() -> None:
    learner = speaker(ScriptedSampler(free_cell))
    with pytest.raises(ValueError, match=r"nobody sits in \['O'\]"):
        play_games(tic_tac_toe(0), 1, {"X": learner}, seed=(0,))
    with pytest.raises(ValueError, match=r"there are no seats \['Z'\]"):
        play_games(tic_tac_toe(0), 1, {"X": learner, "O": learner, "Z": learner}, seed=(0,))
    with pytest.raises(ValueError, match="no table 'Chess-v0'"):
        play_games([Task("Chess-v0", {}, 0)], 1, everywhere(learner), seed=(0,))

    def broken(messages: tuple[Message, ...]) -> str:
        raise ZeroDivisionError("the opponent is broken")

    with pytest.raises(ZeroDivisionError, match="the opponent is broken") as caught:
        play_games(tic_tac_toe(4), 1, {"X": learner, "O": broken}, seed=(0,))
    (note,) = caught.value.__notes__
    assert "in a game of loragym/TicTacToe-v0 with {}, seed 4, between {'X': 'policy'" in note
    assert note.endswith("after 1 replies of models")


def test_the_trainers_need_pettingzoo_only_when_games_are_played() -> None:
    path = Path(selfplay_module.__file__)
    at_once = [found for found in imports(path.read_text(), ("loragym", "trainers", "selfplay.py")) if not found.lazy]
    assert not [found.module for found in at_once if "games" in found.module or "pettingzoo" in found.module]


class Pick(Table[tuple[str, ...]]):
    """Both name a character, the first one that they say; the greater one wins."""

    seats = ("left", "right")

    def deal(self, rng: np.random.Generator) -> tuple[str, ...]:
        return ()

    def turn(self, state: tuple[str, ...]) -> str:
        return self.seats[len(state)]

    def legal_moves(self, state: tuple[str, ...]) -> Sequence[str]:
        return [chr(code) for code in range(ord("!"), ord("~") + 1)]

    def read(self, state: tuple[str, ...], text: str) -> str | None:
        return next((character for character in text if "!" <= character <= "~"), None)

    def play(self, state: tuple[str, ...], move: str) -> tuple[str, ...]:
        return (*state, move)

    def scores(self, state: tuple[str, ...]) -> Sequence[float] | None:
        if len(state) < 2:
            return None
        left, right = state
        return [float(left > right) - float(left < right), float(right > left) - float(right < left)]

    def rules(self, seat: str) -> str:
        return "One character."

    def view(self, state: tuple[str, ...], seat: str) -> str:
        return "?"


@pytest.fixture
def pick() -> Any:
    TABLES["tests/Pick-v0"] = Pick
    yield
    del TABLES["tests/Pick-v0"]


def test_a_model_learns_from_games_against_itself_and_against_what_it_was(pick: None) -> None:
    """End to end: sample both seats with the policy, one seat with a frozen adapter, and take a step on each."""
    base = BaseModel(*tiny_model(1))
    renderer = get_renderer(base.tokenizer)
    policy, old = base.add_lora("policy", LoraConfig(rank=4)), base.add_lora("old", LoraConfig(rank=4))
    params = SamplingParams(max_tokens=48)

    def sits(adapter: Any, name: str) -> Speaker:
        return Speaker(
            sampler=adapter.sampler(), renderer=renderer, params=params, context_length=base.context_length, name=name
        )

    tasks = [Task("tests/Pick-v0", {"illegal": "retry:5"}, seed) for seed in range(2)]
    learner = sits(policy, "policy")
    for step, casting in enumerate((everywhere(learner), against(learner, sits(old, "old")))):
        games = play_games(tasks, 6, casting, seed=(0, step))
        groups = seat_groups(games)
        assert len(groups) == 4  # both seats of every deal
        data, _ = training_data(groups)
        assert data
        sampled = [token for group in groups for e in group.episodes for turn in e.turns for token in turn.tokens]
        kept = [token for datum in data for token, mask in zip(datum.targets, datum.mask, strict=True) if mask]
        assert 0 < len(kept) <= len(sampled)
        out = policy.forward_backward(data, "importance_sampling")
        figures = agreement_metrics(data, out.logprobs)
        if step == 0:
            assert figures["ratio_min"] == pytest.approx(1, abs=1e-4)
            assert figures["ratio_max"] == pytest.approx(1, abs=1e-4)
        assert policy.optim_step(AdamParams(learning_rate=1e-3))["grad_norm"] > 0
        learner = sits(policy, "policy")


class Flaky:
    """An opponent that moves like `best_moves`, but first fails so many times."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    def __call__(self, messages: Sequence[Message]) -> str:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the opponent is gone")
        return best_moves(board_in(f"user\n{messages[-1]['content']}"))[0]


def flaky_games(failures: int, retries: int | None, group_size: int = 4) -> list[list[Game]]:
    casting = against(speaker(ScriptedSampler(free_cell)), Flaky(failures))
    return play_games(tic_tac_toe(0, 1), group_size, casting, seed=(0,), retries=retries)


def test_a_game_that_its_world_breaks_off_is_played_again_and_comes_out_the_same() -> None:
    undisturbed = flaky_games(0, None)
    games = flaky_games(2, 2)
    assert as_data(games) == as_data(undisturbed)
    assert [game.errors for alike in undisturbed for game in alike] == [[]] * 8
    errors = [error for alike in games for game in alike for error in game.errors]
    assert len(errors) == 2 and all("ConnectionError: the opponent is gone" in error for error in errors)
    assert "in a game of loragym/TicTacToe-v0" in errors[0]
    metrics = game_metrics(games)
    assert (metrics["errors/retried"], metrics["errors/dropped"], metrics["games"]) == (2, 0, 8)
    assert "errors/retried" not in game_metrics(undisturbed)


def test_a_game_that_fails_too_often_is_given_up_and_counted() -> None:
    # In the second game the opponent moves first, so all three failures are that game's.
    casting = against(speaker(ScriptedSampler(free_cell)), Flaky(3))
    games = play_games(tic_tac_toe(0), 2, casting, seed=(0,), retries=2)
    ((left, given_up),) = games
    assert given_up.stop_reason == "error" and len(given_up.errors) == 3
    assert given_up.episodes == given_up.scores == {}
    assert finished(games) == [[left]]
    assert left.stop_reason == "completed"
    assert [len(group.episodes) for group in seat_groups(finished(games))] == [1]
    metrics = game_metrics(games)
    assert (metrics["errors/retried"], metrics["errors/dropped"], metrics["games"]) == (2, 1, 1)


def test_without_retries_an_error_passes_through_and_without_games_there_is_one() -> None:
    with pytest.raises(ConnectionError, match="the opponent is gone") as raised:
        flaky_games(1, None)
    assert "seed 0" in raised.value.__notes__[0]
    games = flaky_games(10**6, 1)
    for judge in (finished, game_metrics):
        with pytest.raises(RuntimeError, match="every game ended with an error of the table's, 16 in all: Connection"):
            judge(games)


def test_an_error_of_the_samplers_is_not_the_worlds() -> None:
    class Broken(ScriptedSampler):
        def submit(self, *_: Any, **__: Any) -> int:
            raise ValueError("no such prompt")

    with pytest.raises(ValueError, match="no such prompt"):
        play_games(tic_tac_toe(0), 1, everywhere(speaker(Broken(free_cell))), seed=(0,), retries=5)
