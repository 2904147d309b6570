"""Convert errors of huggingface_hub to one sentence: what happened, and what to do about it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from nextdetr.errors import WeightsError

__all__ = ["LOGIN", "hub_errors", "is_unreachable", "reason_of", "told"]

LOGIN = "log in with: hf auth login"


@contextlib.contextmanager
def told(name: str, revision: str | None, *, missing: str, unreachable: str, token: str = "") -> Iterator[None]:
    """Convert errors of huggingface_hub to one sentence; errors of the local disk pass unchanged.

    Args:
        name: subject of the sentence.
        revision: requested branch, tag or commit.
        missing: message for a repository that does not exist.
        unreachable: message if the Hub cannot be reached; ``{reason}`` is replaced by the cause.
        token: permission that the token needs, for a refusal.
    """
    try:
        yield
    except hub_errors() as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise
        cause = _answer(error, revision, missing, token) or unreachable.replace("{reason}", reason_of(error))
        raise WeightsError(f"{name}: {cause}") from error


def hub_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of huggingface_hub and its download libraries."""
    from huggingface_hub import errors as hub

    # The exceptions of its HTTP library (requests, httpx, httpx2, depending on its version) are bases of its own; hf_xet
    # raises RuntimeError.
    bases = [one for one in hub.HfHubHTTPError.__bases__ if issubclass(one, Exception)]
    return (OSError, hub.HFValidationError, RuntimeError, *bases)


def is_unreachable(error: Exception) -> bool:
    """Whether an error says nothing about the repository: the Hub was not reached, or is failing."""
    from huggingface_hub import errors as hub

    status = _status(error)
    if status is not None:
        return _is_trouble(status)
    settled = (hub.HFValidationError, hub.LocalTokenNotFoundError)
    of_the_disk = isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError)
    return not isinstance(error, settled) and not of_the_disk


def reason_of(error: Exception) -> str:
    """Return briefly why the Hub was not reached: huggingface_hub explains at length, the first error is short."""
    status = _status(error)
    if status is not None:
        return f"it answers with an error ({status})"
    origin = error.__cause__ or error
    text = re.sub(r"(Cannot reach|for url) \S+ ?", "", " ".join(str(origin).split()))
    return text.partition(". ")[0][:120].rstrip(". ") or type(origin).__name__


def _status(error: Exception) -> int | None:
    """Return the HTTP status of the Hub's response, if any."""
    for one in (error, error.__cause__):
        status = getattr(getattr(one, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return None


def _is_trouble(status: int) -> bool:
    """Whether a status means that the Hub is failing, or limits the rate."""
    return status >= 500 or status == 429


def _answer(error: Exception, revision: str | None, missing: str, token: str) -> str | None:
    """Describe the Hub's response; None without one."""
    from huggingface_hub import errors as hub

    if isinstance(error, hub.HFValidationError):
        return "no name that a repository of the Hub can have; it is owner/name."
    if isinstance(error, hub.GatedRepoError):
        return f"the repository is gated; ask for access on its page on the Hub, then {LOGIN}."
    if isinstance(error, hub.RepositoryNotFoundError):
        return f"{missing}; check the name, or, if it is private, {LOGIN}."
    if isinstance(error, hub.RevisionNotFoundError):
        return f"the repository has no revision {revision}; name a branch, a tag or a commit."
    if isinstance(error, hub.LocalTokenNotFoundError):
        return f"the Hub asks for a token; {LOGIN}."
    status = _status(error)
    if status in (401, 403):
        return f"the Hub refuses access ({status}); {LOGIN}{token}."
    if status is None or _is_trouble(status):
        return None
    return f"the Hub answers with an error ({status})."
