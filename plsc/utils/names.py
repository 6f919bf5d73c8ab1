"""What a message says about a name that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable

# Setting, flag or loss -> words that other libraries have for it, without dashes and underscores. A word that stands
# for several names means the first of them that there is.
_OTHER_WORDS = {
    "to": "output outputdir out outdir outputformat format target",
    "train_batch_size": "batch batchsize bs bsz trainbs trainbatch minibatchsize batchsizepergpu "
    "perdevicetrainbatchsize",
    "test_batch_size": "evalbatchsize valbatchsize testbs perdeviceevalbatchsize",
    "max_batch": "batch batchsize bs maxbatchsize",
    "lr": "learningrate baselr initiallr lrbase initlr lr0 maxlr peaklr",
    "lr_schedule": "scheduler lrscheduler schedule lrpolicy lrmode lrschedulertype sched lrdecay",
    "lr_steps": "milestones lrmilestones stepboundaries boundaries lrstep lrdecaysteps decaysteps",
    "lr_decay_factor": "gamma lrgamma decayrate lrdecayrate decayfactor",
    "train_epochs": "epochs epoch numepochs numepoch maxepochs maxepoch nepochs numtrainepochs totalepochs",
    "train_image_num": "numimage numimages imagenum numtrainimages numsamples",
    "train_steps": "steps maxsteps numsteps iterations iters maxiters maxiter numiterations totalsteps maxiterations",
    "warmup_epochs": "warmup warmupepoch numwarmupepochs warmupratio",
    "warmup_steps": "warmupiters numwarmupsteps warmupiterations warmupsteps",
    "optimizer": "optim opt optimtype optimizername optimizertype",
    "weight_decay": "wd l2 weightdecay regularization",
    "momentum": "mu",
    "frozen": "freeze freezelayers freezebackbone frozenlayers freezeparams",
    "head_lr_factor": "headlrmultiplier headlr headlrmult fclrfactor",
    "backbone_lr_factor": "backbonelrmultiplier backbonelr backbonelrmult lrratio",
    "lr_power": "power polypower",
    "emb_dim": "embeddingsize embsize embeddingdim embeddim featuredim featdim embedding dim embeddings outdim d",
    "num_classes": "numclass classnum nclasses classes nclass classdim numidentities numids nids c",
    "image_shape": "inputsize imagesize imgsize inputshape size imgshape resolution",
    "model_name": "network backbone net arch architecture model modeltype modelarch",
    "save_steps": "saveevery savefreq savefrequency saveinterval checkpointevery checkpointinterval everynsteps",
    "pretrained": "pretrain pretrainedmodel pretrainedpath pretrainedweights initweights initmodel finetune",
    "checkpoint_dir": "resume resumefrom resumefromcheckpoint weights checkpoint ckpt "
    "ckptdir modeldir modelpath checkpointpath initcheckpoint loadfrom load restore",
    "model": "modeldir modelpath network export",
    "margin": "marginm m arcmargin",
    "margin1": "m1",
    "margin2": "m2",
    "margin3": "m3",
    "scale": "s margins scales logitscale temperature",
    "label_smoothing": "smoothing labelsmooth lsepsilon lse epsilon smoothfactor",
    "class_weights": "classweight weight weightsofclasses lossweight lossweights",
    "margin_warmup": "marginwarmupsteps warmupmargin marginsteps",
    "loss_type": "loss lossname lossfunction lossfn criterion head headtype margintype",
    "sample_ratio": "samplerate partialfc sampling pfc",
    "model_save_dir": "output outputdir out outdir savedir savepath workdir rundir saveto savefolder ckptpath expdir",
    "dataset_dir": "data datadir dataset datapath dataroot root rec trainrec traindir traindata trainpath datafolder "
    "traindataset datasetpath",
    "val_targets": "val valset valsets valdata verification evalsets targets valdir testset testsets testtargets",
    "num_workers": "workers numworker nworkers nworker dataloadernumworkers numthreads threads loaders",
    "cpu_threads": "ompnumthreads cputhread",
    "use_fp16": "fp16 amp useamp mixedprecision half precision autocast",
    "amp_dtype": "bf16 amptype dtype precisiondtype",
    "amp_lists": "amplist whitelist blacklist",
    "pixel_mean": "mean imagemean normmean",
    "pixel_std": "std imagestd normstd",
    "flip": "hflip mirror randommirror randomflip horizontalflip randmirror",
    "seed": "randomseed manualseed randseed",
    "max_last_checkpoint_num": "keep maxtokeep savetotallimit keepcheckpointmax keeplast keepcheckpoints savetopk",
    "with_test": "eval doeval validate doval",
    "test_period": "evalsteps evalperiod evalinterval testinterval valinterval verbose evalfreq",
    "log_period": "loginterval loggingsteps frequent printfreq logfreq logevery disp displayfreq",
    "on_nonfinite": "skipnan nan nanpolicy",
    "bad_images": "skipbadimages skipbad",
    "host": "bind address hostname ip listen server",
    "workers": "numworkers processes replicas predictors instances",
    "threads": "numthreads cputhreads ompnumthreads",
    "max_wait_ms": "wait maxwait batchtimeout maxlatency batchdelay",
    "max_queue": "queue queuesize backlog",
    "max_body": "maxbodysize maxrequestsize",
    "api_key": "key token apikey apitoken password",
    "api_key_file": "key token apikey apikeyfile apitoken keyfile",
    "access_log": "log accesslog",
    "page": "ui webui webpage gui website",
    "arcface": "aam aamsoftmax arc arcmargin arcmarginproduct insightface additiveangular",
    "cosface": "am ams amsoftmax cos cosineface lmcl largemargincosine",
    "sphereface": "asoftmax angularsoftmax sphere multiplicativeangular",
    "softmax": "ce crossentropy xent normalizedsoftmax normface",
    "drain": "draintimeout gracefultimeout grace",
    "IResNet18": "r18 ir18 iresnet18",
    "IResNet34": "r34 ir34 iresnet34",
    "IResNet50": "r50 ir50 irse50 iresnet50",
    "IResNet100": "r100 r101 ir100 ir101 iresnet101",
    "IResNet200": "r200 ir200 iresnet200",
    "MobileFaceNet": "mbf mobilefacenet mfn mobileface",
    "ViT-T": "vittiny",
    "ViT-S": "vitsmall",
    "ViT-B": "vitbase",
    "ViT-L": "vitlarge",
    "EdgeFace-XS": "edgefacexsgamma06",
    "EdgeFace-S": "edgefacesgamma05 edgefacesmall",
}
# Words for what is no setting, without dashes and underscores, and where it is given.
_ELSEWHERE = {
    "beta1 beta2": "a script gives an optimizer that has it, as a function",
    "marginlist": "its three numbers are margin1, margin2 and margin3, with loss_type dist_combined",
    "gradientacc accumsteps gradaccum gradientaccumulation gradientaccumulationsteps accumulategradbatches": (
        "gradients are not accumulated; train on more ranks, or take less memory with sample_ratio, logits or recompute"
    ),
    "gradclip clipgrad clipgradnorm gradientclip maxgradnorm clipnorm": (
        "a script gives a Paddle optimizer that has grad_clip, as a function"
    ),
    "dali": "images are read by num_workers processes, without DALI",
    "gpu gpus gpuids devices device numgpus ngpus cuda worldsize localrank rank nproc nprocpernode nodes numnodes": (
        "devices and ranks are chosen by python -m paddle.distributed.launch, with --gpus, --nproc_per_node, --nnodes"
    ),
}


def nearest_name(name: str, accepted: Iterable[str]) -> str | None:
    """The accepted name that `name` most likely stands for, or None if none is close.

    A name that holds `name` whole comes first ('batch_size' is near 'train_batch_size'), then one of other case,
    then one of similar spelling.
    """
    names = list(accepted)
    by_lower_case = {known.lower(): known for known in reversed(names)}
    lower = name.lower()
    holding = [known for known in by_lower_case if len(lower) > 3 and lower in known]
    near = holding[::-1] or difflib.get_close_matches(lower, by_lower_case, n=1)
    return by_lower_case[near[0]] if near else None


def meant_by(word: str, accepted: Iterable[str]) -> str | None:
    """The accepted name of a setting that other libraries call `word`, or None.

    Example:
        >>> meant_by("learning-rate", ["lr", "seed"])
        'lr'
    """
    names, plain = list(accepted), _plain(word)
    same = next((name for name in names if _plain(name) == plain), None)
    return same or next(
        (name for name, words in _OTHER_WORDS.items() if name in names and plain in words.split()), None
    )


def setting_hint(name: str, accepted: Iterable[str], show: Callable[[str], str] = "'{}'".format) -> str:
    """'; did you mean 'x'?', or where a thing that is no setting is given, or '' where nothing is known.

    Args:
        name: as given, with dashes or underscores.
        accepted: the names that there are.
        show: makes text of the name that is meant.
    """
    names = list(accepted)
    meant = meant_by(name, names)
    if meant is None:
        for words, where in _ELSEWHERE.items():
            if _plain(name) in words.split():
                return f"; {where}"
        meant = nearest_name(name.replace("-", "_"), names)
    return f"; did you mean {show(meant)}?" if meant else ""


def did_you_mean(name: str, accepted: Iterable[str]) -> str:
    """'did you mean 'x'? ', or '' if no accepted name is close."""
    names = list(accepted)
    near = meant_by(name, names) or nearest_name(name, names)
    return f"did you mean '{near}'? " if near else ""


def one_of(name: str, accepted: Iterable[str], *, also: str = "") -> str:
    """Return `name` if it is accepted.

    Args:
        name: what was given.
        accepted: the names.
        also: what is accepted besides them, for the message.

    Raises:
        ValueError: it is not; the message names the nearest accepted name and all of them.
    """
    names = list(accepted)
    if name not in names:
        raise ValueError(f"{did_you_mean(str(name), names)}accepted: {', '.join(names)}{', or ' if also else ''}{also}")
    return name


def _plain(name: str) -> str:
    """A name without what libraries spell differently: case, dashes and underscores."""
    return name.lower().replace("-", "").replace("_", "")
