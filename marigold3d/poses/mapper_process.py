"""COLMAP in a process of its own: it can be stopped at any moment, and takes nothing down with it when it fails."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from errno import ENOSPC
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from types import TracebackType
from typing import IO, Any

from ..atomic import output_error
from ..errors import OutOfMemoryError
from ..progress import Progress, Steps

COMMAND = (sys.executable, "-m", f"{__package__}.mapper")
PYTHON = {"PYTHONUTF8": "1", "PYTHONSAFEPATH": "1"}  # the folder that a user stands in holds no modules for it
PATIENCE_S = 0.1  # between two signs of life
NO_MEMORY = (-9, 128 + 9, 0xC0000017)  # exit codes of what Linux's memory killer, a shell, and Windows ended


class MapperProcess:
    """`mapper` at work in the folder `workspace`; the end of the `with` block kills it.

    It also ends by itself when this process does, whatever the reason: its input ends then.
    """

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self._answers: SimpleQueue[str] = SimpleQueue()

    def __enter__(self) -> MapperProcess:
        self._complaints: IO[bytes] = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [*COMMAND, str(self.workspace)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **PYTHON},
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._complaints.close()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):  # what it did not read is of no use any more
                self._process.stdin.close()

    def call(self, step: str, done: tuple[int, int | None] = (0, None), **arguments: Any) -> Steps[Any]:
        """The result of a step of `mapper`, reporting `done` of a total while it works.

        Raises OutOfMemoryError, OutputError for a full disk, RuntimeError for what nobody can mend.
        """
        assert self._process.stdin is not None, "it was opened with a pipe"
        with contextlib.suppress(OSError):  # it has ended: the empty answer that waits says so
            self._process.stdin.write(json.dumps({"step": step, **arguments}) + "\n")
            self._process.stdin.flush()
        while True:
            try:
                answer = self._answers.get(timeout=PATIENCE_S)
            except Empty:
                yield Progress("poses", *done)
                continue
            return self._result(answer)

    def _listen(self) -> None:
        """Collect answers; an empty one says that the process has ended."""
        assert self._process.stdout is not None, "it was opened with a pipe"
        with self._process.stdout as answers:
            for line in answers:
                self._answers.put(line)
        self._answers.put("")

    def _result(self, answer: str) -> Any:
        if not answer:
            self._answers.put("")  # for whoever asks again
            raise self._ended()
        found = json.loads(answer)
        if "error" not in found:
            return found["result"]
        text: str = found["text"]
        if found["error"] == "MemoryError":
            raise _no_memory()
        if found["errno"] is not None or "disk is full" in text:
            raise output_error(self.workspace, OSError(found["errno"] or ENOSPC, text.strip().splitlines()[-1]))
        raise RuntimeError(f"structure from motion failed: {text}")

    def _ended(self) -> Exception:
        """What it means that the process ended without an answer."""
        code = self._process.wait()
        if code in NO_MEMORY:
            return _no_memory()
        self._complaints.seek(0)
        text = self._complaints.read().decode(errors="replace").strip()
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"
        return RuntimeError(f"structure from motion ended with {name}: {text[-2000:] or 'it said nothing'}")


def _no_memory() -> OutOfMemoryError:
    return OutOfMemoryError(
        "structure from motion does not fit in memory: close other programs, or use fewer frames with --stride, --fps "
        "or --end"
    )
