"""The pages that people read, and what their blocks tell them to type."""

import importlib.util
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def load_stage():
    """docs/stage.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("stage", ROOT / "docs" / "stage.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


stage = load_stage()
PAGES = list(stage.pages(stage.site()["nav"]))
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
WRONG_ON_PURPOSE = "bad-input.md"  # its commands are mistakes: tests/test_bad_input.py gives them
INLINE = re.compile(r"`((?:accelerate launch|rlalign|make|wandb|python|pytest) [^`]+)`")


@dataclass(frozen=True)
class Block:
    language: str
    text: str  # without the indentation that a list gives it

    @property
    def file(self):
        """The name in a first line such as `# my_run.yaml`: the reader saves the block there."""
        named = re.match(r"(?:#!.*\n)?# ([\w./-]+\.\w+)\n", self.text)
        return named[1] if named else None


def page_named(name):
    return next(page for page in PAGES if str(page.relative_to(ROOT)) == name)


def blocks(page, *languages):
    """Fenced blocks of a page in order, of some languages or of all."""
    found = [
        Block(language, "\n".join(line.removeprefix(indent) for line in text.splitlines()) + "\n")
        for indent, language, text in stage.FENCE.findall(page.read_text("utf-8"))
    ]
    return [block for block in found if not languages or block.language in languages]


def block_named(name, page=README):
    """The text of the block that a page's reader saves under a name."""
    return next(block.text for block in blocks(page) if block.file == name)


def lines(block):
    """The commands of a shell block: lines joined at a backslash, without comments."""
    joined = block.text.replace("\\\n", " ")
    without = (re.sub(r"(^|\s)#.*", "", line).strip() for line in joined.splitlines())
    return [line for line in without if line]


def is_script(block):
    """Whether a shell block is a file to save, with loops and variables, not lines to type."""
    return block.text.startswith("#!")


def typed(page):
    """The command lines of a page's shell blocks."""
    shell = [block for block in blocks(page, "bash") if not is_script(block)]
    return [] if page.name == WRONG_ON_PURPOSE else [line for b in shell for line in lines(b)]


def mentioned(page):
    """Command lines in a page's running text and tables; some leave out what does not matter."""
    text = stage.FENCE.sub("", page.read_text("utf-8"))
    return [] if page.name == WRONG_ON_PURPOSE else list(dict.fromkeys(INLINE.findall(text)))


def write_files(folder, *pages):
    """What the reader of some pages has saved by their end, and the checkout beside it."""
    for block in (block for page in pages for block in blocks(page) if block.file):
        file = folder / block.file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block.text, encoding="utf-8")
    for name in ("experiments", "launch", "benchmarks", "tests", "Makefile"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "constraints.txt", folder)
