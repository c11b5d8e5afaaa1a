"""Patience with a hub: what is asked again, and what is not."""

from __future__ import annotations

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from llm_runs import hub


def answer(status: int) -> HfHubHTTPError:
    request = httpx2.Request("GET", "https://hub")
    return HfHubHTTPError(f"status {status}", response=httpx2.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (ConnectionError("no route"), 3),
        (TimeoutError("slow"), 3),
        (answer(503), 3),
        (answer(429), 3),
        (answer(404), 1),
        (answer(401), 1),
        (OfflineModeIsEnabled("offline"), 1),
        (FileNotFoundError("no such file"), 1),
        (KeyError("a mistake"), 1),
    ],
)
def test_only_silence_is_asked_again(error: Exception, asked: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(hub.time, "sleep", lambda seconds: None)
    calls = []

    def ask() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        hub.patiently(ask)
    assert len(calls) == asked


def test_a_late_answer_is_taken_and_offline_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(hub.time, "sleep", lambda seconds: None)
    answers = iter([ConnectionError(), ConnectionError(), "data"])

    def ask() -> str:
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return found

    assert hub.patiently(ask) == "data"
    monkeypatch.setattr(hub, "is_offline_mode", lambda: True)
    answers = iter([ConnectionError(), "never asked"])
    with pytest.raises(ConnectionError):
        hub.patiently(ask)
    assert next(answers) == "never asked"
