"""The cache folder."""

import os
from pathlib import Path

from tinylm.errors import ConfigError


def default_cache_dir() -> Path:
    """`$TINYLM_CACHE`, else `tinylm` in the user's cache folder; ConfigError for a user without a home folder."""
    if "TINYLM_CACHE" in os.environ:
        return Path(os.environ["TINYLM_CACHE"])
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinylm"
    except RuntimeError as error:
        raise ConfigError("this user has no home folder for the cache; set TINYLM_CACHE to a folder") from error
