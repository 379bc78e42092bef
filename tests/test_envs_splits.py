"""The train/test split and the reading of integers, on which several environments stand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loragym.envs.integers import parse_integer
from loragym.envs.splits import MAX_LISTED, SplitPool, is_held_out


def test_about_a_tenth_is_held_out() -> None:
    share = np.mean([is_held_out(f"item {number}") for number in range(20_000)])
    assert 0.09 < share < 0.11


def test_the_split_never_changes() -> None:
    # Taken down once: a change here would move problems that models were trained on into the test split.
    assert sum(is_held_out(f"guess {number}") for number in range(20_000)) == 1970
    assert [number for number in range(60) if is_held_out(f"guess {number}")] == [9, 31, 42, 57]


@given(size=st.integers(50, 400))
def test_the_two_splits_are_disjoint_and_leave_nothing_out(size: int) -> None:
    train, test = SplitPool(size, str, "train"), SplitPool(size, str, "test")
    for number in range(size):
        assert (number in train) != (number in test)
    assert (train.count or 0) + (test.count or 0) == size


@given(seed=st.integers(0, 2**32), split=st.sampled_from(["train", "test", None]))
def test_draws_stay_in_the_split(seed: int, split: object) -> None:
    pool = SplitPool(10**15, str, split)
    assert pool.draw(np.random.default_rng(seed)) in pool


def test_a_listed_pool_holds_each_member_once_and_is_not_sorted() -> None:
    pool = SplitPool(500, str, "train")
    listed = [pool.at(index) for index in range(pool.count or 0)]
    assert sorted(listed) == [number for number in range(500) if number in pool]
    assert listed != sorted(listed)


def test_a_pool_that_is_too_big_is_not_listed() -> None:
    pool = SplitPool(MAX_LISTED + 1, str, None)
    assert pool.count is None
    with pytest.raises(IndexError, match="too many"):
        pool.at(0)


def test_an_empty_or_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match=r"split 'test' has none.*split=None"):
        SplitPool(1, lambda _: next(name for name in map(str, range(99)) if not is_held_out(name)), "test")
    with pytest.raises(ValueError, match="'validation'"):
        SplitPool(10, str, "validation")


@given(st.integers(-(10**20) + 1, 10**20 - 1), st.sampled_from(["", " ", "\n", "\t "]))
def test_integers_are_read_back(number: int, space: str) -> None:
    assert parse_integer(f"{space}{number}{space}") == number


@pytest.mark.parametrize(
    "text", ["", "+", "1 2", "1_000", "1e3", "0x10", "٣", "²", "3.0", "--3", "1\x00", "9" * 21, "__import__('os')"]
)
def test_what_is_no_plain_integer_is_not_read(text: str) -> None:
    assert parse_integer(text) is None


@given(st.text())
def test_reading_never_raises(text: str) -> None:
    number = parse_integer(text)
    assert number is None or (text.strip().isascii() and number == int(text))
