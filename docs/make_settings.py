"""Writes docs/settings.md, and the table in docs/serving.md, from the definitions of the settings.

Run: python docs/make_settings.py
"""

import re
from collections.abc import Mapping
from pathlib import Path

from pydantic.fields import FieldInfo

from plsc.config import Config
from plsc.serving.settings import ServeSettings
from plsc.utils.settings import accepted_values, plain_type, text_of

PAGE = Path(__file__).with_name("settings.md")
SERVING_PAGE = Path(__file__).with_name("serving.md")

INTRODUCTION = """# Settings

Each setting is an attribute of `Entry`, a keyword of `Config`, a key of `run.yaml` and, except for `amp_lists`, a flag
(`train_batch_size` is `--train-batch-size`). `help(plsc.Entry)` and
[migration.md](migration.md) have the setters.

```yaml
# plsc train --config run.yaml --seed 1      (flags win over the file)
dataset_dir: ./faces
num_classes: 10575
val_targets: lfw,cfp_fp
train_batch_size: 64
lr_schedule: cosine
```

`plsc train --set NAME=VALUE` gives a setting by its name, as often as needed. It overrides the file, and the flag of a
setting overrides it. `plsc train ... --dump-config` prints all settings, in their groups, as a file for `--config`, and
does not train; those that are not given are comments with their defaults. The help of `plsc test` and of `plsc export`
leaves out the groups that matter in training alone; their flags are accepted there all the same.

In `test`, `predict` and `export`, a setting that describes the network (`emb_dim`, `image_shape`, `model_name`, `flip`,
`pixel_mean`, `pixel_std`) is taken from the checkpoint unless it is given.

All wrong names and values of a file and of the flags are reported at once, those of the file with their lines. A name
that other libraries use, such as `batch_size`, `learning_rate` or `resume`, is an error that names the setting. In the
file, numbers are those of YAML 1.2 (`1e-3` is a number, `010` is 10), `on`, `off`, `yes` and `no` are booleans, and the
value of a setting that is text is taken as it is written: `val_targets: no` names a set `no`. A setting may be given
once.

A message names the flag in a command, and the setter of `Entry` in a script."""

OBJECTS = """## Python objects

A script assigns these to an `Entry` or passes them to `Config`. A file or a flag cannot give them.
"""


def settings_page() -> str:
    lines = [INTRODUCTION]
    for heading, fields in Config.grouped_fields().items():
        lines += [f"\n## {heading}\n", *table(fields)]
    lines += [f"\n{OBJECTS}", "| setting | meaning |", "|---|---|"]
    lines += [f"| `{name}` | {field.description} |" for name, field in Config.object_fields().items()]
    renamed = [f"`{old}` for `{new}`" for old, new in Config.renamed.items()]
    lines += ["\n## Old names\n", f"Accepted as attributes, keywords, keys and flags: {', '.join(renamed)}."]
    return "\n".join(lines) + "\n"


def serving_page() -> str:
    """docs/serving.md with its table of settings renewed."""
    begin, end = "<!-- settings: begin -->", "<!-- settings: end -->"
    rows = "\n".join([begin, *table(ServeSettings.scalar_fields()), end])
    return re.sub(f"{begin}.*{end}", lambda _: rows, SERVING_PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def table(fields: Mapping[str, FieldInfo]) -> list[str]:
    rows = [
        f"| `{name}` | {values(field)} | {default(field)} | {field.description} |" for name, field in fields.items()
    ]
    return ["| setting | values | default | meaning |", "|---|---|---|---|", *rows]


def values(field: FieldInfo) -> str:
    text = accepted_values(field.annotation)
    if plain_type(field.annotation) is bool:
        text = "true, false"
    return text.lower().replace("|", ", ") if text != "TEXT" else "text"


def default(field: FieldInfo) -> str:
    return "" if field.is_required() or field.default in (None, "") else f"`{text_of(field.default)}`"


if __name__ == "__main__":
    PAGE.write_text(settings_page(), encoding="utf-8")
    SERVING_PAGE.write_text(serving_page(), encoding="utf-8")
