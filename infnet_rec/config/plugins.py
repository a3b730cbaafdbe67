"""Models from outside of the package: files that the command line names, and installed packages.

A file registers a tower with its section (`infnet_rec.models.registry.register`); an installed package does so in what
its entry points of the group `infnet_rec.models` load. Nothing that a configuration names is imported or evaluated:
whoever starts a command names the file, whoever installs a package trusts it.

A run remembers its plugin's name and the hash of its text; the hash is what counts. Launches carry the text itself, in
a variable of the environment, so that no other file has to be on the nodes.
"""

import base64
import functools
import hashlib
import importlib.metadata
import os
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from infnet_rec.config.model import ModelConfig, model_section, model_sections, replace_sections
from infnet_rec.errors import UserError

GROUP = "infnet_rec.models"
# What a word on the command line begins with that names a text of the environment, and how such a variable is called.
CARRIED, VARIABLE = "env:", "INFNET_REC_PLUGIN_"
# A text that has to be kept from schedulers which read commas or quotes.
ENCODED = "base64:"
# Linux takes 128 KiB as one variable.
MAX_BYTES = 90_000
SHOWN = 12


@dataclass(frozen=True, slots=True)
class Plugin:
    """A file, or an installed package, that brought models.

    Attributes:
        name: of the file, such as "my_model.py", or of the package with its version.
        sha256: of the file.
        sections: that it registered.
        text: of the file; empty for a package, which has to be installed on every node.
    """

    name: str
    sha256: str
    sections: tuple[type[ModelConfig], ...]
    text: str = ""

    @property
    def record(self) -> dict[str, str]:
        """What a run keeps of it."""
        return {"name": self.name, "sha256": self.sha256}

    @property
    def variable(self) -> str:
        """Its variable in a launch."""
        return VARIABLE + re.sub(r"\W", "_", self.name).upper()


_used: list[str] = []
_loaded: dict[str, Plugin] = {}  # by hash


def use_plugins(words: Sequence[str]) -> None:
    """Names the files whose models this process knows; they are read before the first configuration is.

    Args:
        words: paths, or `env:NAME` for a text that a launch carries.
    """
    _used[:] = words


def plugin_words() -> list[str]:
    """What a process that this one starts must be told, to know the same models."""
    return [f"--plugin={word}" for word in _used]


def load_plugins() -> list[Plugin]:
    """Reads what is installed and what was named, once, in that order; models of other files are none of this run.

    Raises:
        UserError: see `_load`, or two files of one name.
    """
    installed = _installed()
    # In one process one run may follow another, with other files, or with the same file after a change.
    of_files = {section for plugin in _loaded.values() for section in plugin.sections}
    replace_sections({name: section for name, section in model_sections().items() if section not in of_files})
    found = [*installed, *(_load(word) for word in _used)]
    names = [plugin.name for plugin in found]
    once = {plugin.sha256: plugin for plugin in found}
    if len({plugin.name for plugin in once.values()}) < len(once):
        raise UserError(f"--plugin: two different files are called alike, among {', '.join(names)}; rename one")
    return list(once.values())


def plugin_of(section: ModelConfig) -> Plugin | None:
    """Where a model came from; None for those of the package."""
    return next((plugin for plugin in load_plugins() if type(section) in plugin.sections), None)


def check_plugin(record: dict[str, Any] | None, where: str) -> None:
    """Refuses to read a run without the plugin that it was made with.

    Args:
        record: what the run kept of it; None where it had none.
        where: the run, for the message.

    Raises:
        UserError: the plugin was not named, or is another one now.
    """
    if record is None:
        return
    plugins = load_plugins()
    if any(plugin.sha256 == record["sha256"] for plugin in plugins):
        return
    needed = f"{where}: is of plugin {record['name']} with SHA-256 {record['sha256'][:SHOWN]}..."
    if (other := next((plugin for plugin in plugins if plugin.name == record["name"]), None)) is not None:
        raise UserError(f"{needed}, and what was given has {other.sha256[:SHOWN]}...; give it as it was then")
    raise UserError(f"{needed}, which was not given; add --plugin with a path to it")


def carried_plugins() -> tuple[list[str], dict[str, str]]:
    """Words and variables by which a process on another machine gets the texts of the named files.

    Raises:
        UserError: a file is too large, or cannot be read.
    """
    words, variables = [], {}
    for plugin in map(_load, _used):
        if len(plugin.text.encode()) > MAX_BYTES:
            raise UserError(
                f"--plugin {plugin.name}: has {len(plugin.text.encode()):,} bytes, and a launch carries at most "
                f"{MAX_BYTES:,}; install it as a package with an entry point of the group {GROUP!r}"
            )
        if plugin.variable in variables:
            raise UserError(f"--plugin {plugin.name}: another file would be {plugin.variable} too; rename one")
        words.append(f"--plugin={CARRIED}{plugin.name}")
        variables[plugin.variable] = plugin.text
    return words, variables


def encoded(text: str) -> str:
    """A text without commas, quotes, dollars and ends of lines."""
    return ENCODED + base64.b64encode(text.encode()).decode()


def _text_of(word: str) -> tuple[str, str]:
    """The name and the text of what a word on the command line means."""
    if word.startswith(CARRIED):
        name = word.removeprefix(CARRIED)
        text = os.environ.get(Plugin(name, "", ()).variable)
        if text is None:
            raise UserError(f"--plugin {word}: the environment has no {Plugin(name, '', ()).variable}; name a file")
        return name, base64.b64decode(text.removeprefix(ENCODED)).decode() if text.startswith(ENCODED) else text
    path = Path(word)
    try:
        return path.name, path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(f"--plugin {word}: {str(error.strerror).lower()}; name a file of Python") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--plugin {word}: is no text in UTF-8; name a file of Python") from error


def _load(word: str) -> Plugin:
    """Runs a file, unless it was run before.

    Raises:
        UserError: it cannot be read or run, or registers nothing, or something that cannot be a model.
    """
    name, text = _text_of(word)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    if sha256 in _loaded:
        for section in _loaded[sha256].sections:
            model_section(section)
        return _loaded[sha256]
    before = model_sections()
    module = ModuleType(f"infnet_rec_plugin_{sha256[:SHOWN]}", f"{name}, named on the command line.")
    module.__file__ = word
    try:
        code = compile(text, word, "exec", dont_inherit=True)
        # Classes look up their own module, such as when a type is written as text.
        sys.modules[module.__name__] = module
        exec(code, module.__dict__)
    except SyntaxError as error:
        raise UserError(f"--plugin {word}: line {error.lineno}: {error.msg}") from error
    except Exception as error:  # whatever a file of somebody else's raises
        replace_sections(before)
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == word]
        at = f"line {frames[-1].lineno}: " if frames else ""
        what = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise UserError(f"--plugin {word}: {at}{what}") from error
    sections = tuple(dict.fromkeys(s for key, s in model_sections().items() if key not in before))
    if not sections:
        raise UserError(
            f"--plugin {word}: registers no model; decorate a tower with @register(MyConfig) of "
            "infnet_rec.models.registry"
        )
    _loaded[sha256] = Plugin(name, sha256, sections, text)
    return _loaded[sha256]


@functools.cache
def _installed() -> tuple[Plugin, ...]:
    """The models of installed packages.

    Raises:
        UserError: one cannot be loaded.
    """
    found = []
    for point in importlib.metadata.entry_points(group=GROUP):
        package = f"{point.dist.name} {point.dist.version}" if point.dist else point.module
        before = model_sections()
        try:
            point.load()
        except Exception as error:  # whatever somebody else's package raises
            replace_sections(before)
            raise UserError(
                f"package {package}: its model {point.name!r} cannot be loaded: {type(error).__name__}: {error}; mend "
                "or uninstall it"
            ) from error
        file = Path(str(sys.modules[point.module].__file__))
        sections = tuple(dict.fromkeys(s for key, s in model_sections().items() if key not in before))
        found.append(Plugin(package, hashlib.sha256(file.read_bytes()).hexdigest(), sections))
    return tuple(found)
