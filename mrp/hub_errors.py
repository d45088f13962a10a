"""What the Hugging Face hub refuses, in our words: for models (`models/pull_hf.py`) and datasets (`data/hub.py`).

    with refusals_told("model", "owner/name", "main", where="hf:owner/name@main", page=page):
        api.model_info("owner/name")

Only what another try would not change. That the hub is busy, or cannot be reached, is left to the caller.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mrp.errors import InputError, SetupError


@contextmanager
def refusals_told(kind: str, repo: str, revision: str | None, where: str, page: str, file: str = "") -> Iterator[None]:
    """Raise `InputError` for what is not there, `SetupError` for what the hub does not let us have.

    `kind` is "model" or "dataset"; `file` is the one that is asked for, if it is one.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.LocalEntryNotFoundError:
        raise  # that is: the hub could not be asked
    except errors.GatedRepoError:
        fix = f"accept its licence at {page}, then `hf auth login` (older: `huggingface-cli login`), or set HF_TOKEN"
        raise SetupError(f"{repo} is gated: its licence must be accepted first", where, fix) from None
    except errors.DisabledRepoError:
        raise InputError(f"{repo} was closed by the hub", where, f"choose another {kind}") from None
    except errors.RepositoryNotFoundError:
        fix = "check the spelling; for a private one `hf auth login` (or set HF_TOKEN)"
        raise InputError(f"no {kind} {repo} on the hub (or it is private)", where, fix) from None
    except errors.RevisionNotFoundError:
        fix = f"name a branch, tag or commit that {page} has"
        raise InputError(f"{repo} has no revision {revision!r}", where, fix) from None
    except errors.EntryNotFoundError:
        raise SetupError(f"{file} is listed, but the hub does not have it", where, "try again later") from None
    except errors.HFValidationError as error:
        raise InputError(f"{repo!r} cannot be a {kind}: {error}", where, "write hf:owner/name") from None
    except errors.HfHubHTTPError as error:
        status = status_of(error)
        if status not in (401, 403):
            raise
        fix = "`hf auth login` (or set HF_TOKEN) with a token that may read it"
        raise SetupError(f"the hub does not let us read {repo} ({status})", where, fix) from None


def status_of(error: Any) -> int:
    """The HTTP status that an error of the hub's client is about; 0 where it knows none."""
    return int(getattr(getattr(error, "response", None), "status_code", None) or 0)


def first_line(error: BaseException) -> str:
    """What an error says, in one line that is not too long."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
