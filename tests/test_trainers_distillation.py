"""A student comes to speak as its teachers do: on their replies, on its own, and where they know more than it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import worlds  # noqa: F401
from interruptions import assert_resumed_equals_uninterrupted
from loragym.agents import BaseModel, LoraConfig
from loragym.agents.testing import save_tiny_model
from loragym.messages import assistant, user
from loragym.trainers import Task, distillation
from loragym.trainers.distillation import DistillationConfig, DistillationTrainer, read_by_both
from loragym.trainers.rollouts import EnvPool
from loragym.trainers.run_directory import read_metrics
from loragym.trainers.teachers import TeacherSpec, TeacherView, soft_target_datum


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def teachers(model: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two adapters, far from the base and from each other."""
    base = BaseModel.load(model, dtype=torch.float32, device="cpu")
    folders = []
    for seed in (1, 2):
        policy = base.add_lora(f"{seed}", LoraConfig(rank=4, seed=seed))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in policy.parameters:
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
        folder = tmp_path_factory.mktemp(f"teacher{seed}")
        policy.save_adapter(folder)
        folders.append(str(folder))
    return folders


def small(model: str, folder: Path, **changes: Any) -> DistillationConfig:
    return DistillationConfig(
        **{
            "run_dir": str(folder / "run"),
            "model": model,
            "dtype": "float32",
            "device": "cpu",
            "lora_rank": 8,
            "env": "tests/Letters-v0",
            "steps": 16,
            "problems_per_step": 8,
            "group_size": 2,
            "max_tokens": 4,
            "learning_rate": 1e-2,
            "eval_every": 0,
            "eval_problems": 16,
        }
        | changes
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "off_policy", "steps": 40, "top_candidates": 200},
        {"mode": "on_policy", "steps": 60, "problems_per_step": 16},
        {"mode": "full", "steps": 30},
        {"mode": "full", "steps": 30, "direction": "forward"},
    ],
    ids=lambda changes: "-".join(changes[k] for k in ("mode", "direction") if k in changes),
)
def test_the_student_comes_near_to_its_teacher(
    model: str, tmp_path: Path, teachers: list[str], changes: dict[str, Any]
) -> None:
    summary = distillation.train(small(model, tmp_path, teachers=[{"adapter": teachers[0]}], **changes))
    assert summary["before"]["test/teacher_kl"] > 0.1
    assert summary["after"]["test/teacher_kl"] < 0.75 * summary["before"]["test/teacher_kl"]
    assert summary["after"]["test/prompt_tokens"] == summary["after"]["test/teacher/prompt_tokens"]


def test_each_of_several_teachers_is_learnt_on_its_own_problems(
    model: str, tmp_path: Path, teachers: list[str]
) -> None:
    given = [
        {"name": "one", "adapter": teachers[0], "share": 3.0},
        {"name": "two", "adapter": teachers[1], "env": "tests/Unequal-v0"},
    ]
    config = small(model, tmp_path, mode="full", teachers=given, steps=40, eval_problems=32)
    trainer = DistillationTrainer(config, config.load_policy())
    shares = np.mean([[len(own) for own in trainer._tasks(step)] for step in range(50)], axis=0)
    assert shares.tolist() == pytest.approx([6, 2], abs=0.5)
    assert {task.env_id for own in trainer._tasks(0)[1:] for task in own} == {"tests/Unequal-v0"}
    summary = distillation.train(config)
    for name in ("one", "two"):
        before, after = (summary[when][f"test/{name}/teacher_kl"] for when in ("before", "after"))
        assert after < 0.7 * before
    mean = np.mean([summary["after"][f"test/{name}/teacher_kl"] for name in ("one", "two")])
    assert summary["after"]["test/teacher_kl"] == pytest.approx(mean)


def test_the_loss_of_several_teachers_is_that_of_one_batch(model: str, tmp_path: Path, teachers: list[str]) -> None:
    """Parts of a batch add up: two teachers that are the same one teach what it teaches alone."""
    alone = small(model, tmp_path / "a", mode="full", teachers=[{"adapter": teachers[0]}], steps=1)
    twice = [{"name": "a", "adapter": teachers[0]}, {"name": "b", "adapter": teachers[0]}]
    losses = []
    for config in (alone, small(model, tmp_path / "b", mode="full", teachers=twice, steps=1)):
        trainer = DistillationTrainer(config, config.load_policy())
        # The same problems in the same order: only who teaches them differs.
        tasks = trainer.ground.tasks(0, 8)
        own = [tasks] if len(trainer.teachers) == 1 else [tasks[:3], tasks[3:]]
        losses.append(trainer._learn_from_own(own, 0)[1]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("mode", ["off_policy", "on_policy", "full"])
def test_what_a_longer_prompt_brings_about_is_learnt_without_it(model: str, tmp_path: Path, mode: str) -> None:
    teacher = {"system": "Be very, very, very long in what you are told before you speak. " * 3}
    config = small(model, tmp_path, mode=mode, teachers=[teacher], steps=30)
    summary = distillation.train(config)
    assert summary["after"]["test/teacher_kl"] < 0.6 * summary["before"]["test/teacher_kl"]
    assert summary["after"]["test/teacher/prompt_tokens"] > 5 * summary["after"]["test/prompt_tokens"]


def test_a_hint_may_hold_the_answer() -> None:
    pool = EnvPool(lambda env: TeacherView(env, TeacherSpec(hint="It is {reference}.", system="You know it.")))
    task = Task("tests/Letters-v0", {}, 3)
    told, info = pool.take(task).reset(seed=3)
    plain, _ = EnvPool().take(task).reset(seed=3)
    assert [message["role"] for message in told] == ["system", "user"]
    assert told[0]["content"] == "You know it."
    assert told[1]["content"] == f"It is {info['reference']}.\n\n{plain[0]['content']}"


def test_worked_examples_stand_between_the_system_message_and_the_problem() -> None:
    shown = [user("a"), assistant("b")]
    for spec, roles in (
        ({"system": "s"}, ["system", "user", "assistant", "user"]),
        ({}, ["user", "assistant", "user"]),
    ):
        given = TeacherSpec.from_json({**spec, "messages": shown})
        assert not given.reads_as_student
        view = TeacherView(EnvPool().take(task := Task("tests/Letters-v0", {}, 3)), given)
        told, _ = view.reset(seed=task.seed)
        assert [message["role"] for message in told] == roles
        assert list(told[-3:-1]) == shown
    with pytest.raises(TypeError, match=r"a teacher's messages\[0\]"):
        TeacherSpec.from_json({"messages": ["a"]})


def test_student_and_teacher_read_the_same_replies_after_their_own_prompts(model: str, tmp_path: Path) -> None:
    spec = {"system": "S", "hint": "{reference}"}
    config = small(model, tmp_path, teachers=[spec], env_kwargs={"turns": 3})
    trainer = DistillationTrainer(config, config.load_policy())
    (teacher,), renderer = trainer.teachers, trainer.ground.renderer
    groups = trainer.ground.play(trainer._sampler(), trainer.ground.tasks(0, 2), 2, seed=(0,))
    student, known = read_by_both(teacher, groups)
    assert len(student) == 2 * 2 * 3
    index = 0
    for group in groups:
        for episode in group.episodes:
            for number, turn in enumerate(episode.turns):
                own, read = student[index], known[index]
                index += 1
                assert np.asarray(own.targets)[own.trained].tolist() == turn.tokens
                assert np.asarray(read.targets)[read.trained].tolist() == turn.tokens
                said = episode.messages[: 1 + 2 * number]
                expected = [{"role": "system", "content": "S"}, {**said[0]}, *said[1:]]
                reference = expected[1]["content"].removeprefix("Say ").removesuffix("!")
                expected[1]["content"] = f"{reference}\n\n{expected[1]['content']}"
                assert list(read.tokens[: len(read.tokens) - len(turn.tokens) + 1]) == (
                    renderer.build_generation_prompt(expected)  # type: ignore[arg-type]
                )
    tasks = trainer.ground.tasks(0, 1)
    (taught,) = trainer._play_teacher(teacher, tasks, 1, seed=(0,), temperature=1.0)
    (played,) = trainer.ground.play(trainer._sampler(), tasks, 1, seed=(0,))
    assert teacher.student_prompts(taught)[0][0] == played.episodes[0].turns[0].prompt


def test_soft_targets_are_the_teachers_candidates_made_a_distribution() -> None:
    candidates, logprobs = np.array([[7, 8], [9, 3]]), np.log(np.array([[0.6, 0.2], [0.5, 0.5]]))
    datum = soft_target_datum([1, 2, 3], [7, 9], candidates, logprobs)
    assert list(datum.tokens) == [1, 2, 3, 7]
    assert np.asarray(datum.targets).tolist() == [[0, 0], [0, 0], [7, 8], [9, 3]]
    np.testing.assert_allclose(np.asarray(datum.weights), [[0, 0], [0, 0], [0.75, 0.25], [0.5, 0.5]])
    assert datum.trained.tolist() == [2, 3]


@pytest.mark.parametrize("mode", ["off_policy", "on_policy"])
def test_a_resumed_distillation_equals_an_uninterrupted_one(
    model: str, tmp_path: Path, teachers: list[str], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(model, tmp_path, mode=mode, teachers=[{"adapter": teachers[0]}], steps=4, eval_every=2)
    assert_resumed_equals_uninterrupted(monkeypatch, distillation.train, config, after=3)
    assert [row["step"] for row in read_metrics(tmp_path / "run") if "test/agreement" in row] == [0, 2, 4]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"mode": "nope"}, "mode is one of"),
        ({"teachers": [{"adaptor": "x"}]}, "a teacher is an object with some of"),
        ({"teachers": ["x"]}, "a teacher is an object"),
        ({"teachers": [{"share": 0}]}, "share is above 0"),
        ({"teachers": [{"system": 3}]}, "a teacher's system is str, got 3"),
        ({"teachers": [{}, {}]}, "give each a name of its own"),
        ({"teachers": [{"adapter": "no/such"}]}, "neither a PEFT folder"),
    ],
)
def test_teachers_that_cannot_be_used_are_refused_at_once(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=complaint):
        DistillationConfig(**changes)


def test_a_hint_with_a_reference_needs_a_world_that_gives_one(model: str, tmp_path: Path) -> None:
    config = small(
        model, tmp_path, env="tests/Untaught-v0", teachers=[{"hint": "It is {reference}."}], mode="off_policy"
    )
    with pytest.raises(ValueError, match=r"gives no info\['reference'\] at reset; give it a hint without"):
        distillation.train(config)
