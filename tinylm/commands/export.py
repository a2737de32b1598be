"""Converts models to and from the formats of other programs.

tinylm export --model runs/small --to hf --out small-hf                        # for Hugging Face transformers
tinylm export --model runs/small --to gguf --out small.gguf --dtype q8_0       # for llama.cpp
tinylm export --model runs/stories --to llama2c --out stories                  # for llama2.c
tinylm export --model gpt2 --to tinylm --out runs/gpt2                         # from a Hugging Face folder
tinylm export --model out/ckpt.pt --to tinylm --out runs/shakespeare           # from nanoGPT
tinylm export --model stories15M.bin --to tinylm --out runs/stories            # from llama2.c
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinylm.console import Parser, announce_model
from tinylm.errors import ConfigError, notice
from tinylm.locate import command
from tinylm.targets import HUGGINGFACE_FOLDER, MODEL_FOLDER, FileKind, FolderKind, check_target

if TYPE_CHECKING:
    from tinylm.bundle import Bundle

ONLY = {"dtype": "gguf", "tokenizer": "tinylm"}  # option -> the format that it belongs to


def run(arguments: list[str]) -> None:
    """Converts a model, and prints what was written and how to use it."""
    parser = Parser("export", __doc__)
    parser.add_argument(
        "--model",
        required=True,
        help="run folder, model folder or checkpoint; with --to tinylm: Hugging Face folder, ckpt.pt of nanoGPT or "
        ".bin of llama2.c",
    )
    parser.add_trust_option()
    parser.add_argument("--to", choices=[*FORMATS], required=True, help="format to write")
    parser.add_argument("--out", type=Path, required=True, help="output folder; for gguf a file")
    parser.add_argument("--dtype", choices=["f32", "f16", "q8_0"], help="gguf: type of the weights (default: f32)")
    parser.add_argument(
        "--tokenizer",
        type=Path,
        help="of a ckpt.pt or .bin: meta.pkl, tokenizer.bin, or any tokenizer file (default: found near the model)",
    )
    parser.add_overwrite_option()
    options = parser.parse(arguments)
    for name, wanted in ONLY.items():
        if getattr(options, name) is not None and options.to != wanted:
            raise ConfigError(f"--{name}: only works with --to {wanted}; leave it out")
    print(*FORMATS[options.to](options), sep="\n")


# --- out


def open_model(options: argparse.Namespace, kind: FileKind | FolderKind) -> "Bundle":
    """The model to export, loaded after `--out` has been checked for an output of this kind."""
    check_target(options.out, kind, options.overwrite)
    _, found = announce_model(options.model)

    from tinylm.bundle import load_bundle

    return load_bundle(found)


def to_huggingface(options: argparse.Namespace) -> list[str]:
    """Writes a folder for transformers, and returns the lines to print."""
    out, bundle = options.out, open_model(options, HUGGINGFACE_FOLDER)

    from tinylm.interop import export_huggingface
    from tinylm.runs.figures import run_figures

    info = bundle.info | run_figures(Path(options.model))
    architecture = export_huggingface(bundle.model, bundle.tokenizer, out, info, options.overwrite)
    return [
        f"{out}: {architecture}, {bundle.model.num_parameters():,} parameters; how to use it: {out / 'README.md'}",
        f'to load it: AutoModelForCausalLM.from_pretrained("{out}"), AutoTokenizer.from_pretrained("{out}")',
    ]


def to_gguf(options: argparse.Namespace) -> list[str]:
    """Writes a GGUF file, and returns the lines to print."""
    from tinylm.interop.chat_template import chat_settings
    from tinylm.interop.gguf import GGUF, export_gguf, require_gguf

    require_gguf()
    bundle, dtype = open_model(options, GGUF), options.dtype or "f32"
    names: dict[str, Any] = {"name": str(bundle.info.get("run", options.out.stem))}
    names["chat_template"] = chat_settings(bundle.tokenizer, bundle.info).get("chat_template")
    architecture = export_gguf(bundle.model, bundle.tokenizer, options.out, dtype, **names, overwrite=options.overwrite)
    parameters = bundle.model.num_parameters()
    return [
        f"{options.out}: {architecture}, {parameters:,} parameters in {dtype}",
        f'to run it: llama-cli -m {options.out} -p "Once upon a time"',
    ]


def to_llama2c(options: argparse.Namespace) -> list[str]:
    """Writes a folder for llama2.c, and returns the lines to print."""
    from tinylm.interop.llama2c import LLAMA2C_FOLDER, export_llama2c

    out, bundle = options.out, open_model(options, LLAMA2C_FOLDER)
    export_llama2c(bundle.model, bundle.tokenizer, out, options.overwrite)
    return [
        f"{out}: a model of llama2.c, {bundle.model.num_parameters():,} parameters",
        f'to run it: run {out / "model.bin"} -z {out / "tokenizer.bin"} -i "Once upon a time"',
    ]


# --- in


def to_tinylm(options: argparse.Namespace) -> list[str]:
    """Writes a model folder from a model of another program, and returns the lines to print."""
    out = options.out
    check_target(out, MODEL_FOLDER, options.overwrite)
    notice(f"reading {options.model}")
    from tinylm.bundle import save_bundle
    from tinylm.training.foreign import read_foreign

    network, tokenizer = read_foreign(options.model, options.tokenizer)
    save_bundle(out, network, tokenizer, {"from": str(options.model)}, options.overwrite)
    what = f"a model folder, {network.num_parameters():,} parameters, {tokenizer.vocab_size:,} tokens"
    use = command("generate", "--model", out, "--prompt", "Once upon a time")
    return [f"{out}: {what}", f"to generate with it: {use}"]


FORMATS: dict[str, Callable[[argparse.Namespace], list[str]]] = {
    "hf": to_huggingface,
    "gguf": to_gguf,
    "llama2c": to_llama2c,
    "tinylm": to_tinylm,
}
