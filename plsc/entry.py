"""The facade: setters fill one `Config`; train, test, predict and convert_for_prediction delegate.

`Entry` is the API of PLSC 0.1.1 and 0.2.0, kept so that scripts written for it run. Each setting can
also be read and assigned as an attribute: `entry.train_batch_size`, `entry.scale = 32`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from plsc.config import DEFAULT_VAL_TARGETS, LOSS_TYPES, Config, check_callable, config
from plsc.models.registry import find_backbone
from plsc.utils.logging import show_log

log = logging.getLogger("plsc")


class Entry:
    """One training, verification, prediction or export, configured by its setters.

    Every setter raises `plsc.ConfigError` at once when a value has the wrong type or range.
    """

    config: Config

    def __init__(self) -> None:
        object.__setattr__(self, "config", config.model_copy())

    def __getattr__(self, name: str) -> Any:
        name = Config.present_name(name, AttributeError)
        # Old scripts read the defaults of these two, which depend on the loss and on the data.
        if name == "margin" and self.config.margin is None:
            return self.config.main_margin
        if name == "val_targets" and self.config.val_targets is None:
            return DEFAULT_VAL_TARGETS
        return getattr(self.config, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if hasattr(type(self), name):
            object.__setattr__(self, name, value)
        elif name == "model":
            self.set_model(value)
        elif name == "model_name":
            self.set_model_name(value)
        else:
            setattr(self.config, name, value)

    # The problem

    def set_class_num(self, num: int) -> None:
        """Number of classes C, 1 or more. Default 85742."""
        self.config.num_classes = num

    def set_emb_size(self, size: int) -> None:
        """Embedding size D, 1 or more. Default 512."""
        self.config.emb_dim = size

    def set_image_shape(self, shape: Sequence[int]) -> None:
        """(3, H, W) of the images the network takes. Default (3, 112, 112)."""
        self.config.image_shape = shape

    def set_model(self, model: Any) -> None:
        """A backbone of your own: a `plsc.models.base_model.BaseModel`, or any layer [N, 3, H, W] -> [N, D]."""
        from plsc.models.base_model import check_model

        self.config.model = check_model(model)

    def set_model_name(self, model_name: str) -> None:
        """A backbone by name: ResNet50 (default), ResNet101, ResNet152, ResNetTiny."""
        find_backbone(model_name)
        self.config.model_name = model_name

    # The head and its loss

    def set_loss_type(
        self, loss_type: str, margin1: float | None = None, margin2: float | None = None, margin3: float | None = None
    ) -> None:
        """The loss and its margins: cos(margin1 * theta + margin2) - margin3 on the target class.

        Args:
            loss_type: softmax, arcface, cosface, sphereface or combined, each also as `dist_...`, which shards
                the class centers over ranks. Default 'dist_arcface'. Any other name together with all three
                margins means combined, as in PLSC 0.2.
            margin1: factor on the angle. By default 1, for sphereface 1.35.
            margin2: added to the angle, radians. By default 0, for arcface 0.5.
            margin3: taken off the cosine. By default 0, for cosface 0.35.
        """
        margins = (margin1, margin2, margin3)
        if isinstance(loss_type, str) and loss_type not in LOSS_TYPES and None not in margins:
            loss_type = "dist_combined" if loss_type.startswith("dist_") else "combined"
        self.config.loss_type = loss_type
        self.config.margin1, self.config.margin2, self.config.margin3 = margins

    def set_margin(self, margin: float) -> None:
        """The one margin of the loss: arcface's angle (radians), cosface's cosine, sphereface's factor."""
        self.config.margin = margin

    def set_scale(self, scale: float) -> None:
        """s, what the cosines are multiplied by. Default 64."""
        self.config.scale = scale

    def set_model_parallel(self, flag: bool) -> None:
        """Shard the class centers over ranks, or hold them whole on each, whatever loss_type's prefix says."""
        self.config.model_parallel = flag

    def set_sample_ratio(self, sample_ratio: float) -> None:
        """Share of the class centers in each step (Partial FC, An et al., 2021), over 0 up to 1. Default 1."""
        self.config.sample_ratio = sample_ratio

    def set_logits(self, mode: str) -> None:
        """Logits between the head's two passes: 'store', 'recompute' (less memory), or 'auto' by what is free."""
        self.config.logits = mode

    def set_momentum_storage(self, dtype: str) -> None:
        """Momentum of the class centers: 'float32' (default), or 'bfloat16' for half the memory, rounded by chance."""
        self.config.momentum_storage = dtype

    def set_distfc_attr(self, param_attr: Any = None, bias_attr: Any = None) -> None:
        """`paddle.ParamAttr` of the class centers, and of the bias that the softmax losses have (False: none)."""
        self.config.param_attr, self.config.bias_attr = param_attr, bias_attr

    # The data

    def set_dataset_dir(self, directory: str | Path) -> None:
        """Folder with label.txt and images/, or with a folder per class; and with the verification sets."""
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
        """Verification sets as 'lfw,cfp_fp': each is <name>.bin in the data folder. Default 'lfw'."""
        self.config.val_targets = targets

    def set_num_workers(self, num: int) -> None:
        """Processes per rank that read training images; 0 reads in the training process. Default 2."""
        self.config.num_workers = num

    def set_flip(self, flip: bool) -> None:
        """Mirror training images at random and embed test images both ways. Default True; not for characters."""
        self.config.flip = flip

    def set_augment(
        self,
        crop: float = 0.0,
        rotate: float = 0.0,
        color_jitter: float = 0.0,
        rand_augment: int = 0,
        rand_magnitude: float = 5.0,
        gray: float = 0.0,
        blur: float = 0.0,
        erase: float = 0.0,
    ) -> None:
        """Random changes to training images beside the flip, all off by default; see `plsc.data.augment.Augment`."""
        given = {name: value for name, value in locals().items() if name != "self"}
        for name, value in given.items():
            setattr(self.config, f"augment_{name}", value)

    def set_pixel_normalization(self, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        """(pixel - mean) / std for pixels of 0 to 255, one number or three (RGB). Default 127.5 and 128."""
        self.config.pixel_mean, self.config.pixel_std = mean, std

    def set_class_balanced(self, flag: bool) -> None:
        """Let every class come equally often in an epoch, instead of every image. Default False."""
        self.config.class_balanced = flag

    def set_min_images_per_class(self, num: int) -> None:
        """Leave out classes with fewer training images and renumber the rest. Default 0: none."""
        self.config.min_images_per_class = num

    def set_worker_timeout(self, seconds: float) -> None:
        """How long one image may take to read before its process counts as hanging; 0: no limit. Default 300."""
        self.config.worker_timeout = seconds

    def set_bad_images(self, action: str) -> None:
        """What an unreadable training image does: 'stop' (default), or 'skip': count it and take the next."""
        self.config.bad_images = action

    # The schedule

    def set_train_epochs(self, num: int) -> None:
        """Epochs to train. Default 120. Un-sets the steps."""
        self.config.train_epochs = num
        self.config.train_steps = None

    def set_train_steps(self, num: int) -> None:
        """Steps to train. Un-sets the epochs."""
        self.config.train_steps = num
        self.config.train_epochs = None

    def set_warmup_epochs(self, num: int) -> None:
        """Epochs over which the learning rate rises to its peak. Default 0."""
        self.config.warmup_epochs = num

    def set_step_boundaries(self, boundaries: Sequence[int]) -> None:
        """Steps at which the learning rate decays. Default (100000, 160000, 220000)."""
        self.config.lr_steps = boundaries

    def set_lr_decay_factor(self, factor: float) -> None:
        """What the learning rate is multiplied by at each boundary. Default 0.1."""
        self.config.lr_decay_factor = factor

    def set_lr(self, lr: float | Callable[[int], float]) -> None:
        """Learning rate at a global batch of 1024 (default 0.1, scaled with the batch), or a function step -> rate."""
        if callable(lr):
            self.config.lr_schedule = lr
        else:
            self.config.lr, self.config.lr_schedule = lr, "step"

    def set_optimizer(self, optimizer: Callable[..., Any]) -> None:
        """Another optimizer: a Paddle class, or anything to be called as f(learning_rate=..., parameters=[...]).

        For example `functools.partial(paddle.optimizer.AdamW, weight_decay=0.05)`.
        """
        self.config.optimizer = check_callable(
            "set_optimizer",
            optimizer,
            "a Paddle optimizer class, or a function f(learning_rate, parameters) that "
            "returns one: parameters do not exist yet when this is set",
        )

    def set_seed(self, seed: int) -> None:
        """Seed of initial weights, data order, sampling and dropout. Default 0."""
        self.config.seed = seed

    def set_on_nonfinite(self, action: str) -> None:
        """What a loss that is not finite does: 'stop' (default), or 'skip' the step (waits for the device)."""
        self.config.on_nonfinite = action

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
        amp_dtype: str = "float16",
    ) -> None:
        """Half precision with loss scaling on GPUs (`paddle.amp`); has no effect on CPU, which training says.

        It holds for the backbone and for the head's matrix products; sums, softmax and weights stay float32.

        Args:
            amp_dtype: 'float16' or 'bfloat16'. The others are those of `paddle.amp.GradScaler`.
        """
        for name, value in locals().copy().items():
            if name != "self":
                setattr(self.config, name, value)

    # Checkpoints, verification, what is shown

    def set_checkpoint_dir(self, directory: str | Path) -> None:
        """A checkpoint (output/7), or a folder of them, of which the newest counts; loaded before anything runs."""
        self.config.checkpoint_dir = str(directory)

    def set_model_save_dir(self, directory: str | Path) -> None:
        """Where checkpoints go, a folder per epoch. Default 'output'."""
        self.config.model_save_dir = str(directory)

    def set_max_last_checkpoint_num(self, num: int) -> None:
        """Checkpoints kept, newest first. Default 5."""
        self.config.max_last_checkpoint_num = num

    def set_with_test(self, with_test: bool) -> None:
        """Verify at the end of each epoch. Default True."""
        self.config.with_test = with_test

    def set_test_period(self, period: int) -> None:
        """Verify every so many steps as well; 0, the default, for epochs only."""
        self.config.test_period = period

    def set_calc_acc(self, calc: bool) -> None:
        """Show acc1 and acc5 of the training batch. Default False."""
        self.config.calc_acc = calc

    def set_log_period(self, period: int) -> None:
        """Steps between log lines where there is no progress bar. Default 200."""
        self.config.log_period = period

    # Parts of the old API whose work is still to come, or is no more

    def set_hdfs_info(
        self, fs_name: str, fs_ugi: str, fs_dir_for_save: str | None = None, fs_checkpoint_dir: str | None = None
    ) -> None:
        """Accepted, and says that nothing is fetched or uploaded yet: checkpoints stay in model_save_dir."""
        log.warning(
            "set_hdfs_info: remote file systems are not supported yet; nothing is fetched or uploaded, "
            "checkpoints stay in set_model_save_dir"
        )

    def set_input_info(self, input_holder: Any) -> None:
        """Accepted, and says that it is not needed: inputs follow set_image_shape."""
        log.warning("set_input_info has no effect: the network's input follows set_image_shape")

    def set_use_quant(self, quant: bool) -> None:
        """Accepted, and says that quantization is not supported yet: training and export stay in float."""
        if quant:
            log.warning("set_use_quant: quantization is not supported yet; training and export stay in float32")

    # What runs

    def train(self) -> dict[str, float]:
        """Train, verify and save a checkpoint each epoch; returns the last figures, such as 'loss', 'lfw/accuracy'.

        Run it under `python -m paddle.distributed.launch` to train on several ranks.
        """
        topology = self._start()
        from plsc.engine.trainer import Trainer

        return Trainer(self.config, topology).train()

    def test(self) -> dict[str, float]:
        """Verify the checkpoint on `val_targets` (or `test_dataset`); returns figures as '<set>/<figure>'."""
        topology = self._start()
        from plsc.engine.evaluator import test

        return test(self.config, topology)

    def predict(self, images: Iterable[Any] | None = None, save_to: str | Path | None = None):
        """Embeddings [n, D] float32, unit length, of image files or of `predict_reader`, by the checkpoint.

        Args:
            images: paths, encoded bytes or [H, W, 3] uint8 arrays; `predict_reader()` when not given.
            save_to: also write them as a .npy file; an existing one is not overwritten.
        """
        topology = self._start()
        from plsc.engine.evaluator import predict

        return predict(self.config, topology, images=images, save_to=save_to)

    def convert_for_prediction(
        self,
        directory: str | Path | None = None,
        formats: Sequence[str] = ("paddle",),
        bake: Sequence[str] = (),
        bgr: bool = False,
    ) -> str:
        """Export the checkpoint's backbone as a Paddle inference model; returns the folder.

        Args:
            directory: default <model_save_dir>/inference_model. An earlier export there is replaced; a folder
                that holds anything else is refused.
            formats: also 'legacy' (.pdmodel), 'serving' (Paddle Serving), 'onnx', each in a folder of its own inside.
            bake: into the network 'preprocess' (pixels of any size in) and 'normalize' (unit length out).
            bgr: baked pre-processing takes pixels blue first, as OpenCV reads them.
        """
        topology = self._start()
        from plsc.export.export import export_checkpoint

        return str(export_checkpoint(self.config, topology, directory=directory, formats=formats, bake=bake, bgr=bgr))

    def _start(self) -> Any:
        from plsc.distributed.topology import init_topology

        topology = init_topology()
        show_log(topology.is_main)
        self.config.check()
        return topology
