"""The user's own classes for `model` and `data`, named by `class_path` in a config or on the command line."""

from typing import Any

from tinylm.checks import LINKED
from tinylm.chosen import chosen_path
from tinylm.errors import ConfigError
from tinylm.plugins import Part


def chosen_class(part: str, default: type, words: list[str], kind: type | None = None) -> tuple[type, str | None]:
    """The class of a part, imported if the user trusts its module, and the class path by which it was chosen.

    Args:
        part: `model` or `data`
        default: tinylm's own class, with None for its path
        words: the command line, whose configs are read
        kind: the class must be a subclass of this one. Default: of `default`

    Raises:
        ConfigError: if the class is not trusted, cannot be imported, or is not a subclass of `kind`.
    """
    found = chosen_path(part, words)
    if found is None:
        return default, None
    path, config = found
    source = f"{config}: " if config else ""
    wanted = kind or default
    try:
        chosen = Part.of(path).load()
        if not (isinstance(chosen, type) and issubclass(chosen, wanted)):
            raise ConfigError(f"{path} is not a subclass of {wanted.__module__}.{wanted.__name__}; derive it from that")
    except ConfigError as error:
        raise ConfigError(f"{source}{part}.class_path: {error}") from error
    return chosen, path


def check_arguments(parser: Any, chosen: dict[str, str]) -> None:
    """Refuses a class whose constructor lacks the arguments that link model and data.

    Args:
        parser: a parser with the options of model and data
        chosen: class paths of the parts whose class the user names
    """
    options = {str(action.dest) for action in parser._actions}
    for name in LINKED:
        part, _, argument = name.partition(".")
        if part in chosen and name not in options:
            remedy = "take **options and hand them to super().__init__"
            first = argument.partition(".")[0]
            raise ConfigError(f"{part}.class_path: {chosen[part]} has no argument {first}; {remedy}")
