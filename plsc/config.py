"""Every setting of a run, its type, its default and what it means: one definition.

`Entry`, the command line and `run.yaml` all fill this one object, so a wrong name or value fails here,
in one place and with one kind of message, before any work has begun.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import Field, field_validator

from plsc.errors import ConfigError

LOSS_KINDS = ("softmax", "arcface", "cosface", "sphereface", "combined")
LOSS_TYPES = LOSS_KINDS + tuple("dist_" + kind for kind in LOSS_KINDS)
# (m1, m2, m3) in cos(m1 theta + m2) - m3 on the target class, and which of the three `margin` means.
MARGINS = {"arcface": (1.0, 0.5, 0.0), "cosface": (1.0, 0.0, 0.35), "sphereface": (1.35, 0.0, 0.0)}
MAIN_MARGIN = {"arcface": 1, "cosface": 2, "sphereface": 0}
MODEL_NAMES = ("ResNet50", "ResNet101", "ResNet152", "ResNetTiny")


class Config(pydantic.BaseModel):
    """The settings of one run. Assignment is checked like construction.

    Every field can be read and set as an attribute of `Entry`, given as a flag on the command line
    (`train_batch_size` is `--train-batch-size`) or as a key of `run.yaml`.
    """

    model_config = pydantic.ConfigDict(extra="forbid", validate_assignment=True, protected_namespaces=())

    # The problem
    num_classes: int = Field(85742, ge=1, description="number of classes C")
    emb_dim: int = Field(512, ge=1, description="embedding size D")
    image_shape: tuple[int, int, int] = Field((3, 112, 112), description="image channels, height, width")
    model_name: str = Field("ResNet50", description="backbone: " + ", ".join(MODEL_NAMES))

    # The head and its loss
    loss_type: str = Field("dist_arcface", description="loss: " + ", ".join(LOSS_TYPES))
    model_parallel: bool | None = Field(None, description="shard the class centers; default by loss_type's dist_")
    margin1: float | None = Field(None, ge=0.1, description="m1 in cos(m1 theta + m2) - m3; default by loss")
    margin2: float | None = Field(None, ge=0.0, description="m2, in radians; default by loss")
    margin3: float | None = Field(None, ge=0.0, description="m3, on the cosine; default by loss")
    margin: float = Field(0.5, ge=0.0, description="once set, the one margin of the loss: arcface m2, cosface m3, ...")
    scale: float = Field(64.0, gt=0.0, description="s: what the cosines are multiplied by")
    sample_ratio: float = Field(1.0, gt=0.0, le=1.0, description="share of class centers in each step (Partial FC)")

    logits: Literal["auto", "store", "recompute"] = Field(
        "auto", description="logits between the passes: keep, or multiply again; auto goes by the free memory"
    )

    momentum_storage: Literal["float32", "bfloat16"] = Field(
        "float32", description="momentum of the class centers; bfloat16 takes half the memory, rounded stochastically"
    )

    # The data
    dataset_dir: str = Field("./train_data", description="folder, file or pattern; see data.md")
    train_image_num: int | None = Field(None, ge=1, description="training images; counted when not given")
    val_targets: str = Field("lfw", description="verification sets, as lfw,cfp_fp: <name>.bin in the data folder")
    train_batch_size: int = Field(128, ge=1, description="training images per rank and step (N)")
    test_batch_size: int = Field(120, ge=1, description="images per rank and step in verification and predict")
    num_workers: int = Field(2, ge=0, description="processes per rank that read images; 0 reads in this one")
    flip: bool = Field(True, description="mirror training images at random, embed test images both ways")
    pixel_mean: tuple[float, float, float] = Field((127.5, 127.5, 127.5), description="taken from red, green, blue")
    pixel_std: tuple[float, float, float] = Field((128.0, 128.0, 128.0), description="which are then divided by it")
    min_images_per_class: int = Field(0, ge=0, description="leave out classes with fewer images, renumber the rest")
    class_balanced: bool = Field(False, description="every class equally often, instead of every image")
    worker_timeout: float = Field(300.0, ge=0.0, description="seconds one image may take to read; 0 for no limit")
    bad_images: Literal["stop", "skip"] = Field("stop", description="an unreadable image: stop, or skip and count")

    # Random changes to training images beside the flip: all off
    augment_crop: float = Field(0.0, ge=0.0, le=0.99, description="largest share of a side that is cut off")
    augment_rotate: float = Field(0.0, ge=0.0, le=180.0, description="largest angle, in degrees to either side")
    augment_color_jitter: float = Field(0.0, ge=0.0, le=1.0, description="brightness, contrast, color: 1 - x to 1 + x")
    augment_rand_augment: int = Field(0, ge=0, le=100, description="operations of RandAugment on each image")
    augment_rand_magnitude: float = Field(5.0, ge=0.0, le=10.0, description="how strong these are")
    augment_gray: float = Field(0.0, ge=0.0, le=1.0, description="probability of losing the colors")
    augment_blur: float = Field(0.0, ge=0.0, le=1.0, description="probability of a blur")
    augment_erase: float = Field(0.0, ge=0.0, le=1.0, description="probability of a rectangle of noise")

    # The schedule
    train_epochs: int | None = Field(120, ge=1, description="epochs to train; un-sets train_steps")
    train_steps: int | None = Field(None, ge=1, description="steps to train; un-sets train_epochs")
    warmup_epochs: int = Field(0, ge=0, description="epochs of linear warm-up")
    lr: float = Field(0.1, gt=0.0, description="learning rate at a global batch of 1024")
    lr_steps: tuple[int, ...] = Field((100000, 160000, 220000), description="steps at which the rate decays")
    lr_decay_factor: float = Field(0.1, gt=0.0, le=1.0, description="what the rate is multiplied by there")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of initial weights, data order, sampling, dropout")
    on_nonfinite: Literal["stop", "skip"] = Field("stop", description="loss not finite: stop, or skip the step")

    # Mixed precision (no effect on CPU)
    use_fp16: bool = Field(False, description="mixed precision on GPU")
    amp_dtype: Literal["float16", "bfloat16"] = Field("float16", description="half precision's type")
    init_loss_scaling: float = Field(1.0, gt=0.0, description="first loss scale")
    incr_every_n_steps: int = Field(2000, ge=1, description="steps without overflow before the scale grows")
    decr_every_n_nan_or_inf: int = Field(2, ge=1, description="overflows before the scale shrinks")
    incr_ratio: float = Field(2.0, gt=1.0, description="growth of the scale")
    decr_ratio: float = Field(0.5, gt=0.0, lt=1.0, description="shrinking of the scale")
    use_dynamic_loss_scaling: bool = Field(True, description="let the scale follow the overflows")
    amp_lists: dict[str, Any] | None = Field(None, description="custom_white_list / custom_black_list of operators")

    # Checkpoints, verification and what is shown
    checkpoint_dir: str = Field(
        "",
        description="loaded before train, test, predict and export; without it, "
        "test, predict and export take the newest in model_save_dir",
    )
    model_save_dir: str = Field("output", description="one folder per epoch is written here")
    max_last_checkpoint_num: int = Field(5, ge=1, description="checkpoints kept, newest first")
    with_test: bool = Field(True, description="verify during training")
    test_period: int = Field(0, ge=0, description="verify every so many steps as well; 0 for epochs only")
    calc_acc: bool = Field(False, description="show acc1 / acc5 of the training batch")
    log_period: int = Field(200, ge=1, description="steps between log lines where there is no progress bar")

    # Given in Python only
    model: Any = Field(None, exclude=True)
    train_reader: Any = Field(None, exclude=True)
    test_reader: Any = Field(None, exclude=True)
    predict_reader: Any = Field(None, exclude=True)
    train_dataset: Any = Field(None, exclude=True)
    test_dataset: Any = Field(None, exclude=True)
    optimizer: Any = Field(None, exclude=True)
    head_optimizer: Any = Field(None, exclude=True)
    margin_function: Any = Field(None, exclude=True)
    lr_schedule: Any = Field(None, exclude=True)
    param_attr: Any = Field(None, exclude=True)
    bias_attr: Any = Field(None, exclude=True)

    def __init__(self, **values: Any) -> None:
        for name in values:
            self.check_name(name)
        try:
            super().__init__(**values)
        except pydantic.ValidationError as error:
            raise ConfigError(_explain(error)) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self.check_name(name)
        try:
            super().__setattr__(name, value)
        except pydantic.ValidationError as error:
            raise ConfigError(_explain(error)) from None

    @field_validator("pixel_mean", "pixel_std", mode="before")
    @classmethod
    def _one_for_all_channels(cls, value: Any) -> Any:
        return [value] * 3 if isinstance(value, (int, float)) else [*value] * 3 if len(value) == 1 else value

    @field_validator("image_shape", mode="before")
    @classmethod
    def _three_numbers(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)) and len(value) != 3:
            raise ValueError("expected three numbers, as 3,112,112")
        return value

    @field_validator("image_shape", "lr_steps", "pixel_mean", "pixel_std", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_number(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        kind = cls.model_fields[info.field_name].annotation
        if isinstance(value, bool) and kind in (int, float, int | None, float | None):
            raise ValueError("expected a number")
        return value

    @field_validator("image_shape")
    @classmethod
    def _three_channels(cls, value: tuple[int, int, int]) -> tuple[int, int, int]:
        if value[0] != 3 or min(value) < 1:
            raise ValueError("expected (3, height, width): images are read as three color channels")
        return value

    @field_validator("pixel_std")
    @classmethod
    def _not_zero(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(value) <= 0:
            raise ValueError("expected numbers above 0")
        return value

    @field_validator("lr_steps")
    @classmethod
    def _ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(step < 1 for step in value) or list(value) != sorted(set(value)):
            raise ValueError("expected steps of 1 or more in ascending order")
        return value

    @field_validator("loss_type")
    @classmethod
    def _known_loss(cls, value: str) -> str:
        return _one_of(value, LOSS_TYPES)

    @field_validator("model_name")
    @classmethod
    def _known_model(cls, value: str) -> str:
        return _one_of(value, MODEL_NAMES)

    @classmethod
    def check_name(cls, name: str, error: type = ConfigError) -> None:
        """Raise `error`, with the near miss, unless there is a setting of this name."""
        if name not in cls.model_fields:
            near = difflib.get_close_matches(name, cls.model_fields, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise error(f"there is no setting named '{name}'{hint}")

    @classmethod
    def scalar_fields(cls) -> Mapping[str, pydantic.fields.FieldInfo]:
        """The settings that a file or a flag can give: all but the Python objects."""
        return {name: field for name, field in cls.model_fields.items() if not field.exclude}

    @classmethod
    def from_file(cls, path: str | Path) -> Config:
        """Read `run.yaml`: one key per setting."""
        return cls(**read_settings(path))

    # What follows is derived, so that no two rooms derive it differently.

    @property
    def loss_kind(self) -> str:
        """The loss without its `dist_`."""
        return self.loss_type[len("dist_") :] if self.loss_type.startswith("dist_") else self.loss_type

    @property
    def is_sharded(self) -> bool:
        """Whether class centers are sharded over ranks (`dist_`) or whole on each."""
        return self.loss_type.startswith("dist_") if self.model_parallel is None else self.model_parallel

    @property
    def margins(self) -> tuple[float, float, float] | None:
        """(m1, m2, m3) on the target cosine, or None for the softmax kind.

        Raises:
            ConfigError: a margin is set that the loss has no place for, or one it needs is missing.
        """
        given = (self.margin1, self.margin2, self.margin3)
        has_main = "margin" in self.model_fields_set
        kind = self.loss_kind
        if kind == "softmax":
            if has_main or any(value is not None for value in given):
                raise ConfigError(f"loss_type '{self.loss_type}' has no margin, but one is set; leave it out")
            return None
        if kind == "combined":
            if has_main or any(value is None for value in given):
                raise ConfigError(
                    f"loss_type '{self.loss_type}' needs margin1, margin2 and margin3, and takes no "
                    f"single margin; got {given}"
                )
            return given
        margins = list(MARGINS[kind])
        if has_main:
            margins[MAIN_MARGIN[kind]] = self.margin
        return tuple(default if value is None else value for default, value in zip(margins, given))

    def check(self) -> None:
        """Raise `ConfigError` where settings that are right alone contradict each other."""
        _ = self.margins
        if (self.train_epochs is None) == (self.train_steps is None):
            raise ConfigError(
                f"train_epochs is {self.train_epochs} and train_steps is {self.train_steps}; set one of them"
            )

    @property
    def val_names(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.val_targets.split(",") if name.strip())


def read_settings(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file of settings.

    Raises:
        ConfigError: no such file, not YAML, or not a mapping.
    """
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: the configuration file cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected one 'setting: value' per line, found {type(values).__name__}")
    return {str(name).replace("-", "_"): value for name, value in values.items()}


def check_callable(name: str, value: Any, expected: str) -> Callable:
    """Return `value` if it can be called; otherwise raise `ConfigError` naming what was expected."""
    if not callable(value):
        raise ConfigError(f"{name}: got {value!r} ({type(value).__name__}), expected {expected}")
    return value


def _one_of(value: str, accepted: tuple[str, ...]) -> str:
    if value in accepted:
        return value
    near = difflib.get_close_matches(value.lower(), accepted, n=1) or [
        name for name in accepted if name.lower() == value.lower()
    ]
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise ValueError(f"{hint}accepted: {', '.join(accepted)}")


def _explain(error: pydantic.ValidationError) -> str:
    lines = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"][:1])
        what = problem["msg"].replace("Value error, ", "").replace("Input should be", "expected")
        given = problem["input"]
        if isinstance(given, tuple) and len(given) > 8:
            given = given[:8] + ("...",)
        lines.append(f"{name}: got {given!r} ({type(given).__name__}); {what}")
    return "\n".join(lines)


# The defaults that every `Entry` starts from, under the name that users' scripts import.
config = Config()
