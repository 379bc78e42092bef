"""Writes results into docs/performance.md: a table of targets, a table of rows, a picture.

    python -m benchmarks.report                          the newest results
    python -m benchmarks.report benchmarks/results/A.json benchmarks/results/B.json

What stands between the markers is replaced, the rest of the page is left alone. The picture is of the first file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .suite import ENGINES, OURS
from .targets import Verdict, verdicts

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
PICTURE = ROOT / "docs" / "performance.png"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- results: written by python -m benchmarks.report -->", "<!-- end of results -->"
UNITS = {
    "tokens/s": "{:,.1f} tokens/s".format,
    "s": "{:.2f} s".format,
    "MiB": "{:,.0f} MiB".format,
    "share": "{:.1%}".format,
}

Result = Mapping[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, help="results; by default the newest")
    files = parser.parse_args().files or sorted(RESULTS.glob("*.json"), key=lambda path: path.stat().st_mtime)[-1:]
    if not files:
        parser.error(f"there are no results in {RESULTS}; make bench writes them")
    publish(files)


def publish(files: Sequence[Path]) -> None:
    """Writes the results in these files into the page, and a picture of the first."""
    results = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    text = "\n".join(result_section(result) for result in results)
    draw(results[0], PICTURE)
    picture = f"![Share of the machine's bound that each engine reaches]({PICTURE.name})\n\n"
    PAGE.write_text(between_markers(PAGE.read_text(encoding="utf-8"), picture + text), encoding="utf-8")
    print(f"wrote {PAGE} and {PICTURE}")


def between_markers(page: str, text: str) -> str:
    """The page with the text between its markers replaced.

    Raises:
        ValueError: the page lacks a marker.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(f"the page needs a line {BEGIN!r} and after it a line {END!r}, each once")
    return f"{page[: page.index(BEGIN) + len(BEGIN)]}\n\n{text.strip()}\n\n{page[page.index(END) :]}"


def result_section(result: Result) -> str:
    """One run: its machine, targets and rows, in Markdown."""
    machine, setting = result["machine"], result["setting"]
    known = {name: version for of_worker in result["versions"].values() for name, version in of_worker.items()}
    whole = result["form"] in ("short", "long")
    title = f"The {result['form']} form" if whole else result["form"].capitalize()
    found = verdicts(result["records"])
    speed = ""
    if "rates" in machine:  # rows without a bound need none
        best = max(machine["rates"].values())
        speed = f"{machine['bandwidth'] / 1e9:.0f} GB/s, at best {best / 1e9:.0f} GFLOP/s; "
    lines = [
        f"### {title}, {result['date'][:10]}",
        "",
        f"{setting['model']}, {setting['dtype']}, {setting['threads']} threads, LoRA rank {setting['rank']} on all "
        f"linear layers; {machine.get('cpu')} with {machine.get('cores')} cores, {machine.get('memory_gib')} GiB; "
        f"{speed}Python {machine.get('python')}, {', '.join(f'{name} {known[name]}' for name in sorted(known))}; "
        f"{result['minutes']} minutes.",
        "",
        *targets_table(found if whole else [verdict for verdict in found if verdict.met is not None]),
        "",
        *rows_table(result["records"]),
        "",
    ]
    return "\n".join(lines)


def targets_table(found: Sequence[Verdict]) -> list[str]:
    """Targets beside what came out."""
    lines = ["| target | wanted | measured | |", "|---|---|---|---|"]
    for verdict in found:
        lines.append(f"| {verdict.target.what} | {wanted(verdict)} | {measured(verdict)} | {outcome(verdict)} |")
    return lines


def wanted(verdict: Verdict) -> str:
    target = verdict.target
    if target.most is not None:
        return f"below {target.most:.0%}"
    assert target.least is not None
    return f"at least {target.least:.0%}" if target.least < 1 else f"at least {target.least:g}"


def measured(verdict: Verdict) -> str:
    if verdict.value is None:
        return "-"
    is_share = verdict.target.most is not None or (verdict.target.least or 0) < 1
    text = f"{verdict.value:.1%}" if is_share else f"{verdict.value:.2f}"
    return f"more than {text}" if verdict.at_least else text


def outcome(verdict: Verdict) -> str:
    return {None: "not measured", True: "met", False: "missed"}[verdict.met]


def rows_table(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every row and engine: median, range, share of the bound, peak memory."""
    lines = ["| row | engine | median | from - to (n) | of the bound | peak memory |", "|---|---|---|---|---|---|"]
    previous = None
    for record in records:
        title = "" if (record["section"], record["row"]) == previous else f"{record['section']}: {record['title']}"
        previous = (record["section"], record["row"])
        label = ENGINES[record["engine"]].label if record["engine"] in ENGINES else record["engine"]
        if "missing" in record:
            why = record["missing"].splitlines()[0]
            lines.append(f"| {title} | {label} | {why} | | | |")
            continue
        form = UNITS[record["unit"]]
        unit = form(record["median"]).split(" ")[-1] if " " in form(record["median"]) else ""
        low, high = (form(record[name]).removesuffix(f" {unit}") for name in ("low", "high"))
        bound = record.get("bound")
        share = f"{record['median'] / bound['tokens_per_second']:.0%}" if bound else ""
        unfinished = "" if all(a.get("reached", True) for a in record["repetitions"]) else " (not reached)"
        lines.append(
            f"| {title} | {label} | {form(record['median'])}{unfinished} | {low} - {high} "
            f"({record['counted']}) | {share} | {record['peak_mib']:,.0f} MiB |"
        )
    return lines


def line_of(record: Mapping[str, Any]) -> str:
    """One record as a line of text."""
    start = f"{record['section'] + '/' + record['row']:24} {ENGINES[record['engine']].label:38}"
    if "missing" in record:
        return f"{start} {record['missing'].splitlines()[0]}"
    figure = UNITS[record["unit"]]
    line = f"{start} {figure(record['median']):>15} ({figure(record['low'])} to {figure(record['high'])}, "
    line += f"n={record['counted']})"
    if bound := record.get("bound"):
        line += f"  {record['median'] / bound['tokens_per_second']:6.1%} of {bound['tokens_per_second']:.0f}"
    line += f"  peak {record['peak_mib']:.0f} MiB"
    if bound and record["engine"] == OURS:
        line += "  bound by " + " ".join(f"{name} {value:.2f}s" for name, value in bound["parts"].items())
    details = {
        name: value
        for name, value in record["repetitions"][-1].items()
        if name not in ("seconds", "tokens", "peak_mib", "others", "rewards") and isinstance(value, int | float)
    }
    line += "".join(f"  {name} {value:.4g}" for name, value in details.items())
    return line + (f"  OTHER PROCESSES {record['others']:.0%}" if record["others"] > 0.05 else "")


def write(result: Result, output: Path) -> None:
    """Writes a run's result as JSON."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{output}: {result['minutes']} minutes")


def draw(result: Result, picture: Path) -> None:
    """Bars of what share of the bound each engine reaches, a panel for sampling and one for training."""
    from matplotlib import pyplot

    rows = [r for r in result["records"] if "bound" in r]
    sections = [s for s in ("sampling", "training") if any(r["section"] == s for r in rows)]
    engines = [name for name in ENGINES if any(r["engine"] == name for r in rows)]
    counts = [len({r["row"] for r in rows if r["section"] == section}) for section in sections]
    figure, axes = pyplot.subplots(
        len(sections),
        1,
        figsize=(9, 1.2 + 0.9 * sum(counts)),
        squeeze=False,
        layout="constrained",
        height_ratios=counts,
    )
    for axis, section in zip(axes.flat, sections, strict=True):
        titles = {r["row"]: r["title"] for r in rows if r["section"] == section}
        for place, row in enumerate(titles):
            shown = [r for r in rows if r["section"] == section and r["row"] == row]
            for index, record in enumerate(shown):
                width = 0.8 / len(shown)
                at = place - 0.4 + width * (index + 0.5)
                share = 100 * record["median"] / record["bound"]["tokens_per_second"]
                axis.barh(at, share, width, color=f"C{engines.index(record['engine'])}")
                axis.text(share + 0.5, at, f"{record['median']:,.0f}", va="center", fontsize=7)
        axis.set_yticks(range(len(titles)), list(titles.values()), fontsize=8)
        axis.invert_yaxis()
        axis.set_xlim(0, 100)
        axis.set_title(f"{section}: percent of the machine's bound (numbers: tokens/s)", fontsize=10)
        axis.grid(alpha=0.3, axis="x")
    handles = [
        pyplot.Rectangle((0, 0), 1, 1, color=f"C{index}", label=ENGINES[name].label + " (ours)" * (name == OURS))
        for index, name in enumerate(engines)
    ]
    figure.legend(handles=handles, fontsize=8, loc="outside lower center", ncols=2)
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
