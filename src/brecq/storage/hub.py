"""Folders of results on the Hugging Face hub: pushed file by file, and fetched without running code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from brecq.errors import CheckpointError, ConfigError, first_line

PREFIX = "hf:"
PATIENCE = 5.0
"""Seconds to wait for the hub's first answer."""


def repository(name: str) -> tuple[str, str | None]:
    """`USER/NAME` or `USER/NAME@REVISION`, with or without `hf:`, as repository and revision.

    Raises:
        ConfigError: it has another form.
    """
    repo, at, revision = name.removeprefix(PREFIX).partition("@")
    user, _, model = repo.partition("/")
    if not (user and model) or "/" in model or (at and not revision) or any(c.isspace() for c in name):
        raise ConfigError(f"{name!r} is no repository of the hub; write USER/NAME, or USER/NAME@REVISION")
    return repo, revision or None


@contextmanager
def asked() -> Iterator[str]:
    """While a library asks the hub: why it cannot be reached, or an empty text.

    The hub's client asks an address that does not answer again and again, for most of a minute. Here it is asked once;
    without an answer its libraries are offline until the end: they take what is in their cache, or fail at once.
    """
    try:
        from huggingface_hub import constants
        from huggingface_hub.utils import get_session
    except ImportError:  # whoever needs it says so
        yield ""
        return
    before = constants.HF_HUB_OFFLINE
    if before:
        yield "HF_HUB_OFFLINE is set, and it is not in the cache of the hub"
        return
    why = ""
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception as error:  # its HTTP libraries raise many kinds
        why = f"the hub at {constants.ENDPOINT} is not reached ({first_line(error)}), and it is not in the hub's cache"
        constants.HF_HUB_OFFLINE = True
    try:
        yield why
    finally:
        constants.HF_HUB_OFFLINE = before


def fetch(name: str, files: Sequence[str]) -> Path:
    """Download `files` of a repository into the hub's cache; the folder they lie in.

    Raises:
        ConfigError: `name` is no repository's. CheckpointError: the package is missing, there is no such repository,
            or it cannot be reached.
    """
    repo, revision = repository(name)
    hub = _package()
    with asked() as away:
        try:
            return Path(hub.snapshot_download(repo, revision=revision, allow_patterns=list(files)))
        except Exception as error:  # kinds of OSError and ValueError, and whatever its HTTP library raises
            reason = away or first_line(error).rstrip(". ")
            raise CheckpointError(f"{PREFIX}{name.removeprefix(PREFIX)} cannot be fetched: {reason}") from error


def push(folder: Path, name: str, files: Sequence[str], *, private: bool, message: str) -> str:
    """Upload `files` of `folder` in one commit, and make the repository if there is none; the address of the commit.

    Raises:
        ConfigError: `name` is no repository's. CheckpointError: the package is missing, the hub refuses it, or it
            cannot be reached.
    """
    repo, revision = repository(name)
    hub = _package()
    with asked() as away:
        if away:
            raise CheckpointError(f"cannot push to {repo}: {away.partition(', and it is')[0]}")
        try:
            hub.create_repo(repo, private=private, exist_ok=True)
            done = hub.upload_folder(
                repo_id=repo, folder_path=folder, allow_patterns=list(files), revision=revision, commit_message=message
            )
        except Exception as error:  # the hub's answers are kinds of OSError and ValueError; without one, any
            reason = first_line(error).rstrip(". ")
            raise CheckpointError(f"cannot push to {repo}: {reason}; {_advice(error)}") from error
    return str(done.commit_url)


def _advice(error: Exception) -> str:
    """What to do about a push that failed, by the status that the hub answered with, if it did."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is None and not (isinstance(error, (OSError, ValueError)) and not isinstance(error, ConnectionError)):
        return "the hub was not reached"
    if status in (None, 401, 403, 404):  # without a token the client refuses by itself; 404 hides what is private
        return "log in with `hf auth login`, or set HF_TOKEN"
    return f"the hub answered with status {status}" + (": try again later" if status >= 500 else "")


def _package() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise CheckpointError("huggingface_hub is missing: pip install 'brecq[hub]'") from error
    return huggingface_hub
