"""Plug-ins: the user's own class or function, named in the config where the config names a part.

In YAML a plug-in has Lightning's form, and needs no registration:

    model:
      network:
        feedforward: {class_path: my_layers.Gated, init_args: {width: 256}}

Importing a module runs its code, and a model folder or checkpoint may come from anyone. A `Part` is therefore only a
name until it is loaded, and loading is refused unless the module is trusted: by `fit --trust my_layers`, by
`--trust-code`, by `tinylm.load(path, trust=["my_layers"])`, or because the user passed the class itself. Modules and
functions of `torch.nn` and `tinylm.model`, and objectives of `tinylm.training`, need no trust.
"""

import importlib
import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from tinylm.checks import require
from tinylm.errors import ConfigError, did_you_mean, first_line, notice

HARMLESS = ("torch.nn", "tinylm.model")  # modules that need no trust
OURS = ("tinylm.training.DPO", "tinylm.training.GRPO")  # tinylm's objectives, which need no trust
PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
KEYS = {"class_path", "init_args"}

_trusted: set[str] = set()
EVERY = "*"  # all modules that a model names


def trust(modules: Iterable[str]) -> None:
    """Allows this process to import plug-ins from modules, and from those inside them.

    Args:
        modules: dotted names, such as `my_layers`
    """
    for name in modules:
        require(bool(re.fullmatch(r"\w+(\.\w+)*", name)), f"--trust must be the name of a module, got {name!r}")
        _trusted.add(name)
    if (folder := str(Path.cwd())) not in sys.path and "" not in sys.path:
        sys.path.append(folder)  # an installed command does not search the working folder


def trust_code() -> None:
    """Allows this process to import the plug-ins of any model that it loads, as `--trust-code` does."""
    trust([])
    _trusted.add(EVERY)


def is_trusted(module: str) -> bool:
    """Whether plug-ins may be imported from a module."""
    parts = module.split(".")
    return EVERY in _trusted or any(".".join(parts[:count]) in _trusted for count in range(1, len(parts) + 1))


class Part:
    """A plug-in by name: a class or function, and the arguments of the config.

    Two parts are equal if name and arguments are.

    Args:
        class_path: import path, such as `my_layers.Gated`
        init_args: plain values, passed by keyword after the arguments that every plug-in of the kind gets

    """

    _given: ClassVar[dict[str, Any]] = {}  # classes and functions that the user passed, by class path

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
            cls._given[part.class_path] = value
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
    def is_foreign(self) -> bool:
        """Whether the part is neither PyTorch's nor tinylm's."""
        return self.class_path not in OURS and not any(
            self.module == name or self.module.startswith(f"{name}.") for name in HARMLESS
        )

    @property
    def needs_trust(self) -> bool:
        """Whether the part can be loaded only once the user trusts its module."""
        return self.is_foreign and self.class_path not in self._given and not is_trusted(self.module)

    def load(self, field: str = "") -> Any:
        """The class or function.

        Args:
            field: the name of the option, for messages

        Raises:
            ConfigError: if its module is not trusted, cannot be imported, or lacks it.
        """
        if self.class_path in self._given:
            return self._given[self.class_path]
        module, _, name = self.class_path.rpartition(".")
        where = f"{field}: {self.class_path}" if field else self.class_path
        if self.needs_trust:
            remedy = f"add --trust {module.split('.')[0]} (from Python, pass the class itself)"
            raise ConfigError(f"{where}: importing it runs code; if you trust it, {remedy}")
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ModuleNotFoundError as error:
            if error.name is not None and not f"{module}.".startswith(f"{error.name}."):
                raise ConfigError(f"{where}: {module} needs {error.name}, which is not installed") from error
            remedy = f"put {module.split('.')[0]}.py into the working folder, or on PYTHONPATH"
            raise ConfigError(f"{where}: no module {error.name}; {remedy}") from error
        except Exception as error:  # whatever the user's module raises
            raise ConfigError(f"{where}: {module} cannot be imported ({first_line(error)})") from error
        if found is None or not callable(found):
            names = [each for each, value in vars(sys.modules[module]).items() if callable(value)]
            raise ConfigError(f"{where}: {module} has no class or function {name}{did_you_mean(name, names)}")
        return found

    def make(self, *arguments: Any, field: str = "", kind: type | None = None) -> Any:
        """Calls the class or function with the arguments of every plug-in of the kind, then those of the config.

        Args:
            arguments: positional arguments
            field: the name of the option, for messages
            kind: type that the result must have. None: any

        Raises:
            ConfigError: if it cannot be loaded, does not take the arguments, or gives something else.
        """
        found, where = self.load(field), f"{field}: {self.class_path}" if field else self.class_path
        fits = kind is None or (isinstance(found, type) and issubclass(found, kind))
        require(fits, f"{where}: must be a class derived from {getattr(kind, '__name__', kind)}")
        self._check_arguments(found, arguments, where)
        try:
            return found(*arguments, **self.init_args)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error

    def make_function(self, *names: str, field: str = "") -> Any:
        """An instance of a class, to be called later, or a function with the arguments of the config.

        Args:
            names: the positional arguments of a later call
            field: the name of the option, for messages

        Raises:
            ConfigError: if it cannot be loaded, or does not take its arguments.
        """
        found = self.load(field)
        if not isinstance(found, type):
            self._check_arguments(found, names, f"{field}: {self.class_path}")
            return partial(found, **self.init_args)
        made = self.make(field=field)
        require(callable(made), f"{field}: {self.class_path}: lacks a method __call__({', '.join(names)})")
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
            spec = importlib.util.find_spec(module[0])  # for a top-level module this imports nothing
            path = None if spec is None else spec.origin
        file = None if path is None else Path(path)
        if file is None or not file.is_file():
            return None
        import hashlib  # here: a tokenizer trains without it

        return hashlib.sha256(file.read_bytes()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Part) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"Part({self.class_path!r}, {self.init_args})"

    def __str__(self) -> str:
        return self.class_path


class DataPart(Part):
    """A part whose plain word is a file or a name, not an import path: only class_path makes a plug-in."""


def describe(parts: Iterable[Part]) -> list[dict[str, Any]]:
    """The plug-ins of a model or run, to be recorded: class path and SHA-256 of the source file."""
    return [{"class_path": part.class_path, "sha256": part.source_hash()} for part in parts]


def admit(parts: Iterable[Part], recorded: Any, source: str) -> None:
    """Imports the plug-ins of a stored model, and says which have changed since.

    Args:
        parts: the plug-ins
        recorded: what `describe` gave when the model was stored
        source: the file, for messages

    Raises:
        ConfigError: if the user does not trust one of them; nothing is imported then.
    """
    parts = list(parts)
    if refused := [part for part in parts if part.needs_trust]:
        names, modules = (dict.fromkeys(each) for each in (map(str, refused), [part.module for part in refused]))
        options = " ".join(f"--trust {module}" for module in modules)
        remedy = f"--trust-code (fit: {options}; in Python: trust={json.dumps([*modules])})"
        problem = f"{source}: needs code that is not tinylm's: {', '.join(names)}"
        raise ConfigError(f"{problem}; if you trust it, add {remedy}")
    hashes = {each.get("class_path"): each.get("sha256") for each in recorded or () if isinstance(each, dict)}
    for part in parts:
        part.load()
        before, now = hashes.get(part.class_path), part.source_hash()
        if before is not None and before != now:
            notice(f"warning: {source}: the code of {part} has changed since the model was stored")
