"""The model hub: patience with one that does not answer, and the upload of a trained model's folder."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, get_token, is_offline_mode
from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from analysis.records import atomic_write
from llm_runs.errors import InputError

ATTEMPTS = 3
FIRST_WAIT = 2.0  # seconds; doubles with each attempt

T = TypeVar("T")


def patiently(ask: Callable[[], T]) -> T:
    """What `ask` returns, asked up to three times where the hub does not answer; other errors, and the last one, come through."""
    for attempt in range(ATTEMPTS - 1):
        try:
            return ask()
        except (OSError, HTTPError) as error:
            if not _silent(error):
                raise
            wait = FIRST_WAIT * 2**attempt
            print(
                f"the hub does not answer ({' '.join(str(error).split())[:200]}); trying again in {wait:g} s",
                flush=True,
            )
            time.sleep(wait)
    return ask()


def _silent(error: Exception) -> bool:
    """Whether asking again may help: no answer, or one that says "later"; not a refusal, nor a wish to stay offline."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return bool(status >= 500 or status in (408, 429))
    unreachable = (ConnectionError, TimeoutError, HTTPError, LocalEntryNotFoundError)
    return isinstance(error, unreachable) and not (isinstance(error, OfflineModeIsEnabled) or is_offline_mode())


def repository(hub_model_id: str, slug: str) -> str:
    """The repository of one training of a run: `user/name-<training>`, in the characters and the length that a hub takes.

    Raises InputError where `hub_model_id` is no name of a repository.
    """
    try:
        validate_repo_id(hub_model_id)
    except HFValidationError as error:
        raise InputError(f"training.hub_model_id: {error}; give user/name") from error
    owner, slash, name = hub_model_id.rpartition("/")
    full = re.sub(r"-{2,}|\.{2,}", "-", re.sub(r"[^A-Za-z0-9._-]+", "-", f"{name}-{slug}"))
    return f"{owner}{slash}{full[: 96 - len(owner) - len(slash)].strip('-.')}"


def check(hub_model_id: str) -> None:
    """InputError, before anything is computed, where an upload could not succeed: no login, or no such name."""
    repository(hub_model_id, "x")
    if not get_token():
        raise InputError("training.push_to_hub: not logged in; give `hf auth login`, or set HF_TOKEN")


def upload(folder: Path, repo: str, *, private: bool, mark: Path, api: HfApi | None = None) -> str:
    """Upload every file of `folder` to the model repository `repo`, made if needed, as one commit; its address goes into `mark`.

    Raises InputError where the hub cannot be reached or refuses; the trained model stays where it is.
    """
    api = api or HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Trained model, with its card")
    except (HTTPError, OfflineModeIsEnabled, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"the model is trained and in {folder}, but its upload to {repo} failed: {reason}. Give the same command again to upload it"
        ) from error
    atomic_write(mark, f"{commit.commit_url}\n".encode())
    return str(commit.commit_url)
