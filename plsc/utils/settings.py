"""The base class of all settings: one definition gives keywords, attributes, keys of files, flags and pages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Union, get_args, get_origin

import pydantic
from pydantic.fields import FieldInfo
from typing_extensions import Self

from plsc.errors import ConfigError, PLSCError
from plsc.utils.names import did_you_mean, meant_by, setting_hint

_END_OF_DOCUMENT = "...\n"  # which YAML writes behind a single value
_NUMBERS = (int, float, int | None, float | None)


class Problem(NamedTuple):
    """Something wrong with a setting.

    Attributes:
        name: the setting as given; '' where it is not given.
        text: the setting, what was found, what was expected.
    """

    name: str
    text: str


class Settings(pydantic.BaseModel):
    """Named, typed values that are checked when they are given, at construction and at assignment.

    A subclass has one field per setting, each with a default (unless it is required) and a description. The description
    is a sentence that can be read alone, because the help of the command line and the page of settings show it alone.
    A field with `exclude=True` holds a Python object, which a file or a flag cannot give. A field with `repr=False` is
    secret: no message shows its value.

    Attributes:
        error: class of every error raised for a wrong name or value.
        renamed: old name -> present name. Old names are accepted as keywords, attributes, keys of files and flags.
        groups: name of the first field of a group -> heading of the group, for help and pages.

    Raises:
        PLSCError: `error`, for an unknown name (with the nearest known one) or a wrong value.

    Example:
        >>> class Limits(Settings):
        ...     error = ServingError
        ...     renamed = {"max_size": "max_bytes"}
        ...     max_bytes: int = Field(default=1024, ge=1, description="Largest request, in bytes.")
        >>> Limits(max_size=10).max_bytes
        10
        >>> Limits(max_byte=10)
        ServingError: there is no setting named 'max_byte'; did you mean 'max_bytes'?
    """

    model_config = pydantic.ConfigDict(
        extra="forbid", validate_assignment=True, allow_inf_nan=False, protected_namespaces=()
    )

    error: ClassVar[type[PLSCError]] = ConfigError
    renamed: ClassVar[Mapping[str, str]] = {}
    groups: ClassVar[Mapping[str, str]] = {}

    # Type checkers take the signature of the constructor and the attributes from the fields instead.
    if not TYPE_CHECKING:

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**self.present_names(values))
            except (pydantic.ValidationError, self.error):
                problems = self.find_problems(values, complete=True)
                raise self.error("\n".join(problem.text for problem in problems)) from None

        def __setattr__(self, name: str, value: Any) -> None:
            try:
                super().__setattr__(self.present_name(name), value)
            except pydantic.ValidationError as error:
                # A number that stands for three has the same problem three times.
                texts = dict.fromkeys(self._explain(problem) for problem in error.errors())
                raise self.error("\n".join(texts)) from None

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_"):
                return super().__getattr__(name)
            return getattr(self, self.present_name(name, AttributeError))

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _read_text(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        """Split '3,112,112' where several values are expected, and refuse True and bytes for a number."""
        field = cls.model_fields[str(info.field_name)]
        kind = field.annotation
        if not field.exclude:
            value = _plain_value(value)
        if isinstance(value, str) and plain_type(kind) is tuple:
            return [part for part in value.split(",") if part.strip()]
        if isinstance(value, str) and takes_pairs(kind):
            return _read_pairs(value)
        if isinstance(value, (bool, bytes)) and kind in _NUMBERS:
            raise ValueError("expected a number")
        return value

    @classmethod
    def present_name(cls, name: str, error: type[Exception] | None = None) -> str:
        """The name of the setting that `name` means: itself, or its present name if it is an old one.

        Args:
            name: as given.
            error: raised in place of the class's own.
        """
        name = cls.renamed.get(name, name)
        if name not in cls.model_fields:
            hint = setting_hint(name, cls.model_fields)
            raise (error or cls.error)(f"there is no setting named '{name}'{hint}")
        return name

    @classmethod
    def present_names(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """`values` under present names.

        Raises:
            PLSCError: `error`, for an unknown name, or a setting that is given under two names.
        """
        present = {cls.present_name(name): value for name, value in values.items()}
        if len(present) < len(values):
            old = next(name for name in values if cls.renamed.get(name) in values)
            raise cls.error(f"{old} is the old name of {cls.renamed[old]}, and both are given; leave out {old}")
        return present

    @classmethod
    def scalar_fields(cls) -> dict[str, FieldInfo]:
        """The settings that a file or a flag can give."""
        return {name: field for name, field in cls.model_fields.items() if not field.exclude}

    @classmethod
    def object_fields(cls) -> dict[str, FieldInfo]:
        """The settings that only Python can give."""
        return {name: field for name, field in cls.model_fields.items() if field.exclude}

    @classmethod
    def grouped_fields(cls) -> dict[str, dict[str, FieldInfo]]:
        """`scalar_fields` by the heading of their group."""
        grouped: dict[str, dict[str, FieldInfo]] = {}
        heading = "Settings"
        for name, field in cls.scalar_fields().items():
            heading = cls.groups.get(name, heading)
            grouped.setdefault(heading, {})[name] = field
        return grouped

    @classmethod
    def find_problems(
        cls, values: Mapping[str, Any], *, label: Callable[[str], str] = str, complete: bool = False
    ) -> list[Problem]:
        """Every unknown name and every wrong value, in the order of `values`.

        Args:
            values: under names as given.
            label: what a message calls a setting, for example by its flag.
            complete: settings without a default that are not given are problems too.
        """
        given: dict[str, str] = {}  # present name -> as given
        problems = []
        for name, value in values.items():
            try:
                present = cls.present_name(name)
            except cls.error as error:
                text = f"there is no setting named '{name}'; sections are not known, write settings without indentation"
                problems.append(Problem(name, text if isinstance(value, dict) else str(error)))
                continue
            if present in given:
                old = name if name in cls.renamed else given[present]
                text = f"{label(old)} is the old name of {label(present)}, and both are given; leave out {label(old)}"
                problems.append(Problem(name, text))
            given.setdefault(present, name)
        try:
            pydantic.BaseModel.__init__(cls.__new__(cls), **{present: values[name] for present, name in given.items()})
        except pydantic.ValidationError as error:
            for found in error.errors():
                if complete or found["type"] != "missing":
                    problems.append(Problem(given.get(str(found["loc"][0]), ""), cls._explain(found, label)))
        order = {name: number for number, name in enumerate(values)}
        return sorted(dict.fromkeys(problems), key=lambda problem: order.get(problem.name, len(order)))

    @classmethod
    def examine_file(cls, path: str | Path) -> tuple[dict[str, Any], list[str]]:
        """The settings in a YAML file under their names as given, and a line of text for everything wrong in it.

        Raises:
            PLSCError: `error`: the file cannot be read, or is not YAML.
        """
        from plsc.utils.yaml_file import read_entries

        entries = read_entries(path, cls.error, is_text=cls._is_text)
        objects = cls.object_fields()
        problems = list(entries.problems)
        for name, text in cls.find_problems(entries.values):
            if name not in objects:
                problems.append((entries.lines[name], text))
        for name in objects:
            if name in entries.values:
                meant = meant_by(name, set(cls.scalar_fields()))
                hint = f"; did you mean '{meant}'?" if meant else ""
                problems.append((entries.lines[name], f"'{name}' is a Python object; set it in a script{hint}"))
        return entries.values, [f"{path}: {text} (line {line})" for line, text in sorted(problems)]

    @classmethod
    def read_file(cls, path: str | Path) -> dict[str, Any]:
        """The settings in a YAML file, 'name: value' per line, under their present names. Names may have dashes.

        Raises:
            PLSCError: `error`, with a line for each fault: the file cannot be read, is not YAML, or holds wrong names
                or values.
        """
        values, problems = cls.examine_file(path)
        if problems:
            raise cls.error("\n".join(problems))
        return cls.present_names(values)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """The settings that a YAML file gives, and the defaults of the others. Errors as for `read_file`."""
        return cls(**cls.read_file(path))

    def to_yaml(self) -> str:
        """All settings that a file can give, by group, as `from_file` reads them; those not given are comments.

        Without secrets.
        """
        import yaml

        parts = []
        for heading, fields in self.grouped_fields().items():
            lines = [f"# {heading}"]
            for name in (name for name, field in fields.items() if field.repr):
                value = yaml.safe_dump(
                    _as_yaml(getattr(self, name)), default_flow_style=True, allow_unicode=True, width=1 << 30
                )
                line = f"{name}: {value.removesuffix(_END_OF_DOCUMENT).rstrip()}"
                lines.append(line if self.is_given(name) else f"# {line}")
            parts.append("\n".join(lines) + "\n")
        return "\n".join(parts)

    def assign(self, **values: Any) -> None:
        """Assign several settings. Each is checked like a single assignment."""
        for name, value in values.items():
            setattr(self, name, value)

    def is_given(self, name: str) -> bool:
        """Whether a setting was given, as opposed to left at its default."""
        return self.present_name(name) in self.model_fields_set

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """Only what differs from the defaults; pydantic's `repr` uses this."""
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if value is not field.default:
                if not field.repr:
                    yield name, "(set)"
                elif value != field.default:
                    yield name, value

    @classmethod
    def _is_text(cls, name: str) -> bool:
        field = cls.model_fields.get(cls.renamed.get(name, name))
        return field is not None and plain_type(field.annotation) is str and get_origin(field.annotation) is not Literal

    @classmethod
    def _explain(cls, problem: Any, label: Callable[[str], str] = str) -> str:
        """The setting, what was found, what was expected."""
        name = str(problem["loc"][0])
        message = problem["msg"].replace("Value error, ", "").replace("Input should be", "expected")
        given = problem["input"]
        if problem["type"] == "missing":
            return f"{label(name)}: not given, and it has no default"
        if not cls.model_fields[name].repr:
            return f"{label(name)}: {message}"
        if problem["type"] == "literal_error":
            message = did_you_mean(str(given), re.findall("'([^']*)'", problem["ctx"]["expected"])) + message
        if isinstance(given, tuple) and len(given) > 8:
            given = given[:8] + ("...",)
        return f"{label(name)}: got {given!r} ({type(given).__name__}); {message}"


def _plain_value(value: Any) -> Any:
    """Scalars and arrays of NumPy and Paddle as Python numbers and lists of these, also in a tuple or a list."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain_value, value)) if type(value) in (list, tuple) else value
    if hasattr(value, "ndim") and hasattr(value, "tolist"):
        return value.tolist()
    return value


def _as_yaml(value: Any) -> Any:
    """A value with lists in place of tuples, which YAML has no type for."""
    if isinstance(value, dict):
        return {name: _as_yaml(each) for name, each in value.items()}
    return [_as_yaml(each) for each in value] if isinstance(value, (list, tuple)) else value


def takes_pairs(annotation: Any) -> bool:
    """Whether the values are numbers by name, which text can give as 'm=0.4,h=0.333'."""
    return get_origin(annotation) is dict and get_args(annotation)[1] is float


def _read_pairs(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if any(not name.strip() or not value.strip() for name, _, value in pairs):
        raise ValueError("expected numbers by name, as m=0.4,h=0.333")
    names = [name.strip() for name, _, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"'{twice}' is given twice")
    return {name: value.strip() for name, (_, _, value) in zip(names, pairs)}


def plain_type(annotation: Any) -> Any:
    """The plain type of an annotation: `tuple[int, int] | None` -> tuple, `Literal["a"]` -> str."""
    origin = get_origin(annotation)
    if origin in (tuple, dict, Callable):
        return origin
    if origin is Literal:
        return str
    inner = [kind for kind in get_args(annotation) if kind is not type(None)]
    return plain_type(inner[0]) if inner else annotation


def accepted_values(annotation: Any) -> str:
    """What a value looks like as text: 'INT', 'FLOAT,FLOAT,FLOAT', 'INT,...', 'stop|skip' or 'INT|auto'."""
    kind, parts = plain_type(annotation), get_args(annotation)
    if get_origin(annotation) in (Union, UnionType):  # with None, or with a function
        words = [part for part in parts[1:] if get_origin(part) is Literal]
        return "|".join(map(accepted_values, (parts[0], *words)))
    if takes_pairs(annotation):
        return "NAME=FLOAT,..."
    if kind is tuple:
        return ",".join("..." if part is Ellipsis else part.__name__.upper() for part in parts)
    if get_origin(annotation) is Literal:
        return "|".join(parts)
    return "TEXT" if kind is str else str(kind.__name__).upper()


def text_of(value: Any) -> str:
    """A value as a flag takes it: (3, 112, 112) -> '3,112,112', {'m': 0.4} -> 'm=0.4'."""
    if isinstance(value, dict):
        return ",".join(f"{name}={number}" for name, number in value.items())
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
