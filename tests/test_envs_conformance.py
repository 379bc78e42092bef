"""Every registered environment keeps every law; an id without a row in `env_rows.ROWS` fails here."""

from __future__ import annotations

import gymnasium
import pytest
from env_rows import ROWS
from gymnasium.envs.registration import EnvSpec
from loragym.envs import CATALOGUE
from loragym.envs.conformance import LAWS, check, digest, digests_elsewhere, spec_of

ENV_IDS = sorted(CATALOGUE)
ELSEWHERE = "same_episode_elsewhere"
HERE = [name for name in LAWS if name != ELSEWHERE]


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, EnvSpec]:
    """All registered environments that can be made here, as their rows say."""
    folder = tmp_path_factory.mktemp("data")
    return {
        env_id: spec_of(env_id, ROWS[env_id].kwargs(folder / env_id.replace("/", "-")))
        for env_id in ENV_IDS
        if env_id in ROWS and not ROWS[env_id].missing
    }


@pytest.fixture(scope="module")
def elsewhere(specs: dict[str, EnvSpec]) -> dict[str, str]:
    """What the episodes of all of them are like in one other process."""
    return dict(zip(specs, digests_elsewhere(list(specs.values())), strict=True))


def test_every_registered_id_has_a_row() -> None:
    assert not set(ENV_IDS) - set(ROWS), "add a row to tests/env_rows.py"


def test_every_id_is_in_gymnasiums_registry_and_says_what_it_is_in_a_line() -> None:
    for env_id, description in CATALOGUE.items():
        assert env_id in gymnasium.registry
        assert description.endswith(".") and "\n" not in description


def spec_or_skip(env_id: str, specs: dict[str, EnvSpec]) -> EnvSpec:
    if missing := ROWS[env_id].missing:
        pytest.skip(f"{env_id} needs {', '.join(missing)}")
    return specs[env_id]


@pytest.mark.parametrize("law", HERE)
@pytest.mark.parametrize("env_id", ENV_IDS)
def test_the_law_holds(env_id: str, law: str, specs: dict[str, EnvSpec]) -> None:
    assert check(spec_or_skip(env_id, specs), [law]) == []


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_the_same_seed_gives_the_same_episode_in_another_process(
    env_id: str, specs: dict[str, EnvSpec], elsewhere: dict[str, str]
) -> None:
    spec = spec_or_skip(env_id, specs)
    assert elsewhere[env_id] == digest(spec)
