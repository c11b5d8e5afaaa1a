"""Secrets are kept out of what is written: passwords in addresses, and the values of the environment's secret variables."""

from __future__ import annotations

import os
import re
from typing import Any

HIDDEN = "***"
_SHORTEST = 8  # characters of a value that is looked for: shorter ones occur in innocent text
_NAMES = re.compile(
    r"TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|API_?KEY|ACCESS_KEY|PRIVATE_KEY|AUTH|(^|_)KEY($|_ID$)",
    re.IGNORECASE,
)
_USERINFO = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/\s@'\"]*@")
_QUERY = re.compile(r"([?&][\w-]*(?:token|key|secret|password|signature|sig|auth)[\w-]*=)[^&\s'\"#]+", re.IGNORECASE)


def redact(value: Any) -> Any:
    """Plain values (mappings, lists, texts, numbers) with ``***`` in the place of secrets, in keys too.

    Hidden are the user and password of addresses (``scheme://user:password@host``), values of query parameters whose names say token,
    key, secret, password or signature, and wherever it occurs the value of any environment variable whose name says so (HF_TOKEN,
    AWS_SECRET_ACCESS_KEY, WANDB_API_KEY, ...).
    """
    values = {text for name, text in os.environ.items() if _NAMES.search(name) and len(text) >= _SHORTEST}
    return _redact(value, sorted(values, key=len, reverse=True))


def _redact(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, HIDDEN)
        return _QUERY.sub(rf"\1{HIDDEN}", _USERINFO.sub(rf"\1{HIDDEN}@", value))
    if isinstance(value, dict):
        return {_redact(key, secrets): _redact(item, secrets) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redact(item, secrets) for item in value]
    return value
