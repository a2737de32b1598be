"""Finds configs by name, models by run folder, and the program itself, without importing PyTorch."""

import os
import shlex
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tinylm.errors import ConfigError, DataError, MissingInputError, did_you_mean

PACKAGE = Path(__file__).resolve().parent
CONFIGS = next(path for path in (PACKAGE / "configs", PACKAGE.parent / "configs") if path.is_dir())  # wheel, clone
CONFIG_FOLDERS = (CONFIGS, CONFIGS / "examples", CONFIGS / "overlays")
STORYTELLER = PACKAGE / "storyteller"  # the model folder that comes with tinylm
MANIFEST, WEIGHTS, TOKENIZER = "tinylm.json", "model.safetensors", "tokenizer.tinylm.json"  # of a model folder
CONVERTIBLE = (
    "models of other programs are read from Hugging Face folders, nanoGPT's ckpt.pt and llama2.c's .bin, by "
    "tinylm export --to tinylm"
)
LLAMA2C_MAGIC = b"24ka"  # of llama2.c's files, but for those of version 0


def command(*words: str | Path) -> str:
    """A command line that runs tinylm in the user's shell, such as `tinylm fit -c tiny`.

    It begins with `python -m tinylm` if the shell does not find the `tinylm` installed with this Python.
    """
    scripts = Path(sys.executable).parent
    installed, python = (Path(shutil.which(name) or "/") for name in ("tinylm", "python"))
    if scripts in (installed.parent, installed.resolve().parent):  # resolved: pipx and uv install links
        program = ["tinylm"]
    else:
        program = ["python" if python.parent == scripts else sys.executable, "-m", "tinylm"]
    line = [*program, *map(str, words)]
    return subprocess.list2cmdline(line) if os.name == "nt" else shlex.join(line)


def find_config(name: str) -> Path:
    """The file of a config: a path, or a name in configs/, its examples/ or overlays/; `.yaml` may be left out."""
    for folder in (Path(), *CONFIG_FOLDERS):
        for candidate in (folder / name, folder / f"{name}.yaml"):
            if candidate.is_file():
                return candidate
    known = [path.stem for folder in CONFIG_FOLDERS for path in sorted(folder.glob("*.yaml"))]
    hint = did_you_mean(Path(name).stem, known) or f"; known are {', '.join(known)}"
    raise MissingInputError(f"{name}: no such config file{hint}")


def find_model(path: str | Path) -> Path:
    """The model folder or checkpoint at a path, or the preferred one of the run folder at that path.

    `storyteller` is the built-in model, unless there is such a path.
    """
    if "://" in str(path):
        raise ConfigError(f"{path}: models are loaded from files only; download it first")
    path = Path(path)
    if path == Path(STORYTELLER.name) and not path.exists():
        return STORYTELLER
    if os.path.isfile(path):  # noqa: PTH113 (Path.is_file raises for a name that is too long)
        return path.parent if path.name == MANIFEST else _checked_file(path)
    if os.path.isfile(path / MANIFEST):  # noqa: PTH113
        return path
    if (found := next(_models_of_run(path), None)) is not None:
        return found
    if is_huggingface(path):
        raise MissingInputError(f"{path}: is a Hugging Face folder; convert it first: {conversion(path)}")
    if os.path.isdir(path):  # noqa: PTH112
        raise MissingInputError(f"{path}: has no model/ and no checkpoint; wait for the run to write its first one")
    runs = sorted(folder.name for folder in path.parent.glob("*/") if (folder / "checkpoints").is_dir())
    config = path.name if any((folder / f"{path.name}.yaml").is_file() for folder in CONFIG_FOLDERS) else "tiny"
    hint = f"; {path.parent} has {', '.join(runs[:8])}" if runs else f"; train one with {command('fit', '-c', config)}"
    raise MissingInputError(f"{path}: no such model{did_you_mean(str(path), [STORYTELLER.name]) or hint}")


def is_huggingface(path: Path) -> bool:
    """Whether a path is a model folder of Hugging Face."""
    return os.path.isfile(path / "config.json") and not os.path.isfile(path / MANIFEST)  # noqa: PTH113


def conversion(path: Path) -> str:
    """The command that makes a model folder of another program's model."""
    name = path.resolve().name if path.is_dir() else path.stem
    return command("export", "--model", path, "--to", "tinylm", "--out", f"{name}-tinylm")


def is_llama2c(head: bytes) -> bool:
    """Whether a file that begins like this may be a model of llama2.c.

    Files of version 0 have no magic number and are recognized by seven plausible sizes.
    """
    if head.startswith(LLAMA2C_MAGIC):
        return True
    if len(head) < 28:
        return False
    width, hidden, layers, heads, kv_heads, vocabulary, context = struct.unpack_from("<7i", head)
    positive = min(width, hidden, layers, heads, kv_heads, abs(vocabulary), context) > 0
    small = max(width, hidden, abs(vocabulary), context) < 1 << 24 and layers < 1 << 12
    return positive and small and width % heads == 0 and heads % kv_heads == 0


def _checked_file(path: Path) -> Path:
    """The path of a file that may be a checkpoint; DataError for weights alone, and for files of other programs."""
    with path.open("rb") as file:
        head = file.read(28)
    if head[8:9] == b"{" and (path.parent / MANIFEST).is_file():
        raise DataError(f"{path}: holds the weights alone; give the model folder, {path.parent}")
    if head[8:9] == b"{" or head.startswith(b"GGUF"):
        kind = "a GGUF file" if head.startswith(b"GGUF") else "weights without a config"
        raise DataError(f"{path}: is {kind}; {CONVERTIBLE}")
    if is_llama2c(head):
        raise DataError(f"{path}: is a model of llama2.c; convert it first: {conversion(path)}")
    if path.suffix == ".npz":
        raise DataError(f"{path}: is an archive of train-numpy, which only generate reads; give the model/ of its run")
    if not head.startswith((b"PK", b"\x80")):  # a zip archive, or an old checkpoint, which is a pickle
        raise DataError(f"{path}: is not a checkpoint; give a run folder, a model folder or a .ckpt file")
    return path


def newest_run(folder: str | Path = "runs") -> Path:
    """The run in a folder whose model was written last; the built-in storyteller if no run has a model."""
    models = [(found.stat().st_mtime, run) for run in Path(folder).glob("*/") for found in _models_of_run(run)]
    return max(models)[1] if models else STORYTELLER


def _models_of_run(run: Path) -> Iterator[Path]:
    """The models in a run folder, the preferred one first."""
    for name in ("model", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        candidate = run / name
        if os.path.isfile(candidate) or os.path.isfile(candidate / MANIFEST):  # noqa: PTH113
            yield candidate
