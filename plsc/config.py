"""Every setting of a run, its type, its default and what it means, in one definition.

`Entry`, the command line and `run.yaml` all fill this one object, so a wrong name or value fails here,
in one place and with one kind of message, before any work has begun.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, field_serializer, field_validator

from plsc.errors import ConfigError
from plsc.loss_types import LOSS_KINDS, LOSS_TYPES, LOSSES, LossType, Parameters, check_option_names, parameters_of
from plsc.utils.class_numbers import ClassNumbers
from plsc.utils.hints import setter
from plsc.utils.locations import keep_credentials
from plsc.utils.names import one_of
from plsc.utils.settings import Settings

ScheduleName = Literal["step", "cosine", "polynomial", "one_cycle"]
SCHEDULES: tuple[str, ...] = get_args(ScheduleName)
# Other names that mean one of them; poly is that of PLSC 1.0.
_OTHER_SCHEDULE_NAMES = {"poly": "polynomial", "one-cycle": "one_cycle", "onecycle": "one_cycle"}
OPTIMIZERS = ("momentum", "sgd", "adamw", "lars", "lion")
LOGGERS = ("tensorboard", "swanlab", "mlflow", "wandb")
# Those that have a momentum to set; the betas of the others are their papers'.
_WITH_MOMENTUM = ("momentum", "lars")
# The least and the greatest number that float32 holds in full precision.
_LEAST, _GREATEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127
# Read by every run that names no verification set, if it exists.
DEFAULT_VAL_TARGETS = "lfw"


def _one_for_all_channels(value: Any) -> Any:
    if isinstance(value, (int, float)):
        return [value] * 3
    return [*value] * 3 if isinstance(value, (list, tuple)) and len(value) == 1 else value


def _above_zero(value: tuple[float, float, float]) -> tuple[float, float, float]:
    if min(value) <= 0:
        raise ValueError("expected numbers above 0")
    return value


def _three_numbers(value: Any) -> Any:
    if isinstance(value, (list, tuple)) and len(value) != 3:
        raise ValueError("expected three numbers, as 3,112,112")
    return value


def _three_channels(value: tuple[int, int, int]) -> tuple[int, int, int]:
    if value[0] != 3 or min(value) < 1:
        raise ValueError("expected (3, height, width): images are read as three color channels")
    return value


def _ascending(value: tuple[int, ...]) -> tuple[int, ...]:
    if any(step < 1 for step in value) or list(value) != sorted(set(value)):
        raise ValueError("expected steps of 1 or more in ascending order")
    return value


ImageShape = Annotated[tuple[int, int, int], BeforeValidator(_three_numbers), AfterValidator(_three_channels)]
Channels = Annotated[tuple[float, float, float], BeforeValidator(_one_for_all_channels)]
PositiveChannels = Annotated[Channels, AfterValidator(_above_zero)]
Steps = Annotated[tuple[int, ...], AfterValidator(_ascending)]


def _threads(value: Any) -> int | str:
    """A number of threads, or 'auto'."""
    text = "" if isinstance(value, bool) else str(value)
    if text != "auto" and not (text.isdecimal() and int(text)):
        raise ValueError("expected 'auto', or a number of threads of 1 or more")
    return text if text == "auto" else int(text)


class Config(Settings):
    """The settings of one run.

    A field can be read and set as an attribute of `Entry`, given as a flag on the command line
    (`train_batch_size` is `--train-batch-size`) or as a key of `run.yaml`. docs/settings.md lists all of them.

    Raises:
        ConfigError: an unknown name, with the nearest known one, or a value of a wrong type or range; at construction
            and at assignment.

    Example:
        >>> config = Config(num_classes=1000, model_name="ResNetTiny", image_shape=(3, 32, 32))
        >>> config.train_batch_size
        128
        >>> config.train_batch_size = 0
        ConfigError: train_batch_size: got 0 (int); expected greater than or equal to 1
        >>> Config.from_file("run.yaml")
    """

    renamed = {"augment_grey": "augment_gray"}
    groups = {
        "num_classes": "Problem and backbone",
        "loss_type": "Last layer and loss",
        "dataset_dir": "Data",
        "augment_crop": "Augmentation of training images, in addition to the flip",
        "train_epochs": "Schedule and optimization",
        "use_fp16": "Precision on GPUs",
        "checkpoint_dir": "Checkpoints, verification and logging",
    }

    if not TYPE_CHECKING:

        def __init__(self, **values: Any) -> None:
            if values.get("train_steps") is not None:
                values.setdefault("train_epochs", None)
            super().__init__(**values)

    num_classes: int = Field(
        default=85742,
        ge=1,
        description="Number of classes C. Where it is not given, that of the training data; the default is for data "
        "that does not say it.",
    )
    emb_dim: int = Field(default=512, ge=1, description="Embedding size D.")
    image_shape: ImageShape = Field(
        default=(3, 112, 112), description="Shape of the network's input: 3 channels, height, width."
    )
    model_name: str = Field(
        default="ResNet50",
        description="Backbone: IResNet18, IResNet34, IResNet50, IResNet100, IResNet200, MobileFaceNet, ViT-T, ViT-S, "
        "ViT-B, ViT-L, EdgeFace-XXS, EdgeFace-XS, EdgeFace-S, EdgeFace-Base, ResNet50, ResNet101, ResNet152, "
        "ResNetTiny (small images, CPUs), another registered name, 'package.module:Class', or a network of Paddle as "
        "'paddle.vision.models:resnet18'. See docs/backbones.md.",
    )
    recompute: bool = Field(
        default=False,
        description="Compute the activations of the backbone's blocks again in the backward pass, in place of keeping "
        "them: less memory, the same numbers, about a third more time. See docs/backbones.md.",
    )

    loss_type: str = Field(
        default="dist_arcface",
        description=f"Loss: {', '.join(LOSS_KINDS)}; each also with dist_ in front, which shards the class centers.",
    )
    model_parallel: bool | None = Field(
        default=None,
        description="Shard the class centers over ranks (on) or replicate them (off). By default on for the losses "
        "named dist_.",
    )
    margin1: float | None = Field(
        default=None, ge=0.1, description="Margin m1 in cos(m1 theta + m2) - m3. By default that of the loss."
    )
    margin2: float | None = Field(
        default=None,
        ge=0.0,
        description="Margin m2, in radians, in cos(m1 theta + m2) - m3. By default that of the loss.",
    )
    margin3: float | None = Field(
        default=None, ge=0.0, description="Margin m3 in cos(m1 theta + m2) - m3. By default that of the loss."
    )
    margin: float | None = Field(
        default=None,
        ge=0.0,
        description="Main margin of the loss: m2 of arcface (by default 0.5), m3 of cosface (0.35), m1 of sphereface "
        "(1.35).",
    )
    scale: float | None = Field(
        default=None,
        gt=0.0,
        description="Scale s. Logits are s times the cosines. By default that of the loss, 64 for most.",
    )
    loss_options: dict[str, float] = Field(
        default={},
        description="Parameters of the loss by name, as m=0.4,h=0.333; docs/losses.md has those of each loss and their "
        "defaults.",
    )
    margin_warmup: int = Field(
        default=0, ge=0, description="Steps over which the margin rises from none to its full size."
    )
    label_smoothing: float = Field(
        default=0.0,
        ge=0.0,
        lt=1.0,
        description="Part of each label that is spread evenly over the classes of the softmax.",
    )
    class_weights: str | Any = Field(
        default="",
        description="Weight of each class in the loss: a file of C numbers, .npy or text with one per line. In Python "
        "also an array.",
    )
    class_counts: str | Any = Field(
        default="",
        description="Number of training images of each class, for dynamic_margin: a file as for class_weights, in "
        "Python also an array. By default they are counted.",
    )
    subcenters: int = Field(
        default=1,
        ge=1,
        le=100,
        description="Class centers per class (K), of which the nearest counts: sub-center ArcFace, with any margin.",
    )
    interclass_filter: float | None = Field(
        default=None,
        gt=-1.0,
        lt=1.0,
        description="Other classes with a greater cosine than this leave the loss of a sample, as likely of the same "
        "person; 0.4 in the paper. By default none does.",
    )
    sample_ratio: float = Field(
        default=1.0, gt=0.0, le=1.0, description="Fraction of the class centers used in each step (Partial FC)."
    )
    head_group_size: int | None = Field(
        default=None,
        ge=1,
        description="Ranks over which the class centers are sharded, a divisor of their number; the other ranks, in "
        "groups of as many, hold the same shards and exchange the gradients of the centers instead of features. For "
        "slow links between machines: the ranks of one machine. By default all ranks. See docs/losses.md.",
    )
    logits: Literal["auto", "store", "recompute"] = Field(
        default="auto",
        description="Logits between the forward and the backward pass: store them, recompute them (less memory), or "
        "decide by the free memory (auto).",
    )
    center_storage: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Type in which the class centers are kept. bfloat16 takes half the memory, with stochastic "
        "rounding.",
    )
    momentum_storage: Literal["float32", "bfloat16", "int8", "none"] = Field(
        default="float32",
        description="Type in which the momentum of the class centers, or another state of their optimizer, is kept. "
        "bfloat16 takes half the memory and int8 a quarter, with stochastic rounding; with none there is no momentum.",
    )
    center_location: Literal["device", "host", "disk"] = Field(
        default="device",
        description="Where the class centers and the state of their optimizer lie: in the memory of the device; in "
        "page-locked memory of the host (host; on a CPU the same as device); in files without a name that are mapped "
        "into memory (disk). See docs/storage.md.",
    )
    center_dir: str = Field(
        default="",
        description="Folder of a local disk for the files of center_location disk. By default the one in which "
        "checkpoints are written.",
    )

    dataset_dir: str = Field(
        default="./train_data",
        description="Training data: a folder, a file, a pattern or a URL. See docs/data.md and docs/remote.md.",
    )
    train_image_num: int | None = Field(
        default=None, ge=1, description="Number of training images. By default they are counted."
    )
    val_targets: str | None = Field(
        default=None,
        description="Verification sets, as lfw,cfp_fp: the files NAME.bin in the data folder. A name that ends in .bin "
        "is a file or a URL. By default lfw, if that file exists.",
    )
    val_dataset_dir: str | None = Field(
        default=None,
        description="Images of the classes of training, for top-1 and top-5: a folder, a file, a pattern or a URL as "
        "for dataset_dir. Classes are matched by name.",
    )
    val_split: float = Field(
        default=0.0,
        ge=0.0,
        lt=1.0,
        description="Share of the training images of each class that is held out for top-1 and top-5. At least one "
        "image of each class stays in training.",
    )
    train_batch_size: int = Field(default=128, ge=1, description="Training images per rank and step (N).")
    test_batch_size: int = Field(
        default=120, ge=1, description="Images per rank and forward pass in verification and prediction."
    )
    num_workers: int = Field(
        default=2, ge=0, description="Processes per rank that read training images. With 0 the training process reads."
    )
    cpu_threads: Annotated[int | Literal["auto"], BeforeValidator(_threads)] = Field(
        default="auto",
        description="Threads that each rank computes with on a CPU: a number, or its share of the cores that it may "
        "use (auto). auto leaves OMP_NUM_THREADS and MKL_NUM_THREADS of the user as they are. No effect with a GPU.",
    )
    flip: bool = Field(
        default=True,
        description="Mirror training images at random, and add the embedding of the mirrored image in verification.",
    )
    pixel_mean: Channels = Field(
        default=(127.5, 127.5, 127.5),
        description="Mean of red, green and blue, 0 to 255, or one number for all: (pixel - mean) / std.",
    )
    pixel_std: PositiveChannels = Field(
        default=(128.0, 128.0, 128.0),
        description="Standard deviation of red, green and blue, or one number for all: (pixel - mean) / std.",
    )
    min_images_per_class: int = Field(
        default=0, ge=0, description="Leave out classes with fewer training images and renumber the others."
    )
    class_balanced: bool = Field(
        default=False, description="Draw every class equally often in an epoch, in place of every image once."
    )
    worker_timeout: float = Field(
        default=300.0, ge=0.0, description="Seconds that reading one image may take. 0 sets no limit."
    )
    rank_timeout: float = Field(
        default=10.0,
        ge=0.0,
        description="Minutes without progress after which a rank counts as hanging, which ends all ranks. It must be "
        "more than opening the data, a step, or a batch of images takes. 0 sets no limit.",
    )
    bad_images: Literal["stop", "skip"] = Field(
        default="stop", description="Action at an unreadable training image: stop, or skip it and count it."
    )
    strict_images: bool = Field(
        default=False,
        description="A training image that is damaged but can be decoded in part counts as unreadable (bad_images). By "
        "default it is used, with a warning.",
    )

    augment_crop: float = Field(
        default=0.0, ge=0.0, le=0.99, description="Largest fraction of a side that a random crop removes."
    )
    augment_rotate: float = Field(
        default=0.0, ge=0.0, le=180.0, description="Largest random rotation, in degrees to either side."
    )
    augment_color_jitter: float = Field(
        default=0.0, ge=0.0, le=1.0, description="Brightness, contrast and saturation are multiplied by 1 - x to 1 + x."
    )
    augment_rand_augment: int = Field(
        default=0, ge=0, le=100, description="Number of RandAugment operations on each image."
    )
    augment_rand_magnitude: float = Field(
        default=5.0, ge=0.0, le=10.0, description="Strength of the RandAugment operations, 0 to 10."
    )
    augment_gray: float = Field(
        default=0.0, ge=0.0, le=1.0, description="Probability that an image is converted to gray."
    )
    augment_blur: float = Field(default=0.0, ge=0.0, le=1.0, description="Probability that an image is blurred.")
    augment_erase: float = Field(
        default=0.0, ge=0.0, le=1.0, description="Probability that a rectangle of an image is replaced by noise."
    )

    train_epochs: int | None = Field(default=120, ge=1, description="Epochs to train. Un-sets train_steps.")
    train_steps: int | None = Field(default=None, ge=1, description="Steps to train. Un-sets train_epochs.")
    optimizer: str | Callable[..., Any] = Field(
        default="momentum",
        description=f"Optimizer of backbone and class centers: {', '.join(OPTIMIZERS)}, or 'package.module:Class' of a "
        "Paddle optimizer. In Python also a function of learning_rate and parameters that returns a Paddle optimizer.",
    )
    momentum: float = Field(
        default=0.9, ge=0.0, lt=1.0, description="Momentum of the optimizers momentum and lars; the others have none."
    )
    weight_decay: float = Field(
        default=5e-4,
        ge=0.0,
        description="Weight decay of a named optimizer: L2 regularization of momentum, sgd and lars; of adamw and lion "
        "apart from the gradient, times the learning rate, where 0.05 and more are usual.",
    )
    decay_norms: bool = Field(
        default=True,
        description="Weight decay also of biases and of the parameters of normalization layers, which have one "
        "dimension. Off: of none of them.",
    )
    head_lr_factor: float = Field(
        default=1.0, gt=0.0, description="Learning rate of the class centers, as a multiple of the schedule's."
    )
    backbone_lr_factor: float = Field(
        default=1.0,
        gt=0.0,
        description="Learning rate of the backbone, as a multiple of the schedule's. Below 1 for fine-tuning.",
    )
    frozen: tuple[str, ...] = Field(
        default=(),
        description="Parameters of the backbone that stay as they are: patterns of their names, as "
        "'conv1.*,stages.*.bn*'. Running statistics stay where their names match.",
    )
    warmup_epochs: int = Field(
        default=0, ge=0, description="Epochs of linear warm-up of the learning rate. Un-sets warmup_steps."
    )
    warmup_steps: int = Field(
        default=0, ge=0, description="Steps of linear warm-up of the learning rate. Un-sets warmup_epochs."
    )
    lr: float = Field(
        default=0.1,
        gt=0.0,
        description="Learning rate at a global batch of 1024. The peak is lr times the global batch / 1024.",
    )
    lr_schedule: ScheduleName | Callable[[int], float] = Field(
        default="step",
        description="Course of the learning rate after warm-up. poly is the old name of polynomial. In Python also a "
        "function of the step.",
    )
    lr_steps: Steps = Field(
        default=(100000, 160000, 220000), description="Steps at which the step schedule lowers the learning rate."
    )
    lr_epochs: Steps = Field(
        default=(), description="Epochs after which the step schedule lowers the learning rate, in place of lr_steps."
    )
    lr_decay_factor: float = Field(
        default=0.1, gt=0.0, le=1.0, description="Factor on the learning rate at each of lr_steps or lr_epochs."
    )
    lr_power: float = Field(default=2.0, gt=0.0, description="Power of the polynomial schedule: (1 - progress)^power.")
    seed: int = Field(
        default=0, ge=0, lt=2**31, description="Seed of initial weights, data order, class sampling and dropout."
    )
    on_nonfinite: Literal["stop", "skip"] = Field(
        default="stop",
        description="Action at a step in which an image, a feature, the loss, a gradient or a running statistic is not "
        "finite: stop, or skip the step, which then leaves everything as it was.",
    )
    max_skipped_steps: int = Field(
        default=100, ge=1, description="Steps in a row that may be skipped. After so many, training stops."
    )

    use_fp16: bool = Field(default=False, description="Mixed precision. Has no effect on CPU.")
    amp_dtype: Literal["float16", "bfloat16"] = Field(
        default="float16", description="Half-precision type of mixed precision."
    )
    init_loss_scaling: float = Field(default=2.0**15, gt=0.0, description="Loss scale of the first step in float16.")
    incr_every_n_steps: int = Field(
        default=2000, ge=1, description="Steps without overflow after which the loss scale grows."
    )
    decr_every_n_nan_or_inf: int = Field(default=2, ge=1, description="Overflows after which the loss scale shrinks.")
    incr_ratio: float = Field(default=2.0, gt=1.0, description="Factor by which the loss scale grows.")
    decr_ratio: float = Field(default=0.5, gt=0.0, lt=1.0, description="Factor by which the loss scale shrinks.")
    use_dynamic_loss_scaling: bool = Field(
        default=True, description="Adapt the loss scale to overflows, in place of a constant one."
    )
    amp_lists: dict[str, Any] | None = Field(
        default=None,
        description="Operators that run in half precision (custom_white_list) or in float32 (custom_black_list).",
    )
    tf32: bool = Field(
        default=False,
        description="Multiply float32 numbers of the backbone in TF32 while it trains: faster on GPUs from Ampere on, "
        "with 10 of 23 bits. The head and verification compute in full float32 in any case.",
    )
    deterministic: bool = Field(
        default=False,
        description="Choose GPU algorithms that compute the same numbers in each run, some of them slower. Has no "
        "effect on CPU.",
    )

    checkpoint_dir: str = Field(
        default="",
        description="Checkpoint loaded before train, test, predict and export. Without one, "
        "test, predict and export load the newest in model_save_dir. May be a URL.",
    )
    pretrained: str = Field(
        default="",
        description="Weights that the network of a new run begins with: a checkpoint, an export, or a file of PyTorch "
        "(.pt, .pth), Paddle (.pdparams), safetensors or ONNX. A run that resumes ignores it. May be a URL. See "
        "docs/pretrained.md.",
    )
    pretrained_strict: bool = Field(
        default=False,
        description="Stop where the file of pretrained does not fit whole: a tensor of the network gets no value or "
        "has another shape, or the file has layers that the network has not. By default a table lists these.",
    )
    pretrained_bgr: bool = Field(
        default=False,
        description="The network of pretrained takes pixels blue first, as AdaFace's: the channels of its first "
        "convolution are reversed.",
    )
    auto_resume: bool = Field(
        default=False,
        description="Go on from the newest whole checkpoint in model_save_dir; begin where there is none, from "
        "checkpoint_dir if that is set. The same command then starts a run and goes on with it.",
    )
    class_change: Literal["stop", "by_name", "by_number", "grow", "new_head"] = Field(
        default="stop",
        description="Action at a start from a checkpoint on data with other classes: stop; move each class center to "
        "the class of its name, where classes may be new or gone (by_name); keep the numbers, for classes that were "
        "only renamed (by_number); keep the numbers and add classes behind them (grow); or keep the backbone alone "
        "(new_head). See docs/finetuning.md.",
    )
    new_classes: Literal["mean", "random"] = Field(
        default="mean",
        description="Centers of classes that the checkpoint does not have: the mean feature of their images, one pass "
        "over them, or random.",
    )
    counters: Literal["auto", "go_on", "anew"] = Field(
        default="auto",
        description="Epochs and steps at a start from checkpoint_dir: go on with those of the checkpoint (go_on); "
        "begin at 0, with the schedule from its start (anew); or anew where classes are new or gone, or the head is "
        "new (auto). A run that resumes in its own folder by auto_resume goes on in any case.",
    )
    model_save_dir: str = Field(
        default="output", description="Folder of the run's checkpoints, one folder per epoch. May be a URL."
    )
    stage_dir: str = Field(
        default="",
        description="Local folder in which checkpoints are written before they are uploaded to a remote "
        "model_save_dir; on several machines a folder that they share. By default one in cache_dir, which is removed "
        "once all is uploaded.",
    )
    cache_dir: str = Field(
        default="",
        description="Local folder for copies of remote data and checkpoints. By default plsc in XDG_CACHE_HOME, or in "
        "~/.cache.",
    )
    cache_gb: float = Field(
        default=100.0,
        gt=0.0,
        description="Limit of these copies, in 10^9 bytes. The least recently used ones are deleted.",
    )
    save_steps: int | None = Field(
        default=None, ge=1, description="Steps of the whole run between checkpoints within an epoch."
    )
    save_minutes: float | None = Field(
        default=30.0, gt=0, description="Minutes from a checkpoint to the next one within an epoch."
    )
    save_keep: int = Field(default=2, ge=1, description="Number of newest checkpoints within an epoch that are kept.")
    async_save: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Copy what a checkpoint holds in memory and write it while training goes on: always (on), never "
        "(off), or where enough memory is free (auto).",
    )
    max_last_checkpoint_num: int = Field(
        default=5, ge=1, description="Number of newest checkpoints of whole epochs that are kept."
    )
    keep_best: str | None = Field(
        default=None,
        description="Metric of verification, as lfw.accuracy or val.top1: the checkpoint with its highest value is "
        "kept in addition to the newest ones.",
    )
    keep_every: int | None = Field(
        default=None, ge=1, description="Keep the checkpoint of one epoch in so many for good."
    )
    with_test: bool = Field(default=True, description="Verify at the end of each epoch.")
    test_period: int = Field(
        default=0, ge=0, description="Steps between verifications within an epoch. 0 verifies at epoch ends only."
    )
    calc_acc: bool = Field(default=False, description="Show acc1 and acc5 of the training batch.")
    log_period: int = Field(
        default=200,
        ge=1,
        description="Steps between lines of metrics.jsonl, and of the log if it shows no progress bar.",
    )
    training_doctor: bool = Field(
        default=True,
        description="Warn where the course of a training shows that something is wrong, as a loss that does not fall. "
        "See docs/doctor.md.",
    )

    loggers: tuple[str, ...] = Field(
        default=(),
        description=f"Records for other tools, in addition to metrics.jsonl and metrics.csv: {', '.join(LOGGERS)}, or "
        "'package.module:Class' of an observer; several as tensorboard,wandb. See docs/logging.md.",
    )

    # `exclude`: objects that a file or a flag cannot give.
    model: Any = Field(
        default=None,
        exclude=True,
        description="Backbone object: a plsc.BaseModel or any paddle.nn.Layer, images [N, 3, H, W] -> [N, D].",
    )
    train_reader: Any = Field(
        default=None,
        exclude=True,
        description="Function called once per epoch on each rank. Returns an iterable of lists of (image [3, H, W] "
        "float32, label), the rank's share.",
    )
    test_reader: Any = Field(
        default=None, exclude=True, description="Function that returns a plsc.VerificationSet or a list of them."
    )
    predict_reader: Any = Field(
        default=None, exclude=True, description="Function that returns an iterable of images for predict()."
    )
    train_dataset: Any = Field(
        default=None,
        exclude=True,
        description="Training data: records of plsc.data, or a sequence of (image, label) with a length.",
    )
    val_dataset: Any = Field(
        default=None,
        exclude=True,
        description="Images of the classes of training, for top-1 and top-5: as for train_dataset.",
    )
    test_dataset: Any = Field(
        default=None, exclude=True, description="Verification data: a plsc.VerificationSet or a list of them."
    )
    head_optimizer: Any = Field(
        default=None,
        exclude=True,
        description="Row optimizer of the class centers, of plsc.losses. By default the arithmetic of optimizer.",
    )
    margin_function: Callable[..., Any] | None = Field(
        default=None,
        exclude=True,
        description="Margin object of plsc.losses.margins. Replaces the margins of loss_type.",
    )
    param_attr: Any = Field(
        default=None, exclude=True, description="Attributes of the class centers' weight: a paddle.ParamAttr."
    )
    bias_attr: Any = Field(
        default=None,
        exclude=True,
        description="Attributes of the bias of softmax losses: a paddle.ParamAttr, or False for no bias.",
    )

    @field_validator("*")
    @classmethod
    def _fits_into_float32(cls, value: Any) -> Any:
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and number != 0 and not _LEAST <= abs(number) <= _GREATEST:
                raise ValueError(f"expected 0, or a number that float32 holds: {_LEAST:.2g} to {_GREATEST:.2g}")
        return value

    @field_validator("loss_type")
    @classmethod
    def _known_loss(cls, value: str) -> str:
        return one_of(value, LOSS_TYPES)

    @field_validator("loss_options")
    @classmethod
    def _known_options(cls, value: dict[str, float]) -> dict[str, float]:
        check_option_names(value)
        return value

    @field_validator("loggers")
    @classmethod
    def _known_loggers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        also = "an observer, as 'package.module:Class'"
        return tuple(name if ":" in name else one_of(name, LOGGERS, also=also) for name in dict.fromkeys(value))

    @field_validator("class_weights", "class_counts")
    @classmethod
    def _numbers_of_classes(cls, value: Any) -> Any:
        return value if isinstance(value, (str, ClassNumbers)) else ClassNumbers(value)

    @field_validator("val_targets", mode="before")
    @classmethod
    def _names_of_sets(cls, value: Any) -> Any:
        is_list = isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)
        return ",".join(value) if is_list else value

    @field_validator("dataset_dir", "val_targets", "val_dataset_dir", "checkpoint_dir", "pretrained", "model_save_dir")
    @classmethod
    def _without_credentials(cls, value: str | None) -> str | None:
        return None if value is None else keep_credentials(value)

    @field_validator("lr_schedule", mode="before")
    @classmethod
    def _known_schedule(cls, value: Any) -> Any:
        if value is None:  # as in PLSC 1.0: no function, so the step schedule
            return "step"
        if not isinstance(value, str) and not callable(value):
            raise ValueError(f"expected {', '.join(SCHEDULES)} or a function of the step")
        if isinstance(value, str):
            return one_of(_OTHER_SCHEDULE_NAMES.get(value, value), SCHEDULES)
        try:
            inspect.signature(value).bind(0)
        except TypeError as error:
            raise ValueError(f"expected a function that is called with the step alone: {error}") from None
        except ValueError:  # some functions of C have no signature
            pass
        return value

    @field_validator("optimizer", mode="before")
    @classmethod
    def _known_optimizer(cls, value: Any) -> Any:
        if value is None:  # as in PLSC 3.0: no function, so the default
            return "momentum"
        if isinstance(value, str):
            also = "a class, as 'paddle.optimizer:Adam'"
            return value if ":" in value else one_of(value.lower(), OPTIMIZERS, also=also)
        if not callable(value):
            raise ValueError(
                f"expected {', '.join(OPTIMIZERS)}, 'package.module:Class', a Paddle optimizer class, or a function "
                f"f(learning_rate, parameters) that returns one: parameters do not exist yet when this is set"
            )
        return value

    @field_validator("async_save", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        names = {True: "on", False: "off", "true": "on", "false": "off"}
        return names.get(value, value) if isinstance(value, (bool, str)) else value

    @field_serializer("class_weights", "class_counts")
    def _text_of_numbers(self, value: str | ClassNumbers) -> str:
        return str(value)

    @field_serializer("lr_schedule", "optimizer")
    def _name_of(self, value: str | Callable[..., Any]) -> str:
        return value if isinstance(value, str) else getattr(value, "__qualname__", type(value).__qualname__)

    # Derived from the fields, so that each is derived in one way.

    @property
    def loss_kind(self) -> str:
        """`loss_type` without `dist_`."""
        return self.loss_type.removeprefix("dist_")

    @property
    def loss(self) -> LossType:
        """What `loss_type` stands for, sharded or not."""
        return LOSSES[self.loss_kind]

    @property
    def loss_scale(self) -> float:
        """s: `scale`, or by default that of the loss."""
        return self.loss.scale if self.scale is None else self.scale

    @property
    def loss_parameters(self) -> Parameters:
        """The loss's own parameters, those of `loss_options` set.

        Raises:
            ConfigError: the loss has no such parameter, or a value is outside its range.
        """
        return parameters_of(self.loss_kind, self.loss_options)

    @property
    def is_sharded(self) -> bool:
        """Whether class centers are sharded over ranks (`dist_`) or replicated."""
        return self.loss_type.startswith("dist_") if self.model_parallel is None else self.model_parallel

    @property
    def margins(self) -> tuple[float, float, float] | None:
        """(m1, m2, m3) on the target cosine, or None for a loss that has no such margins, as softmax.

        Raises:
            ConfigError: a margin is set that the loss does not have, or one that it needs is missing.
        """
        given = (self.margin1, self.margin2, self.margin3)
        kind, defaults, main = self.loss_kind, self.loss.margins, self.loss.main
        if defaults is None:
            if self.margin is not None or any(value is not None for value in given):
                own = ", ".join(self.loss.parameters.names())
                cure = f"its parameters are {own}, see {setter('loss_options')}" if own else "leave it out"
                raise ConfigError(f"loss_type '{self.loss_type}' has no margin, but one is set; {cure}")
            return None
        if kind == "combined" and (self.margin is not None or None in given):
            raise ConfigError(
                f"loss_type '{self.loss_type}' needs margin1, margin2 and margin3, and takes no single margin; "
                f"got {given}, margin {self.margin}; for ArcFace they are 1, 0.5 and 0, for CosFace 1, 0 and 0.35"
            )
        margins = list(defaults)
        if self.margin is not None and main is not None:
            margins[main] = self.margin
        m1, m2, m3 = (default if value is None else value for default, value in zip(margins, given))
        return m1, m2, m3

    @property
    def main_margin(self) -> float | None:
        """The one of `margins` that `margin` means, or None where the loss has no main margin."""
        main = self.loss.main
        return None if main is None or self.margins is None else self.margins[main]

    @property
    def val_names(self) -> tuple[str, ...]:
        """The verification sets by name."""
        targets = DEFAULT_VAL_TARGETS if self.val_targets is None else self.val_targets
        return tuple(name.strip() for name in targets.split(",") if name.strip())

    def doubts(self) -> list[str]:
        """What is right by type and range, and most likely a mistake: a sentence each."""
        suspects = {
            "pixel_mean": (self.pixel_mean, 0 < max(self.pixel_mean) <= 1),
            "pixel_std": (self.pixel_std, max(self.pixel_std) < 1),
        }
        return [
            f"{name} {_short(value)} looks like a value for pixels of 0 to 1, and pixels here are 0 to 255; "
            f"{_short(tuple(255 * number for number in value))} is the same for those"
            for name, (value, is_suspect) in suspects.items()
            if is_suspect
        ]

    def check(self) -> None:
        """Raise `ConfigError` where settings that are right alone contradict each other."""
        self.check_loss()
        if (self.train_epochs is None) == (self.train_steps is None):
            raise ConfigError(
                f"train_epochs is {self.train_epochs} and train_steps is {self.train_steps}; set one of them"
            )
        given = {
            "val_dataset": self.val_dataset is not None,
            "val_dataset_dir": self.val_dataset_dir is not None,
            "val_split": self.val_split > 0,
        }
        names = [name for name, is_given in given.items() if is_given]
        if len(names) > 1:
            raise ConfigError(f"{' and '.join(names)} are set: one of them says which images validate; unset the rest")
        if self.val_split and self.train_reader is not None:
            raise ConfigError(
                f"val_split holds out images of dataset_dir or train_dataset, but train_reader is set; give validation "
                f"data of its own: {setter('val_dataset_dir')}"
            )

        if self.warmup_epochs and self.warmup_steps:
            raise ConfigError(
                f"warmup_epochs is {self.warmup_epochs} and warmup_steps is {self.warmup_steps}; set one of them"
            )
        self._check_optimizer()

    def _check_optimizer(self) -> None:
        """Raise `ConfigError` for settings that the optimizer does not have."""
        given = [name for name in ("momentum", "weight_decay", "decay_norms") if self.is_given(name)]
        if self.optimizer in OPTIMIZERS:
            odd = [name for name in given if name == "momentum" and self.optimizer not in _WITH_MOMENTUM]
        elif isinstance(self.optimizer, str):  # a class gets those that are given
            odd = [name for name in given if name == "decay_norms"]
        else:
            odd = given
        # A file may list all settings with their defaults.
        odd = [name for name in odd if getattr(self, name) != type(self).model_fields[name].default]
        if odd:
            what = f"optimizer '{self.optimizer}'" if isinstance(self.optimizer, str) else "the function of optimizer"
            raise ConfigError(
                f"{odd[0]} is {getattr(self, odd[0])}, which {what} does not take; leave it out, or choose another "
                f"optimizer of {', '.join(OPTIMIZERS)}"
            )

    def _check_negatives(self) -> None:
        """Raise `ConfigError` where what concerns other classes does not fit the loss."""
        given = {"subcenters": self.subcenters > 1, "interclass_filter": self.interclass_filter is not None}
        names = [name for name, is_set in given.items() if is_set]
        if names and self.loss_kind == "softmax":
            raise ConfigError(
                f"loss_type '{self.loss_type}' has no cosines, but {names[0]} is set; choose another loss_type, or "
                f"leave {names[0]} out"
            )

    def check_loss(self) -> None:
        """Raise `ConfigError` where margins or parameters are set that the loss does not have."""
        margins, _ = self.margins, self.loss_parameters
        self._check_negatives()
        if self.label_smoothing and not self.loss.is_softmax:
            raise ConfigError(
                f"loss_type '{self.loss_type}' has no softmax whose labels could be smoothed, but label_smoothing is "
                f"set; leave it out"
            )
        if self.margin_warmup and not self.loss.has_margin:
            raise ConfigError(f"loss_type '{self.loss_type}' has no margin, but margin_warmup is set; leave it out")
        if self.margin_function is None:
            return
        given = {"margin": self.margin, "margin1": self.margin1, "margin2": self.margin2, "margin3": self.margin3}
        names = [name for name, value in given.items() if value is not None]
        names += [f"{name} of loss_options" for name in self.loss_options if margins is None]
        if names:
            raise ConfigError(f"margin_function replaces the margins of loss_type, but {names[0]} is set; unset one")
        if not self.loss.has_margin:
            raise ConfigError(
                f"loss_type '{self.loss_type}' has no margin, but margin_function is set; choose another loss_type"
            )


def _short(values: tuple[float, ...]) -> str:
    """Three numbers as text; one, where they are equal."""
    return f"{values[0]:g}" if len(set(values)) == 1 else ",".join(f"{value:g}" for value in values)


def check_callable(name: str, value: Any, *, expected: str) -> Callable[..., Any]:
    """Return `value` if it can be called; otherwise raise `ConfigError` naming what was expected."""
    if not callable(value):
        raise ConfigError(f"{name}: got {value!r} ({type(value).__name__}), expected {expected}")
    called: Callable[..., Any] = value
    return called


# The defaults that every `Entry` starts from, under the name that users' scripts import.
config = Config()
