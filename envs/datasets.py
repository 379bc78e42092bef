"""Rows of a data set: from a file or a folder of one's own, or from the hub through `datasets`.

Environments ask for rows by a source's name and look at them one by one; what a row means is their business. Rows are
read once per process and shared by all environments that ask for the same ones.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

Rows: TypeAlias = Sequence[Mapping[str, Any]]
Source: TypeAlias = str | os.PathLike[str] | Rows
"""A file (JSONL, JSON or Parquet), a folder of such files, a data set's id on the hub, or the rows themselves."""

HOW_TO_SUPPLY = (
    "pass data= the path of a JSONL or Parquet file, or of a folder with a file for each split (train.jsonl, "
    "test.jsonl), or of a folder that `datasets.Dataset.save_to_disk` or `hf download` made"
)


ANSWER_SECONDS = 10.0
"""How long the hub may take to say anything."""
KNOWN_SECONDS = 60.0
"""How long it is taken for granted that it does, or does not."""
logger = logging.getLogger(__name__)


class DataNotFound(FileNotFoundError):
    """No source has the rows; the message says what was tried and how to supply them."""


class BadData(ValueError):
    """A file's content is not what it should be; the message says where."""


def load_rows(source: Source, *, split: str | None = None, config: str | None = None) -> Rows:
    """The rows of a data set, in their order.

    Args:
        source: see `Source`. A path that exists is taken for a path; anything else of the form `name` or `owner/name`
            for a hub id.
        split: which split. In a folder those are the files, or the files of folders, whose names begin with it; a
            single file is one split and is read whole, whatever the split. By default everything there is.
        config: which of a hub data set's configurations, or of a folder's sub-folders.

    Returns:
        A sequence that is not to be changed; large hub data sets and Parquet files stay on disk.

    Raises:
        DataNotFound: nothing is there, or the hub cannot be reached.
        BadData: a file cannot be read as what its name says.
        ImportError: Parquet files and the hub need the extra `data`.
    """
    if not isinstance(source, str | os.PathLike):
        return source
    path = Path(source).expanduser()
    if path.exists():
        files = _files(path, split, config)
        rows = _read_files(files, tuple(file.stat().st_mtime_ns for file in files))
        return rows if isinstance(rows, list) else StoredRows(rows, str(path))
    if path.suffix in _READERS or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(source)):
        raise DataNotFound(f"there is no file or folder {source}; {HOW_TO_SUPPLY}")
    return _from_hub(str(source), split, config)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows as JSON lines, all of them or none, and the folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    draft.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    draft.rename(path)


def text_of(row: Mapping[str, Any], *names: str, where: str) -> str:
    """The text in the first of these columns that the row has.

    Raises:
        BadData: it has none of them, or something else than text stands there, or it is no row.
    """
    row = as_row(row, where)
    name = next((name for name in names if row.get(name) is not None), None)
    if name is None:
        raise BadData(f"{where}: a row has the columns {sorted(row)}; one of {list(names)} was expected")
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadData(f"{where}: column {name!r} holds {value!r:.80}; text was expected")
    return str(value)


class StoredRows(Sequence[Mapping[str, Any]]):
    """Rows that stay on disk; what is damaged in them shows when a row is asked for.

    Attributes:
        fingerprint: tells a data set of the hub from any other; None for files.
    """

    def __init__(self, rows: Any, where: str, fingerprint: str | None = None) -> None:
        self._rows, self._where, self.fingerprint = rows, where, fingerprint

    @property
    def column_names(self) -> list[str]:
        """The columns that each row has."""
        names: list[str] = self._rows.column_names
        return names

    def columns(self, names: Sequence[str]) -> Mapping[str, Sequence[Any]]:
        """These columns alone, whole: what else a large data set holds is not read from the disk."""
        try:
            table: Mapping[str, Sequence[Any]] = self._rows.select_columns(list(names))[:]
        except Exception as error:
            raise BadData(f"{self._where}: cannot be read ({type(error).__name__}: {error})") from error
        return table

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        try:
            return self._rows[index]
        except IndexError:
            raise
        except Exception as error:
            raise BadData(f"{self._where}, row {index}: cannot be read ({type(error).__name__}: {error})") from error

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        rows = iter(self._rows)
        for number in range(len(self)):
            try:
                row = next(rows)
            except Exception as error:
                raise BadData(
                    f"{self._where}, row {number}: cannot be read ({type(error).__name__}: {error})"
                ) from error
            yield row


_READERS: dict[str, Callable[[Path], Rows]] = {}


def _reader(*suffixes: str) -> Callable[[Callable[[Path], Rows]], Callable[[Path], Rows]]:
    def register(read: Callable[[Path], Rows]) -> Callable[[Path], Rows]:
        _READERS.update(dict.fromkeys(suffixes, read))
        return read

    return register


@_reader(".jsonl", ".ndjson")
def _read_jsonl(path: Path) -> Rows:
    # Not splitlines(): JSON strings may hold other line separators, such as U+2028, as they are.
    lines = enumerate(_text(path).split("\n"), 1)
    return [as_row(_parsed(line, f"{path}:{at}"), f"{path}:{at}") for at, line in lines if line.strip()]


@_reader(".json")
def _read_json(path: Path) -> Rows:
    found = _parsed(_text(path), str(path))
    if not isinstance(found, list):
        raise BadData(f"{path}: a list of objects was expected, not {type(found).__name__}")
    return [as_row(row, f"{path}: entry {number}") for number, row in enumerate(found)]


@_reader(".parquet")
def _read_parquet(path: Path) -> Rows:
    datasets = _datasets(f"reading {path}")
    try:
        rows: Rows = datasets.Dataset.from_parquet(str(path))
    except Exception as error:
        raise BadData(f"{path} cannot be read as Parquet: {error}") from error
    return rows


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadData(f"{path} is not UTF-8 text: {error}") from error


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadData(f"{where} is not JSON ({error}): {text[:80]!r}") from error


def as_row(value: Any, where: str) -> Mapping[str, Any]:
    """`value`, if it is a row.

    Raises:
        BadData: it has no columns.
    """
    if not isinstance(value, Mapping):
        raise BadData(f"{where}: an object with a value for each column was expected, not {value!r:.80}")
    return value


def _files(path: Path, split: str | None, config: str | None) -> tuple[Path, ...]:
    if path.is_file():
        if path.suffix not in _READERS:
            raise BadData(f"{path} is none of {', '.join(_READERS)}; {HOW_TO_SUPPLY}")
        return (path,)
    folder = path / config if config and (path / config).is_dir() else path
    if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
        return (folder / split if split and (folder / split).is_dir() else folder,)
    files = sorted(file for file in folder.rglob("*") if file.suffix in _READERS and file.is_file())
    chosen = [file for file in files if split is None or _is_of(split, file.relative_to(folder))]
    if not chosen:
        has = ", ".join(str(file.relative_to(folder)) for file in files[:10]) or "no such files"
        raise DataNotFound(f"{folder} has no file for split {split!r}; it has: {has}. {HOW_TO_SUPPLY}")
    return tuple(chosen)


def _is_of(split: str, file: Path) -> bool:
    # train.jsonl, train-00000-of-00002.parquet, train/anything.parquet, but not training.jsonl
    return any(re.match(rf"{re.escape(split)}(?![A-Za-z0-9])", part) for part in file.parts)


@lru_cache(maxsize=32)
def _read_files(files: tuple[Path, ...], changes: tuple[int, ...]) -> Rows:
    parts = [_saved(file) if file.is_dir() else _READERS[file.suffix](file) for file in files]
    if len(parts) == 1:
        return parts[0]
    if any(file.suffix == ".parquet" for file in files) and len({file.suffix for file in files}) == 1:
        rows: Rows = _datasets("reading Parquet").concatenate_datasets(parts)
        return rows
    return [row for part in parts for row in part]


def _saved(folder: Path) -> Rows:
    datasets = _datasets(f"reading {folder}")
    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise BadData(f"{folder} cannot be read as a saved data set: {type(error).__name__}: {error}") from error
    if isinstance(found, datasets.DatasetDict):
        return _only_split(found, str(folder))
    rows: Rows = found
    return rows


@lru_cache(maxsize=32)
def _from_hub(name: str, split: str | None, config: str | None) -> Rows:
    datasets = _datasets(f"fetching {name} from the hub")
    try:
        with _at_once_without_the_hub():
            found = datasets.load_dataset(name, config, split=split)
    except ValueError as error:
        raise DataNotFound(f"{name} has no such split or configuration: {error}") from error
    except Exception as error:
        # `datasets` raises whatever its many layers raise: no network, no such id, no permission.
        raise DataNotFound(
            f"the data set {name} is no local path, and the hub gave none of that name ({type(error).__name__}: "
            f"{error}). Without a network, {HOW_TO_SUPPLY}"
        ) from error
    rows = _only_split(found, name) if isinstance(found, Mapping) else found
    return StoredRows(rows, name, getattr(rows, "_fingerprint", None))


@contextmanager
def _at_once_without_the_hub() -> Iterator[None]:
    """Where the hub does not answer, the cache is used at once; `datasets` alone goes on asking for minutes."""
    from datasets import config
    from huggingface_hub import constants

    if config.HF_HUB_OFFLINE or _hub_answers(int(time.monotonic() // KNOWN_SECONDS)):
        yield
        return
    before = constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE = before


@lru_cache(maxsize=1)
def _hub_answers(period: int) -> bool:
    """Whether anything at all comes back from the hub; asked once a period."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=ANSWER_SECONDS)
    except Exception as error:
        # Whatever the client raises where there is no network, no name server, no route or no time left.
        logger.warning("the hub %s does not answer (%s); its data sets come from the cache", constants.ENDPOINT, error)
        return False
    return True


def _only_split(splits: Mapping[str, Rows], name: str) -> Rows:
    if len(splits) == 1:
        return next(iter(splits.values()))
    raise DataNotFound(f"{name} has the splits {', '.join(splits)}; ask for one of them with split=")


def _datasets(purpose: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"{purpose} needs the package datasets: pip install 'loragym[data]'") from error
    return datasets
