"""`check` finds what is wrong with an environment and says so in words that its author understands."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import time
from typing import Any

import broken_worlds
import gymnasium
import pytest
from gymnasium.envs.registration import EnvSpec
from loragym.envs.conformance import (
    LAWS,
    BrokenLaw,
    check,
    digests_elsewhere,
    laws_of_an_episode,
    spec_of,
    try_laws,
)

BROKEN: dict[str, tuple[str, str]] = {
    "NotAnEnvironment": ("can_be_made", "must inherit from the gymnasium.Env class"),
    "FailsInInit": ("can_be_made", "it cannot be made: RuntimeError: no licence for the word list"),
    "NoSpaces": ("can_be_made", "it has no observation_space; set self.observation_space = loragym.envs.Messages()"),
    "NoRenderModes": ("can_be_made", "its metadata does not list the render modes"),
    "OldReset": ("keeps_the_contract", "expected a tuple of 2: (observation, info)"),
    "NoSeedArgument": ("keeps_the_contract", "reset() has no argument 'seed'; write def reset(self, *, seed=None"),
    "OldStep": ("keeps_the_contract", "returned a tuple of 4; expected a tuple of 5"),
    "StringObservation": ("keeps_the_contract", "which is no tuple; return a tuple such as"),
    "ListObservation": ("keeps_the_contract", "which is no tuple; return a tuple such as"),
    "UnknownRole": ("keeps_the_contract", "role is one of ('system', 'user', 'assistant', 'tool'), got 'human'"),
    "NoOpening": ("keeps_the_contract", "returned no messages; an episode opens with at least one"),
    "NotANumber": ("keeps_the_contract", "reward=nan; expected a finite number"),
    "NumberForFlag": ("keeps_the_contract", "terminated=0; expected True or False"),
    "NoInfo": ("keeps_the_contract", "info=None; expected a dict"),
    "WordMetrics": ("keeps_the_contract", "info['metrics']['verdict']='good'; expected a finite number"),
    "OnlyStrings": ("keeps_the_contract", "when it got a Reply, which is a dictionary. An action is either"),
    "NumbersForActions": ("keeps_the_contract", "its action_space does not contain the reply 'Hello.'"),
    "PlainTextSpace": ("keeps_the_contract", "which is not in its observation_space Text("),
    "NeverSeeded": ("is_seeded", "does not seed self.np_random; begin reset with super().reset(seed=seed)"),
    "AlwaysSeededAlike": ("is_seeded", "reset(seed=7) and reset(seed=8) leave self.np_random in the same state"),
    "GlobalDice": ("leaves_global_randomness_alone", "changes the global state of random, which belongs to others"),
    "SeedsEverybody": ("leaves_global_randomness_alone", "changes the global state of random, which belongs to others"),
    "SeedsNumpy": ("leaves_global_randomness_alone", "changes the global state of numpy.random"),
    "Clock": ("same_seed_same_episode", "does not always give the same episode"),
    "Leftovers": ("same_seed_same_episode", "an environment that was used before differs from a new one"),
    "HashedWords": ("same_episode_elsewhere", "gives another episode in another process. Look for hash() of a str"),
    "SharedTurn": ("side_by_side", "Keep the state of an episode on self, not on the class"),
    "SharedSpaces": ("side_by_side", "two environments share one action_space object"),
    "BothFlags": ("ends_in_one_way", "terminated and truncated both True"),
    "Endless": ("ends_in_one_way", "no episode ended within 1000 replies. Give it a turn limit"),
    "StopsTooEarly": ("ends_in_one_way", "info['stop_reason']='completed' while the episode goes on"),
    "SaysNothing": ("ends_in_one_way", "step() returned no messages while the episode goes on"),
    "AnswersItself": ("ends_in_one_way", "the last message that step() returned is the assistant's"),
    "KeptObservation": ("gives_fresh_objects", "changing an observation, an info or an action after the call"),
    "KeptInfo": ("gives_fresh_objects", "Return fresh objects each time, such as copy.deepcopy gives"),
    "SharedOneMessage": ("gives_fresh_objects", "changing an observation, an info or an action after the call"),
    "NeedsAWord": ("takes_any_reply", "white space as a reply raised IndexError: list index out of range (text() in"),
    "WritesBytes": ("takes_any_reply", "half of a surrogate pair as a reply raised UnicodeEncodeError"),
    "Evaluates": ("takes_any_reply", "Whatever a model says must have a result"),
    "ReadsNumbers": ("takes_any_reply", "a very long number as a reply raised ValueError"),
    "TrustsToolNames": ("takes_any_reply", "a call of an unknown tool as a reply raised KeyError: 'no such tool'"),
    "TakesNoRenderMode": ("renders", "but it cannot be made with render_mode='ansi': let __init__ take"),
    "RendersNothing": ("renders", 'render() in mode "ansi" gave None; a str was expected'),
    "RendersControlCodes": ("renders", "a reply can drive the reader's terminal. Use loragym.envs.transcript"),
    "PrintsNothing": ("renders", 'nothing is printed in render mode "human"'),
    "IgnoresTheIndex": ("numbers_its_problems", "gives one problem with seed 1 and another with seed 2"),
    "TakesAnyIndex": ("numbers_its_problems", 'reset(options={"index": 3}) is accepted, though num_problems is 3'),
    "CountsByWords": ("numbers_its_problems", "num_problems is 'three'; it is a number from 1 up"),
    "ForgetsAnEpisode": ("scores_its_groups", "gave 2 rewards for 3 episodes; it returns one number per episode"),
    "ToolWithoutSchema": ("describes_its_tools", "is no tool; expected {'name': ..., 'description': ..., 'parameters'"),
    "TwinTools": ("describes_its_tools", "two tools have the same name, of ['search', 'search']"),
    "HasSeedMethod": ("passes_gymnasiums_checker", "check_env warns: Official support for the `seed` function"),
    "KeepsALambda": ("can_be_pickled", "Keep lambdas, open files, locks and generators off self"),
    "LosesItsTurn": ("can_be_pickled", "a pickled environment does not go on as the original does"),
    "Exits": ("keeps_the_contract", "SystemExit: 3 (from text() in broken_worlds.py, line "),
    "NeedsASeed": ("same_seed_same_episode", "reset() in broken_worlds.py, line"),
}
HANGING: dict[str, tuple[str, str]] = {
    "HangsInInit": ("can_be_made", "__init__"),
    "HangsInReset": ("keeps_the_contract", "draw"),
    "HangsAfterALongReply": ("takes_any_reply", "text"),
    "HangsInRender": ("renders", "render"),
}
SOUND = ("Good", "Copies", "TakesAFunction", "MixedInfo", "Slow")


def sentences(name: str, **kwargs: Any) -> dict[str, str]:
    return dict(check(spec_of(f"broken_worlds:{name}", kwargs)))


@pytest.mark.parametrize("name", BROKEN)
def test_a_mistake_is_found_and_named(name: str) -> None:
    law, sentence = BROKEN[name]
    found = sentences(name)
    assert sentence in found.get(law, ""), found
    # A basic mistake is reported alone; another may well break further laws, but no basic one.
    basic = [name for name in LAWS if LAWS[name].basic]
    assert list(found) == [law] if law in basic else not set(found) & set(basic)


def test_every_broken_world_is_in_the_table() -> None:
    classes = {
        name
        for name, value in vars(broken_worlds).items()
        if inspect.isclass(value) and value.__module__ == "broken_worlds"
    }
    assert classes == set(BROKEN) | set(HANGING) | set(SOUND)
    assert len(BROKEN) >= 15


@pytest.mark.parametrize("name", ["Good", "Copies", "Slow"])
def test_a_good_environment_of_no_class_of_ours_keeps_all_laws(name: str) -> None:
    assert sentences(name) == {}


@pytest.mark.parametrize("name", HANGING)
def test_what_hangs_is_named_and_nothing_waits_for_it(name: str) -> None:
    law, place = HANGING[name]
    began = time.monotonic()
    tried = dict(try_laws(spec_of(f"broken_worlds:{name}"), ["can_be_made", "keeps_the_contract", law], seconds=1))
    assert time.monotonic() - began < 20
    assert not any(findings for other, findings in tried.items() if other != law)
    ((found, sentence),) = tried[law]
    assert found == law
    assert re.match(
        rf"it did not come to an end within 1 seconds; it was in {place}\(\) in broken_worlds\.py, line \d+\. Give",
        sentence,
    )


def test_after_a_law_that_hangs_no_other_is_tried() -> None:
    laws = ["takes_any_reply", "can_be_pickled"]
    assert [name for name, _ in try_laws(spec_of("broken_worlds:HangsAfterALongReply"), laws, seconds=1)] == laws[:1]


def test_an_environment_that_hangs_does_not_keep_the_process_from_exiting() -> None:
    program = (
        "from loragym.envs.conformance import check, spec_of\n"
        "print(check(spec_of('broken_worlds:HangsInReset'), seconds=1)[-1].law, flush=True)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "keeps_the_contract\n"


def test_an_environment_that_hangs_in_another_process_is_named() -> None:
    with pytest.raises(BrokenLaw, match="another process did not play the episode within 3 seconds"):
        digests_elsewhere([spec_of("broken_worlds:HangsInReset")], timeout=3)


def test_an_environment_that_exits_is_named() -> None:
    ((name, sentence),) = check(spec_of("broken_worlds:Exits"))
    assert name == "keeps_the_contract"
    assert sentence.startswith("SystemExit: 3 (from text() in broken_worlds.py, line ")


def test_most_mistakes_are_found_by_one_law_alone() -> None:
    """So that what is printed is what is wrong, and not an avalanche."""
    for name in ("BothFlags", "Endless", "HashedWords", "KeepsALambda", "NeedsAWord", "TakesAnyIndex", "TwinTools"):
        assert list(sentences(name)) == [BROKEN[name][0]]


def test_an_argument_that_json_does_not_have_is_named() -> None:
    found = check(spec_of("broken_worlds:TakesAFunction", {"grade": len}), ["spec_survives_json"])
    assert "its EnvSpec cannot be written as JSON" in found[0].sentence
    assert "functions by their import path" in found[0].sentence
    assert check(spec_of("broken_worlds:TakesAFunction", {"grade": "builtins:len"})) == []


def test_a_vector_that_cannot_hold_the_infos_is_found() -> None:
    found = sentences("MixedInfo")
    assert set(found) == {"plays_in_a_sync_vector", "plays_in_an_async_vector"}
    assert all("ValueError: invalid literal for int()" in sentence for sentence in found.values())


def test_a_slow_reply_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(laws_of_an_episode, "SLOW_SECONDS", 0.1)
    (finding,) = check(spec_of("broken_worlds:Slow"), ["takes_any_reply"])
    assert re.match("a megabyte as a reply took 0 seconds; keep it under 0", finding.sentence)


def test_a_mistake_in_the_environment_is_traced_to_its_line() -> None:
    (finding,) = check(spec_of("broken_worlds:TrustsToolNames"), ["takes_any_reply"])
    (line,) = re.findall(r"text\(\) in broken_worlds\.py, line (\d+)", finding.sentence)
    source = inspect.getsource(broken_worlds).splitlines()
    assert '{"search": str}[call["name"]]' in source[int(line) - 1]


def test_a_law_says_what_it_is_about() -> None:
    assert len(LAWS) == 19
    for name, law in LAWS.items():
        assert law.name == name and law.statement.endswith(".")


def test_what_a_name_means() -> None:
    assert spec_of("GuessNumber-v0", {"high": 9}).kwargs == {"high": 9}
    assert spec_of("loragym/GuessNumber-v0").id == spec_of("loragym:loragym/GuessNumber-v0").id
    spec = spec_of("broken_worlds:Good")
    assert (spec.id, spec.entry_point) == ("Good-v0", "broken_worlds:Good")
    gymnasium.register("tests/Good-v0", entry_point=broken_worlds.Good)
    spec = spec_of("tests/Good-v0")
    assert spec.entry_point == "broken_worlds:Good"  # a class becomes a path, which JSON can hold
    assert gymnasium.registry["tests/Good-v0"].entry_point is broken_worlds.Good
    del gymnasium.registry["tests/Good-v0"]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("Nothing-v0", "there is no registered environment 'Nothing-v0'; `loragym envs` lists ours"),
        ("no_such_module:Env", "there is no module 'no_such_module'"),
        ("broken_worlds:Nothing", "has no attribute 'Nothing'"),
    ],
)
def test_a_name_that_means_nothing(name: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        spec_of(name)


def test_a_process_that_cannot_make_it_says_why() -> None:
    (text,) = digests_elsewhere([EnvSpec("Gone-v0", entry_point="no_such_module:Env")])
    assert "ModuleNotFoundError" in text


def test_an_unknown_law_is_an_error() -> None:
    with pytest.raises(KeyError):
        check(spec_of("GuessNumber-v0"), ["is_fun"])
