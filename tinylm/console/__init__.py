"""Shared by all commands: options, one-line errors and exit codes, Ctrl-C, tables and terminal colours."""

from tinylm.console.exits import (
    check_interrupt,
    exit_code,
    interruptible,
    prepare_process,
    print_error,
    process_rank,
    seconds_since_start,
)
from tinylm.console.options import (
    THEME,
    THEMES,
    Mode,
    Parser,
    announce_model,
    check_at_least,
    device_problem,
    pick_device,
)
from tinylm.console.text import Scale, duration, plural, scaled, shaded, table, use_color

__all__ = [
    "THEME",
    "THEMES",
    "Mode",
    "Parser",
    "Scale",
    "announce_model",
    "check_at_least",
    "check_interrupt",
    "device_problem",
    "duration",
    "exit_code",
    "interruptible",
    "pick_device",
    "plural",
    "prepare_process",
    "print_error",
    "process_rank",
    "scaled",
    "seconds_since_start",
    "shaded",
    "table",
    "use_color",
]
