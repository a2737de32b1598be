"""Lists the configs that come with tinylm, prints one, or copies one.

tinylm configs
tinylm configs small
tinylm configs small --out mine.yaml
"""

from pathlib import Path

from tinylm.console import Parser, table
from tinylm.files import write_text
from tinylm.locate import CONFIG_FOLDERS, CONFIGS, command, find_config
from tinylm.targets import FileKind, check_target


def run(arguments: list[str]) -> None:
    """Prints the list or one config, or writes a copy."""
    parser = Parser("configs", __doc__)
    parser.add_argument("name", nargs="?", help="a config of the list (default: print the list)")
    parser.add_argument("--out", type=Path, help="file to copy it to; must not exist (default: print it)")
    options = parser.parse(arguments)
    if options.name is None:
        if options.out is not None:
            parser.error("--out: which config? Give its name")
        print(listing())
        return
    path = find_config(options.name)
    text = path.read_text(encoding="utf-8")
    if options.out is None:
        print(f"# {path}\n{text}", end="")
        return
    check_target(options.out, FileKind("a config that can be replaced"))  # it may have been edited
    write_text(options.out, text)
    print(f"{options.out}: a copy of {path}\nto train with it: {command('fit', '-c', options.out)}")


def listing() -> str:
    """A table of the configs, each with the sentence that it begins with."""
    rows = []
    for folder in CONFIG_FOLDERS:
        for path in sorted(folder.glob("*.yaml")):
            sentence = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
            rows.append([path.relative_to(CONFIGS).with_suffix("").as_posix(), sentence])
    return table(rows, left=2)
