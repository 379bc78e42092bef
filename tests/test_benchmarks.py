"""The benchmark suite's arithmetic: workloads, bounds worked out by hand, figures, targets, tables; its protocol."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bound
from benchmarks.__main__ import chosen_rows
from benchmarks.bound import Machine, ModelShape
from benchmarks.cases import Group, Workload
from benchmarks.gpu import mark_rows, rows
from benchmarks.protocol import Unavailable, Worker, WorkerError
from benchmarks.report import BEGIN, END, between_markers, line_of, result_section, rows_table
from benchmarks.run import Session, Setting, figures, request_of, run_row
from benchmarks.suite import ENGINES, OURS, ROWS, Row
from benchmarks.targets import TARGETS, verdicts

SMALL = ModelShape(layers=2, hidden=8, intermediate=16, heads=2, kv_heads=1, head_dim=4, vocabulary=100)
RANK = 3
# Per layer: q 8x8, k and v 8x4 each, o 8x8, gate and up 8x16 each, down 16x8.
LINEAR = 2 * (64 + 32 + 32 + 64 + 128 + 128 + 128)
LORA = 2 * RANK * (16 + 12 + 12 + 16 + 24 + 24 + 24)


def operations(work: bound.Work, part: str) -> int:
    return sum(count for (name, _), count in work.operations.items() if name == part)


def test_a_shapes_weights_are_counted_by_hand() -> None:
    assert (SMALL.linear_weights, SMALL.lora_weights(RANK)) == (LINEAR, LORA)
    assert SMALL.weight_bytes_read == 2 * (LINEAR + 800)
    assert SMALL.kv_bytes == 2 * 2 * 1 * 4 * 2


def test_a_configuration_without_the_newer_fields_gives_the_same_shape() -> None:
    config = {
        "num_hidden_layers": 2,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "vocab_size": 100,
    }
    shape = ModelShape.of_config(config, weight_bytes=4)
    assert (shape.kv_heads, shape.head_dim, shape.weight_bytes) == (2, 4, 4)


def test_training_counts_forward_and_input_gradients_but_no_gradient_of_frozen_weights() -> None:
    # One sequence of 6 tokens, all trained: 5 inputs, 5 targets, and 1 + 2 + 3 + 4 + 5 pairs of attention.
    work = bound.training_work(SMALL, RANK, [Group(0, (6,), (0,))])
    assert operations(work, "linear") == 2 * 2 * 5 * LINEAR
    assert operations(work, "lora") == 3 * 2 * 5 * LORA
    assert operations(work, "head") == 2 * 2 * 5 * 800
    assert work.attention == (4 + 8) * 15 * 8 * 2
    assert work.bytes == 2 * SMALL.weight_bytes_read


def test_training_counts_a_shared_prompt_and_its_head_once() -> None:
    # A prompt of 4 with replies of 3 and 2: 4 + 2 + 1 inputs; trained from the prompt's end, and from 2 + 1 own tokens.
    shared = bound.training_work(SMALL, RANK, [Group(4, (3, 2), (0, 0))])
    assert operations(shared, "linear") == 2 * 2 * 7 * LINEAR
    assert operations(shared, "head") == 2 * 2 * 4 * 800
    assert shared.attention == 12 * ((1 + 2 + 3 + 4) + (5 + 6) + 5) * 8 * 2


def test_training_leaves_the_head_out_where_nothing_is_trained() -> None:
    half = bound.training_work(SMALL, RANK, [Group(0, (6,), (3,))])
    assert operations(half, "head") == 2 * 2 * 3 * 800
    assert operations(half, "linear") == 2 * 2 * 5 * LINEAR


def test_sampling_prefills_each_prompt_once_and_decodes_only_what_is_still_under_way() -> None:
    # Two prompts of 4; samples of 1 and 3, and of 2 tokens: the prefill gives the first, then 2 rows, then 1.
    steps = bound.sampling_steps(SMALL, RANK, [Group(4, (1, 3), (0, 0)), Group(4, (2,), (0,))])
    assert [operations(step, "linear") for step in steps] == [2 * 8 * LINEAR, 2 * 2 * LINEAR, 2 * 1 * LINEAR]
    assert [operations(step, "head") for step in steps] == [2 * 2 * 800, 2 * 2 * 800, 2 * 1 * 800]
    assert [step.attention for step in steps] == [4 * 8 * 2 * pairs for pairs in (10 + 10, 5 + 5, 6)]
    weights = SMALL.weight_bytes_read + 2 * LORA
    assert [step.bytes for step in steps] == [weights + SMALL.kv_bytes * n for n in (0, 4 + 4 + 2, 4 + 2)]


def test_a_prompts_keys_are_read_once_for_all_its_samples() -> None:
    one, sixteen = (bound.sampling_steps(SMALL, RANK, [Group(512, (2,) * n, (0,) * n)])[1] for n in (1, 16))
    assert sixteen.bytes - one.bytes == 15 * SMALL.kv_bytes


def test_the_bound_is_arithmetic_or_memory_whichever_takes_longer() -> None:
    work = bound.training_work(SMALL, RANK, [Group(0, (6,), (0,))])
    total = sum(work.operations.values()) + work.attention
    rates = dict.fromkeys(work.shapes, 100.0)
    assert bound.seconds(work, Machine(rates, bandwidth=1e9)) == pytest.approx(total / 100)
    assert bound.seconds(work, Machine(rates, bandwidth=1.0)) == pytest.approx(work.bytes)
    assert sum(bound.parts(work, Machine(rates, 1e9)).values()) == pytest.approx(total / 100)


def test_shapes_to_measure_round_tokens_up_and_keep_the_models_sizes() -> None:
    work = bound.training_work(SMALL, RANK, [Group(0, (3000,), (0,))])
    assert (1024, 8, 16) in work.shapes and (100, 8) not in {shape[1:] for shape in work.shapes if shape[0] != 1024}
    assert {n for shape in work.shapes for n in shape} <= {1024, 8, 4, 16, 100, RANK, 2 * RANK, 3 * RANK}
    assert [bound.rounded_tokens(n, 1024) for n in (1, 2, 3, 33, 5000)] == [1, 2, 4, 64, 1024]


def test_workloads_spread_lengths_and_count_tokens() -> None:
    ragged = Workload(groups=32, prompt=64, shortest=8, longest=64)
    lengths = [length for group in ragged.layout() for length in group.lengths]
    assert (min(lengths), max(lengths), len(lengths)) == (8, 64, 32)
    assert ragged.own_tokens == sum(lengths) == 1152
    assert ragged.sequence_tokens == 1152 + 32 * 64
    chats = Workload(groups=3, shortest=32, longest=512, geometric=True, untrained_share=0.5)
    assert sorted(group.lengths[0] for group in chats.layout()) == [32, 128, 512]
    assert all(group.untrained[0] == group.lengths[0] // 2 for group in chats.layout())


def test_requests_repeat_by_repetition_and_share_prompts_within_groups_only() -> None:
    workload = Workload(groups=2, members=3, prompt=5, shortest=2, longest=4)
    first, again, other = (workload.training_request(n, 1000) for n in (1, 1, 2))
    assert first == again != other
    sequences = first["sequences"]
    assert sequences[0][:5] == sequences[2][:5] != sequences[3][:5]
    assert first["starts"] == [5] * 6
    assert len({tuple(s) for s in sequences}) == 6
    sampling = workload.sampling_request(1, 1000)
    assert [len(lengths) for lengths in sampling["lengths"]] == [3, 3]
    assert all(23 <= token < 977 for prompt in sampling["prompts"] for token in prompt)


def test_the_first_token_is_never_a_target() -> None:
    assert Workload(groups=1, shortest=8, longest=8).training_request(0, 1000)["starts"] == [1]


def test_figures_are_median_and_range() -> None:
    answers = [
        {"tokens": 10, "seconds": s, "peak_mib": p, "others": o}
        for s, p, o in ((1.0, 5, 0.0), (2.0, 9, 0.05), (5.0, 7, 0.0))
    ]
    found = figures(answers, None)
    assert (found["median"], found["low"], found["high"]) == (5.0, 2.0, 10.0)
    assert (found["peak_mib"], found["others"]) == (9, 0.05)
    assert figures(answers, "seconds")["median"] == 2.0


def test_disturbed_repetitions_count_only_if_there_are_no_others() -> None:
    answers = [
        {"tokens": 10, "seconds": s, "peak_mib": 1, "others": o} for s, o in ((1.0, 0.0), (4.0, 0.5), (2.0, 0.1))
    ]
    found = figures(answers, None)
    assert (found["median"], found["low"], found["counted"], len(found["repetitions"])) == (7.5, 5.0, 2, 3)
    assert figures(answers[1:2], None)["median"] == 2.5


def record(row: str, engine: str, median: float, **fields: Any) -> dict[str, Any]:
    section, name = row.split("/")
    answer = {"tokens": 1, "seconds": 1.0, "peak_mib": 1.0}
    return {
        "section": section,
        "row": name,
        "title": name,
        "engine": engine,
        "unit": "tokens/s",
        "median": median,
        "low": median,
        "high": median,
        "peak_mib": 1024.0,
        "others": 0.0,
        "counted": 1,
        "repetitions": [answer],
        **fields,
    }


def verdict(records: list[dict[str, Any]], row: str, versus: str | None, figure: str = "median") -> Any:
    (found,) = [
        v for v in verdicts(records) if (v.target.row, v.target.versus, v.target.figure) == (row, versus, figure)
    ]
    return found


def test_targets_are_ratios_within_one_run() -> None:
    limit = {"bound": {"tokens_per_second": 500.0}}
    records = [record("sampling/32", OURS, 300.0, **limit), record("sampling/32", "generate", 120.0)]
    assert verdict(records, "sampling/32", "generate").value == pytest.approx(2.5)
    assert verdict(records, "sampling/32", "generate").met is False
    assert verdict(records, "sampling/32", "bound").met is True
    assert verdict(records, "sampling/32", "vllm-lora").met is None


def test_targets_of_times_and_memory_count_less_as_better() -> None:
    records = [
        record("rl/step", "loragym-fresh", 2.0, unit="s", peak_mib=1000.0),
        record("rl/step", "trl-grpo", 40.0, unit="s", peak_mib=4000.0),
        record("rl/overhead", "loragym-fresh", 0.2, unit="share"),
    ]
    assert verdict(records, "rl/step", "trl-grpo").value == pytest.approx(20.0)
    assert verdict(records, "rl/step", "trl-grpo", "peak_mib").value == pytest.approx(4.0)
    assert verdict(records, "rl/overhead", None).met is False


def test_a_small_twin_serves_where_the_full_row_was_not_run() -> None:
    records = [record("sampling/rl-512-small", OURS, 400.0), record("sampling/rl-512-small", "generate", 100.0)]
    assert verdict(records, "sampling/rl-512", "generate").value == pytest.approx(4.0)


def test_a_peer_that_never_got_there_gives_a_lower_limit_and_ours_a_miss() -> None:
    def times(ours: bool, theirs: bool) -> Any:
        answers = [[{"reached": reached}] for reached in (ours, theirs)]
        return verdict(
            [
                record("rl/until-0.9", "loragym-warm", 100.0, unit="s", repetitions=answers[0]),
                record("rl/until-0.9", "trl-grpo-warm", 1800.0, unit="s", repetitions=answers[1]),
            ],
            "rl/until-0.9",
            "trl-grpo-warm",
        )

    assert (times(True, False).at_least, times(True, False).met) == (True, True)
    assert times(False, True).met is False


def test_every_target_names_a_row_and_engines_that_the_suite_has() -> None:
    for target in TARGETS:
        served = [row for row in ROWS if row.key in (target.row, f"{target.row}-small")]
        wanted = {target.engine} | ({target.versus} - {"bound"} if target.versus else set())
        assert wanted <= {name for row in served for name in (*row.short, *row.long)}, target


def test_rows_have_names_of_their_own_and_known_engines() -> None:
    assert len({row.key for row in ROWS}) == len(ROWS)
    on_gpu = [(row, engines) for scale in (1, 32) for row, engines in (*rows(scale), *mark_rows(scale))]
    assert {name for row in ROWS for name in (*row.short, *row.long)} <= ENGINES.keys()
    assert {name for _, engines in on_gpu for name in engines} <= ENGINES.keys()


def test_a_row_asked_for_by_name_is_taken_from_the_other_form() -> None:
    assert [row.key for row, _ in chosen_rows("short", ["sampling/128"])] == ["sampling/128"]
    assert "sampling/128" not in [row.key for row, _ in chosen_rows("short", ["sampling"])]
    assert chosen_rows("short", ["nothing"]) == []


def test_tables_show_figures_shares_and_what_is_missing() -> None:
    limit = {"bound": {"tokens_per_second": 500.0, "parts": {"linear": 1.0}}}
    missing = record("sampling/32", "vllm-lora", 0.0, missing="not installed: make it\nmore")
    table = rows_table([record("sampling/32", OURS, 300.0, **limit), missing])
    assert table[2] == "| sampling: 32 | loragym | 300.0 tokens/s | 300.0 - 300.0 (1) | 60% | 1,024 MiB |"
    assert table[3] == "|  | vLLM, LoRA as it ships | not installed: make it | | | |"
    assert "60.0% of 500" in line_of(record("sampling/32", OURS, 300.0, **limit))


def test_a_results_section_names_the_machine_and_judges_the_targets() -> None:
    limit = {"bound": {"tokens_per_second": 500.0, "parts": {}}}
    result = {
        "form": "short",
        "date": "2026-11-22T12:00:00+00:00",
        "minutes": 9.0,
        "setting": {"model": "m", "dtype": "bfloat16", "threads": 2, "rank": 32},
        "machine": {"cpu": "C", "cores": 2, "memory_gib": 8, "bandwidth": 5e10, "rates": {"1x1x1": 4e11}},
        "versions": {"ours": {"torch": "2.13.0"}},
        "records": [record("sampling/32", OURS, 300.0, **limit)],
    }
    text = result_section(result)
    assert "50 GB/s, at best 400 GFLOP/s" in text and "torch 2.13.0" in text
    assert "| 32 sequences: share of the bound | at least 55% | 60.0% | met |" in text
    assert "| 32 sequences: times vLLM with LoRA | at least 4 | - | not measured |" in text
    # Of rows that were asked for by name the targets that they tell of.
    text = result_section(result | {"form": "single rows"})
    assert "### Single rows, 2026-11-22" in text and "| 60.0% | met |" in text
    assert "not measured" not in text


def test_only_what_stands_between_the_markers_is_replaced() -> None:
    page = f"by hand\n{BEGIN}\nold\n{END}\nby hand too\n"
    once = between_markers(page, "new")
    assert once == f"by hand\n{BEGIN}\n\nnew\n\n{END}\nby hand too\n"
    assert between_markers(once, "new") == once
    with pytest.raises(ValueError, match="needs a line"):
        between_markers("no markers", "new")


FAKE = """
import json, sys
from benchmarks.protocol import Unavailable, serve

def load(options):
    print("a library that prints")
    if options.get("lacking"):
        import no_such_module_anywhere
    def handle(request):
        print("more of it")
        if request.get("die"):
            sys.exit(3)
        return {"seconds": 2.0, "tokens": request["n"] * 10 // options["divisor"]}
    return handle, {"vocabulary": 1000}

serve(load)
"""


def fake(tmp_path: Path, **options: Any) -> Worker:
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    root = str(Path(__file__).resolve().parent.parent)
    return Worker([sys.executable, str(script)], options, tmp_path / "log", {"PYTHONPATH": root})


def test_a_worker_answers_line_by_line_whatever_it_prints(tmp_path: Path) -> None:
    worker = fake(tmp_path, divisor=2)
    assert worker.about == {"vocabulary": 1000}
    answer = worker.ask({"n": 3})
    assert (answer["seconds"], answer["tokens"]) == (2.0, 15)
    assert answer["peak_mib"] > 1
    assert worker.ask({"n": 4})["tokens"] == 20
    worker.close()
    assert worker.process.returncode == 0


def test_a_request_that_fails_tells_why_and_the_worker_lives_on(tmp_path: Path) -> None:
    worker = fake(tmp_path, divisor=0)
    with pytest.raises(WorkerError, match="ZeroDivisionError"):
        worker.ask({"n": 3})
    with pytest.raises(WorkerError, match="KeyError"):
        worker.ask({})
    worker.close()


def test_a_worker_that_dies_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    worker = fake(tmp_path, divisor=1)
    with pytest.raises(WorkerError, match=r"(?s)code 3.*more of it"):
        worker.ask({"n": 1, "die": True})
    worker.close()


def test_a_missing_module_makes_an_engine_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no_such_module_anywhere"):
        fake(tmp_path, lacking=True)


class Recorder(Session):
    """A session whose engines are fakes that write down who was asked what."""

    def engine(self, name: str) -> Any:
        if name == "vllm-lora":
            raise Unavailable("not installed: make it")
        session = self

        class Engine:
            about = {"vocabulary": 1000, "config": {}, "weight_bytes": 2}  # noqa: RUF012

            @staticmethod
            def ask(request: dict[str, Any]) -> dict[str, Any]:
                session.asked.append((name, request["step"]))
                return {"seconds": 1.0, "tokens": 8, "peak_mib": 1.0, "share": 0.5}

        return Engine()

    def ours(self, adapter: str = "random") -> dict[str, Any]:
        return {"vocabulary": 1000}


def test_repetitions_are_interleaved_and_a_missing_engine_is_a_row_of_its_own(tmp_path: Path) -> None:
    row = Row(section="rl", name="x", title="x", kind="overhead", unit="share", figure="share")
    session = Recorder(Setting(), tmp_path)
    session.asked = []  # type: ignore[attr-defined]
    found = run_row(session, row, {OURS: 3, "vllm-lora": 3, "generate": 2})
    asked = session.asked  # type: ignore[attr-defined]
    assert asked == [(OURS, 1), ("generate", 1), (OURS, 2), ("generate", 2), (OURS, 3)]
    assert [len(r.get("repetitions", [])) for r in found] == [3, 0, 2]
    assert found[1]["missing"] == "not installed: make it"
    assert json.loads(json.dumps(found)) == found


def test_all_engines_are_asked_for_the_same_tokens() -> None:
    row = next(row for row in ROWS if row.key == "training/sft")
    ours, single = (request_of(row, name, 0, 1000) for name in (OURS, "peft-single"))
    assert ours["sequences"] == single["sequences"] and single["rows_per_batch"] == 1


@pytest.mark.parametrize(
    ("contestant", "size"),
    [("gymnasium", 1), ("gymnasium/sync", 16), ("loragym", 1), ("loragym/loop", 16), ("loragym/sync", 16)],
)
def test_contestants_of_steps_play_episodes_of_ten_guesses(contestant: str, size: int) -> None:
    from benchmarks.workers.env_steps import CONTESTANTS

    _, burst, count = CONTESTANTS[contestant]()
    steps = 480
    # One number in a hundred is found before the turns run out.
    assert count == size
    assert 1 <= 10 * burst(steps) / (steps * size) <= 1.06


def test_a_worker_tells_steps_seconds_and_episodes() -> None:
    from benchmarks.envs_steps import Contestant

    contestant = Contestant("loragym", "guessing", "ours")
    with ExitStack() as stack:
        assert contestant.start(stack)
        contestant.burst(0.05)
        contestant.burst(0.05)
    assert len(contestant.rates) == 2 and contestant.steps >= 480
    assert contestant.steps / contestant.episodes == pytest.approx(10, abs=0.5)
    assert contestant.row.unit.startswith("steps/s, ± ")
