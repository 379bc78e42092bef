"""Whatever became of a checkpoint, an adapter or a run's directory, reading it gives what was saved or a sentence.

Files are changed bit by bit, cut off, taken away, swapped for others and for links; numbers are made of the wrong kind,
shape and size. Nothing outside of the folder is ever changed.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import HOSTILE_NAMES, cases, json_values, mangled, refusal, try_many, writes_only_in
from hypothesis import strategies as st
from loragym.agents import AdamParams, BaseModel, LoraConfig
from loragym.trainers.checkpoints import CheckpointStore, find_adapter
from loragym.trainers.config import RunConfig
from loragym.trainers.forerunner import Forerunner
from loragym.trainers.league import League
from loragym.trainers.learners import Learners
from loragym.trainers.loop import run_steps
from loragym.trainers.reward_models import load_reward_model
from loragym.trainers.run_directory import RunDirectory, RunError
from safetensors.torch import load_file, save_file
from tiny_engine import rl_data, tiny_base

Values = dict[str, float]


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base(hidden_size=16, intermediate_size=16, num_attention_heads=2, num_key_value_heads=1, head_dim=8)


@dataclass(frozen=True)
class State:
    """A run's state, and a folder that it was saved into."""

    base: BaseModel
    folder: Path
    learners: Learners
    scorer_folder: Path


CONFIG = LoraConfig(rank=2)


def learners_on(base: BaseModel) -> Learners:
    base.adapters.clear()
    policy = base.add_lora("policy", CONFIG)
    critic = base.add_scorer("critic", CONFIG)
    league = League(policy, 2)
    queue = Forerunner(lambda *given: [], lambda: (None, 0), staleness=0, total=1)  # type: ignore[arg-type, return-value]
    return Learners(policy, {"critic": critic, "league": league, "queue": queue}, {"coef": 0.5})


@pytest.fixture(scope="module")
def state(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[State]:
    folder = tmp_path_factory.mktemp("saved")
    learners = learners_on(base)
    policy: Any = learners.first
    policy.forward_backward(rl_data([[1, 2, 3]]), "importance_sampling")
    policy.optim_step(AdamParams())
    league: Any = learners.others["league"]
    league.admit(0)
    league.admit(1)
    learners.save_state(folder / "state")
    (folder / "state" / "queue" / "queue.json").write_text(json.dumps(QUEUE))
    critic: Any = learners.others["critic"]
    critic.save_adapter(folder / "scorer")
    yield State(base, folder / "state", learners, folder / "scorer")
    base.adapters.clear()


TURN = {"prompt": [1, 2], "tokens": [3], "logprobs": [-0.5], "reward": 1.0}
MESSAGE = {"role": "user", "content": "2 + 2?"}
EPISODE = {
    "turns": [TURN],
    "messages": [MESSAGE],
    "metrics": {"correct": 1.0},
    "stop_reason": "completed",
    "group_reward": 0.0,
}
GROUP = {"task": ["loragym/Arithmetic-v0", 3, None], "episodes": [EPISODE], "errors": [], "num_dropped": 0}
QUEUE = {"4": {"version": 1, "groups": [GROUP]}}


def damaged_json(good: Any) -> st.SearchStrategy[bytes]:
    """A JSON file with one value swapped, taken away or added somewhere; or any JSON; or one damaged as a file."""

    def swap(value: Any, path: list[float], new: Any) -> Any:
        if path and isinstance(value, dict) and value:
            name = sorted(value)[int(path[0] * len(value))]
            if len(path) == 1 and new == "gone":
                return {key: inner for key, inner in value.items() if key != name}
            return {**value, name: swap(value[name], path[1:], new)}
        if path and isinstance(value, list) and value:
            at = int(path[0] * len(value))
            return [*value[:at], swap(value[at], path[1:], new), *value[at + 1 :]]
        return new

    paths = st.lists(st.floats(0, 1, exclude_max=True), max_size=8)
    news = json_values | st.sampled_from([*HOSTILE_NAMES, "gone", -1, 10**400, 1e999, float("nan"), True, {}, []])
    swapped = st.builds(lambda path, new: json.dumps(swap(good, path, new)).encode(), paths, news)
    return swapped | swapped | mangled(json.dumps(good).encode())


def damaged_tensors(path: Path) -> st.SearchStrategy[bytes]:
    """A safetensors file with a bit flipped, with other tensors in it, or with a header that lies."""
    content, good = path.read_bytes(), load_file(path)

    def of(tensors: dict[str, torch.Tensor]) -> bytes:
        from safetensors.torch import save

        return save(tensors)

    def changed(name: str, how: str) -> bytes:
        tensors, tensor = dict(good), good[name]
        tensors.pop(name)
        made: dict[str, Callable[[], dict[str, torch.Tensor]]] = {
            "gone": dict,
            "named otherwise": lambda: {"../" + name: tensor},
            "nan": lambda: {name: torch.full_like(tensor, float("nan"))},
            "inf": lambda: {name: torch.full_like(tensor, float("inf"))},
            "negative": lambda: {name: -torch.ones_like(tensor)},
            "whole numbers": lambda: {name: tensor.to(torch.int64)},
            "booleans": lambda: {name: tensor.bool()},
            "halves": lambda: {name: tensor.half()},
            "complex": lambda: {name: tensor.to(torch.complex64)},
            "flat": lambda: {name: tensor.flatten().clone()},
            "empty": lambda: {name: torch.zeros(0)},
            "scalar": lambda: {name: torch.tensor(1.0)},
            "turned": lambda: {name: tensor.reshape(list(reversed(tensor.shape))).contiguous()},
            "larger": lambda: {name: torch.zeros([2 * size + 1 for size in tensor.shape])},
            "another": lambda: {name: tensor, "base_model.model.lm_head.base_layer.weight": torch.zeros(2, 2)},
        }
        return of({**tensors, **made[how]()})

    hows = (
        "gone",
        "named otherwise",
        "nan",
        "inf",
        "negative",
        "whole numbers",
        "booleans",
        "halves",
        "complex",
        "flat",
        "empty",
        "scalar",
        "turned",
        "larger",
        "another",
    )
    one = st.builds(changed, st.sampled_from(sorted(good)), st.sampled_from(hows))
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    lies = damaged_json(header).map(lambda text: struct.pack("<Q", len(text)) + text + content[8 + size :])
    sizes = st.sampled_from([0, 1, 2**63, 2**64 - 1, 10**8, size + 1, size - 1])
    huge = sizes.map(lambda claimed: struct.pack("<Q", claimed) + content[8:])
    return (one | one | lies | huge if good else lies | huge) | mangled(content)


def swaps(folder: Path) -> st.SearchStrategy[tuple[str, Callable[[Path], None]]]:
    """What may become of a folder: a name for it, and what does it."""
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    damages = {
        name: damaged_tensors(folder / name)
        if name.endswith(".safetensors")
        else damaged_json(json.loads((folder / name).read_text()))
        for name in files
        if name.endswith((".safetensors", ".json"))
    }

    def content(name: str) -> st.SearchStrategy[tuple[str, Callable[[Path], None]]]:
        return damages[name].map(lambda found: (name, lambda copy: _write(copy / name, found)))

    def gone(name: str) -> tuple[str, Callable[[Path], None]]:
        return name, lambda copy: (copy / name).unlink()

    def folder_instead(name: str) -> tuple[str, Callable[[Path], None]]:
        def swap(copy: Path) -> None:
            (copy / name).unlink()
            (copy / name).mkdir()

        return name, swap

    def link_instead(name: str) -> tuple[str, Callable[[Path], None]]:
        def swap(copy: Path) -> None:
            (copy / name).unlink()
            (copy / name).symlink_to(copy.parent / "outside" / "precious")

        return name, swap

    def moved(one: str, other: str) -> tuple[str, Callable[[Path], None]]:
        return one, lambda copy: _write(copy / one, (folder / other).read_bytes())

    names = st.sampled_from(files)
    return (
        st.sampled_from(sorted(damages)).flatmap(content)
        | st.sampled_from(sorted(damages)).flatmap(content)
        | st.sampled_from(sorted(damages)).flatmap(content)
        | st.builds(gone, names)
        | st.builds(folder_instead, names)
        | st.builds(link_instead, names)
        | st.builds(moved, names, names)
    )


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "precious").write_text("precious")
    return folder


@cases(fast=80)
def test_any_damage_to_a_state_is_refused_or_harmless(cases: int, state: State, tmp_path: Path, outside: Path) -> None:
    def law(damage: tuple[str, Callable[[Path], None]]) -> None:
        _, spoil = damage
        copy = fresh_copy(state.folder, tmp_path / "state", spoil)
        learners = learners_on(state.base)
        with writes_only_in(copy):
            said = refusal(lambda: learners.load_state(copy), str(copy))
        if said is None:
            policy: Any = learners.first
            assert all(torch.isfinite(tensor).all() for tensor in policy.parameters)
            policy.forward_backward(rl_data([[1, 2, 3]]), "importance_sampling")
            policy.optim_step(AdamParams())
        assert (outside / "precious").read_text() == "precious"

    try_many(cases, law, damage=swaps(state.folder))


@cases(fast=80)
def test_any_damage_to_an_adapter_is_refused_or_harmless(
    cases: int, state: State, tmp_path: Path, outside: Path
) -> None:
    ways = {
        "lora": (state.folder, lambda folder: state.base.load_lora("loaded", find_adapter(folder))),
        "scorer": (state.scorer_folder, lambda folder: state.base.load_scorer("loaded", find_adapter(folder))),
        "reward": (state.scorer_folder, lambda folder: load_reward_model(state.base, folder, name="loaded")),
        "judge": (state.folder, lambda folder: load_reward_model(state.base, folder, name="loaded")),
    }
    damages = {way: swaps(saved) for way, (saved, _) in ways.items()}

    def law(way: str, data: st.DataObject) -> None:
        saved, load = ways[way]
        _, spoil = data.draw(damages[way])
        copy = fresh_copy(saved, tmp_path / "adapter", spoil)
        state.base.adapters.clear()
        with writes_only_in(copy):
            said = refusal(lambda: load(copy), str(copy))
        assert said is None or "loaded" not in state.base.adapters
        assert (outside / "precious").read_text() == "precious"

    try_many(cases, law, way=st.sampled_from(sorted(ways)), data=st.data())


def fresh_copy(saved: Path, place: Path, spoil: Callable[[Path], None]) -> Path:
    if place.exists():
        shutil.rmtree(place)
    shutil.copytree(saved, place)
    spoil(place)
    return place


class Counter:
    """A learner that counts."""

    version = 0

    def save_state(self, folder: Path) -> None:
        (folder / "count.json").write_text(json.dumps({"count": self.version}))

    def load_state(self, folder: Path) -> None:
        self.version = int(json.loads((folder / "count.json").read_text())["count"])

    def zero_grad(self) -> None:
        pass


def go_on(folder: Path, total: int = 4) -> None:
    """Runs or resumes a run of a learner that counts."""
    config = RunConfig(run_dir=str(folder), save_every=1)
    learner = Counter()

    def step(number: int, table: Any) -> Any:
        from loragym.trainers.loop import StepResult

        learner.version += 1
        return StepResult({"reward": 1.0}, [{"task": "a", "reward": 1.0, "messages": []}])

    with RunDirectory(folder, config) as run:
        if run.summary is None:
            run_steps(run, config, learner, step, total, [])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    go_on(folder, 3)
    return folder


@cases(fast=60)
def test_any_damage_to_a_run_is_refused_or_made_good(cases: int, run: Path, tmp_path: Path, outside: Path) -> None:
    def law(data: st.DataObject) -> None:
        # The config names the directory, which is the copy's.
        place = tmp_path / "run"
        _, spoil = data.draw(damage)
        copy = fresh_copy(run, place, spoil_config(run, place))
        spoil(copy)
        with writes_only_in(copy):
            said = refusal(lambda: go_on(copy))
        if said is None and not (copy / "summary.json").exists():
            newest = CheckpointStore(copy / "checkpoints").latest()
            assert newest is not None and newest[0] >= 4
        assert (outside / "precious").read_text() == "precious"
        assert [entry.name for entry in outside.iterdir()] == ["precious"]

    added = st.builds(
        lambda name, content: (name, lambda copy: _add(copy / name, content)),
        st.sampled_from(
            [
                "summary.json",
                "transcripts/step-abc.jsonl",
                "transcripts/step-" + "9" * 200 + ".jsonl",
                "checkpoints/step-x/a",
                "checkpoints/step-999999999/manifest.json",
                "checkpoints/.draft-000001-1/a",
                ".metrics.jsonl",
                "transcripts/step-.jsonl",
            ]
        ),
        st.sampled_from(
            [b"", b"{}", b"[]", b"null", b"\xff", b'{"../../outside/precious": {"bytes": 8, "sha256": ""}}']
        ),
    )
    linked = st.builds(
        lambda name, to: (name, lambda copy: _link(copy / name, copy.parent / "outside" / to)),
        st.sampled_from(
            [
                ".lock",
                ".metrics.jsonl",
                ".config.json",
                "metrics.jsonl",
                "summary.json",
                "transcripts",
                "checkpoints",
                "tensorboard",
                "transcripts/step-000003.jsonl",
                "checkpoints/step-000004",
                ".versions.json",
            ]
        ),
        st.sampled_from(["precious", "", "made"]),
    )
    damage = swaps(run) | added | linked
    try_many(cases, law, data=st.data())


def spoil_config(run: Path, place: Path) -> Callable[[Path], None]:
    def rename(copy: Path) -> None:
        config = json.loads((run / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**config, "run_dir": str(place)}))

    return rename


def _add(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_dir():
        path.write_bytes(content)


def _link(path: Path, to: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(to)


@cases()
def test_any_manifest_is_read_or_refused(cases: int, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save(1, Counter().save_state, {})
    manifest = store.path(1) / "manifest.json"
    good = json.loads(manifest.read_text())

    def law(content: bytes) -> None:
        manifest.write_bytes(content)
        with writes_only_in(tmp_path):
            damage = store.damage(1)
            assert damage is None or len(damage) > 5
            assert (store.latest() is None) == (damage is not None)

    try_many(
        cases,
        law,
        content=damaged_json(good) | damaged_json({name: {"bytes": 1, "sha256": "a"} for name in HOSTILE_NAMES}),
    )


@pytest.mark.parametrize("name", ["../outside/precious", "/etc/passwd", "a/../../outside/precious"])
def test_a_manifest_that_names_what_is_not_its_own_is_refused(tmp_path: Path, name: str) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save(1, Counter().save_state, {})
    (store.path(1) / "manifest.json").write_text(json.dumps({name: {"bytes": 8, "sha256": "a"}}))
    assert "is not in it" in (store.damage(1) or "")


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_run_directory_of_an_odd_name_is_made_or_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    monkeypatch.setenv("HOME", str(tmp_path))
    path = f"x{name}" if name.startswith(("/", "~", "..")) else name
    said = refusal(lambda: RunDirectory(path, RunConfig(run_dir=path)).close())
    assert said is None or "run directory" in said


def test_a_link_in_a_run_directory_is_refused_and_left_alone(run: Path, tmp_path: Path, outside: Path) -> None:
    copy = fresh_copy(run, tmp_path / "run", spoil_config(run, tmp_path / "run"))
    _link(copy / "transcripts", outside)
    with pytest.raises(RunError, match=r"transcripts is a link.*--run-dir"):
        go_on(copy)
    assert [entry.name for entry in outside.iterdir()] == ["precious"]


def test_a_lock_that_is_a_link_is_not_written_through(run: Path, tmp_path: Path, outside: Path) -> None:
    copy = fresh_copy(run, tmp_path / "run", spoil_config(run, tmp_path / "run"))
    _link(copy / ".lock", outside / "precious")
    with pytest.raises(RunError, match="cannot use"):
        go_on(copy)
    assert (outside / "precious").read_text() == "precious"


def test_target_modules_by_an_endless_pattern_are_not_matched(state: State, tmp_path: Path) -> None:
    copy = fresh_copy(state.folder, tmp_path / "adapter", lambda folder: None)
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps({**config, "target_modules": "(.|.)*(.|.)*(.|.)*!"}))
    state.base.adapters.clear()
    assert state.base.load_lora("loaded", copy).config.rank == 2


def test_a_rank_that_the_weights_do_not_have_is_refused_before_memory_is_taken(state: State, tmp_path: Path) -> None:
    copy = fresh_copy(state.folder, tmp_path / "adapter", lambda folder: None)
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps({**config, "r": 10**12}))
    state.base.adapters.clear()
    with pytest.raises(ValueError, match=r"r 1000000000000; use another"):
        state.base.load_lora("loaded", copy)


def test_weights_that_are_no_numbers_are_refused(state: State, tmp_path: Path) -> None:
    copy = fresh_copy(state.folder, tmp_path / "adapter", lambda folder: None)
    tensors = load_file(copy / "adapter_model.safetensors")
    name = sorted(tensors)[0]
    state.base.adapters.clear()
    save_file({**tensors, name: tensors[name] * float("nan")}, copy / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="holds numbers that are not finite; use another checkpoint"):
        state.base.load_lora("loaded", copy)


def test_moments_of_a_narrower_type_are_taken_as_the_weights_have_theirs(state: State, tmp_path: Path) -> None:
    copy = fresh_copy(state.folder, tmp_path / "state", lambda folder: None)
    moments = load_file(copy / "optimizer.safetensors")
    save_file({name: moment.half() for name, moment in moments.items()}, copy / "optimizer.safetensors")
    policy: Any = learners_on(state.base).first
    policy.load_state(copy)
    policy.forward_backward(rl_data([[1, 2, 3]]), "importance_sampling")
    policy.optim_step(AdamParams())
    assert all(torch.isfinite(tensor).all() for tensor in policy.parameters)


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        (".exp_avg", lambda moment: moment.flatten().clone(), "of the shape"),
        (".exp_avg", lambda moment: torch.full_like(moment, float("inf")), "not finite"),
        (".exp_avg_sq", lambda moment: -torch.ones_like(moment), "below 0"),
        (".exp_avg", lambda moment: moment.to(torch.int32), "holds int32"),
    ],
)
def test_moments_that_do_not_fit_change_nothing(
    state: State, tmp_path: Path, part: str, change: Any, said: str
) -> None:
    copy = fresh_copy(state.folder, tmp_path / "state", lambda folder: None)
    moments = load_file(copy / "optimizer.safetensors")
    name = next(name for name in sorted(moments) if name.endswith(part))
    save_file({**moments, name: change(moments[name])}, copy / "optimizer.safetensors")
    policy: Any = learners_on(state.base).first
    before = [tensor.detach().clone() for tensor in policy.parameters]
    with pytest.raises(ValueError, match=said):
        policy.load_state(copy)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters, strict=True))
