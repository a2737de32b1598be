"""Evaluates a model on tasks of lm_eval: tinylm evaluate --model runs/small --tasks hellaswag arc_easy

lm_eval is EleutherAI's evaluation harness (pip install lm_eval), which downloads the data of its tasks. Tasks of
your own are YAML files in the folder --include-path.
"""

import argparse
from pathlib import Path
from typing import Any

from tinylm.checks import require_package
from tinylm.console import Mode, Parser, announce_model, check_at_least, pick_device
from tinylm.errors import ConfigError
from tinylm.files import write_json
from tinylm.targets import FileKind, check_target

MODES = (Mode("without --out", ("--overwrite",)),)
RESULTS = FileKind("results of an evaluation", rb'\{\s*"tinylm_evaluation":')
RECORDED = ("results", "groups", "versions", "n-shot", "higher_is_better", "n-samples", "samples")


def run(arguments: list[str]) -> None:
    """Prints a table of the results."""
    parser = Parser("evaluate", __doc__, MODES)
    add = parser.add_argument
    parser.add_model_option()
    add("--tasks", nargs="+", required=True, help="names of tasks or groups")
    add("--include-path", type=Path, help="folder with tasks of your own (default: lm_eval's tasks only)")
    add("--num-fewshot", type=int, help="examples in each prompt (default: the task's)")
    add("--limit", type=int, help="read the first N documents of each task only (default: all)")
    add("--stride", type=int, help="tokens between window starts in long texts (default: the context)")
    add("--batch-size", type=int, default=8, help="sequences read at once")
    add("--out", type=Path, help="also write the results and the answer to each document to a JSON file")
    parser.add_overwrite_option()
    parser.add_device_option()
    options = parser.parse(arguments)
    check_at_least(1, options, "limit", "stride", "batch_size")
    check_at_least(0, options, "num_fewshot")
    if options.out is not None:
        check_target(options.out, RESULTS, options.overwrite)
    if options.include_path is not None and not options.include_path.is_dir():
        raise ConfigError(f"--include-path {options.include_path}: no such folder; give one with YAML files of tasks")
    require_package("lm_eval")
    print_results(options)


def print_results(options: argparse.Namespace) -> None:
    """Evaluates the model, prints the table of lm_eval, and writes the results to `--out`."""
    _, found = announce_model(options.model)

    import tinylm
    from tinylm.evaluation.harness import make_harness_model

    model, tokenizer = tinylm.load(found, device=pick_device(options.device))
    wrapped = make_harness_model(model, tokenizer, stride=options.stride, batch_size=options.batch_size)
    results = evaluate(wrapped, options)
    if options.out is not None:
        kept = {name: results[name] for name in RECORDED if name in results}
        write_json(options.out, {"tinylm_evaluation": str(options.model), **plain(kept)})


def evaluate(model: Any, options: argparse.Namespace) -> dict[str, Any]:
    """The results of lm_eval, whose table is printed."""
    from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
    from lm_eval.utils import make_table  # pyright: ignore[reportMissingImports]

    include = None if options.include_path is None else str(options.include_path)
    settings = {"num_fewshot": options.num_fewshot, "limit": options.limit, "bootstrap_iters": 1000}
    try:
        results = simple_evaluate(
            model, tasks=options.tasks, task_manager=TaskManager(include_path=include), **settings
        )
    except (KeyError, ValueError, OSError, ImportError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"--tasks {' '.join(options.tasks)}: lm_eval cannot run them ({reason})") from error
    if results is None:
        raise ConfigError(f"--tasks {' '.join(options.tasks)}: lm_eval gave no results")
    print(make_table(results))
    if results.get("groups"):
        print(make_table(results, "groups"))
    return results


def plain(value: Any) -> Any:
    """A value as JSON; types that JSON lacks become text."""
    if isinstance(value, dict):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
