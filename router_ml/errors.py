"""Every error this package raises on purpose.

::

    RouterError
    ├── RequestError          (ValueError)   a request cannot be read: empty, wrong type, unknown role
    ├── TableError            (ValueError)   an outcome table breaks the contract; carries every problem found
    ├── PoolError             (ValueError)   pool.yaml or a ModelSpec is invalid
    ├── NoEligibleModelError                 guards removed every model; carries the reason for each
    ├── NotFittedError        (ValueError)   an estimator is asked to predict before it was fitted
    ├── MissingExtraError     (ImportError)  an optional dependency is not installed
    └── ArtifactError                        a saved router cannot be trusted or read
        ├── ArtifactDigestError              a file is missing, truncated or edited
        ├── ArtifactProtocolError            written by a newer protocol
        └── EncoderMismatchError             the encoder is not the one the router was trained with

A message says what came, what was expected and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class RouterError(Exception):
    """Base of every error raised by router_ml."""


class RequestError(RouterError, ValueError):
    """The request cannot be read."""


class TableError(RouterError, ValueError):
    """An outcome table breaks the contract.

    ``problems`` holds one sentence per bad row or column; the message shows the first ten.
    """

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        shown = "\n  ".join(self.problems[:10])
        more = len(self.problems) - 10
        tail = f"\n  ... and {more} more" if more > 0 else ""
        super().__init__(f"{where}: {len(self.problems)} problem(s)\n  {shown}{tail}")


class PoolError(RouterError, ValueError):
    """The pool is invalid."""


class NoEligibleModelError(RouterError):
    """Every model of the pool was excluded; ``excluded`` maps each model to its reason."""

    def __init__(self, excluded: Mapping[str, str]) -> None:
        self.excluded = dict(excluded)
        reasons = "; ".join(f"{model}: {why}" for model, why in self.excluded.items())
        super().__init__(f"no model of the pool can take this request ({reasons}); relax a constraint or add a model")


class NotFittedError(RouterError, ValueError):
    """The estimator has not been fitted."""


class MissingExtraError(RouterError, ImportError):
    """An optional dependency is missing; the message is the line that installs it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; run: pip install 'router-ml[{extra}]'")


class ArtifactError(RouterError):
    """A saved router cannot be read."""


class ArtifactDigestError(ArtifactError):
    """A file of the artifact is missing, truncated or edited."""


class ArtifactProtocolError(ArtifactError):
    """The artifact was written by a newer protocol than this version reads."""


class EncoderMismatchError(ArtifactError):
    """The encoder at hand is not the one the router was trained with."""
