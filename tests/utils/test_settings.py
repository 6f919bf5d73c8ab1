"""The base class of settings: names, values, files, and descriptions that stand alone."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from typing import ClassVar

import pydantic
import pytest
from pydantic import Field

from plsc.config import Config
from plsc.errors import PLSCError, ServingError
from plsc.serving.settings import ServeSettings
from plsc.utils.settings import Settings, accepted_values, plain_type, text_of


class Limits(Settings):
    """Settings as a server might have them."""

    error = ServingError
    renamed: ClassVar = {"max_size": "max_bytes"}
    groups: ClassVar = {"max_bytes": "Limits"}

    model: str = Field(description="Folder of the model.")
    max_bytes: int = Field(default=1024, ge=1, description="Largest request, in bytes.")
    sizes: tuple[int, ...] | None = Field(default=None, description="Sizes of requests, in bytes.")
    key: str | None = Field(default=None, repr=False, description="Secret of the clients.")
    hook: object = Field(default=None, exclude=True, description="Function that is called.")


class Fixed(Limits):
    model_config = pydantic.ConfigDict(frozen=True)


@pytest.mark.parametrize(
    "act, words",
    [
        (lambda: Limits(model="m", max_byte=3), "there is no setting named 'max_byte'; did you mean 'max_bytes'?"),
        (lambda: Limits(model="m", max_bytes=0), "max_bytes: got 0 (int); expected greater than or equal to 1"),
        (lambda: Limits(model="m", max_bytes=True), "max_bytes: got True (bool); expected a number"),
        (
            lambda: Limits(model="m", max_size=3, max_bytes=4),
            "max_size is the old name of max_bytes, and both are given; leave out max_size",
        ),
        (lambda: Limits(), "model: not given, and it has no default"),
        (lambda: setattr(Limits(model="m"), "max_bytes", "x"), "max_bytes: got 'x' (str); expected a valid integer"),
        (lambda: setattr(Limits(model="m"), "nothing", 3), "there is no setting named 'nothing'"),
        (lambda: setattr(Fixed(model="m"), "max_bytes", 3), "max_bytes: got 3 (int); Instance is frozen"),
    ],
)
def test_wrong_names_and_values_are_the_class_s_own_error(act, words):
    with pytest.raises(ServingError) as error:
        act()
    assert words in str(error.value)


@pytest.mark.parametrize(
    "act",
    [
        lambda: Config(pixel_mean=float("nan")),
        lambda: setattr(Config(), "pixel_mean", float("nan")),
    ],
)
def test_a_number_that_stands_for_three_has_one_problem(act):
    with pytest.raises(PLSCError) as found:
        act()
    assert str(found.value) == "pixel_mean: got nan (float); expected a finite number"


def test_a_secret_is_in_no_message_and_no_repr():
    with pytest.raises(ServingError) as error:
        Limits(model="m", key=12345)
    assert "key: expected a valid string" in str(error.value) and "12345" not in str(error.value)
    assert repr(Limits(model="m", key="12345")) == "Limits(model='m', key='(set)')"


def test_old_names_are_accepted_everywhere(tmp_path):
    limits = Limits(model="m", max_size=5)
    assert (limits.max_bytes, limits.max_size) == (5, 5)
    limits.max_size = 6
    assert limits.max_bytes == 6
    (tmp_path / "a.yaml").write_text("max-size: 7\nmodel: m\n")
    assert Limits.from_file(tmp_path / "a.yaml").max_bytes == 7


def test_settings_are_copied_and_pickled():
    limits = Limits(model="m", max_bytes=5)
    for other in (copy.deepcopy(limits), pickle.loads(pickle.dumps(limits)), limits.model_copy()):
        assert other == limits
        other.max_bytes = 6
        assert limits.max_bytes == 5


def test_an_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="did you mean 'max_bytes'"):
        _ = Limits(model="m").max_byte


def test_several_are_assigned_at_once():
    limits = Limits(model="m")
    limits.assign(max_bytes=7, sizes="1,2")
    assert (limits.max_bytes, limits.sizes) == (7, (1, 2))
    assert limits.is_given("sizes") and limits.is_given("max_size") and not limits.is_given("key")


def test_a_file_may_leave_out_what_has_no_default(tmp_path):
    (tmp_path / "a.yaml").write_text("sizes: [1, 2]\n")
    assert Limits.read_file(tmp_path / "a.yaml") == {"sizes": [1, 2]}
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert Limits.read_file(tmp_path / "empty.yaml") == {}


@pytest.mark.parametrize(
    "text, words",
    [
        (None, "the configuration file cannot be read: No such file"),
        ("a: [", "not YAML"),
        ("- a", "expected one 'setting: value' per line, found list"),
        ("max_byte: 3", "there is no setting named 'max_byte'; did you mean 'max_bytes'?"),
        ("max_bytes: 0\nsizes: x", "max_bytes: got 0 (int)"),
        ("max_bytes: 0\nsizes: x", "a.yaml: sizes: got"),
        ("hook: 3", "'hook' is a Python object; set it in a script"),
    ],
)
def test_mistakes_in_a_file_name_the_file(tmp_path, text, words):
    path = tmp_path / "a.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ServingError) as error:
        Limits.read_file(path)
    assert str(error.value).startswith(f"{path}: ") and words in str(error.value)


def test_types_as_text():
    fields = Config.model_fields
    kinds = {name: (plain_type(fields[name].annotation), accepted_values(fields[name].annotation)) for name in fields}
    assert kinds["num_classes"] == (int, "INT")
    assert kinds["train_image_num"] == (int, "INT")
    assert kinds["image_shape"] == (tuple, "INT,INT,INT")
    assert kinds["lr_steps"] == (tuple, "INT,...")
    assert kinds["bad_images"] == (str, "stop|skip")
    assert kinds["lr_schedule"] == (str, "step|cosine|polynomial|one_cycle")
    assert kinds["amp_lists"][0] is dict
    assert kinds["optimizer"] == (str, "TEXT")
    assert kinds["margin_function"] == (Callable, "CALLABLE")
    assert accepted_values(Limits.model_fields["sizes"].annotation) == "INT,..."
    assert text_of((3, 112, 112)) == "3,112,112"


CLASSES = [kind for kind in (Config, ServeSettings, Limits) if issubclass(kind, Settings)]
FIELDS = [(kind, name) for kind in CLASSES for name in kind.model_fields]


@pytest.mark.parametrize("kind, name", FIELDS, ids=lambda value: value if isinstance(value, str) else value.__name__)
def test_a_description_can_be_read_alone(kind, name):
    """One or more sentences, none of which needs another setting's line beside it."""
    text = kind.model_fields[name].description or ""
    assert len(text.split()) >= 2 and text[0].isupper() and text.endswith("."), text
    first = re.match(r"\w+", text).group().lower()
    assert first not in {"which", "what", "how", "these", "it", "this", "that", "they", "once", "those", "its", "same"}
    assert name in kind.scalar_fields() or name in kind.object_fields()


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_class_of_settings_is_whole(kind):
    assert issubclass(kind.error, PLSCError)
    assert set(kind.groups) <= set(kind.scalar_fields())
    assert not set(kind.renamed) & set(kind.model_fields) and set(kind.renamed.values()) <= set(kind.model_fields)
    grouped = [name for fields in kind.grouped_fields().values() for name in fields]
    assert grouped == list(kind.scalar_fields())
