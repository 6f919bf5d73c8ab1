"""The settings of the server: ranges, flags, and the table of docs/serving.md."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from plsc.cli.settings import with_settings
from plsc.errors import ServingError
from plsc.serving.settings import ServeSettings

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "name, value",
    [
        ("port", 65536),
        ("port", -1),
        ("workers", 0),
        ("threads", 0),
        ("max_batch", 0),
        ("max_wait_ms", -1),
        ("max_wait_ms", float("inf")),
        ("max_queue", 0),
        ("max_body", 0),
        ("max_inflight_bytes", 0),
        ("max_images", 0),
        ("max_pixels", 0),
        ("timeout", 0),
        ("timeout", float("nan")),
        ("drain", -1),
        ("drain", float("inf")),
        ("threshold", 1.5),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_name(name, value):
    with pytest.raises(ServingError, match=f"^{name}: got "):
        ServeSettings(model="m", **{name: value})


@pytest.mark.parametrize("key", ["", "a\nb", "\u00e9"])
def test_a_wrong_key_is_refused_and_never_shown(key):
    with pytest.raises(ServingError, match=r"^api_key: expected printable ASCII characters, at least one$"):
        ServeSettings(model="m", api_key=key)
    assert "secret" not in repr(ServeSettings(model="m", api_key="secret"))


def test_unknown_and_old_names():
    with pytest.raises(ServingError, match="no setting named 'max_images_'; did you mean 'max_images'"):
        ServeSettings(model="m", max_images_=1)
    with pytest.raises(ServingError, match="model: not given"):
        ServeSettings()
    assert ServeSettings(model="m", max_held=7).max_inflight_bytes == 7


def test_settings_cannot_be_changed():
    with pytest.raises(ServingError):
        ServeSettings(model="m").port = 1


def test_values_of_flags_are_text():
    settings = ServeSettings(model="m", port="0", timeout="2.5", access_log=False, gallery="g")
    assert (settings.port, settings.timeout, settings.access_log, settings.gallery) == (0, 2.5, False, Path("g"))


def test_every_setting_is_described_and_a_flag():
    made = with_settings(ServeSettings)(lambda settings: None)
    assert set(ServeSettings.model_fields) <= set(made.__annotations__)
    for field in ServeSettings.model_fields.values():
        assert field.description.endswith(".") and field.description[0].isupper()


def test_threads_are_the_cores_divided_by_the_processes(monkeypatch):
    monkeypatch.setattr("plsc.serving.settings.available_cores", lambda: 5)
    assert ServeSettings(model="m", workers=2).threads_per_worker == 2
    assert ServeSettings(model="m", workers=9).threads_per_worker == 1
    assert ServeSettings(model="m", workers=2, threads=7).threads_per_worker == 7


def test_the_table_of_the_page_is_that_of_the_settings():
    page = runpy.run_path(str(ROOT / "docs" / "make_settings.py"))["serving_page"]()
    assert "`max_inflight_bytes`" in page
    assert (ROOT / "docs" / "serving.md").read_text() == page, "run python docs/make_settings.py"
