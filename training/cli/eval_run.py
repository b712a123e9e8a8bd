"""The command `eval`: models x datasets x steps into tables, scores.csv, results.json, a plot and picture grids."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from teasr_core.device import choose_dtype, dtype_name
from teasr_core.sampling.schedule import parse_steps
from teasr_core.tiling import AUTO_TILE_PX

from ..evaluation.datasets import open_datasets
from ..evaluation.metrics.pyiqa_metrics import pyiqa_metrics
from ..evaluation.metrics.registry import Metrics, own_metrics
from ..evaluation.models import EvalModel, EvalSettings, check_settings, parse_models
from ..evaluation.picture_folders import PictureFolder, open_picture_folders
from ..evaluation.result_store import ResultStore, check_folder
from ..evaluation.run import HQ, Evaluation, all_jobs, baseline_methods, folder_method, model_method, run_evaluation
from ..evaluation.scores import ScoreFile
from ..evaluation.tables.ablation_table import ablation_table, arm_means
from ..evaluation.tables.grids import GRID_PICTURES, save_grids
from ..evaluation.tables.plot import save_plot
from ..evaluation.tables.report import dataset_report
from ..evaluation.tables.results import Results, collect, split_rows, versions, write_results


def evaluate_command(args: argparse.Namespace) -> int:
    """Run the evaluation, write everything into args.output and print the tables."""
    check_folder(args.output)
    steps = parse_steps(args.steps, "--steps is")
    presets = None if args.preset is None else args.preset.split(",")
    models = ablation_models(args.ablation) if args.ablation else []
    if args.model or args.base or not models:
        models += parse_models(args.model, args.base)
    dtype = dtype_name(choose_dtype(args.dtype, torch.device("cpu")))
    settings = EvalSettings(args.seed, dtype, args.tile_px, args.color_fix)
    check_settings(settings, models)
    metrics = all_metrics(args.niqe_params, args.lpips_backbone, args.pyiqa)
    datasets = open_datasets(args.photographs, presets, args.lr, args.hr, args.scale, args.seed, args.name)
    for dataset in datasets:
        for one in dataset.skipped:
            print(f"skipped {one.name}: {one.reason}", file=sys.stderr)
    folders = open_picture_folders(args.pictures, datasets, [model.name for model in models])
    evaluation = Evaluation(
        datasets=tuple(datasets),
        methods=(
            *baseline_methods(),
            *(folder_method(folder) for folder in folders),
            *(model_method(model, settings) for model in models),
        ),
        steps=steps,
        metrics=metrics,
        scores=ScoreFile(args.output / "scores.csv"),
        pictures=ResultStore(args.output / "pictures"),
        kept_pictures=GRID_PICTURES,
        use_all_pictures=args.save_pictures,
    )
    if len(evaluation.scores):
        print(f"{args.output / 'scores.csv'} holds {len(evaluation.scores)} scores; known ones stay", file=sys.stderr)
    made = run_evaluation(evaluation)
    print(f"made {made} of {len(all_jobs(evaluation))} results", file=sys.stderr)
    print(write_report(evaluation, models, folders, settings, args.output))
    if args.ablation:
        print(write_ablation(evaluation, args.output))
    return 0


def ablation_models(path: Path) -> list[EvalModel]:
    """Train what is missing of the ablation at `path`; its three arms. Raises the errors of `train_arms`."""
    from ..ablation.arms import train_arms

    arms = train_arms(path, note=lambda text: print(text, file=sys.stderr))
    return [EvalModel(arm.settings.name, f"{arm.base}+{arm.lora}", arm.base, arm.lora) for arm in arms]


def write_ablation(evaluation: Evaluation, folder: Path) -> str:
    """Write ablation_{dataset}.md for each dataset, like the paper's Table 3. Returns the text of the tables."""
    from ..ablation.arms import ARMS

    texts = []
    for dataset in evaluation.datasets:
        result = collect(evaluation, dataset)
        results = Results((result,))
        arms = [arm_means(arm.title, results, dataset.name, arm.name) for arm in ARMS]
        originals = result.means(HQ).get(0, {})  # the DCT codec is lossless: they are also its round trip
        texts.append(ablation_table(arms, evaluation.steps, codec_grid_peak=originals.get("grid_peak")))
        (folder / f"ablation_{dataset.name}.md").write_text(texts[-1], encoding="utf-8")
    return "\n".join(texts)


def all_metrics(niqe_params: Path | None, lpips_backbone: Path | None, pyiqa: str) -> Metrics:
    """Our own metrics and those of pyiqa. Raises the errors of `own_metrics` and `pyiqa_metrics`."""
    ours, fields = own_metrics(niqe_params, lpips_backbone), pyiqa_metrics(pyiqa)
    return Metrics(ours.pictures + fields.pictures, fields.sets, ours.absent + fields.absent)


def write_report(
    evaluation: Evaluation,
    models: Sequence[EvalModel],
    picture_folders: Sequence[PictureFolder],
    settings: EvalSettings,
    folder: Path,
) -> str:
    """Write every file except scores.csv from the scores. Returns the text of the tables."""
    results, texts = [], []
    for dataset in evaluation.datasets:
        results.append(collect(evaluation, dataset))
        texts.append(dataset_report(results[-1], split_rows(evaluation, dataset)))
        (folder / f"table_{dataset.name}.md").write_text(texts[-1], encoding="utf-8")
        save_grids(evaluation, dataset, folder)
    made_with = {
        "versions": versions(),
        "settings": {
            "steps": list(evaluation.steps), "seed": settings.seed, "dtype": settings.dtype,
            "tile_px": settings.tile_px or AUTO_TILE_PX, "color_fix": settings.color_fix,
        },
        "metrics": {
            one.key: one.metric_id for one in (*evaluation.metrics.pictures, *evaluation.metrics.sets)
        },
    }  # fmt: skip
    described = [
        {"name": model.name, "spec": model.spec, "model_id": model.model_id, "sha256": model.hashes()}
        for model in models
    ]
    described += [{"name": one.name, "pictures": str(one.folder), "model_id": one.model_id} for one in picture_folders]
    written = Results(tuple(results), tuple(described), made_with)
    write_results(written, folder / "results.json")
    if importlib.util.find_spec("matplotlib") is None:
        print("metrics_vs_steps.png is not drawn: the package matplotlib is not installed", file=sys.stderr)
    else:
        save_plot(written, folder / "metrics_vs_steps.png")
    return "\n".join(texts)
