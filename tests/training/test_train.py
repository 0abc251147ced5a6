from __future__ import annotations

import csv
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from export import build_engine
from fusioner_rt.errors import OutputUnwritable
from training import checkpoint, evaluate, progress, recipe, train
from training.batches import CachedBatches, Job, LiveBatches, feature_cache
from training.checkpoint import read_config
from training.data import DataError, MaskFolder, present
from training.distributed import Processes
from training.feature_cache import FeatureCache
from training.model import Fusioner, tiny
from training.optimisation import ENCODERS, Optimiser, rate
from training.progress import Progress, smoothed
from training.words import Vocabulary, WordSampler

ALONE = Processes(torch.device("cpu"))


def arguments(data: Path, out: Path, *more: str) -> list[str]:
    return ["tiny", "--data", str(data), "--out", str(out), "--cache", str(out.parent / "cache"), *more]


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoint" / "weights.safetensors")


def killed_after_its_first_epoch(given: list[str], out: Path) -> None:
    command = [sys.executable, "-m", "training.train", *given]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 100
        while not (out / "state" / "state.json").is_file():
            assert time.monotonic() < deadline, "no epoch ended in time"
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not (out / "checkpoint").exists()


def test_a_tiny_run_is_killed_resumed_and_evaluated(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--epochs", "6", "--ema", "0.9", "--patience", "9", "--workers", "2"]
    assert train.main(arguments(shapes, tmp_path / "whole", *more)) == 0
    killed_after_its_first_epoch(arguments(shapes, tmp_path / "broken", *more), tmp_path / "broken")
    assert train.main(arguments(shapes, tmp_path / "broken", *more)) == 0
    said = capsys.readouterr().out
    assert "resuming after epoch" in said
    folder = tmp_path / "broken" / "checkpoint"
    assert said.endswith(f"next: python -m training.evaluate {folder} --data {shapes} --least 1 --sheet scores.png\n")
    whole, broken = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert set(broken) == set(whole)
    for name, value in whole.items():
        assert torch.equal(value, broken[name]), name
    assert not (tmp_path / "broken" / "state").exists()
    for out in ("whole", "broken"):
        steps, epochs = rows(tmp_path / out / "steps.csv"), rows(tmp_path / out / "log.csv")
        assert [int(row["step"]) for row in steps] == list(range(1, 25))
        assert [int(row["epoch"]) for row in epochs] == list(range(1, 7))
        assert steps == rows(tmp_path / "whole" / "steps.csv")
        with Image.open(tmp_path / out / "curve.png") as picture:
            picture.verify()
    assert evaluate.main([str(folder), "--data", str(shapes), "--cache", str(tmp_path / "cache"), "--least", "1"]) == 0
    said = capsys.readouterr().out
    assert "red thing" in said
    build = f"next: python export/build_engine.py --checkpoint {folder} --fp16 --out engines/broken --pictures {shapes}/images\n"
    assert said.endswith(build)


@pytest.mark.slow
def test_what_was_trained_is_exported(shapes: Path, tmp_path: Path) -> None:
    assert train.main(arguments(shapes, tmp_path / "run", "--epochs", "2")) == 0
    folder, bundle = tmp_path / "run" / "checkpoint", tmp_path / "bundle"
    assert (
        build_engine.main(
            ["--checkpoint", str(folder), "--out", str(bundle), "--backend", "onnxruntime", "--kernels", "none"]
        )
        == 0
    )
    assert (bundle / "manifest.json").is_file()


def test_without_a_list_to_score_by_the_build_is_next(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train", "val"):
        (shapes / f"{name}.txt").unlink()
    assert train.main(arguments(shapes, tmp_path / "run", "--split", "0.2", "--steps", "1")) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("next: python export/build_engine.py --checkpoint ")
    assert last.endswith(f" --out engines/run --pictures {shapes}/images")


def test_a_finished_run_is_not_trained_again_and_other_settings_are_refused(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    assert train.main(arguments(shapes, out, "--epochs", "1")) == 0
    before = (out / "checkpoint" / "weights.safetensors").stat()
    assert train.main(arguments(shapes, out, "--epochs", "1")) == 0
    assert "is complete" in capsys.readouterr().out
    assert (out / "checkpoint" / "weights.safetensors").stat() == before
    assert train.main(arguments(shapes, out, "--epochs", "1", "--rate", "0.5")) == 2
    assert "rate 0.001 there, 0.5 here" in capsys.readouterr().err
    monkeypatch.setattr(Progress, "finish", lambda self: None)  # a run that ends right before its state is removed
    out = tmp_path / "unfinished"
    assert train.main(arguments(shapes, out, "--epochs", "1")) == 0
    assert train.main(arguments(shapes, out, "--epochs", "1", "--width", "8")) == 2
    assert "unfinished run with other settings (width 16 there, 8 here)" in capsys.readouterr().err
    (file,) = (out / "state").glob("*.safetensors")
    file.write_bytes(b"\0" * 99)
    assert train.main(arguments(shapes, out, "--epochs", "1")) == 71
    assert "cannot be resumed from" in capsys.readouterr().err


def test_training_lowers_the_loss(shapes: Path, tmp_path: Path) -> None:
    assert train.main(arguments(shapes, tmp_path / "run", "--epochs", "12", "--rate", "0.01", "--words", "1")) == 0
    losses = [float(row["loss"]) for row in rows(tmp_path / "run" / "log.csv")]
    assert losses[-1] < 0.8 * losses[0]


def test_the_run_ends_after_so_many_steps_and_the_rate_with_it(shapes: Path, tmp_path: Path) -> None:
    """8 pictures in batches of 2: 4 steps an epoch. 6 steps are an epoch and a half, 3 less than one."""
    for steps, epochs in ((6, [4, 6]), (3, [3])):
        out = tmp_path / str(steps)
        assert train.main(arguments(shapes, out, "--steps", str(steps), "--warmup", "0.5")) == 0
        assert [int(row["steps"]) for row in rows(out / "log.csv")] == epochs
        ramp = min(2, steps // 2)
        rates = [float(row["rate"]) / 1e-3 for row in rows(out / "steps.csv")]
        assert rates == pytest.approx([rate(step, steps, ramp) for step in range(steps)])
        assert len(rates) == steps
        assert rates[ramp - 1] == max(rates) == 1


def test_the_rate_grows_linearly_and_then_follows_a_cosine_to_nothing() -> None:
    values = [rate(step, 110, 10) for step in range(111)]
    assert values[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert values[60] == pytest.approx(0.5)
    assert values[110] == 0
    assert values[10:] == sorted(values[10:], reverse=True)


def test_holding_out_a_class_leaves_every_picture_that_shows_it(shapes: Path, tmp_path: Path) -> None:
    assert train.main(arguments(shapes, tmp_path / "run", "--epochs", "1", "--holdout", "red thing")) == 0
    data = MaskFolder(shapes)
    without = [name for name in data.names("train") if 1 not in present(data.mask(name))]
    assert 0 < len(without) < len(data.names("train"))
    record = read_config(tmp_path / "run" / "checkpoint")[1]
    assert record["pictures"] == len(without)
    assert "red thing" not in record["classes"]
    assert (record["held_out"], record["holdout"]) == (["red thing"], ["red thing"])
    flipped = {file.name.rsplit("-", 1)[0] for file in (tmp_path / "cache").rglob("flipped/*")}
    assert flipped == set(without), "only pictures to train on are cached in both directions"


def test_a_checkpoint_says_what_it_was_trained_on(shapes: Path, tmp_path: Path) -> None:
    assert train.main(arguments(shapes, tmp_path / "run", "--steps", "2", "--seed", "3")) == 0
    record = read_config(tmp_path / "run" / "checkpoint")[1]
    assert {name: record[name] for name in ("recipe", "dataset", "data", "folds", "fold", "holdout", "pictures")} == {
        "recipe": "tiny", "dataset": "folder", "data": "shapes", "folds": "", "fold": None, "holdout": [], "pictures": 8
    }  # fmt: skip
    assert record["plan"]["seed"] == record["seed"] == 3
    assert record["classes"] == ["red thing", "green thing", "blue thing"]
    assert len(record["history"]) == 1
    assert record["versions"]["torch"] == torch.__version__
    assert record["seconds"] == sum(row["seconds"] for row in record["history"])


@pytest.mark.parametrize(
    "more",
    [
        ["--augment", "full"],
        pytest.param(["--precision", "bf16"], marks=pytest.mark.slow),
        pytest.param(["--augment", "none", "--ema", "0.5"], marks=pytest.mark.slow),
    ],
)
def test_every_way_to_train_gives_the_same_weights_for_a_seed_and_others_for_another(
    shapes: Path, tmp_path: Path, more: list[str]
) -> None:
    for out, seed, workers in (("a", 0, 0), ("b", 0, 2), ("c", 1, 0)):
        given = ["--steps", "5", "--seed", str(seed), "--workers", str(workers), "--word-noise", "0.1", *more]
        assert train.main(arguments(shapes, tmp_path / out, *given)) == 0
    a, b, c = (weights(tmp_path / out) for out in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["out_pixels.weight"], c["out_pixels.weight"])
    assert {value.dtype for value in a.values()} == {torch.float32}
    cached = list((tmp_path / "cache").rglob("plain/*"))
    assert len(cached) == (4 if "full" in more else 12), "augmented pictures are encoded in every step, and not kept"


def test_the_run_stops_without_improvement_and_keeps_the_best_epoch(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores, kept = iter([10.0, 30.0, 20.0, 25.0, 99.0]), []

    def validate(task: train.Task, *_: object) -> float:
        kept.append({name: value.clone() for name, value in task.model.trained_state().items()})
        return next(scores)

    monkeypatch.setattr(train, "_validate", validate)
    assert train.main(arguments(shapes, tmp_path / "run", "--epochs", "9", "--patience", "2", "--ema", "0.5")) == 0
    assert len(kept) == 4
    assert all(torch.equal(kept[1][name], value) for name, value in weights(tmp_path / "run").items())
    assert read_config(tmp_path / "run" / "checkpoint")[1]["kept_epoch"] == 2
    assert "kept: epoch 2 of 4" in capsys.readouterr().out


def optimiser(model: Fusioner, **fields: object) -> Optimiser:
    chosen = recipe.read("tiny", {"training": fields})
    return Optimiser(model, chosen.training, aligned=False, steps=10, warmup=1, device=torch.device("cpu"))


def test_frozen_encoders_are_neither_optimised_nor_averaged_nor_kept(shapes: Path, tmp_path: Path) -> None:
    model = tiny()
    frozen = {id(p) for name in ENCODERS for p in getattr(model, name).parameters()}
    trainer = optimiser(model, ema=0.9)
    optimised = [p for group in trainer.adamw.param_groups for p in group["params"]]
    assert {id(p) for p in optimised} == {id(p) for p in model.parameters()} - frozen
    assert len(optimised) == len({id(p) for p in optimised})
    assert frozen
    assert not any(p.requires_grad for name in ENCODERS for p in getattr(model, name).parameters())
    assert trainer.average is not None
    assert sum(p.numel() for p in trainer.average.parameters()) == sum(p.numel() for p in optimised)
    assert not [name for name in trainer.state()[0] if "encoder" in name]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = batches(shapes, tmp_path, model).load(Job(["shape00", "shape02"], 0, 0))
    forward = train._Forward(model, trainer, ALONE)
    for _ in range(2):
        forward(batch)
        trainer.step()
    changed = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name, _ in model.named_children()} - set(ENCODERS)


def test_averaged_weights_are_the_decayed_mean_of_every_steps(shapes: Path, tmp_path: Path) -> None:
    model = tiny()
    trainer = optimiser(model, ema=0.75)
    batch = batches(shapes, tmp_path, model).load(Job(["shape00", "shape02"], 0, 0))
    forward, wanted = train._Forward(model, trainer, ALONE), None
    for _ in range(3):
        forward(batch)
        trainer.step()
        now = model.out_pixels.weight.detach().double()
        wanted = now.clone() if wanted is None else 0.75 * wanted + 0.25 * now
    last = model.out_pixels.weight.detach().clone()
    with trainer.averaged():
        # 3 roundings of values below 2, each half a unit in the last place of float32
        torch.testing.assert_close(model.out_pixels.weight.detach().double(), wanted, atol=3 * 2**-23, rtol=0)
        assert not torch.equal(model.out_pixels.weight, last)
    assert torch.equal(model.out_pixels.weight, last)


def batches(
    shapes: Path, tmp_path: Path, model: Fusioner, processes: Processes = ALONE, **fields: object
) -> CachedBatches | LiveBatches:
    data, plan = MaskFolder(shapes), recipe.read("tiny", {"training": {"batch": 4, "words": 3, **fields}}).training
    cache, names = feature_cache(tmp_path / "cache", data, model, ALONE.device), data.names("train")
    cache.fill(names)
    sampler = WordSampler(Vocabulary.collect(model, data, cache, names, None), plan)
    if plan.augment == "full":
        return LiveBatches(data, names, model, sampler, plan, processes)
    return CachedBatches(cache, names, model, sampler, plan, processes)


def gradients(model: Fusioner, batch: object, **fields: object) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad(set_to_none=True)
    loss = train._Forward(model, optimiser(model, **fields), ALONE)(batch)  # type: ignore[arg-type]
    return float(loss), {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("count", [2, 3, 4, 9])
def test_a_batch_in_parts_has_the_gradients_of_the_whole_though_its_pictures_ignore_unequal_shares(
    shapes: Path, tmp_path: Path, count: int
) -> None:
    mask = MaskFolder(shapes).mask_file("shape02")
    values = np.asarray(Image.open(mask)).copy()
    values[:70] = 255
    Image.fromarray(values).save(mask)
    model = tiny()
    batch = batches(shapes, tmp_path, model).load(Job(["shape00", "shape02", "shape04", "shape06"], 0, 0))
    assert len({float(row.sum()) for row in batch.valid}) > 1
    whole_loss, whole = gradients(model, batch, jaccard=0.5)
    loss, parts = gradients(model, batch, accumulate=count, jaccard=0.5)
    # Sums of the same float32 terms in another order: a few units in the last place of the largest. (A bias before an
    # instance norm has a gradient of 0, so that its rounding error must not be judged against itself.)
    allowed = 8 * 2**-23 * max(float(value.abs().max()) for value in whole.values())
    assert loss == pytest.approx(whole_loss, rel=8 * 2**-23)
    assert set(parts) == set(whole)
    for name, value in whole.items():
        assert (parts[name] - value).abs().max() <= allowed, name


def test_processes_draw_alike_and_their_rows_make_up_the_batch(shapes: Path, tmp_path: Path) -> None:
    model, names = tiny(), ["shape00", "shape02", "shape04"]
    for augment in ("flip", "full"):
        whole = batches(shapes, tmp_path, model, augment=augment, word_noise=0.1).load(Job(names, 1, 5))
        for count in (1, 2, 3, 5):
            shares = [
                batches(shapes, tmp_path, model, Processes(ALONE.device, rank, count), augment=augment, word_noise=0.1)
                .load(Job(names, 1, 5))
                for rank in range(count)
            ]  # fmt: skip
            counted = [share for share in shares if share.valid.any()]
            assert len(counted) == min(count, 3)
            assert sum(float(share.weight()) for share in shares) == float(whole.weight())
            for field in ("words", "targets", "valid"):
                assert torch.equal(torch.cat([getattr(share, field) for share in counted]), getattr(whole, field))
            for level, joined in enumerate(whole.inputs):
                assert torch.equal(torch.cat([share.inputs[level] for share in counted]), joined)


def test_an_epoch_holds_every_picture_once_and_a_batch_pictures_of_one_size(shapes: Path, tmp_path: Path) -> None:
    found = batches(shapes, tmp_path, tiny(), batch=3)
    names = found.plan_epoch(0)
    assert sorted(name for batch in names for name in batch) == MaskFolder(shapes).names("train")
    assert len(names) == found.steps() == 4
    assert all(len({int(name[-2:]) % 2 for name in batch}) == 1 for batch in names)
    assert names != found.plan_epoch(1)


def test_targets_are_the_masks_at_the_centres_of_the_decoders_cells(shapes: Path, tmp_path: Path) -> None:
    """96×96 pictures at stride 16, one decoder upsampling: 12×12 cells of 8×8 pixels, whose centres pick the labels."""
    model = tiny()
    found = batches(shapes, tmp_path, model, words=1, augment="none")
    batch = found.load(Job(["shape00"], 0, 0))
    features, _ = model.fuse(batch.tokens(model.image_encoder), batch.words)
    assert batch.targets.shape[2:] == features.shape[1:3] == (12, 12)
    mask = MaskFolder(shapes).mask("shape00")[
        5::8, 5::8
    ]  # the centre of cell 0 is label 2 of 48, whose own centre is 5
    assert torch.equal(batch.valid[0, 0].bool(), torch.from_numpy(mask != -1))
    assert any(torch.equal(batch.targets[0, 0].bool(), torch.from_numpy(mask == index)) for index in (1, 2, 3))


def test_a_positive_weight_counts_the_words_own_pixels_so_often(shapes: Path, tmp_path: Path) -> None:
    model = tiny()
    batch = batches(shapes, tmp_path, model).load(Job(["shape00", "shape02"], 0, 0))
    once, _ = gradients(model, batch)
    thrice, _ = gradients(model, batch, positive_weight=3.0)
    with torch.no_grad():
        features, words = model.fuse(batch.tokens(model.image_encoder), batch.words)
        cosine = torch.einsum(
            "bhwd,bkd->bkhw",
            torch.nn.functional.normalize(features, dim=-1),
            torch.nn.functional.normalize(words, dim=-1),
        )
        inside = -torch.nn.functional.logsigmoid(cosine / model.config.temperature) * batch.targets * batch.valid
    assert thrice == pytest.approx(once + 2 * float(inside.sum() / batch.weight()), rel=1e-5)


def test_the_jaccard_part_is_one_minus_the_soft_intersection_over_union_of_each_shown_word(
    shapes: Path, tmp_path: Path
) -> None:
    model = tiny()
    batch = batches(shapes, tmp_path, model).load(Job(["shape00", "shape02"], 0, 0))
    plain, _ = gradients(model, batch)
    both, _ = gradients(model, batch, jaccard=2.0)
    with torch.no_grad():
        features, words = (
            torch.nn.functional.normalize(x, dim=-1) for x in model.fuse(batch.tokens(model.image_encoder), batch.words)
        )
        found = torch.sigmoid(torch.einsum("bhwd,bkd->bkhw", features, words) / model.config.temperature)
    missed = []
    for mask, target, valid in zip(
        found.flatten(0, 1),
        batch.targets.flatten(0, 1),
        batch.valid.repeat_interleave(batch.targets.shape[1], 0),
        strict=True,
    ):
        p, t = mask[valid[0] > 0].numpy(), target[valid[0] > 0].numpy()
        if t.any():
            missed.append(1 - (p * t).sum() / (p + t - p * t).sum())
    assert both == pytest.approx(plain + 2 * np.mean(missed), rel=1e-5)
    assert 0 < len(missed) == int(batch.shown())


def test_a_loss_that_is_no_number_ends_the_run_and_leaves_the_last_epochs_state(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, calls = train._SummedLoss.forward, iter(range(99))

    def forward(self: train._SummedLoss, *given: torch.Tensor) -> torch.Tensor:
        return plain(self, *given) * (float("nan") if next(calls) == 5 else 1.0)

    monkeypatch.setattr(train._SummedLoss, "forward", forward)
    assert train.main(arguments(shapes, tmp_path / "run")) == 77
    assert "the loss of step 6 is nan" in capsys.readouterr().err
    assert (tmp_path / "run" / "state" / "state.json").is_file()
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_a_smoothed_curve_stays_between_what_it_smooths() -> None:
    values = np.random.default_rng(0).random(200).tolist()
    smooth = smoothed(values)
    assert smooth[0] == values[0]
    assert all(min(values) <= value <= max(values) for value in smooth)
    assert np.std(np.diff(smooth)) < 0.3 * np.std(np.diff(values))
    assert smoothed([2.0] * 9) == pytest.approx([2.0] * 9)


def test_a_changed_mask_is_read_again(shapes: Path, tmp_path: Path) -> None:
    data, model = MaskFolder(shapes), tiny()
    cache = FeatureCache(tmp_path / "cache", data, model.image_encoder, "x", model.preprocessing())
    cache.fill(["shape00"])
    before = cache.get("shape00").labels
    Image.fromarray(np.full(data.mask("shape00").shape, 3, np.uint8)).save(data.mask_file("shape00"))
    cache.fill(["shape00"])
    assert before.unique().tolist() != [3]
    assert cache.get("shape00").labels.unique().tolist() == [3]


@pytest.mark.parametrize("augment", ["flip", "full"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "classes.txt").unlink(), "classes.txt cannot be read"),
        (lambda root: (root / "classes.txt").write_text("background\nred thing\n"), "holds index"),
        (lambda root: (root / "masks" / "shape00.png").unlink(), "shape00.png is missing"),
        (lambda root: (root / "images" / "shape00.jpg").unlink(), "shape00.jpg is missing"),
        (lambda root: (root / "val.txt").write_text(""), "names no picture"),
        (lambda root: Image.new("L", (5, 7)).save(root / "masks" / "shape00.png"), "5×7 pixels, its picture 96×96"),
    ],
)
def test_bad_data_is_named_before_anything_is_kept(
    shapes: Path,
    tmp_path: Path,
    damage: Callable[[Path], object],
    message: str,
    augment: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(shapes)
    assert train.main(arguments(shapes, tmp_path / "run", "--augment", augment)) == DataError.exit_code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["state/thesis.txt", "state/mine.safetensors", "log.csv", "steps.csv", "curve.png"])
def test_a_run_is_kept_in_place_of_no_file_of_the_users(
    name: str, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "run" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("years of work")
    assert train.main(arguments(shapes, tmp_path / "run", "--epochs", "1")) == OutputUnwritable.exit_code
    assert mine.name in capsys.readouterr().err
    assert mine.read_text() == "years of work"


def test_the_end_of_a_run_removes_its_own_state_alone(tmp_path: Path) -> None:
    progress = Progress(tmp_path, {})
    progress.folder.mkdir()
    for name in ("state.json", "epoch3.safetensors", "mine.txt"):
        (progress.folder / name).write_text("{}")
    progress.finish()
    assert [path.name for path in progress.folder.iterdir()] == ["mine.txt"]
    (progress.folder / "mine.txt").unlink()
    progress.finish()
    assert not progress.folder.exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--precision", "fp16"], "precision fp16 needs a CUDA device"),
        (["--folds", "pascal-5i"], "give --fold N"),
        (["--folds", "pascal-5i", "--fold", "1"], "has no class of pascal-5i's fold 1"),
        (["--fold", "1"], "nothing says how the classes are split"),
        (["--rate", "inf"], "rate is inf"),
        (["--cache", "/dev/null/x"], "/dev/null/x: cannot be written"),
        (["--set", "model.templates=[]"], "no prompt templates"),
        (["--set", 'model.templates=["a photo"]'], "must hold {category} exactly once"),
        (["--holdout", "red thing,green thing,blue thing"], "hold out fewer classes"),
        (["--holdout", "purple thing"], "no class"),
        (["--dataset", "coco"], "no kind of data set called 'coco'"),
        (["--device", "tpu"], "no device is called 'tpu'"),
        (["--set", "training.epochs"], "sets nothing"),
        (["--decoder", "a"], "no channels"),
        (["--image-encoder", "nothing"], "no image encoder is called 'nothing'"),
        (["--workers", "-1"], "workers is -1"),
    ],
)
def test_a_wrong_flag_ends_in_one_line_and_leaves_nothing(
    shapes: Path, tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(arguments(shapes, tmp_path / "run", *more)) not in (0, 1)
    said = [line for line in capsys.readouterr().err.splitlines() if "training.train:" in line]
    assert len(said) == 1
    assert message in said[0]
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_to_stop_by_its_score_needs_a_score(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = MaskFolder(shapes)
    for name in data.names("val"):
        Image.fromarray(np.zeros(data.mask(name).shape, np.uint8)).save(data.mask_file(name))
    assert train.main(arguments(shapes, tmp_path / "run", "--steps", "1", "--patience", "1")) == DataError.exit_code
    assert "no score to stop by" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert train.main(arguments(shapes, tmp_path / "run", "--steps", "1")) == 0


def test_masks_that_show_what_the_data_set_denies_are_refused(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(MaskFolder, "present", lambda self, name: [2])  # as annotations that differ from the masks
    assert train.main(arguments(shapes, tmp_path / "run", "--holdout", "red thing")) == DataError.exit_code
    assert "show red thing where the data set says that they do not" in capsys.readouterr().err


@pytest.mark.parametrize("moment", ["epoch2.safetensors", pytest.param("state.json", marks=pytest.mark.slow)])
def test_a_run_that_ends_while_its_state_is_written_goes_on_from_the_last_one(
    shapes: Path, tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given, steps = ["--epochs", "3", "--patience", "9"], tmp_path / "whole" / "steps.csv"
    assert train.main(arguments(shapes, tmp_path / "whole", *given)) == 0
    write_tensors, write = progress.write_tensors, progress._write
    with monkeypatch.context() as patch:

        def half(file: Path, tensors: dict[str, torch.Tensor]) -> None:
            write_tensors(file, tensors)
            if file.name == moment:
                file.write_bytes(file.read_bytes()[:99])
                raise KeyboardInterrupt

        def nothing(file: Path, content: bytes) -> None:
            if file.name == moment and (file.parent / "epoch2.safetensors").exists():
                raise KeyboardInterrupt
            write(file, content)

        patch.setattr(progress, "write_tensors", half)
        patch.setattr(progress, "_write", nothing)
        assert train.main(arguments(shapes, tmp_path / "broken", *given)) == 130
    assert train.main(arguments(shapes, tmp_path / "broken", *given)) == 0
    assert "resuming after epoch 1" in capsys.readouterr().out
    whole, broken = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(value, broken[name]) for name, value in whole.items())
    assert (tmp_path / "broken" / "steps.csv").read_bytes() == steps.read_bytes()


def test_features_are_kept_of_pictures_in_folders_and_damaged_ones_are_named(shapes: Path, tmp_path: Path) -> None:
    data, model, names = MaskFolder(shapes), tiny(), ["a/one", "b/two"]
    for name, source in zip(names, data.names("train"), strict=False):
        for kind, suffix in (("images", "jpg"), ("masks", "png")):
            (shapes / kind / name).parent.mkdir()
            (shapes / kind / f"{source}.{suffix}").rename(shapes / kind / f"{name}.{suffix}")
    cache = FeatureCache(tmp_path / "cache", data, model.image_encoder, "x", model.preprocessing())
    cache.fill(names)
    assert [cache.get(name).labels.ndim for name in names] == [2, 2]
    for file in (tmp_path / "cache").rglob("one-*"):
        file.write_bytes(b"x")
    with pytest.raises(DataError, match="remove it and start again"):
        cache.get(names[0])


def test_without_arguments_the_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([]) == 0
    assert "classes.txt" in capsys.readouterr().out
    assert train.main(["--list"]) == 0
    assert "For tests and dry runs" in capsys.readouterr().out
    assert train.main(["tiny"]) == 2
    assert "--data DIR" in capsys.readouterr().err


def test_a_checkpoint_of_a_run_loads_as_the_model_that_was_validated(shapes: Path, tmp_path: Path) -> None:
    assert train.main(arguments(shapes, tmp_path / "run", "--steps", "1")) == 0
    model = checkpoint.load(tmp_path / "run" / "checkpoint")
    assert model.config.width == 16
    assert not model.training
