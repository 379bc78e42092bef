"""vLLM behind its OpenAI-compatible server: one that runs already, or a child process that dies with this one."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..envs.threads import DaemonExecutor
from .vllm_backend import Outcome, Request, ServedAdapter
from .vllm_process import QUIET

BASE_NAME = "base"
"""What a server of ours calls the base model."""
KEY_VARIABLE = "VLLM_API_KEY"
CLOSING_SECONDS = 20
LOG_TAIL = 3000
"""Characters of a server's log in an error."""


class ServerError(RuntimeError):
    """The server refused, failed or could not be reached."""


class ServerBackend:
    """A vLLM server by its URL.

    Args:
        url: such as `http://127.0.0.1:8000`.
        timeout: seconds after which an answer counts as missing.
        max_concurrent: most requests under way at once.
        key: of the server, if it has one; by default `$VLLM_API_KEY`.
        child: the server, if it is ours.

    Raises:
        ServerError: there is no server, or none with a base model.
    """

    def __init__(
        self, url: str, *, timeout: float, max_concurrent: int, key: str | None = None, child: Child | None = None
    ) -> None:
        self.url = url.rstrip("/")
        self.timeout = timeout
        self._key = key or os.environ.get(KEY_VARIABLE)
        self._child = child
        self._done: queue.SimpleQueue[tuple[int, Future[Outcome]]] = queue.SimpleQueue()
        self._threads = DaemonExecutor(max_concurrent, "loragym vllm")
        models = [model for model in self._call("GET", "/v1/models")["data"] if not model.get("parent")]
        if not models or not models[0].get("max_model_len"):
            raise ServerError(f"{self.url} serves no base model of vLLM; its models are {models}")
        self._adapters: list[ServedAdapter] = []
        self.base_name: str = models[0]["id"]
        self.context_length = int(models[0]["max_model_len"])

    def load(self, adapter: ServedAdapter) -> None:
        body = {"lora_name": adapter.name, "lora_path": str(adapter.folder)}
        try:
            self._call("POST", "/v1/load_lora_adapter", body)
        except ServerError as error:
            error.add_note(
                "a server takes adapters if it was started with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, --enable-lora and "
                "a large enough --max-lora-rank, and sees the folder that they are written to (adapter_dir)"
            )
            raise
        self._adapters.append(adapter)

    def drop(self, adapter: ServedAdapter) -> None:
        self._adapters.remove(adapter)
        self._call("POST", "/v1/unload_lora_adapter", {"lora_name": adapter.name})

    def start(self, request: Request, adapter: ServedAdapter | None) -> None:
        body = {
            **request.settings,
            "model": self.base_name if adapter is None else adapter.name,
            "prompt": list(request.prompt),
            "return_token_ids": True,
        }
        future = self._threads.submit(lambda: _outcome(self._call("POST", "/v1/completions", body)))
        future.add_done_callback(lambda done: self._done.put((request.number, done)))

    def poll(self) -> dict[int, Outcome]:
        """Waits for at least one outcome; raises TimeoutError if none comes in time."""
        try:
            finished = [self._done.get(timeout=self.timeout)]
        except queue.Empty:
            raise TimeoutError(
                f"the vLLM server at {self.url} finished no request within {self.timeout:g} s (the option "
                f"`timeout` sets the limit){self._tail()}"
            ) from None
        while not self._done.empty():
            finished.append(self._done.get())
        return {number: future.result() for number, future in finished}

    def close(self) -> None:
        if self._child is not None:
            # Requests under way fail at once.
            self._child.close()
        else:
            with contextlib.suppress(ServerError, TimeoutError):
                for adapter in list(self._adapters):
                    self.drop(adapter)
        self._threads.shutdown(wait=self._child is not None, cancel_futures=True, timeout=CLOSING_SECONDS)

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        try:
            return call(self.url, method, path, body, timeout=self.timeout, key=self._key)
        except TimeoutError as error:
            raise TimeoutError(
                f"the vLLM server at {self.url} did not answer {path} within {self.timeout:g} s (the option "
                f"`timeout` sets the limit){self._tail()}"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"the vLLM server at {self.url} cannot be reached ({error!r}){self._tail()}") from error

    def _tail(self) -> str:
        return "" if self._child is None else f"; its log ends with\n{self._child.tail()}"


class Child:
    """vLLM's server in a process group of its own, which ends when its standard input does: with this process.

    Args:
        arguments: by the names of vLLM's `EngineArgs`.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.key = secrets.token_hex(16)
        self._log = tempfile.TemporaryDirectory(prefix="loragym-vllm-log-")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        options = {"served_model_name": BASE_NAME, "host": "127.0.0.1", "port": port, **arguments}
        environment = {
            **QUIET,
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            **os.environ,
            KEY_VARIABLE: self.key,
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        }
        with self._log_file.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(Path(__file__).with_name("vllm_child.py")), *command_line(options)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    @property
    def _log_file(self) -> Path:
        return Path(self._log.name) / "server.log"

    def wait_until_ready(self, timeout: float) -> None:
        """Raises TimeoutError or ServerError, with the end of the log, if the server does not come up."""
        deadline = time.monotonic() + timeout
        while True:
            if (status := self._process.poll()) is not None:
                raise ServerError(f"the vLLM server ended with status {status}; its log ends with\n{self.tail()}")
            with contextlib.suppress(OSError, ServerError, http.client.HTTPException):
                call(self.url, "GET", "/health", timeout=5.0, key=self.key)
                return
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"the vLLM server was not ready after {timeout:g} s; the option `timeout` sets the limit. Its log "
                    f"ends with\n{self.tail()}"
                )
            time.sleep(0.2)

    def tail(self) -> str:
        """The end of the server's log."""
        if not self._log_file.is_file():
            return ""
        return self._log_file.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL:]

    def close(self) -> None:
        """Ends the server and all its processes."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(CLOSING_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(CLOSING_SECONDS)
        self._log.cleanup()


def start_server(arguments: Mapping[str, Any], *, timeout: float, max_concurrent: int) -> ServerBackend:
    """A server of our own.

    Raises:
        ServerError, TimeoutError: it does not come up; the message has the end of its log.
    """
    child = Child(arguments)
    try:
        child.wait_until_ready(timeout)
        return ServerBackend(child.url, timeout=timeout, max_concurrent=max_concurrent, key=child.key, child=child)
    except BaseException:
        child.close()
        raise


def call(
    url: str,
    method: str,
    path: str,
    body: Mapping[str, Any] | None = None,
    *,
    timeout: float,
    key: str | None = None,
) -> Any:
    """One request; returns the answer's JSON, or its text if it is none.

    Raises:
        ServerError: the server refused; its words are in the message.
        OSError, http.client.HTTPException: it could not be reached.
    """
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    with contextlib.closing(kind(parts.hostname or "", parts.port, timeout=timeout)) as connection:
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        connection.request(method, parts.path + path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read().decode()
    if answer.status != http.client.OK:
        raise ServerError(f"the vLLM server at {url} answered {path} with {answer.status}: {text[:1000]}")
    try:
        return json.loads(text)
    except ValueError:
        return text


def command_line(arguments: Mapping[str, Any]) -> list[str]:
    """Arguments of vLLM's `EngineArgs` as options of its server."""
    words = []
    for name, value in arguments.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif value is not None:
            words += [f"--{option}", value if isinstance(value, str) else json.dumps(value)]
    return words


def _outcome(answer: Any) -> Outcome:
    (choice,) = answer["choices"]
    scored = choice.get("prompt_logprobs")
    if scored is not None:
        pairs = zip(scored[1:], choice["prompt_token_ids"][1:], strict=True)
        scored = [entries[str(token)]["logprob"] for entries, token in pairs]
    logprobs = choice.get("logprobs") or {}
    return Outcome(choice["token_ids"], logprobs.get("token_logprobs", []), choice["finish_reason"], scored)
