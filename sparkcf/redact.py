"""Credentials in texts: every message, the last line of a job and what `runs` stores pass through here."""

from __future__ import annotations

import re
from typing import TypeVar

MASK = "***"
T = TypeVar("T")

# Names of settings and of parameters of an address whose values are credentials, as whole words or parts of them.
_SECRET = r"secret|passw(?:or)?d|token|credential|signature|(?:account|access|api|private)[._-]?key"
_NAME = rf"(?:(?:{_SECRET})[\w.-]{{0,80}}|\bsig|\bsas)"  # where a name begins does not matter
RULES = (
    # user:password@ or token@ before a host; a container of abfss:// is neither
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]{0,20}:/+)[^\s/\"'@]*:[^\s/\"']*@"), rf"\1{MASK}@"),
    (re.compile(r"(?i)\b(https?:/+)[^\s/\"'@]+@"), rf"\1{MASK}@"),
    (re.compile(r"(?i)\b(s3[an]?:/+)[^\s\"'@]*:[^\s\"'@]*@"), rf"\1{MASK}@"),  # its secret keys may have slashes
    (re.compile(rf"(?i)({_NAME}[\"']?\s*=\s*[\"']?)[^\s\"'&;,}}\])]+"), rf"\1{MASK}"),
    (re.compile(rf"(?i)({_NAME}[\"']\s*[:,]\s*[\"'])[^\"']+"), rf"\1{MASK}"),
)


def redacted(text: str) -> str:
    """The text with the credentials of addresses and of settings such as `fs.s3a.secret.key=…` replaced by ***."""
    for pattern, replacement in RULES:
        text = pattern.sub(replacement, text)
    return text


def redacted_values(value: T) -> T:
    """A value of JSON with the credentials of all its texts replaced; keys stay."""
    if isinstance(value, str):
        return redacted(value)  # type: ignore[return-value]
    if isinstance(value, dict):
        return {key: redacted_values(entry) for key, entry in value.items()}  # type: ignore[return-value]
    if isinstance(value, list | tuple):
        return [redacted_values(entry) for entry in value]  # type: ignore[return-value]
    return value
