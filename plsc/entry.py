"""The facade: setters fill one `Config`; train, test, predict and convert_for_prediction delegate.

`Entry` is the API of PLSC 0.1.1 and 0.2.0, kept so that scripts written for it run. Each setting can
also be read and assigned as an attribute: `entry.train_batch_size`, `entry.scale = 32`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from plsc.config import DEFAULT_VAL_TARGETS, Config, ScheduleName, check_callable, config
from plsc.errors import ConfigError
from plsc.loss_types import LOSS_TYPES
from plsc.models.registry import find_backbone
from plsc.utils.hints import setter
from plsc.utils.lazy import require_paddle
from plsc.utils.locations import is_remote, join, keep_credentials, keep_user
from plsc.utils.logging import show_log
from plsc.utils.names import did_you_mean, meant_by, nearest_name

if TYPE_CHECKING:
    import numpy as np

    from plsc.distributed.topology import Topology
    from plsc.engine.observers import Observer
    from plsc.engine.rate_search import RateSearch
    from plsc.engine.subcenters import SubcentersDropped

    # For type checkers every setting is an attribute, and no other name is.
    _Attributes = Config
else:
    _Attributes = object

log = logging.getLogger("plsc")


# Losses of other kinds: three margins with such a name do not mean the combined margin.
_OTHER_LOSSES = (
    *("triplet", "contrastive", "center", "circle", "npair", "ntxent", "proxy", "quadruplet", "focal", "bce", "mse"),
    *("adaface", "magface", "curricular", "elastic", "dynamic", "vpl", "unified"),
)


class Entry(_Attributes):
    """One training, verification, prediction or export, configured by its setters.

    Every setting of `Config` is also an attribute. Run a script under `python -m paddle.distributed.launch` to train on
    several ranks.

    Raises:
        ConfigError: in every setter and at every assignment, at once, for a value of a wrong type or range.
        AttributeError: at reading an unknown attribute, with the nearest known one.

    Example:
        >>> entry = Entry()
        >>> entry.set_dataset_dir("./train_data")
        >>> entry.set_class_num(85742)
        >>> entry.set_model_name("ResNet50")
        >>> entry.train_batch_size = 64
        >>> entry
        Entry(num_classes=85742, train_batch_size=64)
        >>> entry.train()
        {'loss': 3.1, 'lr': 0.1, 'lfw/accuracy': 0.98, 'images/s': 5120.0}
    """

    _config: Config
    _observers: list[Observer]
    _remote_dirs: dict[str, str]

    def __init__(self) -> None:
        object.__setattr__(self, "_config", config.model_copy())
        object.__setattr__(self, "_observers", [])
        object.__setattr__(self, "_remote_dirs", {})

    @property
    def config(self) -> Config:
        """The settings."""
        return self._config

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name.startswith("set_"):
                raise AttributeError(f"Entry has no method '{name}'{_setter_hint(name)}")
            name = Config.present_name(name, AttributeError)
            # Scripts for PLSC 0.x read the defaults of these, which depend on the loss and on the data.
            if name == "margin" and self.config.margin is None:
                return self.config.main_margin
            if name == "scale":
                return self.config.loss_scale
            if name == "val_targets" and self.config.val_targets is None:
                return DEFAULT_VAL_TARGETS
            return getattr(self.config, name)

        def __setattr__(self, name: str, value: Any) -> None:
            if name == "model":
                self.set_model(value)
            elif name == "model_name":
                self.set_model_name(value)
            elif hasattr(type(self), name):
                if name.startswith("set_") and not callable(value):
                    raise ConfigError(f"{name} is a method, got {value!r} assigned to it; call it: {name}({value!r})")
                object.__setattr__(self, name, value)
            else:
                setattr(self.config, name, value)

    def __repr__(self) -> str:
        return f"Entry{repr(self.config).removeprefix('Config')}"

    # Problem and backbone

    def set_class_num(self, num: int) -> None:
        """Number of classes C, 1 or more. Default: that of the training data, or 85742 where that is not known."""
        self.config.num_classes = num

    def set_emb_size(self, size: int) -> None:
        """Embedding size D, 1 or more. Default 512."""
        self.config.emb_dim = size

    def set_image_shape(self, shape: Sequence[int]) -> None:
        """(3, H, W) of the images that the network takes. Default (3, 112, 112)."""
        self.config.assign(image_shape=shape)

    def set_model(self, model: Any) -> None:
        """Backbone of your own: a `plsc.BaseModel`, or any `paddle.nn.Layer` from [N, 3, H, W] to [N, D]."""
        from plsc.models.base_model import check_model

        self.config.model = check_model(model)

    def set_model_name(self, model_name: str) -> None:
        """Backbone by name. Default 'ResNet50'.

        One of `plsc.list_backbones()`, 'package.module:Class', or a network of Paddle, as
        'paddle.vision.models:resnet18'. docs/backbones.md compares them, and `plsc models` lists what they cost.
        """
        find_backbone(model_name)
        self.config.model_name = model_name

    def set_recompute(self, recompute: bool) -> None:
        """Compute the activations of the backbone's blocks again in the backward pass, in place of keeping them.

        It takes less memory and about a third more time, and changes no number. Default False.
        """
        self.config.recompute = recompute

    # Last layer and loss

    def set_loss_type(
        self, loss_type: Any, margin1: float | None = None, margin2: float | None = None, margin3: float | None = None
    ) -> None:
        """Loss and its margins: cos(margin1 theta + margin2) - margin3 on the target class, or a margin of your own.

        Args:
            loss_type: softmax, arcface, cosface, sphereface, combined or another one of docs/losses.md, each also as
                `dist_...`, which shards the class centers over ranks. Default 'dist_arcface'. An unknown name together
                with all three margins means combined, as in PLSC 0.2, with a warning. Or a margin object of
                `plsc.losses.margins`, which replaces the margins of the loss set before and leaves its sharding.
            margin1: factor on the angle. Default 1, for sphereface 1.35.
            margin2: added to the angle, in radians. Default 0, for arcface 0.5.
            margin3: subtracted from the cosine. Default 0, for cosface 0.35.

        Raises:
            ConfigError: an unknown loss, or margins that the loss does not have.
        """
        changed = self.config.model_copy()
        changed.assign(margin=None, margin1=margin1, margin2=margin2, margin3=margin3)
        if not isinstance(loss_type, str):
            expected = "the name of a loss or a margin object, called with (cosine, norms, labels)"
            changed.margin_function = check_callable("set_loss_type", loss_type, expected=expected)
        else:
            changed.assign(loss_type=_known_loss(loss_type, (margin1, margin2, margin3)), margin_function=None)
        if any(value is not None for value in (margin1, margin2, margin3)):
            changed.check_loss()
        self.config.assign(
            loss_type=changed.loss_type,
            margin_function=changed.margin_function,
            margin1=changed.margin1,
            margin2=changed.margin2,
            margin3=changed.margin3,
        )

    def set_margin(self, margin: float) -> None:
        """Main margin of the loss: m2 of arcface (radians), m3 of cosface (cosine), m1 of sphereface (factor)."""
        self.config.margin = margin

    def set_scale(self, scale: float) -> None:
        """Scale s, the factor from cosines to logits. Default: that of the loss, 64 for most."""
        self.config.scale = scale

    def set_loss_options(self, **options: float) -> None:
        """Parameters of the loss by name, for example `set_loss_options(m=0.4, h=0.333)` for adaface.

        It replaces those set before. docs/losses.md has the parameters of each loss, with units and defaults.

        Raises:
            ConfigError: no loss has such a parameter; or, when training begins, `loss_type` has not.
        """
        self.config.assign(loss_options=options)

    def set_margin_warmup(self, steps: int) -> None:
        """Steps over which the margin rises from none to its full size; for a loss that stays at its first value.

        Default 0: the margin is full from the first step on.
        """
        self.config.margin_warmup = steps

    def set_label_smoothing(self, epsilon: float) -> None:
        """Part of each label that is spread evenly over the classes of the softmax, 0 up to below 1. Default 0."""
        self.config.label_smoothing = epsilon

    def set_class_weights(self, weights: Any) -> None:
        """Weight of each class in the loss, as that of `torch.nn.CrossEntropyLoss`: the loss is a weighted mean.

        Args:
            weights: [C] numbers of 0 or more, or the path of a file of them: .npy, or text with one per line.
        """
        self.config.class_weights = _path_or_array(weights)

    def set_class_counts(self, counts: Any) -> None:
        """Number of training images of each class, for dynamic_margin. Default: they are counted.

        Args:
            counts: [C] numbers of 0 or more, or the path of a file of them, as for `set_class_weights`.
        """
        self.config.class_counts = _path_or_array(counts)

    def set_model_parallel(self, flag: bool) -> None:
        """Shard the class centers over ranks, or replicate them. Overrides the prefix of loss_type."""
        self.config.model_parallel = flag

    def set_subcenters(self, count: int) -> None:
        """Class centers per class, of which the nearest counts (Deng et al., ECCV 2020); 3 in the paper. Default 1."""
        self.config.subcenters = count

    def set_interclass_filter(self, cosine: float | None) -> None:
        """Other classes with a greater cosine leave the loss of a sample (An et al., CVPR 2022). Default: none.

        0.4 in the paper, -1 to 1 both excluded; None for no filter.
        """
        self.config.interclass_filter = cosine

    def set_sample_ratio(self, sample_ratio: float) -> None:
        """Fraction of the class centers in each step (Partial FC, An et al., 2021), over 0 up to 1. Default 1."""
        self.config.sample_ratio = sample_ratio

    def set_head_group_size(self, ranks: int | None) -> None:
        """Shard the class centers over groups of so many ranks, a divisor of their number. Default None: all ranks.

        Each group holds all classes. For slow links between machines: the number of ranks of one machine.
        """
        self.config.head_group_size = ranks

    def set_logits(self, mode: Literal["auto", "store", "recompute"]) -> None:
        """Logits between the head's two passes: 'store', 'recompute' (less memory) or 'auto' by free memory."""
        self.config.logits = mode

    def set_center_storage(self, dtype: Literal["float32", "bfloat16"]) -> None:
        """Type in which the class centers are kept: 'float32' (default), or 'bfloat16' for half the memory.

        bfloat16 is rounded stochastically. It needs sharded centers, and an even embedding size.
        """
        self.config.center_storage = dtype

    def set_momentum_storage(self, dtype: Literal["float32", "bfloat16", "int8", "none"]) -> None:
        """Type in which the momentum of the class centers, or another state of their optimizer, is kept.

        'float32' (default); 'bfloat16' takes half the memory and 'int8' a quarter, both rounded stochastically. 'none'
        takes none: the centers are trained without momentum. It needs sharded centers, and an even embedding size.
        """
        self.config.momentum_storage = dtype

    def set_center_location(self, location: Literal["device", "host", "disk"]) -> None:
        """Where the class centers and the state of their optimizer lie. The result is the same.

        'device' (default): in the memory of the device. 'host': in page-locked memory of the host; on a CPU the same as
        'device'. 'disk': in files that are mapped into memory. It needs sharded centers. See docs/storage.md.
        """
        self.config.center_location = location

    def set_center_dir(self, directory: str | Path) -> None:
        """Folder of a local disk for the files of center_location 'disk'. Default: the one of the checkpoints."""
        self.config.center_dir = str(directory)

    def set_head_optimizer(self, optimizer: Any) -> None:
        """Row optimizer of the class centers, of `plsc.losses`. Default: the arithmetic of `set_optimizer`."""
        self.config.head_optimizer = optimizer

    def set_distfc_attr(self, param_attr: Any = None, bias_attr: Any = None) -> None:
        """`paddle.ParamAttr` of the class centers, and of the bias of softmax losses (False: no bias)."""
        self.config.param_attr, self.config.bias_attr = param_attr, bias_attr

    # The data

    def set_dataset_dir(self, directory: str | Path) -> None:
        """Training data, and the folder of the verification sets: a folder, a file, a pattern or a URL of one.

        See docs/data.md and docs/remote.md.
        """
        self.config.dataset_dir = str(directory)

    def set_train_image_num(self, num: int) -> None:
        """Number of training images; only needed for warm-up with a `train_reader`. Counted when not given."""
        self.config.train_image_num = num

    def set_train_batch_size(self, batch_size: int) -> None:
        """Training images per rank and step. Default 128."""
        self.config.train_batch_size = batch_size

    def set_test_batch_size(self, batch_size: int) -> None:
        """Images per rank and forward pass in verification and prediction. Default 120."""
        self.config.test_batch_size = batch_size

    def set_val_targets(self, targets: str) -> None:
        """Verification sets as 'lfw,cfp_fp': each is NAME.bin in the data folder. Default 'lfw', if it exists.

        Also a path or a URL of a file, as 's3://bucket/lfw.bin'.
        """
        self.config.val_targets = targets

    def set_val_dataset(self, data: Any) -> None:
        """Images of the classes of training, for top-1 and top-5: `val/top1`, `val/top5`.

        Args:
            data: a folder, a file, a pattern or a URL, as for `set_dataset_dir`; or records of `plsc.data` or a
                sequence of (image, label) with a length; None for no such data. Classes are matched by name where both
                sides have names, else by number. See docs/data.md.
        """
        is_place = isinstance(data, (str, Path))
        self.config.val_dataset_dir = str(data) if is_place else None
        self.config.val_dataset = None if is_place else data

    def set_val_split(self, share: float) -> None:
        """Share of the training images of each class that is held out for top-1 and top-5. Default 0.

        0 or more, below 1. At least one image of each class stays in training. The held-out images depend on `set_seed`
        and on the data alone, and are never trained on.
        """
        self.config.val_split = share

    def set_num_workers(self, num: int) -> None:
        """Processes per rank that read training images; with 0 the training process reads. Default 2."""
        self.config.num_workers = num

    def set_cpu_threads(self, threads: int | Literal["auto"]) -> None:
        """Threads that each rank computes with on a CPU, 1 or more. Default "auto": its share of the cores.

        "auto" leaves `OMP_NUM_THREADS` and `MKL_NUM_THREADS` of the user as they are; a number goes before them.
        Another number of threads may change the last digits of the results. Has no effect with a GPU.
        """
        self.config.cpu_threads = threads

    def set_flip(self, flip: bool) -> None:
        """Mirror training images at random and embed test images both ways. Default True; not for characters."""
        self.config.flip = flip

    def set_augment(
        self,
        crop: float = 0.0,
        rotate: float = 0.0,
        *,
        color_jitter: float = 0.0,
        rand_augment: int = 0,
        rand_magnitude: float = 5.0,
        gray: float = 0.0,
        blur: float = 0.0,
        erase: float = 0.0,
        grey: float | None = None,
    ) -> None:
        """Random changes to training images, besides the flip, all off by default; see `plsc.data.augment.Augment`.

        `grey` is the former name of `gray`.
        """
        if grey is not None and gray:
            raise ConfigError("set_augment: grey is the old name of gray, and both are given; leave out grey")
        self.config.assign(
            augment_crop=crop,
            augment_rotate=rotate,
            augment_color_jitter=color_jitter,
            augment_rand_augment=rand_augment,
            augment_rand_magnitude=rand_magnitude,
            augment_gray=gray if grey is None else grey,
            augment_blur=blur,
            augment_erase=erase,
        )

    def set_pixel_normalization(self, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        """(pixel - mean) / std for pixels of 0 to 255, one number or three (RGB). Default 127.5 and 128."""
        self.config.assign(pixel_mean=mean, pixel_std=std)

    set_pixel_normalisation = set_pixel_normalization  # the name in PLSC 1.0

    def set_class_balanced(self, flag: bool) -> None:
        """Draw every class equally often in an epoch, in place of every image once. Default False."""
        self.config.class_balanced = flag

    def set_min_images_per_class(self, num: int) -> None:
        """Leave out classes with fewer training images and renumber the others. Default 0: none."""
        self.config.min_images_per_class = num

    def set_worker_timeout(self, seconds: float) -> None:
        """Seconds that reading one image may take before its process counts as hanging; 0: no limit. Default 300."""
        self.config.worker_timeout = seconds

    def set_rank_timeout(self, minutes: float) -> None:
        """Minutes without progress after which a rank counts as hanging, which ends all; 0: no limit. Default 10."""
        self.config.rank_timeout = minutes

    def set_bad_images(self, action: Literal["stop", "skip"]) -> None:
        """Action at an unreadable training image: 'stop' (default), or 'skip' it, count it and take the next."""
        self.config.bad_images = action

    def set_strict_images(self, flag: bool) -> None:
        """Count a training image that is damaged but can be decoded in part as unreadable, see `set_bad_images`.

        Default False: such an image is used, with a warning.
        """
        self.config.strict_images = flag

    # Schedule and optimization

    def set_train_epochs(self, num: int) -> None:
        """Epochs to train. Default 120. Un-sets the steps."""
        self.config.assign(train_epochs=num, train_steps=None)

    def set_train_steps(self, num: int) -> None:
        """Steps to train. Un-sets the epochs."""
        self.config.assign(train_steps=num, train_epochs=None)

    def set_warmup_epochs(self, num: int) -> None:
        """Epochs over which the learning rate rises to its peak. Default 0. Un-sets the steps of warm-up."""
        self.config.assign(warmup_epochs=num, warmup_steps=0)

    def set_warmup_steps(self, num: int) -> None:
        """Steps over which the learning rate rises to its peak. Default 0. Un-sets the epochs of warm-up."""
        self.config.assign(warmup_steps=num, warmup_epochs=0)

    def set_step_boundaries(self, boundaries: Sequence[int]) -> None:
        """Steps at which the step schedule lowers the learning rate. Default (100000, 160000, 220000)."""
        self.config.assign(lr_steps=boundaries)

    def set_lr_decay_factor(self, factor: float) -> None:
        """Factor on the learning rate at each boundary. Default 0.1."""
        self.config.lr_decay_factor = factor

    def set_lr_epochs(self, epochs: Sequence[int]) -> None:
        """Epochs after which the step schedule lowers the learning rate, in place of `set_step_boundaries`."""
        self.config.assign(lr_epochs=epochs)

    def set_lr_power(self, power: float) -> None:
        """Power of the polynomial schedule, (1 - progress)^power. Default 2."""
        self.config.lr_power = power

    def set_lr(self, lr: float | ScheduleName | Callable[[int], float]) -> None:
        """Learning rate or its schedule.

        Args:
            lr: the learning rate at a global batch of 1024 (default 0.1; the peak is lr times the global batch / 1024);
                or a schedule: 'step' (default), 'cosine', 'polynomial' or 'one_cycle', or a function step -> learning
                rate, a number of 0 or more that depends on the step alone.
        """
        if isinstance(lr, str) or callable(lr):
            self.config.lr_schedule = lr
            return
        self.config.lr = lr
        if callable(self.config.lr_schedule):  # a function takes no account of lr
            self.config.lr_schedule = "step"

    def set_optimizer(self, optimizer: str | Callable[..., Any]) -> None:
        """Optimizer of backbone and class centers: a name, a Paddle class, or a function that returns an optimizer.

        Args:
            optimizer: 'momentum' (default), 'sgd', 'adamw', 'lars' or 'lion', with `set_momentum` and
                `set_weight_decay`; 'package.module:Class'; or anything that can be called as
                f(learning_rate=..., parameters=[...]), as `functools.partial(paddle.optimizer.AdamW, beta2=0.98)`.
        """
        if not isinstance(optimizer, str):
            check_callable(
                "set_optimizer",
                optimizer,
                expected="a name, a Paddle optimizer class, or a function f(learning_rate, parameters) that "
                "returns one: parameters do not exist yet when this is set",
            )
        self.config.optimizer = optimizer

    def set_momentum(self, momentum: float) -> None:
        """Momentum of the optimizers 'momentum' and 'lars', 0 to below 1. Default 0.9."""
        self.config.momentum = momentum

    def set_weight_decay(self, decay: float, norms: bool | None = None) -> None:
        """Weight decay of a named optimizer. Default 5e-4.

        Args:
            decay: 0 or more. L2 regularization of 'momentum', 'sgd' and 'lars'; of 'adamw' and 'lion' apart from the
                gradient and multiplied by the learning rate, where 0.05 and more are usual.
            norms: also of biases and of the parameters of normalization layers. By default as it was, True at first.
        """
        self.config.weight_decay = decay
        if norms is not None:
            self.config.decay_norms = norms

    def set_head_lr_factor(self, factor: float) -> None:
        """Learning rate of the class centers, as a multiple of the schedule's, over 0. Default 1."""
        self.config.head_lr_factor = factor

    def set_backbone_lr_factor(self, factor: float) -> None:
        """Learning rate of the backbone, as a multiple of the schedule's, over 0. Default 1; below for fine-tuning."""
        self.config.backbone_lr_factor = factor

    def set_frozen(self, *patterns: str) -> None:
        """Keep parameters of the backbone as they are, those whose names match a pattern; none without a pattern.

        Args:
            patterns: as 'stages.*' or 'conv1.weight', with * for any characters, ? for one, [ab] for one of these.
                Running statistics stay where their names match. A pattern that matches no name is an error.

        Raises:
            ConfigError: a pattern is no text, as a list of patterns.
        """
        for pattern in patterns:
            if not isinstance(pattern, str):
                raise ConfigError(
                    f"set_frozen: got {pattern!r} ({type(pattern).__name__}), expected patterns one by one, as "
                    f"set_frozen('conv1.*', 'bn1.*')"
                )
        self.config.assign(frozen=patterns)

    def set_seed(self, seed: int) -> None:
        """Seed of initial weights, data order, class sampling and dropout. Default 0."""
        self.config.seed = seed

    def set_on_nonfinite(self, action: Literal["stop", "skip"]) -> None:
        """Action at a step with numbers that are not finite: 'stop' (default), or 'skip' it.

        Judged are images, features, the loss, gradients and running statistics. A skipped step leaves everything as it
        was, on all ranks. 'skip' waits for the device in every step.
        """
        self.config.on_nonfinite = action

    def set_max_skipped_steps(self, num: int) -> None:
        """Steps in a row that may be skipped; after so many, training stops. Default 100."""
        self.config.max_skipped_steps = num

    def set_mixed_precision(
        self,
        use_fp16: bool,
        init_loss_scaling: float = 1.0,
        incr_every_n_steps: int = 2000,
        decr_every_n_nan_or_inf: int = 2,
        incr_ratio: float = 2.0,
        decr_ratio: float = 0.5,
        use_dynamic_loss_scaling: bool = True,
        amp_lists: dict[str, Any] | None = None,
        amp_dtype: Literal["float16", "bfloat16"] = "float16",
    ) -> None:
        """Mixed precision with loss scaling on GPUs (`paddle.amp`). Has no effect on CPU; training logs that.

        Half precision is used in the backbone and in the head's matrix products; sums, softmax and weights are float32.

        Args:
            use_fp16: on or off.
            init_loss_scaling: loss scale of the first step. Default 1, as in PLSC 0.x; 2**15 is better, and what
                `entry.use_fp16 = True` alone takes. This and the next five as in `paddle.amp.GradScaler`.
            incr_every_n_steps: steps without overflow after which the loss scale grows.
            decr_every_n_nan_or_inf: overflows after which the loss scale shrinks.
            incr_ratio: factor by which the loss scale grows.
            decr_ratio: factor by which the loss scale shrinks.
            use_dynamic_loss_scaling: adapt the loss scale to overflows.
            amp_lists: 'custom_white_list' and 'custom_black_list' of operators, as in `paddle.amp.auto_cast`.
            amp_dtype: 'float16' or 'bfloat16'.
        """
        self.config.assign(
            use_fp16=use_fp16,
            init_loss_scaling=init_loss_scaling,
            incr_every_n_steps=incr_every_n_steps,
            decr_every_n_nan_or_inf=decr_every_n_nan_or_inf,
            incr_ratio=incr_ratio,
            decr_ratio=decr_ratio,
            use_dynamic_loss_scaling=use_dynamic_loss_scaling,
            amp_lists=amp_lists,
            amp_dtype=amp_dtype,
        )

    def set_tf32(self, allowed: bool) -> None:
        """Multiply float32 numbers of the backbone in TF32 while it trains, on GPUs from Ampere on. Default False.

        The head's logits, verification and prediction are full float32 in any case: with the 10 bits of TF32, a logit
        of 64 has an error of 1/32. It changes nothing that mixed precision computes in half precision.
        """
        self.config.tf32 = allowed

    def set_deterministic(self, deterministic: bool) -> None:
        """Choose GPU algorithms that compute the same numbers in each run, some of them slower. Default False.

        What is promised with it, and where: docs/precision.md. Has no effect on CPU.
        """
        self.config.deterministic = deterministic

    # Checkpoints, verification and logging

    def set_checkpoint_dir(self, directory: str | Path) -> None:
        """Checkpoint (output/7), or a folder of checkpoints, of which the newest is loaded before anything runs.

        May be a URL, as 's3://bucket/run'.
        """
        self.config.checkpoint_dir = str(directory)

    def set_pretrained(self, path: str | Path, *, strict: bool = False, bgr: bool = False) -> None:
        """Weights that the network of a new run begins with; a run that resumes ignores them. See docs/pretrained.md.

        Args:
            path: a checkpoint, an export, or a file of PyTorch (.pt, .pth), Paddle (.pdparams), safetensors or ONNX.
                May be a URL.
            strict: stop where a tensor of the network gets no value, has another shape, or the file has layers that
                the network has not. By default a table lists them, and only a file of which nothing fits is an error.
            bgr: the network of the file takes pixels blue first, as AdaFace's.
        """
        self.config.assign(pretrained=str(path), pretrained_strict=strict, pretrained_bgr=bgr)

    def set_auto_resume(self, flag: bool) -> None:
        """Go on from the newest whole checkpoint in `model_save_dir`; begin where there is none. Default False.

        The same script then starts a run and goes on with it. A run that has ended returns its last values. Where
        settings or data that decide the result have changed, the run stops and names them. See docs/reliability.md.
        """
        self.config.auto_resume = flag

    def set_class_change(self, action: Literal["stop", "by_name", "by_number", "grow", "new_head"]) -> None:
        """Action at a start from a checkpoint on data with other classes. Default 'stop'. See docs/finetuning.md.

        Args:
            action: 'stop' with an error that names both; 'by_name' moves each class center, with its optimizer state,
                to the class of its name: classes may be new, gone and in another order; 'by_number' keeps the numbers,
                for classes that were only renamed; 'grow' keeps the numbers and adds classes behind them; 'new_head'
                keeps the backbone alone.
        """
        self.config.class_change = action

    def set_new_classes(self, start: Literal["mean", "random"]) -> None:
        """Centers of classes that the checkpoint does not have: the 'mean' feature of their images, or 'random'.

        Default 'mean', which takes one pass over the images of these classes.
        """
        self.config.new_classes = start

    def set_counters(self, action: Literal["auto", "go_on", "anew"]) -> None:
        """Epochs and steps at a start from `set_checkpoint_dir`. Default 'auto'.

        Args:
            action: 'go_on' with those of the checkpoint, as a run that resumes; 'anew' from 0, with the schedule from
                its start; 'auto': anew where classes are new or gone, or the head is new.
        """
        self.config.counters = action

    def set_model_save_dir(self, directory: str | Path) -> None:
        """Folder of the run's checkpoints, one folder per epoch. Default 'output'. May be a URL, as 's3://bucket/run'."""
        self.config.model_save_dir = str(directory)

    def set_stage_dir(self, directory: str | Path) -> None:
        """Local folder in which checkpoints are written before they are uploaded to a remote `model_save_dir`.

        On several machines it must be a folder that they share. Default: one in `cache_dir`, removed once all is
        uploaded.
        """
        self.config.stage_dir = str(directory)

    def set_cache_dir(self, directory: str | Path) -> None:
        """Local folder for copies of remote data and checkpoints. Default ~/.cache/plsc."""
        self.config.cache_dir = str(directory)

    def set_cache_gb(self, gigabytes: float) -> None:
        """Limit of the copies of remote data and checkpoints, in 10^9 bytes, over 0. Default 100."""
        self.config.cache_gb = gigabytes

    def set_hdfs_info(
        self, fs_name: str, fs_ugi: str, fs_dir_for_save: str | None = None, fs_checkpoint_dir: str | None = None
    ) -> None:
        """Upload checkpoints to an HDFS folder, and load one from there, as in PLSC 0.x.

        The same as a `model_save_dir` and a `checkpoint_dir` that are hdfs:// URLs, with the local folder of
        `set_model_save_dir` in the place of `set_stage_dir`. See docs/remote.md.

        Args:
            fs_name: the file system, 'hdfs://host:port'.
            fs_ugi: 'user,password'. HDFS takes the user; its client takes no password.
            fs_dir_for_save: remote folder of the run's checkpoints; none is uploaded without it.
            fs_checkpoint_dir: remote checkpoint, or folder of checkpoints, that is loaded.

        Raises:
            ConfigError: `fs_name` is no URL.
        """
        fs_name = keep_credentials(fs_name)
        if not is_remote(fs_name):
            raise ConfigError(f"set_hdfs_info: got fs_name {fs_name!r}, expected a URL as 'hdfs://host:9000'")
        user, _, password = fs_ugi.partition(",")
        if user:
            keep_user(fs_name, user, password or None)
        self._remote_dirs.clear()
        if fs_dir_for_save:
            self._remote_dirs["model_save_dir"] = join(fs_name, fs_dir_for_save)
        if fs_checkpoint_dir:
            self._remote_dirs["checkpoint_dir"] = join(fs_name, fs_checkpoint_dir)

    def set_max_last_checkpoint_num(self, num: int) -> None:
        """Number of newest checkpoints of whole epochs that are kept. Default 5."""
        self.config.max_last_checkpoint_num = num

    def set_save_period(self, steps: int | None = None, minutes: float | None = 30.0, *, keep: int = 2) -> None:
        """Save checkpoints within an epoch, as `<epoch>.<step>`, in addition to that at its end.

        Args:
            steps: of the whole run from one checkpoint to the next. Default None: not by steps.
            minutes: from a checkpoint to the next one. Default 30; None: not by time.
            keep: number of newest ones that are kept. Default 2.
        """
        self.config.assign(save_steps=steps, save_minutes=minutes, save_keep=keep)

    def set_async_save(self, mode: Literal["auto"] | bool) -> None:
        """Copy what a checkpoint holds in memory and write it while training goes on: True, or False for never.

        Default 'auto': where enough memory is free. The log says what was chosen.
        """
        self.config.assign(async_save=mode)

    def set_keep_best(self, metric: str | None) -> None:
        """Keep the checkpoint with the highest value of 'lfw.accuracy', 'val.top1' or another metric, for good.

        Training does not begin where no verification set gives the metric.
        """
        self.config.keep_best = metric

    def set_keep_every(self, epochs: int | None) -> None:
        """Keep one checkpoint in so many epochs for good. Default None."""
        self.config.keep_every = epochs

    def set_with_test(self, with_test: bool) -> None:
        """Verify at the end of each epoch. Default True."""
        self.config.with_test = with_test

    def set_test_period(self, period: int) -> None:
        """Steps between verifications within an epoch; 0, the default, verifies at epoch ends only."""
        self.config.test_period = period

    def set_calc_acc(self, calc: bool) -> None:
        """Show acc1 and acc5 of the training batch. Default False."""
        self.config.calc_acc = calc

    def set_log_period(self, period: int) -> None:
        """Steps between lines of metrics.jsonl, and of the log if it shows no progress bar. Default 200."""
        self.config.log_period = period

    def set_training_doctor(self, flag: bool) -> None:
        """Warn where the course of a training shows that something is wrong; see docs/doctor.md. Default True."""
        self.config.training_doctor = flag

    def set_loggers(self, names: Sequence[str]) -> None:
        """Records for other tools: 'tensorboard', 'swanlab', 'mlflow', 'wandb', 'package.module:Class'. Default none.

        Each needs a package, as tensorboardX. metrics.jsonl and metrics.csv are written in any case. See
        docs/logging.md.
        """
        self.config.assign(loggers=(names,) if isinstance(names, str) else tuple(names))

    def add_observer(self, observer: Observer) -> None:
        """Add an observer of `plsc.engine.observers`: its methods are called after steps, verifications and saves."""
        from plsc.engine.observers.group import check_observer

        self._observers.append(check_observer(observer))

    # Parts of the old API that have no effect

    def set_input_info(self, input_holder: Any) -> None:
        """Accepted without effect, with a warning: the network's input follows `set_image_shape`."""
        log.warning("set_input_info has no effect: the network's input follows set_image_shape")

    def set_use_quant(self, quant: bool) -> None:
        """Accepted without effect, with a warning: training and export are float32."""
        if quant:
            log.warning("set_use_quant: quantization is not supported yet; training and export stay in float32")

    # Runs

    def train(self) -> dict[str, float]:
        """Train; save a checkpoint and verify each epoch.

        Returns:
            The last values by name, such as 'loss', 'lr' and 'lfw/accuracy'.
        """
        from plsc.engine.stopping import held_back

        with held_back():
            require_paddle()
            from plsc.engine.trainer import Trainer

        return Trainer(self._placed, observers=self._observers).train()

    def find_lr(self, steps: int = 100, *, least: float = 1e-5, most: float = 10.0) -> RateSearch:
        """Train some steps with a growing learning rate, and suggest one. Nothing is saved; see docs/doctor.md.

        Args:
            steps: of the search, 20 to 10,000.
            least: learning rate of its first step.
            most: learning rate of its last step.

        Returns:
            The search: `setting` is the value for `set_lr`, or None where the loss does not fall.
        """
        require_paddle()
        from plsc.engine.rate_search import search_rate

        return search_rate(self._placed, steps=steps, least=least, most=most)

    def test(self, tables: str | Path | None = None) -> dict[str, float]:
        """Verify the checkpoint on `val_targets` (or `test_dataset`), and classify the images of `set_val_dataset`.

        With `set_val_split` these are the images that training held out.

        Args:
            tables: folder to write classes.csv (each class, its top-1, and what it is confused with) and confusions.csv
                of the validation data to.

        Returns:
            Values by '<set>/<name>', such as 'lfw/accuracy' and 'val/top1'.
        """
        topology = self._start()
        from plsc.engine.tester import test

        return test(self._placed, topology, tables=None if tables is None else Path(tables))

    def predict(self, images: Iterable[Any] | None = None, save_to: str | Path | None = None) -> np.ndarray:
        """Embeddings [n, D] float32, unit length, of image files or of `predict_reader`, by the checkpoint.

        Args:
            images: one or several, each a path, encoded bytes, an open file, an image of Pillow or pixels [H, W, 3]
                uint8 RGB; by default what `predict_reader()` returns.
            save_to: also write the embeddings as a .npy file; an existing one is not overwritten.
        """
        topology = self._start()
        from plsc.engine.evaluator import predict

        return predict(self._placed, topology, images=images, save_to=save_to)

    def convert_for_prediction(
        self,
        directory: str | Path | None = None,
        formats: Sequence[str] = ("paddle",),
        *,
        bake: Sequence[str] = (),
        bgr: bool = False,
        classifier: bool = False,
    ) -> str:
        """Export the checkpoint's backbone as a Paddle inference model.

        Args:
            directory: a folder or a URL; by default <model_save_dir>/inference_model. An earlier export there is
                replaced; a folder that holds anything else is refused.
            formats: also 'legacy' (.pdmodel), 'serving' (Paddle Serving) and 'onnx', each in a folder of its own in
                `directory`.
            bake: what becomes part of the network: 'preprocess' (takes pixels of any size) and 'normalize' (returns
                embeddings of unit length).
            bgr: baked preprocessing takes pixels blue first, as OpenCV reads them.
            classifier: write the class centers and the names of the classes too, for `model.classify`.

        Returns:
            The folder.
        """
        topology = self._start()
        from plsc.export.export import export_checkpoint

        return export_checkpoint(
            self._placed, topology, directory=directory, formats=formats, bake=bake, bgr=bgr, classifier=classifier
        )

    def drop_subcenters(
        self, directory: str | Path, *, angle: float = 75.0, csv: str | Path | None = None
    ) -> SubcentersDropped:
        """Make of the checkpoint, trained with `set_subcenters`, one with the dominant center of each class alone.

        That is the center that most of the class's training images are nearest to. A run with one center per class goes
        on from it. Settings of the data that are not set are those of the checkpoint. See docs/losses.md.

        Args:
            directory: the folder to write; it must not exist.
            angle: in degrees, 0 to 180: images at a larger angle from their dominant center are counted and listed.
            csv: a file to write with a row for each such image: its path or what describes it, class, angle, number of
                the nearest sub-center and of the dominant one. It must not exist.

        Returns:
            How many classes, images, images above the angle and dropped centers there are.

        Raises:
            CheckpointError: the checkpoint has one center per class, or is of other classes than the data.
        """
        topology = self._start()
        from plsc.engine.subcenters import drop_subcenters

        return drop_subcenters(self._placed, topology, target=directory, angle=angle, csv=csv)

    @property
    def _placed(self) -> Config:
        """The settings, with the folders of `set_hdfs_info`, which was called before or after the setters of others."""
        if not self._remote_dirs:
            return self.config
        placed = self.config.model_copy()
        if "model_save_dir" in self._remote_dirs and not is_remote(placed.model_save_dir):
            placed.stage_dir = placed.stage_dir or placed.model_save_dir
        placed.assign(**self._remote_dirs)
        return placed

    def _start(self) -> Topology:
        """Set up ranks, log and device."""
        from plsc.distributed.topology import init_topology, use_threads

        topology = init_topology(self.config.rank_timeout)
        show_log(topology.is_main)
        use_threads(self.config.cpu_threads, topology)
        if topology.on_gpu:
            from plsc.engine.numerics import set_tf32

            set_tf32(False)  # verification, prediction and export give the numbers of a CPU
        for doubt in self.config.doubts() if topology.is_main else ():
            log.warning(doubt)
        return topology


def _path_or_array(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _known_loss(loss_type: str, margins: tuple[float | None, ...]) -> str:
    """The name of the loss that a name and three margins mean.

    Raises:
        ConfigError: the name is that of a loss that there is not.
    """
    kind = loss_type.removeprefix("dist_")
    if loss_type in LOSS_TYPES or None in margins:
        return loss_type
    if any(word in kind.lower() for word in _OTHER_LOSSES):
        raise ConfigError(
            f"loss_type: got {loss_type!r}, a loss that PLSC does not have; {did_you_mean(loss_type, LOSS_TYPES)}"
            f"accepted: {', '.join(LOSS_TYPES)}, or a margin object of your own (docs/extending.md)"
        )
    combined = f"{'dist_' if loss_type != kind else ''}combined"
    log.warning(
        "loss_type %r is not known; %swith three margins set it is trained as %r: cos(%g theta + %g) - %g",
        loss_type,
        did_you_mean(loss_type, LOSS_TYPES),
        combined,
        *margins,
    )
    return combined


def _setter_hint(name: str) -> str:
    """'; did you mean 'set_x'?' for a method that there is not, or ''."""
    setting = meant_by(name.removeprefix("set_"), Config.model_fields)
    methods = [method for method in vars(Entry) if method.startswith("set_")]
    meant = setter(setting) if setting else nearest_name(name, methods)
    return f"; did you mean '{meant}'?" if meant else ""
