"""Parts of one's own: a class or function of the user's, named in the config where the config names a part.

In YAML a plug-in has Lightning's form, and no registry knows it:

    model:
      network:
        feedforward: {class_path: my_layers.Gated, init_args: {width: 256}}

Importing a module runs its code, and a model folder or checkpoint may come from anyone. So a `Part` is only a name
until it is loaded, and loading is refused unless the module is trusted: by `fit --trust my_layers`, by `--trust-code`,
by `tinylm.load(path, trust=["my_layers"])`, or because the user passed the class itself. Modules and functions of
`torch.nn` and `tinylm.model` need no trust.
"""

import hashlib
import importlib
import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

from tinylm.checks import require
from tinylm.errors import ConfigError, did_you_mean, first_line

HARMLESS = ("torch.nn", "tinylm.model")  # modules that anyone may name
PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
KEYS = {"class_path", "init_args"}

_trusted: set[str] = set()


def trust(modules: Iterable[str]) -> None:
    """Allows this process to import plug-ins from modules, and from those inside them.

    Args:
        modules: dotted names, such as `my_layers`
    """
    for name in modules:
        require(bool(re.fullmatch(r"\w+(\.\w+)*", name)), f"--trust must be the name of a module, got {name!r}")
        _trusted.add(name)
        if (folder := str(Path.cwd())) not in sys.path and "" not in sys.path:
            sys.path.append(folder)  # an installed command does not look into the working folder


def is_trusted(module: str) -> bool:
    """Whether plug-ins may be imported from a module."""
    parts = module.split(".")
    return any(".".join(parts[:count]) in _trusted for count in range(1, len(parts) + 1))


class Part:
    """A plug-in by name: a class or function, and the arguments of the config.

    Two parts are equal if name and arguments are.

    Args:
        class_path: import path, such as `my_layers.Gated`
        init_args: plain values, passed by keyword after the arguments that every plug-in of the kind gets

    Attributes:
        found: the class or function, once it is known
    """

    _found: ClassVar[dict[str, Any]] = {}  # by class path

    def __init__(self, class_path: str, init_args: dict[str, Any] | None = None) -> None:
        fits = isinstance(class_path, str) and PATH.fullmatch(class_path) is not None
        require(fits, f"class_path must be an import path such as my_layers.Gated, got {class_path!r}")
        self.class_path, self.init_args = class_path, dict(init_args or {})
        try:
            self._key = json.dumps([class_path, self.init_args], sort_keys=True)
        except TypeError as error:
            raise ConfigError(f"{class_path}: init_args must be plain values ({error})") from error

    @classmethod
    def of(cls, value: Any, field: str = "") -> "Part":
        """The part that a config describes.

        Args:
            value: a Part, an import path, a dict of class_path and init_args, or the class or function itself
            field: the name of the option, for messages

        Raises:
            ConfigError: if it is none of them.
        """
        if isinstance(value, Part):
            return value
        where = f"{field}: " if field else ""
        if isinstance(value, dict):
            for name in value:
                require(name in KEYS, f"{where}a plug-in has class_path and init_args, got {name}")
            require("class_path" in value, f"{where}class_path is missing")
            arguments = value.get("init_args") or {}
            require(isinstance(arguments, dict), f"{where}init_args must be options, got {arguments!r}")
            return cls(value["class_path"], arguments)
        if callable(value):
            part = cls(f"{value.__module__}.{value.__qualname__}")
            cls._found[part.class_path] = value  # the user's own, which needs no import
            return part
        return cls(value)

    def to_dict(self) -> dict[str, Any]:
        """The part in Lightning's form."""
        return {"class_path": self.class_path, "init_args": self.init_args}

    @property
    def module(self) -> str:
        """The module that the part is imported from."""
        return self.class_path.rpartition(".")[0]

    @property
    def needs_trust(self) -> bool:
        """Whether the part can be loaded only if the user trusts its module."""
        harmless = any(self.module == name or self.module.startswith(f"{name}.") for name in HARMLESS)
        return not harmless and self.class_path not in self._found and not is_trusted(self.module)

    def load(self) -> Any:
        """The class or function.

        Raises:
            ConfigError: if its module is not trusted, cannot be imported, or lacks it.
        """
        if self.class_path in self._found:
            return self._found[self.class_path]
        if self.needs_trust:
            raise ConfigError(f"{self.class_path}: importing it runs code; if you trust it, {self.permission}")
        module, _, name = self.class_path.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ModuleNotFoundError as error:
            if error.name is not None and not f"{module}.".startswith(f"{error.name}."):
                raise ConfigError(f"{self.class_path}: {module} needs {error.name}, which is not installed") from error
            where = f"put {module.split('.')[0]}.py into the working folder, or on PYTHONPATH"
            raise ConfigError(f"{self.class_path}: no module {error.name}; {where}") from error
        except Exception as error:  # whatever the user's module raises
            raise ConfigError(f"{self.class_path}: {module} cannot be imported ({first_line(error)})") from error
        if found is None or not callable(found):
            names = [each for each, value in vars(sys.modules[module]).items() if callable(value)]
            raise ConfigError(f"{self.class_path}: {module} has no class or function {name}{did_you_mean(name, names)}")
        self._found[self.class_path] = found
        return found

    @property
    def permission(self) -> str:
        """The remedy where the part is refused."""
        module = self.module.split(".")[0]
        return f"add --trust {module} (where a model is used: --trust-code; in Python: trust=[{module!r}])"

    def make(self, *arguments: Any, field: str = "", kind: type | None = None) -> Any:
        """Calls the class or function with the arguments of every plug-in of the kind, then those of the config.

        Args:
            arguments: positional arguments
            field: the name of the option, for messages
            kind: type that the result must have. None: any

        Raises:
            ConfigError: if it cannot be loaded, does not take the arguments, or gives something else.
        """
        found, where = self.load(), f"{field}: {self.class_path}" if field else self.class_path
        self._check_arguments(found, arguments, where)
        try:
            made = found(*arguments, **self.init_args)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        require(kind is None or isinstance(made, kind or object), f"{where}: gives a {type(made).__name__}, not {kind}")
        return made

    def _check_arguments(self, found: Callable[..., Any], arguments: tuple[Any, ...], where: str) -> None:
        """Refuses init_args that the class or function does not take, or lacks."""
        try:
            signature = inspect.signature(found)
        except ValueError:  # some built-in functions have none
            return
        try:
            signature.bind(*arguments, **self.init_args)
        except TypeError as error:
            known = [*signature.parameters][len(arguments) :]
            wrong = next((name for name in self.init_args if name not in known), "")
            hint = did_you_mean(wrong, known) or (f"; it takes {', '.join(known)}" if known else "; it takes none")
            raise ConfigError(f"{where}: init_args: {error}{hint}") from error

    def source_hash(self) -> str | None:
        """SHA-256 of the file that defines the part; None if there is no such file. Imports nothing."""
        module = self.module.split(".")
        path = getattr(sys.modules.get(self.module), "__file__", None)
        if path is None and len(module) == 1:
            spec = importlib.util.find_spec(module[0])  # of a top-level module this imports nothing
            path = None if spec is None else spec.origin
        file = None if path is None else Path(path)
        return hashlib.sha256(file.read_bytes()).hexdigest() if file is not None and file.is_file() else None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Part) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"Part({self.class_path!r}, {self.init_args})"

    def __str__(self) -> str:
        return self.class_path


class DataPart(Part):
    """A part where a plain word is a file or a name, and no import path: only class_path makes a plug-in."""


def describe(parts: Iterable[Part]) -> list[dict[str, Any]]:
    """The plug-ins of a model or run, to be recorded: class path and SHA-256 of the source file."""
    return [{"class_path": part.class_path, "sha256": part.source_hash()} for part in parts]
