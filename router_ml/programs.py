"""Checks in another process, which is killed with everything it started when its time is over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from router_ml.answer import Answer, BaseVerifier, Verifier
from router_ml.attempt import Verdict
from router_ml.configuration import is_number
from router_ml.errors import VerifierError, brief
from router_ml.request import RouteRequest, VerifierSpec

PASSED_ON = ("PATH", "HOME", "LANG")  # all of the environment that a program gets: keys of providers stay here

_COMMAND = VerifierSpec(0.90, 0.20)


@dataclass(frozen=True, slots=True)
class Command(BaseVerifier):
    """A program that reads the answer (UTF-8) from its standard input and exits with 0 to accept it.

    It runs without a shell, in a process group of its own, and the group is killed when the program ends or its time is
    over; a process that leaves the group on purpose (setsid) escapes. Its output is thrown away. Out of time is a
    rejection: an answer that makes its tests hang is a wrong one. Exit codes 126 and 127, a shell's "cannot be run",
    are not.

    :param argv: program and arguments. :param timeout_s: seconds, > 0.
    :param env: variables besides PATH, HOME and LANG. :param directory: where it runs; None: where this process does.
    :param spec: default .90/.20, the worse of the two settings measured for tests in DESIGN.md, as tests that were
        there before the request seldom cover all of it.
    :raises VerifierError: if an argument is wrong; from ``verify`` if the program cannot be started.
    """

    name: ClassVar[str] = "command"
    argv: Sequence[str]
    timeout_s: float = 60.0
    env: Mapping[str, str] = field(default_factory=dict, hash=False, repr=False)
    directory: str | None = None
    spec: VerifierSpec = _COMMAND

    def __post_init__(self) -> None:
        argv = self.argv
        if not isinstance(argv, (list, tuple)) or not all(map(_is_argument, argv)) or not argv or not argv[0]:
            raise VerifierError(f"command is {brief(argv)}; expected a list of program and arguments (no shell)")
        if not is_number(self.timeout_s) or self.timeout_s <= 0:
            raise VerifierError(f"command: timeout_s is {brief(self.timeout_s)}; expected a finite number > 0")
        if not isinstance(self.env, Mapping) or not all(map(_is_argument, [*self.env, *self.env.values()])):
            raise VerifierError("command: env must map names to strings")  # not shown: it may hold secrets
        if self.directory is not None and not _is_argument(self.directory):
            raise VerifierError(f"command: directory is {brief(self.directory)}; expected a path")
        object.__setattr__(self, "argv", tuple(argv))
        object.__setattr__(self, "env", dict(self.env))

    def _verdict(self, answer: Answer) -> Verdict:
        text = answer.text.encode("utf-8", "replace")
        try:
            code, _ = run(self.argv, text, self.timeout_s, env=self.env, directory=self.directory)
        except subprocess.TimeoutExpired:
            return Verdict(False, f"the command did not end within {self.timeout_s:g} s")
        if code in (126, 127):
            raise VerifierError(f"command {brief(self.argv[0])} exited with {code}: what it starts cannot be run")
        how = f"exited with {code}" if code > 0 else f"was ended by signal {-code}"
        return Verdict(code == 0, "" if code == 0 else f"the command {how}")


@dataclass(frozen=True, slots=True)
class Isolated(BaseVerifier):
    """A verifier that came over the network, run in a Python process of its own, about 0.1 s a check.

    A hostile regular expression or schema needs years for a short text, and the regular expression would hold the
    interpreter's lock all the while. Out of time is a VerifierError: the check is at fault, not the answer.

    :param verifier: what ``source`` describes: its name and reliability are used here.
    :param source: what ``verifiers.verifier_of`` reads; only built-in JSON types.
    """

    verifier: Verifier
    source: Mapping[str, Any] = field(hash=False)
    timeout_s: float = 5.0
    spec: VerifierSpec = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "spec", self.verifier.spec)

    @property
    def name(self) -> str:
        """Name of the verifier inside."""
        return self.verifier.name

    def _verdict(self, answer: Answer) -> Verdict:
        if not sys.executable:
            raise VerifierError(f"{self.name} from a request needs a Python interpreter to run in; none is known")
        given = json.dumps({"path": sys.path, "source": self.source, "text": answer.text}).encode("ascii")
        try:
            code, out = run((sys.executable, "-I", "-c", _CHILD), given, self.timeout_s, keep_output=True)
        except subprocess.TimeoutExpired:
            raise VerifierError(f"{self.name} did not end within {self.timeout_s:g} s; simplify it") from None
        if code != 0:
            raise VerifierError(f"{self.name}: the process that checks ended with {code}")
        accepted, detail = json.loads(out)
        if accepted is None:
            raise VerifierError(detail)
        return Verdict(accepted, detail)


_CHILD = """
import json, sys
given = json.load(sys.stdin)
sys.path[:] = given["path"]
from router_ml.programs import answer_parent
answer_parent(given["source"], given["text"])
"""


def answer_parent(source: Mapping[str, Any], text: str) -> None:
    """Check in the child of ``Isolated``: writes [accepted, detail], or [null, why it cannot be checked]."""
    from router_ml.verifiers import verifier_of

    try:
        verifier = verifier_of(source, trusted=True)
        assert not isinstance(verifier, VerifierSpec)
        verdict = verifier.verify(Answer(text, RouteRequest("-")))
        print(json.dumps([verdict.accepted, verdict.detail]))
    except VerifierError as exc:
        print(json.dumps([None, str(exc)]))


def run(
    argv: Sequence[str], given: bytes, timeout_s: float, *, env: Mapping[str, str] | None = None,
    directory: str | None = None, keep_output: bool = False,
) -> tuple[int, bytes]:  # fmt: skip
    """Run a program to its end.

    :param keep_output: only for a program whose output is known to be small; any other's is thrown away.
    :return: exit code, negative for a signal; and what it wrote.
    :raises subprocess.TimeoutExpired: if it was killed at the end of its time.
    :raises VerifierError: if it cannot be started.
    """
    passed_on = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    try:
        process = subprocess.Popen(
            list(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE if keep_output else subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, env=passed_on | dict(env or {}), cwd=directory, start_new_session=True,
        )  # fmt: skip
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else type(exc).__name__
        raise VerifierError(f"command {brief(argv[0])} cannot be started: {reason}") from None
    with process:
        try:
            out, _ = process.communicate(given, timeout=timeout_s)
        finally:
            _kill_group(process)
    return process.returncode, out or b""


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    if not hasattr(os, "killpg"):  # Windows has no process groups of this kind
        process.kill()
        return
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # nothing is left of it (macOS says the second)
        return


def _is_argument(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value
