"""Folders of results on the Hugging Face hub: pushed file by file, and fetched without running code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brecq.errors import CheckpointError, ConfigError, first_line

PREFIX = "hf:"


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


def fetch(name: str, files: Sequence[str]) -> Path:
    """Download `files` of a repository into the hub's cache; the folder they lie in.

    Raises:
        ConfigError: `name` is no repository's. CheckpointError: the package is missing, there is no such repository,
            or it cannot be reached.
    """
    repo, revision = repository(name)
    hub = _package()
    try:
        return Path(hub.snapshot_download(repo, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # kinds of OSError and ValueError, and whatever its HTTP library raises
        reason = first_line(error).rstrip(". ")
        raise CheckpointError(f"{PREFIX}{name.removeprefix(PREFIX)} cannot be fetched: {reason}") from error


def push(folder: Path, name: str, files: Sequence[str], *, private: bool, message: str) -> str:
    """Upload `files` of `folder` in one commit, and make the repository if there is none; the address of the commit.

    Raises:
        ConfigError: `name` is no repository's. CheckpointError: the package is missing, the hub refuses it, or it
            cannot be reached.
    """
    repo, revision = repository(name)
    hub = _package()
    try:
        hub.create_repo(repo, private=private, exist_ok=True)
        done = hub.upload_folder(
            repo_id=repo, folder_path=folder, allow_patterns=list(files), revision=revision, commit_message=message
        )
    except Exception as error:  # the hub's answers are kinds of OSError and ValueError; without one, any
        answered = isinstance(error, (OSError, ValueError)) and not isinstance(error, ConnectionError)
        advice = "log in with `hf auth login`, or set HF_TOKEN" if answered else "the hub was not reached"
        raise CheckpointError(f"cannot push to {repo}: {first_line(error).rstrip('. ')}; {advice}") from error
    return str(done.commit_url)


def _package() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise CheckpointError("huggingface_hub is missing: pip install 'brecq[hub]'") from error
    return huggingface_hub
