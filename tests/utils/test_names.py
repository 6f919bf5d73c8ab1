"""What a message says about an unknown name."""

from __future__ import annotations

import pytest

from plsc.config import LOSS_TYPES, Config
from plsc.models.registry import list_backbones
from plsc.serving.settings import ServeSettings
from plsc.utils.names import (
    _ELSEWHERE,
    _OTHER_WORDS,
    did_you_mean,
    meant_by,
    nearest_name,
    one_of,
    setting_hint,
)

NAMES = ["num_classes", "train_batch_size", "test_batch_size", "ResNet50", "lr"]


@pytest.mark.parametrize(
    "name, near",
    [
        ("num_clases", "num_classes"),
        ("train_batchsize", "train_batch_size"),
        ("batch_size", "train_batch_size"),
        ("resnet50", "ResNet50"),
        ("Resnet", "ResNet50"),
        ("entirely_different", None),
        ("", None),
    ],
)
def test_the_nearest_name(name, near):
    assert nearest_name(name, NAMES) == near
    assert did_you_mean(name, NAMES) == (f"did you mean '{near}'? " if near else "")


@pytest.mark.parametrize(
    "words, meant",
    [
        ("batch_size batch bs BatchSize batch-size train_batch_size", "train_batch_size"),
        ("learning_rate base_lr LR learningRate", "lr"),
        ("epochs num_epochs max_epochs n_epochs epoch", "train_epochs"),
        ("steps max_steps iterations", "train_steps"),
        ("embedding_size embedding_dim feature_dim emb_size", "emb_dim"),
        ("num_class class_num n_classes num_identities", "num_classes"),
        ("margin_m m", "margin"),
        ("s margin_s scale_", "scale"),
        ("output output_dir save_dir work_dir", "model_save_dir"),
        ("data_dir dataset data root rec", "dataset_dir"),
        ("network backbone net arch", "model_name"),
        ("resume ckpt weights model_dir", "checkpoint_dir"),
        ("pretrain pretrained_model init_weights", "pretrained"),
        ("fp16 amp mixed_precision", "use_fp16"),
        ("workers num_worker num_threads", "num_workers"),
        ("milestones step_boundaries", "lr_steps"),
        ("gamma", "lr_decay_factor"),
        ("sample_rate", "sample_ratio"),
        ("frequent log_interval", "log_period"),
        ("img_size input_size", "image_shape"),
    ],
)
def test_words_of_other_libraries_for_a_setting(words, meant):
    for word in words.split():
        assert meant_by(word, Config.model_fields) == meant, word


def test_a_word_means_what_there_is():
    assert meant_by("batch_size", ServeSettings.model_fields) == "max_batch"
    assert meant_by("workers", ServeSettings.model_fields) == "workers"
    assert meant_by("model", ["model_name"]) == "model_name"
    assert meant_by("batch_size", ["lr"]) is None


def test_every_word_leads_somewhere():
    known = {*Config.model_fields, *ServeSettings.model_fields, *LOSS_TYPES, *list_backbones(), "to", "api_key_file"}
    assert set(_OTHER_WORDS) <= known
    for words in [*_OTHER_WORDS.values(), *_ELSEWHERE]:
        assert words == words.lower() and "_" not in words and "-" not in words
        assert len(set(words.split())) == len(words.split())


def test_the_hint():
    assert setting_hint("bs", NAMES) == "; did you mean 'train_batch_size'?"
    assert setting_hint("num-clases", NAMES, show="--{}".format) == "; did you mean --num_classes?"
    assert setting_hint("beta1", NAMES).startswith("; a script gives an optimizer")
    assert setting_hint("margin_list", NAMES).startswith("; its three numbers are margin1, margin2 and margin3")
    assert setting_hint("gradient_acc", NAMES).startswith("; gradients are not accumulated")
    assert setting_hint("num_image", [*NAMES, "bad_images", "train_image_num"]) == "; did you mean 'train_image_num'?"
    assert setting_hint("entirely_different", NAMES) == ""


def test_one_of():
    assert one_of("lr", NAMES) == "lr"
    with pytest.raises(ValueError, match="did you mean 'lr'. accepted: num_classes, .*, lr$"):
        one_of("lrr", NAMES)
