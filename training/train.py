"""Trains the fusion and the decoder by a recipe; `python -m training.train` prints the usage."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import fusioner_rt
from fusioner_rt.atomic_files import STALE_SECONDS, clear_temporaries, left_where_filled, writable_folder
from fusioner_rt.bundle import sha256
from fusioner_rt.command_end import run_command, say, say_lines
from fusioner_rt.errors import FusionerError, UsageError
from fusioner_rt.folder_locks import locked
from training import alignment, arguments, checkpoint, encoders, lacks, recipe, scoring
from training.batches import Batch, Batches, CachedBatches, LiveBatches, feature_cache
from training.data import DataError, MaskFolder, PictureMasks
from training.datasets import open_dataset
from training.datasets.many import ManySets
from training.datasets.splits import FOLDS, held_out_indices
from training.distributed import Processes, processes
from training.feature_cache import FeatureCache
from training.model import Fusioner, FusionerConfig
from training.optimisation import Optimiser, check_precision
from training.progress import Progress, check_place
from training.recipe import Choice, Recipe
from training.words import Vocabulary, WordSampler

_MOST_WORKERS = 1024


class TrainingFailed(FusionerError):
    """The loss is NaN or infinite; training since the last whole epoch is lost."""

    exit_code = 77
    is_input = False


class FolderTaken(FusionerError):
    """Another process trains into the same folder."""

    exit_code = 69
    is_input = False


@dataclass(frozen=True)
class Task:
    """A model with its training and validation data."""

    data: PictureMasks
    model: Fusioner
    aligned: bool  # the word projection starts aligned (training.alignment)
    batches: Batches
    cache: FeatureCache  # of the validation pictures
    vectors: Tensor  # (classes, t)
    validation: list[str]
    seen: list[int]  # trained classes
    held_out: list[int]


def train(
    chosen: Recipe,
    data: PictureMasks,
    out: Path,
    cache: Path,
    processes: Processes,
    workers: int = 4,
    start: Path | None = None,
) -> None:
    """Trains into `out`: OUT/checkpoint and the files of training.progress. Resumes from a state in `out`.

    start: a checkpoint whose weights it begins with.
    """
    plan = chosen.training
    progress = Progress(out, _settings(chosen, data, start))
    if _complete(progress):
        if processes.first:
            progress.finish()  # which a kill may have kept it from
        _say(processes, f"{out / 'checkpoint'} is complete, from these settings; remove it to train again")
        return
    task = _prepare(chosen, data, cache, processes, start is None)
    if start is not None:
        _begin_with(task, start)
    model, epoch_steps = task.model.to(processes.device), task.batches.steps()
    total = plan.steps or plan.epochs * epoch_steps
    warmup = max(1, min(int(plan.warmup * epoch_steps), total // 2))
    optimiser = Optimiser(model, plan, task.aligned, total, warmup, processes.device)
    if progress.resume(optimiser, model.config.encoder_sha256):
        _say(processes, f"resuming after epoch {progress.epoch}")
    _say(processes, _summary(task, optimiser, processes, total, epoch_steps))
    forward = _Forward(model, optimiser, processes)
    epochs = math.ceil(total / epoch_steps)
    while optimiser.steps < total and not progress.exhausted(plan.patience):
        started = time.monotonic()
        steps = min(epoch_steps, total - optimiser.steps)
        loss = _epoch(forward, optimiser, task.batches.epoch(progress.epoch, steps, workers), steps, epochs, progress)
        with optimiser.averaged():
            score = processes.agree(_validate(task, processes, plan.least) if processes.first else math.nan)
            progress.end_epoch(loss, score, time.monotonic() - started)
            if plan.patience and progress.best_epoch == progress.epoch:
                progress.best = {name: value.clone() for name, value in optimiser.trained.state_dict().items()}
        _say(processes, f"epoch {progress.epoch}: loss {loss:.4f}, mIoU of trained classes {score:.1f}")
        if processes.first:
            progress.save(optimiser)
        processes.wait()
    if processes.first:
        _keep(chosen, task, optimiser, progress)


class _Forward:
    """Computes a step's loss and gradients, over all processes."""

    def __init__(self, model: Fusioner, optimiser: Optimiser, processes: Processes) -> None:
        self.model, self.optimiser, self.processes = model, optimiser, processes
        self.loss: nn.Module = _SummedLoss(model, optimiser)
        if processes.count > 1:
            self.loss = DistributedDataParallel(
                self.loss, forward_sync_buffers=False, find_unused_parameters=model.config.fusion == "none"
            )

    def __call__(self, batch: Batch) -> Tensor:
        """Adds the gradients of the mean loss over the whole batch, all processes and parts; returns this mean."""
        batch, total = batch.to(self.processes.device), torch.zeros((), device=self.processes.device)
        counts = self.processes.sum(torch.stack([batch.weight(), batch.shown()])).clamp(min=1)
        parts = batch.parts(self.optimiser.plan.accumulate)
        for number, part in enumerate(parts):
            with self._without_exchange() if number + 1 < len(parts) else contextlib.nullcontext():
                with self.optimiser.autocast():
                    tokens = part.tokens(self.model.image_encoder)
                loss = (self.loss(tokens, part.words, part.targets, part.valid, part.known) / counts).sum()
                self.optimiser.backward(
                    loss * self.processes.count
                )  # DDP averages gradients over processes; sums are needed
            total += loss.detach()
        return self.processes.sum(total)

    def _without_exchange(self) -> contextlib.AbstractContextManager[Any]:
        """Skips the exchange of gradients: it happens once a step, with the last part."""
        return self.loss.no_sync() if isinstance(self.loss, DistributedDataParallel) else contextlib.nullcontext()


class _SummedLoss(nn.Module):
    def __init__(self, model: Fusioner, optimiser: Optimiser) -> None:
        super().__init__()
        self.model, self.autocast, self.plan = model, optimiser.autocast, optimiser.plan

    def forward(self, tokens: Tensor, words: Tensor, targets: Tensor, valid: Tensor, known: Tensor) -> Tensor:
        """Two sums, float32 (2,): binary cross entropy over pixels and words (paper 4.1) with `Plan.choice` · that of the
        choice among words, and `Plan.jaccard` · (1 − soft IoU) over the words with a region. Ignored pixels count in
        neither.

        tokens (b, h, w, c), words (b, K, t), targets (b, K, h', w') and valid (b, 1, h', w') at the decoder's resolution.
        """
        with self.autocast():
            features, refined = self.model.fuse(tokens, words, known)
        features, refined = (F.normalize(x.float(), dim=-1) for x in (features, refined))
        logits = torch.einsum("bhwd,bkd->bkhw", features, refined) / self.model.config.temperature
        weight = logits.new_tensor(self.plan.positive_weight)
        entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none", pos_weight=weight)
        jaccard = logits.new_zeros(())
        if self.plan.jaccard:
            found, shown = torch.sigmoid(logits) * valid, targets * valid
            both, either = (found * shown).sum((2, 3)), (found + shown - found * shown).sum((2, 3))
            missed = torch.where(shown.amax((2, 3)) > 0, 1 - both / either.clamp(min=1), 0)
            jaccard = self.plan.jaccard * missed.sum()
        chosen = logits.new_zeros(())
        if self.plan.choice:
            chosen = self.plan.choice * (choice_entropy(logits, targets) * valid[:, 0]).sum() * targets.shape[1]
        return torch.stack([(entropy * valid).sum() + chosen, jaccard])


def choice_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of the choice among a pixel's words and background: logits, targets (b, K, h, w) → (b, h, w).

    The background's logit is 0, for a word wins where it is the best and above 0. Of several right words any will do.
    """
    all_ = torch.cat([torch.zeros_like(logits[:, :1]), logits], 1).logsumexp(1)
    right = logits.masked_fill(targets == 0, -torch.inf)
    none = torch.where(targets.amax(1) > 0, -torch.inf, 0.0)
    return all_ - torch.cat([none[:, None], right], 1).logsumexp(1)


def _epoch(
    forward: _Forward, optimiser: Optimiser, batches: Iterator[Batch], steps: int, epochs: int, progress: Progress
) -> float:
    """Trains on `steps` batches and returns their mean loss. Raises TrainingFailed."""
    forward.model.train()
    losses: list[Tensor] = []
    rates: list[float] = []
    title = f"epoch {progress.epoch + 1}/{epochs}"
    with tqdm(total=steps, desc=title, unit="step", disable=not forward.processes.first) as bar:
        for batch in batches:
            rates.append(optimiser.rate)
            losses.append(forward(batch))
            optimiser.step()
            bar.update()
            if len(losses) % 10 == 0:  # seldom: reading a loss waits for the device
                bar.set_postfix(loss=f"{float(torch.stack(losses[-10:]).mean()):.3f}")
    values = torch.stack(losses).double().tolist()
    start = optimiser.steps - steps
    for number, value in enumerate(values):
        if not math.isfinite(value):
            raise TrainingFailed(
                f"the loss of step {start + number + 1} is {value}",
                "train with a lower --rate, a smaller --clip or --precision fp32",
            )
    progress.steps += [(start + n + 1, loss, rate) for n, (loss, rate) in enumerate(zip(values, rates, strict=True))]
    return float(np.mean(values))


def _validate(task: Task, processes: Processes, least: int) -> float:
    """Validation mIoU in percent over trained classes in at least `least` pictures, or over all; NaN without any."""
    task.model.eval()
    predict = scoring.fusioner(task.model, task.cache, task.vectors.to(processes.device))
    iou = scoring.score(predict, task.data, task.validation, task.seen, "validation")
    shown = [index for index in task.seen if iou.union[index]]
    return iou.mean(
        [index for index in shown if iou.pictures[index] >= least] or shown
    )  # few pictures give a noisy IoU


def _prepare(chosen: Recipe, data: PictureMasks, folder: Path, processes: Processes, anew: bool) -> Task:
    """Prepares everything before the first step; features and word vectors are cached on disk.

    anew: an aligned residual gets its directions; otherwise a checkpoint will bring them.
    """
    plan = chosen.training
    torch.manual_seed(plan.seed)
    model = checkpoint.build(chosen.model)
    cast(nn.Module, model.image_encoder).to(processes.device)
    cache, live = feature_cache(folder, data, model, processes.device), plan.augment == "full"
    has_alignment = chosen.model.image_encoder.startswith("efficientnet-lite")
    held_out = _held_out(data, chosen.data)
    with processes.quiet():
        names, validation = _without(data, data.names("train"), held_out), data.names("val")
        _fill(cache, validation, (False,), processes)
        if not live or has_alignment or chosen.model.aligned:
            _fill(cache, names, (False, True) if plan.augment == "flip" else (False,), processes)
        processes.wait()
        features = (
            cache if not live or has_alignment else feature_cache(folder, data, model, processes.device, live=True)
        )
        with processes.in_turn():
            aligned = alignment.ridge(model, folder) if has_alignment else None
            vocabulary = Vocabulary.collect(
                model, data, features, names, aligned if plan.names or plan.strangers else None
            )
    if not vocabulary.classes:
        raise DataError(
            f"no training picture of {data.root} shows any class; expected masks with indices above 0",
            "check the masks: python -m training.datasets check --help",
        )
    if leaked := set(vocabulary.classes) & set(held_out):
        raise DataError(
            f"masks of {data.root} show {', '.join(data.words[i] for i in sorted(leaked))} where the data set says that "
            "they do not, though they are to be held out; expected masks and annotations that agree",
            "write the masks from the same annotations",
        )
    seen = vocabulary.classes
    if plan.patience and not any(set(seen) & set(data.present(name)) for name in validation):
        raise DataError(
            f"no validation picture of {data.root} shows a class that is trained on, so that there is "
            "no score to stop by",
            "set --patience 0, or add such pictures",
        )
    if model.aligned is not None:
        if known := vocabulary.known():
            model.aligned.keep(vocabulary.vectors[known])
        vocabulary.unseen = vocabulary.vectors
        if anew:
            with processes.quiet():
                regions = alignment.Regions.collect(cache, names, seen)
            vocabulary.unseen = alignment.initialise_residual(model, regions, vocabulary.vectors, aligned)
    if aligned is not None:
        sample = [cache.tokens([cache.get(name)]).flatten(0, 2).cpu() for name in names[:: max(1, len(names) // 64)]]
        alignment.initialise(model, aligned, torch.cat(sample))
    sampler = WordSampler(vocabulary, plan)
    batches = (
        LiveBatches(data, names, model, sampler, plan, processes)
        if live
        else CachedBatches(cache, names, model, sampler, plan, processes)
    )
    return Task(data, model, aligned is not None, batches, cache, vocabulary.vectors, validation, seen, held_out)


def _begin_with(task: Task, start: Path) -> None:
    """Trained weights, the directions of an aligned residual among them: it knows the names of both trainings.

    Raises UsageError for a checkpoint of another model, CheckpointError, WeightsNotFound.
    """
    model, other = task.model, checkpoint.load(start)
    ours, theirs = (_model_settings(config) for config in (model.config, other.config))
    if ours != theirs:
        name = next(name for name in ours if ours[name] != theirs[name])
        raise UsageError(
            f"{start} is of another model than the recipe's: {name} is {theirs[name]!r}, and here {ours[name]!r}",
            "train from the checkpoint of the same recipe, or set the recipe's [model] to its values",
        )
    state = other.trained_state()
    if model.aligned is not None and other.aligned is not None:
        model.aligned.keep(torch.cat([other.aligned.names, model.aligned.names]).unique(dim=0))
        state = {name: value for name, value in state.items() if name not in checkpoint.OF_TRAINING}
    model.load_state_dict(state, strict=False)


def _held_out(data: PictureMasks, choice: Choice) -> list[int]:
    """Indices of the held-out classes."""
    found = {data.index(name) for name in choice.holdout}
    if choice.fold is not None and not choice.folds:
        raise UsageError(
            f"fold {choice.fold} was chosen, but nothing says how the classes are split",
            f"give --folds, one of {', '.join(FOLDS)}, or leave --fold out",
        )
    if choice.folds:
        if choice.fold is None:
            raise UsageError(
                f"the classes are split into folds ({choice.folds}), but no fold was chosen", "give --fold N"
            )
        found |= set(held_out_indices(data, choice.folds, choice.fold))
    return sorted(found)


def _without(data: PictureMasks, names: list[str], held_out: list[int]) -> list[str]:
    """The pictures that show no held-out class. Raises DataError where none is left."""
    if not held_out:
        return names
    kept = [
        name for name in tqdm(names, desc="holding out", unit="picture") if not set(held_out) & set(data.present(name))
    ]
    if not kept:
        raise DataError(
            f"every training picture shows one of {', '.join(data.words[i] for i in held_out)}",
            "hold out fewer classes",
        )
    return kept


def _fill(cache: FeatureCache, names: list[str], flips: tuple[bool, ...], processes: Processes) -> None:
    """Each process computes its share of the features."""
    share = [names[row] for row in processes.rows(len(names))]
    if share:
        cache.fill(share, flips)


def _settings(chosen: Recipe, data: PictureMasks, start: Path | None) -> dict[str, Any]:
    """Everything that the result depends on, in plain JSON."""
    templates = hashlib.sha256(json.dumps(chosen.model.templates).encode()).hexdigest()[:12]
    model = {**_model_settings(chosen.model), "templates": templates}  # as configured: a table of names ignores them
    settings = {"model": model, "plan": asdict(chosen.training), "data": data.root.name, **asdict(chosen.data)}
    if chosen.sets:
        settings["sets"] = json.loads(json.dumps({name: asdict(choice) for name, choice in chosen.sets.items()}))
    if start is not None:
        settings["from"] = sha256(start / "weights.safetensors")
    return settings


def _model_settings(config: FusionerConfig) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name not in ("encoder_sha256", "templates")}


def _complete(progress: Progress) -> bool:
    """Whether OUT holds this run's checkpoint. Raises UsageError where it is another run's."""
    folder = progress.out / "checkpoint"
    if not folder.exists() or (progress.folder / "state.json").is_file():
        return False
    config, record = checkpoint.read_config(folder)
    model = {**_model_settings(config), "templates": record.get("templates")}
    progress.check_finished({**record, "model": model})
    return True


def _keep(chosen: Recipe, task: Task, optimiser: Optimiser, progress: Progress) -> None:
    """Writes the checkpoint with its training record."""
    with optimiser.averaged():
        if progress.best:
            optimiser.trained.load_state_dict(progress.best)
            say_lines(f"kept: epoch {progress.best_epoch} of {progress.epoch}, the one with the best validation score")
        if task.model.aligned is not None:
            task.model.aligned.trusted.fill_(chosen.training.trust)
            task.model.aligned.yielding.fill_(chosen.training.yielding)
        record = {name: value for name, value in progress.settings.items() if name != "model"} | {
            "recipe": chosen.name,
            "seed": chosen.training.seed,
            "templates": progress.settings["model"]["templates"],
            "random_weights": task.model.random_weights,
            "pictures": len(task.batches.names),
            "classes": [task.data.words[index] for index in task.seen],
            "held_out": [task.data.words[index] for index in task.held_out],
            "history": progress.history,
            "kept_epoch": progress.best_epoch if progress.best else progress.epoch,
            "seconds": sum(row["seconds"] for row in progress.history),
            "versions": {
                "fusioner-rt": fusioner_rt.__version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "numpy": np.__version__,
            },
        }
        checkpoint.save(task.model, progress.out / "checkpoint", record)
    progress.finish()
    say(f"checkpoint: {progress.out / 'checkpoint'}")


def _summary(task: Task, optimiser: Optimiser, processes: Processes, total: int, epoch_steps: int) -> str:
    plan, parameters = optimiser.plan, sum(p.numel() for p in optimiser.parameters)
    device = torch.cuda.get_device_name(processes.device) if processes.device.type == "cuda" else "CPU"
    held_out = ", ".join(task.data.words[index] for index in task.held_out) or "none"
    return "\n".join(
        (
            f"device              {device}, {processes.count} process{'es' if processes.count > 1 else ''}, {plan.precision}",
            f"pictures            {len(task.batches.names)} to train on, {len(task.validation)} to validate",
            f"classes             {len(task.seen)} trained; held out: {held_out}",
            f"trained parameters  {parameters:,}",
            f"steps               {total} of {plan.batch} pictures, {epoch_steps} an epoch",
        )
    )


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keeps other trainings out of a folder, and removes what killed ones left in it. Raises FolderTaken."""
    with locked(out) as free:
        if free is False:
            raise FolderTaken("another process trains here", "wait until it ends, or give another --out", subject=out)
        for folder in (out, out / "state"):
            clear_temporaries(folder, 0 if free else STALE_SECONDS)
        yield


def _say(processes: Processes, text: str) -> None:
    if processes.first:
        say_lines(text)


def _next(folder: Path, data: PictureMasks) -> str:
    if isinstance(data, ManySets):
        return f"next: python -m training.across {shlex.quote(str(folder))} --data {shlex.quote(str(data.root))}"
    if isinstance(data, MaskFolder) and not data.has_lists:  # --split kept the pictures: there is no list to score by
        return checkpoint.next_build(folder, data)
    more = " --least 1" if isinstance(data, MaskFolder) else ""
    return (
        f"next: python -m training.evaluate {shlex.quote(str(folder))} --data {shlex.quote(str(data.root))}{more} "
        "--sheet scores.png"
    )


def main(given: Sequence[str] | None = None) -> int:
    return run_command(
        "training.train", lambda: _main(given), "the same command goes on after the last whole epoch", lacks
    )


def _main(given: Sequence[str] | None) -> int:
    command = arguments.parser()
    given = sys.argv[1:] if given is None else list(given)
    if not given:
        command.print_help()
        return 0
    options = command.parse_args(given)
    if options.list:
        say_lines(arguments.listing())
        return 0
    if not 0 <= options.workers <= _MOST_WORKERS:
        raise UsageError(
            f"--workers is {options.workers}; expected 0 to {_MOST_WORKERS}", "give fewer, such as one a core"
        )
    if options.recipe is None or options.data is None:
        raise UsageError("a recipe and --data DIR are needed", "without arguments, this command explains both")
    chosen = recipe.read(options.recipe, arguments.overrides(options))
    import matplotlib  # noqa: F401  # draws the curve: its lack is known before an epoch is trained

    if options.download:
        encoders.allow_download()
    out = options.out or arguments.default_out(chosen, seeded=getattr(options, "training.seed") is not None)
    if options.start is not None:
        checkpoint.read_config(options.start)
    data = (
        ManySets(options.data, chosen.sets, chosen.data.without)
        if chosen.sets
        else open_dataset(chosen.data.dataset, options.data, chosen.data.split)
    )
    with processes(options.device) as group, left_where_filled(out, options.cache):
        check_precision(chosen.training, group.device)
        checkpoint.check_place(out / "checkpoint")
        check_place(out)
        writable_folder(out)
        writable_folder(options.cache)
        with _alone(out) if group.first else contextlib.nullcontext():
            train(chosen, data, out, options.cache, group, options.workers, options.start)
        _say(group, _next(out / "checkpoint", data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
