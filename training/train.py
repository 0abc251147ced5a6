"""Trains fusion and decoder on a folder of pictures and index masks; the encoders stay frozen.

  python -m training.train --data DIR --out models/mine            # every class of the folder
  python -m training.train --data DIR --out runs/fold1 --holdout cat,chair,cow   # a fold: no picture of these is seen

The folder holds images/*.jpg, masks/*.png (8-bit class indices, 255 = ignored), classes.txt (a name a line, the
background's first), train.txt and val.txt (picture names). Frozen features are cached on disk once. After every epoch
the whole state is written; the same command started again goes on from there.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from fusioner_rt.errors import FusionerError
from training import alignment, checkpoint, scoring
from training.data import DataError, MaskFolder
from training.feature_cache import FeatureCache
from training.model import Fusioner, FusionerConfig
from training.words import Vocabulary, WordSampler


@dataclass(frozen=True)
class Plan:
    """How to train; what it is stays in FusionerConfig. Epochs count pictures seen once, in a random flip."""

    epochs: int = 12
    batch: int = 8
    rate: float = 1e-3  # paper 4.1: warmed up to 0.001, then a cosine
    warmup: float = 0.1  # share of all steps
    weight_decay: float = 0.05
    words: int = 4  # per picture, 1..words, present and absent
    absent: float = 0.5  # share of the absent words among those after the first
    word_noise: float = 0.0  # standard deviation added to unit word vectors
    word_rate: float = 0.0  # learning rate of the words' projection, relative; 0 keeps the alignment it starts from
    names: float = 0.5  # chance that a class goes by the classifier's name for what its mask shows
    holdout: tuple[str, ...] = ()
    seed: int = 0


def train(data: MaskFolder, config: FusionerConfig, plan: Plan, out: Path, cache_folder: Path) -> None:
    """Trains into `out`: out/checkpoint, out/log.jsonl, and out/state while it runs. Resumes where `out` has a state."""
    torch.manual_seed(plan.seed)
    model = checkpoint.build(config)
    cache = FeatureCache(
        cache_folder, data, model.image_encoder, model.config.encoder_sha256["image"], model.preprocessing()
    )
    holdout = [data.index(name) for name in plan.holdout]
    names, validation = data.names("train"), data.names("val")
    cache.fill(validation, (False,))
    if holdout:
        names = [
            name
            for name in tqdm(names, desc="holding out", unit="picture")
            if not set(holdout) & set(scoring.present(data.mask(name)))
        ]
        if not names:
            raise DataError(f"every training picture shows one of {', '.join(plan.holdout)}; hold out fewer classes")
    cache.fill(names)

    aligned = alignment.ridge(model, cache_folder) if config.image_encoder.startswith("efficientnet-lite") else None
    vocabulary = Vocabulary.collect(model, data, cache, names, aligned if plan.names else None)
    if aligned is not None:
        sample = torch.cat(
            [cache.tokens([cache.get(name)]).flatten(0, 2) for name in names[:: max(1, len(names) // 64)]]
        )
        alignment.initialise(model, aligned, sample)
    sampler = WordSampler(vocabulary, plan.words, plan.absent, plan.names)
    word_projection = list(model.project_words.parameters())
    others = [p for p in model.parameters() if p.requires_grad and not any(p is q for q in word_projection)]
    groups = [
        {"params": others, "lr": plan.rate, "weight_decay": plan.weight_decay},
        {
            "params": word_projection,
            "lr": plan.rate * (plan.word_rate if aligned is not None else 1.0),
            "weight_decay": plan.weight_decay,
        },
    ]
    optimiser = torch.optim.AdamW(groups)
    steps = len(_batches(cache, names, plan.batch, np.random.default_rng(0)))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, plan.epochs * steps, plan.warmup))
    seen = [index for index in vocabulary.classes if index not in holdout]

    progress = _Progress(out, {"plan": asdict(plan), "model": model.config.to_dict(), "data": data.root.name})
    first, history = progress.resume(model, optimiser, schedule)
    for epoch in range(first, plan.epochs):
        random = np.random.default_rng([plan.seed, epoch])  # an epoch's draws depend on its number alone
        model.train()
        losses: list[float] = []
        started = time.monotonic()
        bar = tqdm(_batches(cache, names, plan.batch, random), desc=f"epoch {epoch + 1}/{plan.epochs}", unit="step")
        for batch in bar:
            pictures = [cache.get(name, bool(random.integers(2))) for name in batch]
            words, targets, valid = sampler.draw(batch, torch.stack([p.labels for p in pictures]), random)
            if plan.word_noise:
                noise = torch.from_numpy(random.standard_normal(words.shape).astype(np.float32))
                words = F.normalize(words + plan.word_noise * noise / math.sqrt(words.shape[-1]), dim=-1)
            loss = _loss(model, cache.tokens(pictures), words, targets, valid)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(others + word_projection, 1.0)
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
            bar.set_postfix(loss=f"{np.mean(losses[-50:]):.3f}")
        model.eval()
        iou = scoring.score(scoring.fusioner(model, cache, vocabulary.vectors), data, validation, seen, "validation")
        shown = [index for index in seen if iou.union[index]]
        scored = [index for index in shown if iou.pictures[index] >= 15] or shown  # rare classes are noise
        history.append(
            {
                "epoch": epoch + 1,
                "loss": float(np.mean(losses)),
                "miou_trained_classes": iou.mean(scored),
                "seconds": time.monotonic() - started,
            }
        )
        print(
            f"epoch {epoch + 1}: loss {history[-1]['loss']:.4f}, mIoU of {len(scored)} trained classes {history[-1]['miou_trained_classes']:.1f}",
            flush=True,
        )
        progress.save(model, optimiser, schedule, epoch + 1, history)
    checkpoint.save(
        model,
        out / "checkpoint",
        {
            "data": data.root.name,
            "pictures": len(names),
            "classes": [data.words[i] for i in seen],
            "plan": asdict(plan),
            "history": history,
        },
    )
    progress.finish()
    print(f"checkpoint: {out / 'checkpoint'}")


def _loss(model: Fusioner, tokens: Tensor, words: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Binary cross entropy per word (paper 4.1), ignored pixels left out. targets (B, K, H, W), valid (B, 1, H, W).

    Taken at the decoder's own resolution: the last upsampling would cost a step much of its time on a CPU.
    """
    features, refined = model.fuse(tokens, words)
    h, w = features.shape[1:3]
    # Labels of the pixels nearest to the cells' centres.
    rows, columns = (((torch.arange(n) + 0.5) * m / n).long() for n, m in zip((h, w), targets.shape[2:], strict=True))
    targets, valid = targets[:, :, rows][..., columns], valid[:, :, rows][..., columns]
    cosine = torch.einsum("bhwd,bkd->bkhw", F.normalize(features, dim=-1), F.normalize(refined, dim=-1))
    loss = F.binary_cross_entropy_with_logits(cosine / model.config.temperature, targets, reduction="none")
    return (loss * valid).sum() / (valid.sum() * targets.shape[1]).clamp(min=1)


def _batches(cache: FeatureCache, names: list[str], size: int, random: np.random.Generator) -> list[list[str]]:
    """Pictures of one network size together, in random order."""
    buckets: dict[tuple[int, ...], list[str]] = {}
    for name in names:
        buckets.setdefault(cache.size(name), []).append(name)
    batches = []
    for bucket in buckets.values():
        order = random.permutation(len(bucket))
        batches += [[bucket[i] for i in order[start : start + size]] for start in range(0, len(bucket), size)]
    return [batches[i] for i in random.permutation(len(batches))]


def _rate(step: int, steps: int, warmup: float) -> float:
    ramp = max(1, int(steps * warmup))
    return (
        (step + 1) / ramp
        if step < ramp
        else 0.5 * (1 + math.cos(math.pi * min(1, (step - ramp) / max(1, steps - ramp))))
    )


class _Progress:
    """The state after the last whole epoch, so that a kill costs at most one."""

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        self.out, self.folder = out, out / "state"
        self.settings = json.loads(json.dumps(settings))

    def resume(
        self, model: Fusioner, optimiser: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LambdaLR
    ) -> tuple[int, list[dict[str, Any]]]:
        if not (self.folder / "state.json").is_file():
            return 0, []
        state = json.loads((self.folder / "state.json").read_text())
        if state["settings"] != self.settings:
            raise FusionerError(
                f"{self.out} holds a run with other settings; give its settings, another --out, or remove it"
            )
        tensors = load_file(self.folder / "tensors.safetensors")
        model.load_state_dict({n[6:]: v for n, v in tensors.items() if n.startswith("model.")}, strict=False)
        saved = optimiser.state_dict()
        saved["state"] = {}
        for name, value in tensors.items():
            if name.startswith("optimiser."):
                _, index, key = name.split(".")
                saved["state"].setdefault(int(index), {})[key] = value
        optimiser.load_state_dict(saved)
        schedule.last_epoch = state["steps"]
        for group, rate, factor in zip(optimiser.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
            group["lr"] = rate * factor(state["steps"])
        print(f"resuming after epoch {state['epoch']}")
        return state["epoch"], state["history"]

    def save(
        self,
        model: Fusioner,
        optimiser: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LambdaLR,
        epoch: int,
        history: list[dict[str, Any]],
    ) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".state.", dir=self.out))
        try:
            tensors = {f"model.{n}": v.contiguous() for n, v in model.trained_state().items()}
            for index, values in optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser.{index}.{key}": value for key, value in values.items()}
            save_file(tensors, temporary / "tensors.safetensors")
            state = {"settings": self.settings, "epoch": epoch, "steps": schedule.last_epoch, "history": history}
            (temporary / "state.json").write_text(json.dumps(state, indent=1))
            checkpoint.replace_folder(temporary, self.folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        (self.out / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))

    def finish(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of pictures, index masks and class names")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="where the checkpoint goes (OUT/checkpoint), and the run's state while it lasts",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("runs/features"),
        help="where frozen features are kept (default: %(default)s; about 1 MB a picture)",
    )
    model = parser.add_argument_group("model (paper 3.1, table 7; the defaults are the demonstration model's)")
    model.add_argument("--image-encoder", default="efficientnet-lite0", help="default: %(default)s")
    model.add_argument("--text-encoder", default="minilm-l6", help="default: %(default)s")
    model.add_argument("--width", type=int, default=192, help="fused channels d (paper: 512)")
    model.add_argument("--layers", type=int, default=4, help="fusion layers (paper: 12)")
    model.add_argument("--heads", type=int, default=6, help="attention heads (paper: 8)")
    model.add_argument(
        "--decoder",
        type=_channels,
        default=(192, 96, 64),
        help="channels of each decoder stage, comma separated; 0 = no decoder (default: 192,96,64)",
    )
    model.add_argument("--fusion", choices=("early", "late", "none"), default="early", help="default: %(default)s")
    model.add_argument("--temperature", type=float, default=0.07, help="of the sigmoid (default: %(default)s)")
    training = parser.add_argument_group("training (paper 4.1)")
    for name, text in (
        ("epochs", "passes over the pictures"), ("batch", "pictures a step"), ("rate", "largest learning rate"),
        ("warmup", "share of the steps in which the rate grows"), ("weight_decay", "of AdamW"), ("words", "most words per picture"),
        ("absent", "share of absent words after the first"), ("word_noise", "noise on the word vectors, relative to their length"),
        ("word_rate", "learning rate of the words' projection, relative (0: as aligned; without an alignment, 1)"),
        ("names", "chance of a class going by an ImageNet name for it"), ("seed", "of everything random"),
    ):  # fmt: skip
        default = getattr(Plan, name)
        training.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"{text} (default: %(default)s)"
        )
    training.add_argument("--holdout", default="", help="classes whose pictures are left out, comma separated")
    given = parser.parse_args(arguments)
    try:
        config = FusionerConfig(
            image_encoder=given.image_encoder, text_encoder=given.text_encoder, width=given.width, layers=given.layers,
            heads=given.heads, fusion=given.fusion, decoder=given.decoder, temperature=given.temperature,
        )  # fmt: skip
        chosen = {name: getattr(given, name) for name in Plan.__dataclass_fields__ if name != "holdout"}
        plan = Plan(**chosen, holdout=tuple(word.strip() for word in given.holdout.split(",") if word.strip()))
        train(MaskFolder(given.data), config, plan, given.out, given.cache)
    except (FusionerError, ValueError) as error:
        print(f"training.train: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 2)
    return 0


def _channels(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if int(part))


if __name__ == "__main__":
    sys.exit(main())
