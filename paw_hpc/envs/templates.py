"""The wording of prompts as data: Jinja2 files, read once, checked when they are read.

A template is a file of the package (`envs/prompts/BENCHMARK/NAME.j2`, with NAME `default` or `reference`) or
of the user. It runs in a sandbox, sees the variables of its benchmark (docs/prompts.md) and nothing else, and
writes them as they are: what an environment said is a value and is never read as a template. Its text is a
function of its variables, so the random parts of Jinja are taken out.

Blank lines of the file are lines of the prompt, lines that hold only a `{% %}` or `{# #}` are not, and the
last line break is dropped.
"""

from __future__ import annotations

import functools
import traceback
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, UndefinedError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from paw_hpc.recipe.doors import BENCHMARKS
from paw_hpc.system.errors import RecipeError
from paw_hpc.system.text import well_formed

SHIPPED = ("default", "reference")
KEY = "env.prompt_template"
_FOLDER = Path(__file__).resolve().parent / "prompts"
_TURNS = [
    {"step": 1, "observation": "seen first", "action": "did this"},
    {"step": 2, "observation": "", "action": ""},
]
_TRIALS: tuple[dict[str, Any], ...] = (
    {"step": 1, "steps_taken": 0, "history": [], "actions": [], "options_left_out": False},
    {"step": 3, "steps_taken": 2, "history": _TURNS, "actions": ["look", "help"], "options_left_out": True},
    {"step": 3, "steps_taken": 2, "history": [], "actions": ["look"], "options_left_out": False},
)
"""What every template is tried with when it is read: a first step, a later one, and one whose history did not
fit."""


def variables_of(benchmark: str) -> tuple[str, ...]:
    """What the templates of a benchmark may name. `history` is a list of {step, observation, action}."""
    return BENCHMARKS.find(benchmark).variables


class PromptTemplate:
    """A template that was tried and found to work.

    Args:
        file: for messages; `source` is its text.

    Raises:
        RecipeError: not a template, an unknown variable, or an error in the trial; names the file, the line
            and the variable.
    """

    def __init__(self, source: str, file: str, benchmark: str):
        self.file, self._known = file, variables_of(benchmark)
        environment = _environment()
        try:
            tree = environment.parse(source, filename=file)
            self._refuse_unknown(tree, meta.find_undeclared_variables(tree) - set(environment.globals))
            code = environment.compile(tree, filename=file)
        except TemplateSyntaxError as error:
            raise RecipeError(f"{KEY}: {file}, line {error.lineno}: {error.message}") from None
        except (
            RecursionError,
            MemoryError,
            SyntaxError,
            ValueError,
            OverflowError,
        ) as error:  # nested deeply, or no program of Python's
            raise RecipeError(
                f"{KEY}: {file}: cannot be compiled ({type(error).__name__}: {str(error)[:100]}); simplify it"
            ) from None
        self._template = Template.from_code(environment, code, environment.make_globals(None))
        for trial in _TRIALS:
            given = {
                "task": "find it",
                "max_steps": 50,
                "observation": "seen now",
                "opening": "seen at first",
                **trial,
            }
            if not self.render(**{name: given[name] for name in self._known}).strip():
                raise RecipeError(f"{KEY}: {file}: nothing is written at step {given['step']}")

    def render(self, **variables: Any) -> str:
        """The prompt's text. Raises RecipeError."""
        try:
            return well_formed(self._template.render(variables))
        except RecursionError:
            raise RecipeError(f"{KEY}: {self.file}: it calls itself without an end") from None
        except Exception as error:  # a template can raise anything: it divides, indexes and calls
            said = str(error) or type(error).__name__
            kind = "" if isinstance(error, UndefinedError | TemplateError) else f"{type(error).__name__}: "
            raise RecipeError(f"{KEY}: {self.file}, line {_line(error, self.file)}: {kind}{said}") from None

    def _refuse_unknown(self, tree: nodes.Template, names: set[str]) -> None:
        unknown = names - set(self._known)
        for node in tree.find_all(nodes.Name):
            if node.name in unknown and node.ctx == "load":
                known = ", ".join(self._known)
                raise RecipeError(
                    f"{KEY}: {self.file}, line {node.lineno}: unknown variable '{node.name}'; there are "
                    f"{known}"
                )


@functools.lru_cache(maxsize=32)
def shipped_template(benchmark: str, name: str = "default") -> PromptTemplate:
    """A template that comes with the package."""
    return _read(_FOLDER / benchmark / f"{name}.j2", benchmark)


def load_template(benchmark: str, choice: str | None) -> PromptTemplate:
    """The template of `env.prompt_template`: none or the name of a shipped one, else a file.

    Raises:
        RecipeError: the file cannot be read, or is no working template for this benchmark.
    """
    if choice is None or choice in SHIPPED:
        return shipped_template(benchmark, choice or "default")
    return _read(Path(choice), benchmark)


def _read(path: Path, benchmark: str) -> PromptTemplate:
    try:
        source = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise RecipeError(f"{KEY}: {path}: not a text in UTF-8") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise RecipeError(
            f"{KEY}: {path}: {reason}; give {', '.join(SHIPPED)} or a template's file"
        ) from None
    return PromptTemplate(source, str(path), benchmark)


def _environment() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True
    )
    del made.globals["lipsum"], made.filters["random"]
    made.filters["quoted"] = lambda text: f"'{text}'"
    return made


def _line(error: Exception, file: str) -> int | str:
    """The template's line at which it was raised: Jinja makes tracebacks speak of the template's own
    lines."""
    if isinstance(error, TemplateSyntaxError):
        return error.lineno
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return lines[-1] if lines and lines[-1] else "?"
