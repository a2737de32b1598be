"""The prompt loop of `tinylm generate --interactive`: each line is a prompt, and its answer is printed below.

    session.py     the state: prompts, answers, /again, /more, /undo, the memory of a conversation
    prompts.py     the fit of a prompt to the training text
    commands.py    the commands and their output
    settings.py    /set
    screen.py      input and output through a pipe
    terminal.py    input and output at a terminal, with prompt_toolkit

A model trained on conversations remembers the earlier turns; for any other, prompts are independent. A line that begins
with `/` is a command. At a terminal Ctrl-C stops an answer. When lines come through a pipe, stdout gets only
answers and the output of commands, prompt_toolkit is not imported, and Ctrl-C ends the program.
"""

from collections.abc import Callable
from typing import Any

from tinylm.commands.interactive.commands import execute
from tinylm.commands.interactive.screen import Screen, at_terminal
from tinylm.commands.interactive.session import Model, Session
from tinylm.errors import TinyLMError

__all__ = ["Model", "converse"]


def converse(model: Model, settings: dict[str, Any], open_model: Callable[[str], Model] | None = None) -> Model:
    """Reads prompts and commands from stdin until it ends or `/quit` is typed. An invalid line prints an error.

    Args:
        model: the model to begin with
        settings: options of `Generator.generate` to begin with; invalid ones raise ConfigError
        open_model: loads the model at a path, for /model. None: /model is refused

    Returns:
        the model in use at the end
    """
    model.generator.check_options(settings)
    screen = _screen()
    session = Session(model, settings, screen, open_model)
    if screen.interactive:
        screen.say("the model is ready; /help lists commands, Ctrl-C stops an answer, Ctrl-D leaves")
    _loop(session, screen)
    return session.model


def _screen() -> Screen:
    if not at_terminal():
        return Screen()
    from tinylm.commands.interactive.terminal import Terminal  # imported here: a pipe does without prompt_toolkit

    return Terminal()


def _loop(session: Session, screen: Screen) -> None:
    while True:
        try:
            if not execute(screen.read(), session, screen):
                return
        except EOFError:
            return
        except KeyboardInterrupt:
            if not screen.interactive:
                raise
            screen.say("interrupted")
        except TinyLMError as error:
            screen.say(f"error: {' '.join(str(error).split())}")
