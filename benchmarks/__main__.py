"""Runs the benchmark suite, or some of its rows.

python -m benchmarks                                  the short form (make bench)
python -m benchmarks --form long                      all rows (make bench-long)
python -m benchmarks --only sampling/32 training      some rows or sections; a row that only the other form has
                                                      is taken from there
python -m benchmarks --only training --engines loragym --repetitions 3
python -m benchmarks --list                           the rows
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .report import RESULTS, line_of, measured, outcome, publish, wanted, write
from .run import THREADS, Setting, measure
from .suite import ENGINES, ROWS, Row
from .targets import verdicts


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--form", choices=("short", "long"), default="short")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="rows or sections")
    parser.add_argument("--engines", nargs="+", metavar="ENGINE", choices=sorted(ENGINES))
    parser.add_argument("--repetitions", type=int, help="of every engine")
    parser.add_argument("--model", default=Setting().model)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument(
        "--output",
        type=Path,
        help="the JSON file; by default a run of all rows goes to benchmarks/results/DATE-FORM.json and into "
        "docs/performance.md, and any other is only printed",
    )
    parser.add_argument("--list", action="store_true", help="print the rows and stop")
    arguments = parser.parse_args()
    if arguments.list:
        for row in ROWS:
            forms = [form for form in ("short", "long") if getattr(row, form)]
            print(f"{row.key:24} {' '.join(forms):11} {row.title}")
        return
    rows = chosen_rows(arguments.form, arguments.only)
    if not rows:
        parser.error(f"no row is called so; there are {[row.key for row in ROWS]}")
    setting = Setting(model=arguments.model, dtype=arguments.dtype, threads=arguments.threads)
    chosen = arguments.engines or ENGINES
    plan = []
    for row, engines in rows:
        if counts := {name: arguments.repetitions or n for name, n in engines.items() if name in chosen}:
            plan.append((row, counts))
    all_of_it = arguments.only is None and arguments.engines is None
    form = arguments.form if all_of_it else "single rows"
    result = measure(setting, plan, form=form, tell=lambda record: print(line_of(record), flush=True))
    for verdict in verdicts(result["records"]):
        if verdict.met is not None:
            print(f"{outcome(verdict):8} {verdict.target.what}: {measured(verdict)} (wanted: {wanted(verdict)})")
    if arguments.output:
        write(result, arguments.output)
    elif all_of_it:
        output = RESULTS / f"{result['date'][:10]}-{arguments.form}.json"
        write(result, output)
        publish([output])


def chosen_rows(form: str, only: list[str] | None) -> list[tuple[Row, dict[str, int]]]:
    """The rows of a form with their engines; those asked for by name are taken from the other form if need be."""
    rows = []
    for row in ROWS:
        named = only is not None and row.key in only
        if only is not None and not named and row.section not in only:
            continue
        engines = getattr(row, form) or (named and (row.short or row.long))
        if engines:
            rows.append((row, dict(engines)))
    return rows


if __name__ == "__main__":
    main()
