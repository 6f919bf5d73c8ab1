"""Writes docs/settings.md from the one definition of the settings: python docs/make_settings.py"""

from pathlib import Path

from plsc.config import Config
from plsc.utils.settings import plain_type, text_of

PAGE = Path(__file__).with_name("settings.md")


def settings_page() -> str:
    lines = [
        "# Settings",
        "",
        "Each is an attribute of `Entry`, a key of `run.yaml` and, but for `amp_lists`, a flag",
        "(`--train-batch-size`).",
        "Setters of the same meaning: [migration.md](migration.md) and `help(plsc.Entry)`.",
        "",
        "| setting | type | default | meaning |",
        "|---|---|---|---|",
    ]
    for name, field in Config.scalar_fields().items():
        default = "" if field.default in (None, "") else f"`{text_of(field.default)}`"
        lines.append(f"| `{name}` | {plain_type(field.annotation).__name__} | {default} | {field.description} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(settings_page(), encoding="utf-8")
