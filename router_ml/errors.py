"""Every error this package raises on purpose.

::

    RouterError
    ├── RequestError          (ValueError)   a request cannot be read: empty, wrong type, unknown role
    ├── TableError            (ValueError)   an outcome table breaks the contract; carries every problem found
    ├── PoolError             (ValueError)   pool.yaml or a ModelSpec is invalid
    ├── NoEligibleModelError                 guards removed every model; carries the reason for each
    ├── NotFittedError        (ValueError)   an estimator is asked to predict before it was fitted
    ├── MissingExtraError     (ImportError)  an optional dependency is not installed
    ├── VerifierError         (ValueError)   a verifier is unknown, wrongly configured, or cannot run
    ├── BudgetExceededError                  a cap forbids the call, and nothing cheaper is allowed
    ├── OutcomeLogError                      the outcome log cannot be opened, read or written
    ├── GatewayError                         the gateway cannot start
    ├── AttemptsFailedError                  every model that was tried failed; carries decision and attempts
    ├── ProviderError                        one call failed, for a reason nobody mapped
    │   ├── RateLimitedError                 429; carries the seconds to wait where the provider says them
    │   ├── ProviderTimeoutError             no answer in time
    │   ├── ProviderUnavailableError         5xx, no connection, or an answer that cannot be read
    │   ├── ContextTooLongError              the prompt does not fit the model's window
    │   ├── ContentRefusedError              the provider's content policy
    │   ├── CredentialsError                 the key is missing, wrong, expired or not paid for
    │   ├── ModelGoneError                   the provider does not know the model
    │   └── CallRefusedError                 the provider finds the call itself wrong
    └── ArtifactError                        a saved router cannot be trusted or read
        ├── ArtifactDigestError              a file is missing, truncated or edited
        ├── ArtifactProtocolError            written by a newer protocol
        └── EncoderMismatchError             the encoder is not the one the router was trained with

A message says what came, what was expected and what to do.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from router_ml.attempt import Attempt
    from router_ml.request import RouteDecision


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 60


def brief(value: Any) -> str:
    """The value as an error shows it: at most 60 characters, whatever it is."""
    try:
        text = _REPR.repr(value)  # stops at six levels; repr() of a deep list raises RecursionError
    except Exception:  # an int of more digits than Python prints, a repr() that fails
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


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


class VerifierError(RouterError, ValueError):
    """A verifier is unknown, wrongly configured, or cannot run."""


class BudgetExceededError(RouterError):
    """A cap forbids the call.

    ``cap`` names it, ``limit_usd`` is its amount, ``spent_usd`` what is spent or reserved, ``wanted_usd`` what the call
    is expected to cost.
    """

    def __init__(self, cap: str, limit_usd: float, spent_usd: float, wanted_usd: float) -> None:
        self.cap, self.limit_usd, self.spent_usd, self.wanted_usd = cap, limit_usd, spent_usd, wanted_usd
        super().__init__(
            f"the call is expected to cost {wanted_usd:.6g} USD, but of {cap}, {limit_usd:.6g} USD, "
            f"{spent_usd:.6g} USD is spent or reserved; raise the cap or wait until it is renewed"
        )


class OutcomeLogError(RouterError):
    """The outcome log cannot be opened, read or written."""


class GatewayError(RouterError):
    """The gateway cannot start."""


class AttemptsFailedError(RouterError):
    """Every model that was tried failed. ``decision`` and ``attempts`` say which, in order, and why each failed."""

    def __init__(self, decision: RouteDecision, attempts: Sequence[Attempt]) -> None:
        self.decision, self.attempts = decision, tuple(attempts)
        tried = "; ".join(f"{a.model}: {a.error}" for a in self.attempts if a.error is not None)
        super().__init__(f"all {len(self.attempts)} attempt(s) failed ({tried}); no eligible model is left")


class ProviderError(RouterError):
    """One call failed.

    :param model: candidate that was called. :param status: HTTP status, None where there was none.
    :param retry_after_s: seconds after which the provider asks to be called again.

    Class attributes say what helps: ``transient``, the same call may succeed a moment later; ``is_fault``, the model
    or its provider is at fault, so its breaker counts it; ``same_key``, every model behind the same key fails alike.
    ``headers`` are the provider's, names in lower case. ``detail`` is what it said, without keys; it may quote the
    prompt, so it is in no message and no log.
    """

    transient = False
    is_fault = False
    same_key = False
    headers: Mapping[str, str] = {}
    detail: str = ""

    def __init__(
        self, message: str, *, model: str = "", status: int | None = None, retry_after_s: float | None = None
    ) -> None:
        self.model, self.status, self.retry_after_s = model, status, retry_after_s
        super().__init__(message)


class RateLimitedError(ProviderError):
    """The provider's rate limit is reached."""

    transient = True
    is_fault = True


class ProviderTimeoutError(ProviderError):
    """No answer within the time allowed."""

    transient = True
    is_fault = True


class ProviderUnavailableError(ProviderError):
    """The provider failed: 5xx, no connection, or an answer that cannot be read."""

    transient = True
    is_fault = True


class ContextTooLongError(ProviderError):
    """The prompt does not fit the model's window."""


class ContentRefusedError(ProviderError):
    """The provider's content policy refuses the prompt or the answer."""


class CredentialsError(ProviderError):
    """The key is missing, wrong, expired, or its account cannot pay."""

    is_fault = True
    same_key = True


class ModelGoneError(ProviderError):
    """The provider does not know the model, or no longer."""

    is_fault = True


class CallRefusedError(ProviderError):
    """The call itself is wrong, such as a parameter that the provider does not take, or that cannot be sent at all."""


class ArtifactError(RouterError):
    """A saved router cannot be read."""


class ArtifactDigestError(ArtifactError):
    """A file of the artifact is missing, truncated or edited."""


class ArtifactProtocolError(ArtifactError):
    """The artifact was written by a newer protocol than this version reads."""


class EncoderMismatchError(ArtifactError):
    """The encoder at hand is not the one the router was trained with."""
