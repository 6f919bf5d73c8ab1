"""Reading 'name: value' from a YAML file: every fault with its line, and no value of another kind than it looks.

YAML 1.1, which PyYAML reads, takes 1e-3 for text, 010 for 8 and 2024-01-01 for a date. Here numbers are those of YAML
1.2, and there are no dates.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from plsc.errors import PLSCError
from plsc.utils.artifacts import recognize

log = logging.getLogger("plsc")

_NULL = "tag:yaml.org,2002:null"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # what such files begin with


class Entries(NamedTuple):
    """What a file holds.

    Attributes:
        values: name -> value, with underscores in names.
        lines: name -> line in the file, from 1 on.
        problems: (line, text): what is given twice, and what is no name.
    """

    values: dict[str, Any]
    lines: dict[str, int]
    problems: list[tuple[int, str]]


class _Loader(yaml.SafeLoader):
    """Scalars of YAML 1.2, and on, off, yes and no for true and false."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node)).replace("_", "")
    digits = text.lstrip("+-")
    base = {"0x": 16, "0o": 8}.get(digits[:2].lower(), 10)
    try:
        return int(text, base)
    except ValueError:
        raise yaml.constructor.ConstructorError(None, None, f"{text!r} is no integer", node.start_mark) from None


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool",
    re.compile(r"^(?:true|false|yes|no|on|off)$", re.IGNORECASE),
    list("tTfFyYnNoO"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0x[0-9a-fA-F]+|0o[0-7]+|[0-9][0-9_]*)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:e[-+]?[0-9]+)?|[0-9][0-9_]*e[-+]?[0-9]+|\.inf)$|^\.nan$",
        re.IGNORECASE,
    ),
    list("-+0123456789."),
)
_Loader.add_implicit_resolver(_NULL, re.compile(r"^(?:~|null|)$", re.IGNORECASE), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def read_entries(path: str | Path, error: type[PLSCError], *, is_text: Callable[[str], bool]) -> Entries:
    """Read a YAML file of one 'name: value' per line. Names may have dashes in place of underscores.

    Args:
        path: the file.
        error: class of the error that is raised.
        is_text: whether the value of a name is text, so that 2024, no and 1e3 are taken as they are written.

    Raises:
        PLSCError: `error`, which names the file: it cannot be read, is not YAML, or holds something else than names
            and values.
    """
    text = _read_text(path, error)
    if Path(path).suffix == ".json" and (found := recognize(path)):  # JSON is YAML
        raise error(f"{path}: expected a file of settings; it is {found}")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None or node.tag == _NULL:
            log.warning("%s: holds no setting", path)
            return Entries({}, {}, [])
        if not isinstance(node, yaml.MappingNode):
            raise error(f"{path}: expected one 'setting: value' per line, found {_found_instead(node)}")
        return _read_mapping(loader, node, is_text=is_text)
    except yaml.MarkedYAMLError as problem:
        raise error(f"{path}: not YAML: {_explain(problem, text)}") from None
    except (yaml.YAMLError, RecursionError) as problem:
        raise error(f"{path}: not YAML: {problem}") from None


def _read_text(path: str | Path, error: type[PLSCError]) -> str:
    content = b""
    try:
        content = Path(path).read_bytes()
        return content.decode("utf-8-sig")
    except OSError as problem:
        found = recognize(path) or ("a folder" if Path(path).is_dir() else None)
        reason = f"it is {found}" if found else problem.strerror
        raise error(f"{path}: the configuration file cannot be read: {reason}") from None
    except UnicodeDecodeError as problem:
        line = content.count(b"\n", 0, problem.start) + 1
        raise error(
            f"{path}: not YAML: it is not UTF-8, found the byte 0x{content[problem.start]:02x} (line {line}); "
            f"save it as UTF-8{' instead of UTF-16' if content[:2] in _UTF_16 else ''}"
        ) from None


def _read_mapping(loader: _Loader, node: yaml.MappingNode, *, is_text: Callable[[str], bool]) -> Entries:
    entries = Entries({}, {}, [])
    own, given = {id(key) for key, _ in node.value}, set[str]()
    loader.flatten_mapping(node)  # '<<: *other'
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            entries.problems.append((line, f"expected 'setting: value', found a {key.id} in place of the name"))
            continue
        name = key.value.replace("-", "_")
        if name in given and id(key) in own:
            entries.problems.append((line, f"{name}: given before in line {entries.lines[name]}; leave one out"))
            continue
        is_plain_text = isinstance(value, yaml.ScalarNode) and value.tag != _NULL and is_text(name)
        entries.values[name] = value.value if is_plain_text else loader.construct_object(value, deep=True)
        entries.lines[name] = line
        if id(key) in own:  # it replaces a merged one
            given.add(name)
    return entries


def _found_instead(node: yaml.Node) -> str:
    if isinstance(node, yaml.SequenceNode):
        return "list; write the settings without leading dashes"
    if isinstance(node, yaml.MappingNode):
        return "mapping"
    hint = "" if re.search(r":\s", node.value) else "; a setting is 'name: value', with a space after the colon"
    return f"str {node.value[:60]!r}{hint}"


def _explain(problem: yaml.MarkedYAMLError, text: str) -> str:
    mark = problem.problem_mark or problem.context_mark
    if mark is None:
        return str(problem)
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    what = ", ".join(part for part in (problem.context, problem.problem) if part)
    if "\t" in line[: mark.column + 1]:
        what = "a tab; YAML takes only spaces there"
    elif "mapping values are not allowed" in what:
        what = (
            "a second colon in the line, or a line before it that has no colon with a space after it; write "
            "'name: value', and text with a colon in quotes"
        )
    elif "expected a single document" in what:
        what = "a line of --- begins a second document; expected one"
    return f"{what} (line {mark.line + 1}, column {mark.column + 1})"
