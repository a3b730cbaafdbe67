"""TOML files checked against pydantic models: strict, frozen, every fault at once.

Used for dataset recipes and run configurations alike. pydantic does the checking; what is ours is the wording, and the
"did you mean" for a misspelt key.
"""

import dataclasses
import json
import tomllib
import types
import typing
from datetime import date, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Tag, ValidationError

from infnet_rec.errors import UserError, did_you_mean

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance


class StrictModel(BaseModel):
    """A frozen model that knows all its keys and converts nothing silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


Model = TypeVar("Model", bound=StrictModel)
Record = TypeVar("Record", bound="DataclassInstance")


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file.

    Raises:
        UserError: the file is missing or is not TOML.
    """
    try:
        # Windows editors begin a file with a byte order mark.
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: {str(error.strerror).lower()}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a TOML file: {error}; TOML is UTF-8 text, save it as such") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not a TOML file: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        UserError: the file is missing or is not a JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: {str(error.strerror).lower()}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a JSON file: {error}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: holds no JSON object")
    return data


def validate_model(model: type[Model], data: dict[str, Any], source: str) -> Model:
    """Validates `data` in JSON mode (strict types, lists for tuples, strings for paths).

    Args:
        model: what the data must be.
        data: as read from TOML.
        source: the file's name, for the message.

    Raises:
        UserError: one message that lists every fault with its key, its value and the rule.
    """
    try:
        return model.model_validate_json(json.dumps(data, default=_instant))
    except ValidationError as error:
        faults = error.errors(include_url=False)
        lines = [_line(model, fault) for fault in faults]
        hints = dict.fromkeys(hint for fault in faults if (hint := _hint(model, fault)))
        title = f"{source}: {len(lines)} fault{'s' * (len(lines) > 1)}"
        raise UserError("\n".join([title, *lines, *hints])) from error


def read_fields(kind: type[Record], data: Any, source: str, **absent: Any) -> Record:
    """Makes a dataclass of a JSON object that this or another version of the package wrote.

    Fields that came later have their defaults, or what `absent` says; fields that this version does not know are passed
    over.

    Args:
        kind: the dataclass.
        data: the JSON object.
        source: where it stands, for the message.
        **absent: values of fields that an earlier version did not write.

    Raises:
        UserError: it is no JSON object, or lacks a field that has neither.
    """
    if not isinstance(data, dict):
        raise UserError(f"{source}: holds {type(data).__name__} where an object is expected; it is damaged")
    known = {field.name: field for field in dataclasses.fields(kind) if field.init}
    values = absent | {name: data[name] for name in known if name in data}
    lacking = [
        name
        for name, field in known.items()
        if name not in values and {field.default, field.default_factory} == {dataclasses.MISSING}
    ]
    if lacking:
        raise UserError(
            f"{source}: lacks {', '.join(lacking)}; another version of infnet_rec wrote it, or it is damaged; read it "
            "with the version that wrote it"
        )
    return kind(**values)


def _instant(value: Any) -> str:
    """TOML's dates and times as pydantic reads them; a date is its first instant."""
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    return value.isoformat()


def _line(model: type[BaseModel], fault: Any) -> str:
    # A union's tag, such as "(time)", is no key of the file.
    loc = tuple(part for part in fault["loc"] if not str(part).startswith("("))
    key = ".".join(str(part) for part in loc) or "(the whole file)"
    if fault["type"] == "extra_forbidden":
        return f"  {key}: unknown key{did_you_mean(str(loc[-1]), _fields_at(model, fault['loc'][:-1]))}"
    if fault["type"] == "union_tag_invalid":
        tags = [tag.strip("'()") for tag in fault["ctx"]["expected_tags"].split(", ")]
        name, value = next((n, v) for n, v in fault["input"].items() if f"({v})" == fault["ctx"]["tag"])
        hint = did_you_mean(str(value), tags) or ("; one of your own needs --plugin FILE.py" if key == "model" else "")
        return f"  {key}.{name} = {value!r}: Input should be one of {', '.join(tags)}{hint}"
    if fault["type"] == "missing":
        return f"  {key}: missing; it has no default"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error" or isinstance(fault["input"], dict):
        return f"  {key}: {message}"
    suggestion = ""
    if fault["type"] == "literal_error" and isinstance(fault["input"], str):
        suggestion = did_you_mean(
            fault["input"], fault["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        )
    return f"  {key} = {fault['input']!r}: {message}{suggestion}"


def _hint(model: type[BaseModel], fault: Any) -> str:
    """What the chosen kind of a section has, where the fault is a key that another kind may have; or ""."""
    *section, tag, _ = ("", "", *fault["loc"])
    if fault["type"] != "extra_forbidden" or not str(tag).startswith("("):
        return ""
    key = ".".join(str(part) for part in section if part)
    return f"  {key} of {str(tag)[1:-1]}: has {', '.join(_fields_at(model, fault['loc'][:-1]))}; leave out all others"


def _fields_at(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """Names of the keys that the model nested at `loc` knows."""
    current: Any = model
    for part in loc:
        if isinstance(current, type) and issubclass(current, BaseModel):
            field = current.model_fields.get(str(part))
            current = field.annotation if field else None
        elif str(part).startswith("("):
            tagged = (m for m in typing.get_args(current) if Tag(str(part)) in typing.get_args(m))
            current = _innermost_model(next(tagged, current))
        else:
            current = _innermost_model(current)  # `part` is a list's index or a dict's key
    current = _innermost_model(current)
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []


def _innermost_model(annotation: Any) -> Any:
    """The model inside `tuple[Model, ...]`, `dict[str, Model]` or `Model | None`; the annotation itself otherwise."""
    if typing.get_origin(annotation) in (tuple, list, dict, typing.Union, types.UnionType, typing.Annotated):
        for argument in typing.get_args(annotation):
            inner = _innermost_model(argument)
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                return inner
    return annotation
