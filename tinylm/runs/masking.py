"""Removes secrets, and the names of user and host, from a recorded command line."""

import getpass
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path

MASK = "***"
SHORTEST = 8  # characters; a shorter value of a variable could occur in any text and is not masked
_SECRET = r"(?:\b|[_-])(?:api_?key|key|token|secret|passw(?:or)?d|passphrase|credentials?|signature|sig)"
_ENDING = re.compile(rf"(?i){_SECRET}$")
_ASSIGNED = re.compile(rf"(?i)({_SECRET}['\"]?\s*[=:]\s*)(?:'[^']*'|\"[^\"]*\"|[^\s,;&}}\"']+)")
_LOGIN = re.compile(r"(://)[^/@\s]+@")


def masked(text: str, named: bool = True) -> str:
    """The text with `***` for each secret: values of secret variables and, if `named`, of secret names and in URLs.

    >>> masked("--logger.api_key=abc s3://me:pw@host/a?token=1&part=2")
    '--logger.api_key=*** s3://***@host/a?token=***&part=2'
    """
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and _ENDING.search(name):
            text = text.replace(value, MASK)
    return text if not named else _LOGIN.sub(rf"\1{MASK}@", _ASSIGNED.sub(rf"\1{MASK}", text))


def masked_words(words: Sequence[str]) -> list[str]:
    """The words of a command line without secrets, user and host; the word after `--api-key` and the like is one."""
    before = ["", *words]
    secret = [option.startswith("-") and _ENDING.search(option) is not None for option in before]
    return [MASK if hide else impersonal(masked(word)) for word, hide in zip(words, secret, strict=False)]


def impersonal(text: str) -> str:
    """The text with `~` for the home folder and, in paths, `$USER` and `$HOSTNAME` for the two names."""
    home = os.path.expanduser("~")  # noqa: PTH111 (Path.home raises without a home folder)
    if Path(home).parent != Path(home):
        text = re.sub(rf"(?<![^\s=:,\"'{{\[]){re.escape(home)}(?=$|[/\\])", "~", text)
    for name, variable in ((_user(), "$USER"), (platform.node(), "$HOSTNAME")):
        text = re.sub(rf"(?<=[/\\]){re.escape(name)}(?=$|[/\\])", variable, text) if name else text
    return text


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return ""
