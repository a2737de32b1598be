"""Exceptions: documented exit codes, built-in base classes, and suggestions."""

import pytest

from tinylm import errors
from tinylm.errors import TinyLMError, did_you_mean, notice

# name: (exit code, the built-in exception that it is too)
PROMISED = {
    "TinyLMError": (70, Exception),
    "ConfigError": (2, ValueError),
    "DataError": (65, ValueError),
    "InvalidTextError": (65, ValueError),
    "MissingInputError": (66, FileNotFoundError),
    "NumericError": (70, ArithmeticError),
    "CannotCreateError": (73, OSError),
    "StorageError": (74, OSError),
    "Preempted": (75, Exception),
    "Interrupted": (130, Exception),
}


@pytest.mark.parametrize("name", PROMISED)
def test_every_error_has_its_exit_code_and_builtin_type(name):
    kind = getattr(errors, name)
    code, builtin = PROMISED[name]
    assert issubclass(kind, TinyLMError)
    assert issubclass(kind, builtin)
    assert kind("what; remedy").exit_code == code
    assert str(kind("what; remedy")) == "what; remedy"


def test_no_error_is_left_out_of_the_table():
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, TinyLMError)}
    assert kinds == PROMISED.keys()


@pytest.mark.parametrize(
    ("word", "foreign", "expected"),
    [
        ("num_layer", None, ", did you mean 'num_layers'?"),
        ("n_head", {"n_head": "num_heads"}, ", did you mean 'num_heads'?"),
        ("zzz", None, ""),
        ("zzz", {"zzz": "elsewhere"}, ""),  # a translation that is no choice here helps nobody
        ("num_head", {"num_head": "elsewhere"}, ", did you mean 'num_heads'?"),
        ("", None, ""),
    ],
)
def test_did_you_mean(word, foreign, expected):
    assert did_you_mean(word, iter(["num_layers", "num_heads"]), foreign) == expected


def test_notices_go_to_stderr_only(capsys):
    notice("downloading")
    assert capsys.readouterr() == ("", "tinylm: downloading\n")
