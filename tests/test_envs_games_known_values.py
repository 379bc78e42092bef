"""Games have the values that are known of them, and rules that agree with independent implementations."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loragym.envs.games.bargaining import ITEMS, Bargain, Bargaining, all_counts, rest, worth_of
from loragym.envs.games.connect_four import ConnectFour, Grid, Stones
from loragym.envs.games.kuhn_poker import CARDS, Hand, KuhnPoker, equilibrium_action
from loragym.envs.games.seat import Seat
from loragym.envs.games.table import Table, random_move
from loragym.envs.games.tic_tac_toe import CELLS, TicTacToe, best_moves, value


def played(table: Table[Any], players: dict[str, str], seed: int) -> dict[str, float]:
    """The scores of one game between scripts."""
    rng = np.random.default_rng(seed)
    table.reset(seed=seed)
    while not any(table.terminations.values()):
        table.step(table.scripts[players[table.agent_selection]](table, rng))
    return dict(table.rewards)


# Tic-tac-toe

WINS = [(0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6)]


def grid_winner(cells: list[int]) -> int:
    return next((cells[a] for a, b, c in WINS if cells[a] and cells[a] == cells[b] == cells[c]), 0)


def test_the_rules_of_tic_tac_toe_agree_with_a_grid_of_numbers_in_every_position() -> None:
    """All 5,478 positions that can be reached, 958 of them ends: figures known of the game."""
    table = TicTacToe()
    seen: dict[str, list[int]] = {CELLS: [0] * 9}
    unseen = [CELLS]
    ends = 0
    while unseen:
        state = unseen.pop()
        cells = seen[state]
        player = 1 if cells.count(1) == cells.count(2) else 2
        winner, full = grid_winner(cells), 0 not in cells
        expected = None if not winner and not full else [0.0, 0.0] if not winner else [1.0, -1.0][:: 3 - 2 * winner]
        assert table.scores(state) == expected
        assert set(table.legal_moves(state)) == {str(cell + 1) for cell in range(9) if not cells[cell]}
        if expected is not None:
            ends += 1
            continue
        assert table.turn(state) == " XO"[player]
        for cell in range(9):
            if not cells[cell]:
                after = table.play(state, str(cell + 1))
                if after not in seen:
                    seen[after] = [*cells[:cell], player, *cells[cell + 1 :]]
                    unseen.append(after)
                assert seen[after] == [*cells[:cell], player, *cells[cell + 1 :]]
    assert (len(seen), ends) == (5478, 958)


def test_perfect_play_draws_whatever_the_best_moves_chosen() -> None:
    def outcomes(state: str) -> set[tuple[float, ...]]:
        if (scores := table.scores(state)) is not None:
            return {tuple(scores)}
        return set().union(*(outcomes(table.play(state, move)) for move in best_moves(state)))

    table = TicTacToe()
    assert value(CELLS) == 0
    assert outcomes(CELLS) == {(0.0, 0.0)}
    assert all(played(TicTacToe(), {"X": "optimal", "O": "optimal"}, seed)["X"] == 0 for seed in range(30))


@pytest.mark.parametrize("perfect", ["X", "O"])
def test_perfect_play_never_loses_whatever_the_other_does(perfect: str) -> None:
    """Every reply of the other from every opening, against every one of the best moves."""

    def worst(state: str) -> float:
        if state not in known:
            scores = table.scores(state)
            if scores is not None:
                known[state] = scores[table.seats.index(perfect)]
            else:
                moves = best_moves(state) if table.turn(state) == perfect else table.legal_moves(state)
                known[state] = min(worst(table.play(state, move)) for move in moves)
        return known[state]

    table, known = TicTacToe(), dict[str, float]()
    assert worst(CELLS) == 0.0
    # Looking through all of it found wins as well, so the search did not stop at draws.
    assert 1.0 in known.values() and -1.0 not in known.values()


def test_perfect_play_wins_at_once_where_it_can_and_holds_off_defeat() -> None:
    assert best_moves("XX3OO6789") == ("3",)
    assert best_moves("XX3O56789") == ("3",)
    assert best_moves("X2345678" + "9") == ("5",)


def test_the_seat_beats_the_random_opponent_and_draws_the_perfect_one_with_perfect_play() -> None:
    returns: dict[str, list[float]] = {"random": [], "optimal": []}
    for opponent, got in returns.items():
        env = Seat("TicTacToe-v0", opponents=opponent, seat="alternate")
        for seed in range(60):
            env.reset(seed=seed)
            over, total = False, 0.0
            while not over:
                _, reward, terminated, truncated, info = env.step(best_moves(env.table.state)[0])
                total, over = total + reward, terminated or truncated
            assert info["metrics"]["win"] == float(total > 0) and info["metrics"]["draw"] == float(total == 0)
            got.append(total)
    assert min(returns["random"]) >= 0 and np.mean(returns["random"]) > 0.8
    assert set(returns["optimal"]) == {0.0}


# Connect four


def four_in(cells: list[list[str]], mark: str) -> bool:
    columns, rows = len(cells), len(cells[0])
    for x, y, (dx, dy) in itertools.product(range(columns), range(rows), [(1, 0), (0, 1), (1, 1), (1, -1)]):
        line = [(x + dx * i, y + dy * i) for i in range(4)]
        if all(0 <= a < columns and 0 <= b < rows and cells[a][b] == mark for a, b in line):
            return True
    return False


@settings(max_examples=60, deadline=None)
@given(
    columns=st.integers(4, 9), rows=st.integers(4, 9), choices=st.lists(st.integers(0, 80), min_size=81, max_size=81)
)
def test_the_rules_of_connect_four_agree_with_a_grid_of_characters(columns: int, rows: int, choices: list[int]) -> None:
    table = ConnectFour(columns=columns, rows=rows)
    state = table.deal(np.random.default_rng(0))
    cells = [["."] * rows for _ in range(columns)]
    for turn, choice in enumerate(choices):
        open_columns = [column for column in range(columns) if cells[column][-1] == "."]
        mark = "XO"[turn % 2]
        over = four_in(cells, "X") or four_in(cells, "O") or not open_columns
        assert (table.scores(state) is not None) == over
        if over:
            break
        assert list(table.legal_moves(state)) == [str(column + 1) for column in open_columns]
        assert table.turn(state) == mark
        column = open_columns[choice % len(open_columns)]
        cells[column][cells[column].index(".")] = mark
        state = table.play(state, str(column + 1))
        shown = [" ".join(cells[x][y] for x in range(columns)) for y in range(rows - 1, -1, -1)]
        assert table.shown(state).splitlines()[1:] == shown
    winner = next((number for number, mark in enumerate("XO") if four_in(cells, mark)), None)
    scores = table.scores(state)
    if winner is not None:
        assert scores is not None and scores[winner] == 1.0 and sum(scores) == 0
    elif scores is not None:
        assert scores == [0.0, 0.0]


def after(table: ConnectFour, moves: str) -> Stones:
    state = table.deal(np.random.default_rng(0))
    for move in moves:
        state = table.play(state, move)
    return state


@pytest.mark.parametrize(
    ("moves", "best", "plies"),
    [
        ("414243", {"4"}, 1),  # three in a column: complete it
        ("41424", {"4"}, 2),  # the other's three in a column: stop it
        ("3141", {"2", "5"}, 3),  # two in the middle of an open row: a third one on either side wins
    ],
)
def test_the_search_wins_stops_and_looks_ahead(moves: str, best: set[str], plies: int) -> None:
    table = ConnectFour()
    table.reset(seed=0)
    table.state = after(table, moves)
    table.agent_selection = table.turn(table.state)
    said = {table.scripts[f"search-{plies}"](table, np.random.default_rng(seed)) for seed in range(10)}
    assert said <= best


def plain_minimax(table: ConnectFour, state: Stones, plies: int) -> float:
    """For who moves: 1 if it can force a win within so many moves, -1 if it must lose within them, else 0."""
    scores = table.scores(state)
    if scores is not None or plies == 0:
        return 0.0 if scores is None else scores[state.total % 2]
    return max(-plain_minimax(table, table.play(state, move), plies - 1) for move in table.legal_moves(state))


@settings(max_examples=25, deadline=None)
@given(st.text("12345", max_size=14))
def test_the_search_agrees_with_plain_minimax_on_what_is_won_and_lost(moves: str) -> None:
    table = ConnectFour(columns=5, rows=4)
    state = table.deal(np.random.default_rng(0))
    for move in moves:
        if table.scores(state) is None and move in table.legal_moves(state):
            state = table.play(state, move)
    if table.scores(state) is not None:
        return
    worths = {move: -plain_minimax(table, table.play(state, move), plies=3) for move in table.legal_moves(state)}
    chosen = {str(column + 1) for column in table.grid.best_columns(state.own, state.others, 4)}
    assert {worths[move] for move in chosen} == {max(worths.values())}


def test_the_search_beats_the_random_player_from_both_seats() -> None:
    wins = [played(ConnectFour(), {"X": "search-2", "O": "random"}, seed)["X"] for seed in range(12)]
    wins += [played(ConnectFour(), {"X": "random", "O": "search-2"}, seed)["O"] for seed in range(12)]
    assert np.mean(wins) > 0.9


def test_looking_further_ahead_plays_better() -> None:
    scores = [played(ConnectFour(), {"X": "search-1", "O": "search-4"}, seed)["O"] for seed in range(10)]
    scores += [played(ConnectFour(), {"X": "search-4", "O": "search-1"}, seed)["X"] for seed in range(10)]
    assert np.mean(scores) > 0.4


def test_a_line_does_not_run_on_into_the_next_column() -> None:
    grid = Grid(7, 6)
    stones = sum((grid.bits[0][3], grid.bits[0][4], grid.bits[0][5], grid.bits[1][0]))
    assert not grid.has_four(stones)
    assert len(grid.windows) == 69


# Kuhn poker


def exact_value(strategies: list[Any]) -> Fraction:
    """The first player's expectation, from a strategy for each seat: (card, actions) to chances, as fractions."""

    def expectation(hand: Hand) -> Fraction:
        if (scores := table.scores(hand)) is not None:
            return Fraction(scores[0])
        seat = len(hand.actions) % 2
        chances = strategies[seat](hand.cards[seat], hand.actions)
        assert set(chances) == set(table.legal_moves(hand)) and sum(chances.values()) == 1
        return sum((chance * expectation(table.play(hand, move)) for move, chance in chances.items()), Fraction(0))

    table = KuhnPoker()
    deals = list(itertools.permutations(range(3), 2))
    return sum((expectation(Hand(cards)) for cards in deals), Fraction(0)) / len(deals)


def as_fractions(alpha: Fraction, card: int, actions: tuple[str, ...]) -> dict[str, Fraction]:
    chances = equilibrium_action(card, actions, float(alpha))
    exact = {move: Fraction(chance).limit_denominator(1000) for move, chance in chances.items()}
    assert all(math.isclose(exact[move], chance) for move, chance in chances.items())
    return exact


ALPHAS = [Fraction(0), Fraction(1, 6), Fraction(1, 5), Fraction(1, 3)]


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_equilibrium_is_worth_minus_one_eighteenth_to_the_first_player(alpha: Fraction) -> None:
    strategy = partial(as_fractions, alpha)
    assert exact_value([strategy, strategy]) == Fraction(-1, 18)


def pure(choice: tuple[int, ...], places: list[tuple[str, ...]]) -> Any:
    """A strategy without chance: bold or timid for each card and place."""

    def strategy(card: int, actions: tuple[str, ...]) -> dict[str, Fraction]:
        bold, timid = ("call", "fold") if "bet" in actions else ("bet", "check")
        bolds = Fraction(choice[card * len(places) + places.index(actions)])
        return {bold: bolds, timid: 1 - bolds}

    return strategy


@pytest.mark.parametrize("alpha", ALPHAS)
def test_nobody_gains_by_leaving_the_equilibrium(alpha: Fraction) -> None:
    """All 64 strategies without chance of either seat, against the equilibrium of the other."""
    equilibrium = partial(as_fractions, alpha)
    choices = list(itertools.product((0, 1), repeat=6))
    firsts = [pure(choice, [(), ("check", "bet")]) for choice in choices]
    seconds = [pure(choice, [("check",), ("bet",)]) for choice in choices]
    assert max(exact_value([first, equilibrium]) for first in firsts) == Fraction(-1, 18)
    assert min(exact_value([equilibrium, second]) for second in seconds) == Fraction(-1, 18)


def test_a_strategy_outside_the_family_can_be_exploited() -> None:
    """So the test above can fail: alpha = 1/2 is no equilibrium."""
    beyond = partial(as_fractions, Fraction(1, 3))

    def too_bold(card: int, actions: tuple[str, ...]) -> dict[str, Fraction]:
        if card == 0 and not actions:
            return {"bet": Fraction(1), "check": Fraction(0)}
        return beyond(card, actions)

    seconds = [pure(choice, [("check",), ("bet",)]) for choice in itertools.product((0, 1), repeat=6)]
    assert min(exact_value([too_bold, second]) for second in seconds) < Fraction(-1, 18)


@pytest.mark.parametrize("script", ["equilibrium", "equilibrium-0", "equilibrium-1/3"])
def test_played_out_the_equilibrium_is_worth_the_same_within_sampling_error(script: str) -> None:
    games = 4000
    scores = np.array(
        [played(KuhnPoker(), {"first": script, "second": script}, seed)["first"] for seed in range(games)]
    )
    error = scores.std() / math.sqrt(games)
    assert abs(scores.mean() + 1 / 18) < 4 * error


def test_all_six_deals_are_alike() -> None:
    table = KuhnPoker()
    deals = [table.deal(np.random.default_rng(seed)).cards for seed in range(1200)]
    counts = [deals.count(cards) for cards in itertools.permutations(range(3), 2)]
    assert sum(counts) == 1200 and min(counts) > 140


def test_no_seat_is_told_anything_that_depends_on_the_others_card_before_its_score_does() -> None:
    """Whatever the other holds, a seat with the same card hears the same words to the end, but for what it is paid."""
    lines = [("check", "check"), ("bet", "fold"), ("bet", "call"), ("check", "bet", "fold"), ("check", "bet", "call")]
    for own, line, seat in itertools.product(range(3), lines, (0, 1)):
        heard = set()
        for other in set(range(3)) - {own}:
            table = KuhnPoker()
            table.deal = lambda rng, own=own, other=other, seat=seat: Hand(  # type: ignore[method-assign]
                (own, other) if seat == 0 else (other, own)
            )
            table.reset(seed=0)
            name = table.seats[seat]
            for move in line:
                table.step(move)
            *before, last = table.conversation(name)
            heard.add(repr(before))
            words = " ".join(message["content"] for message in before[1:]) + last["content"]
            assert CARDS[other] not in words
            assert last["content"] in ("You win 1.", "You lose 1.", "You win 2.", "You lose 2.")
            for info in table.infos.values():
                assert set(info) == {"metrics", "stop_reason"}
        assert len(heard) == 1


# Bargaining


def test_every_deal_is_as_described() -> None:
    table = Bargaining()
    kinds = set()
    for seed in range(300):
        deal = table.deal(np.random.default_rng(seed))
        kinds.add(deal.counts)
        assert 5 <= sum(deal.counts) <= 7 and all(1 <= count <= 4 for count in deal.counts)
        assert [worth_of(deal.counts, worths) for worths in deal.worths] == [10, 10]
        pairs = list(zip(*deal.worths, strict=True))
        assert all(a or b for a, b in pairs) and any(a and b for a, b in pairs)
    assert kinds == set(all_counts())


def at(deal: Bargain, **options: Any) -> Bargaining:
    table = Bargaining(**options)
    table.deal = lambda rng: deal  # type: ignore[method-assign]
    table.reset(seed=0)
    return table


DEAL = Bargain((1, 2, 3), ((4, 3, 0), (3, 2, 1)))
"""The first seat wants book and hats, worth 4 + 2 x 3; to the second they are worth 3 + 2 x 2, and the balls 3."""


def test_an_accepted_offer_is_paid_by_each_seats_own_worths() -> None:
    table = at(DEAL)
    table.step("Offer: 1 1 0")
    assert "The other offers you 0 books, 1 hat and 3 balls, worth 5 to you." in table.observe("second")[-1]["content"]
    table.step("Accept")
    assert table.rewards == {"first": 0.7, "second": 0.5}
    metrics = table.infos["first"]["metrics"]
    # The greatest sum is 4 + 6 + 3 = 13, by book and hats to the first and balls to the second.
    assert metrics["joint"] == pytest.approx(12 / 13)
    assert (metrics["agreed"], metrics["worth"], metrics["efficient"]) == (1.0, 0.7, 1.0)


def test_an_offer_of_the_second_seat_is_what_the_second_keeps() -> None:
    table = at(DEAL)
    for said in ("Offer: 1 2 3", "Offer: 1 0 0", "Accept"):
        table.step(said)
    assert table.rewards == {"first": 0.6, "second": 0.3}
    # Balls are worth nothing to the first seat, so this wastes them.
    assert table.infos["second"]["metrics"]["efficient"] == 0.0


def test_without_an_agreement_both_get_nothing_and_it_is_an_end_by_the_rules() -> None:
    table = at(DEAL, max_turns=3)
    for said in ("Offer: 1 2 3", "Offer: 1 2 3", "Offer: 1 2 3"):
        assert not any(table.terminations.values())
        table.step(said)
    assert table.rewards == {"first": 0.0, "second": 0.0}
    assert all(table.terminations.values()) and not any(table.truncations.values())
    assert "both get nothing" in table.observe("first")[-1]["content"]


@pytest.mark.parametrize(
    "said",
    [
        *("Accept", "Offer: 2 0 0", "Offer: 1 2", "Offer: 1 2 3 0", "Offer 1 2 3", "offer: 1 2 3", "Offer: 01 2 3"),
        *("1 2 3", "Offer: 1 2 3.", "Offer: -1 2 3", "Offer: 1 2 3\nAccept", "Offer: ١ 2 3", "I say Offer: 1 2 3"),
    ],
)
def test_these_are_no_first_moves_and_cost_a_tenth(said: str) -> None:
    table = at(DEAL)
    table.step(said)
    assert table.rewards == {"first": -0.1, "second": 0.0}
    assert table.infos["first"]["stop_reason"] == "illegal"


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_nobody_is_told_the_others_worths(seed: int) -> None:
    """Another deal that differs in the other's worths alone sounds the same to a seat, move for move."""
    table = Bargaining()
    rng = np.random.default_rng(seed)
    deal = table.deal(rng)
    other = next(
        found
        for number in range(10**6)
        if (found := table.deal(np.random.default_rng([seed, number]))).counts == deal.counts
    )
    one, two = at(deal), at(deal._replace(worths=(deal.worths[0], other.worths[1])))
    for _ in range(5):
        assert one.conversation("first") == two.conversation("first")
        move = random_move(one, rng)
        if move == "Accept":
            break
        one.step(move)
        two.step(move)


def test_talk_is_passed_on_up_to_a_limit_and_only_where_it_is_allowed() -> None:
    table = at(DEAL, talk=True)
    table.step("I love books.\nAnd hats, {mind}.\nOffer: 1 2 0")
    told = table.observe("second")[-1]["content"]
    assert "The other says: I love books.\nAnd hats, {mind}.\n" in told
    table.step("x" * 10_000 + "\nOffer: 0 0 3")
    assert "x" * 500 in table.observe("first")[-1]["content"]
    assert "x" * 501 not in table.observe("first")[-1]["content"]
    table.step("Fine.\nAccept")
    assert table.rewards == {"first": 1.0, "second": 0.3}
    silent = at(DEAL)
    silent.step("I love books.\nOffer: 1 2 0")
    assert silent.infos["first"]["stop_reason"] == "illegal"


def test_the_conceding_script_reaches_agreements_and_looks_at_its_own_worths_alone() -> None:
    scores = [played(Bargaining(), dict.fromkeys(Bargaining.seats, "conceding"), seed) for seed in range(60)]
    joint = np.mean([sum(score.values()) for score in scores])
    alone = np.mean(
        [sum(played(Bargaining(), dict.fromkeys(Bargaining.seats, "random"), s).values()) for s in range(60)]
    )
    assert np.mean([score["first"] > 0 for score in scores]) > 0.7
    assert joint > alone
    blind = at(DEAL._replace(worths=(DEAL.worths[0], (0, 0, 0))))
    seeing = at(DEAL)
    for seed in range(5):
        assert blind.scripts["conceding"](blind, np.random.default_rng(seed)) == seeing.scripts["conceding"](
            seeing, np.random.default_rng(seed)
        )


def test_what_is_not_kept_is_the_others() -> None:
    assert rest((3, 1, 2), (1, 1, 0)) == (2, 0, 2)
    assert len(ITEMS) == 3


@pytest.mark.parametrize(
    ("make", "complaint"),
    [(partial(Bargaining, max_turns=1), "max_turns is at least 2"), (partial(ConnectFour, columns=3), "columns=3")],
)
def test_a_bad_option_is_refused_at_once(make: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        make()
