"""The evaluation's loop: what it measures, and that a killed one goes on without computing anything twice."""

import csv
import math

import numpy as np
import pytest

from helpers.tiny import evaluation as tiny_eval
from helpers.tiny.evaluation import Counter
from teasr_core.errors import InputError
from training.evaluation.metrics.pictures import mean_gradient, psnr_y
from training.evaluation.metrics.registry import Metric, Metrics, SetMetric, own_metrics
from training.evaluation.run import result_key, run_evaluation
from training.evaluation.scores import HEADER, ResultKey, Score, ScoreFile


def run(folder, *methods, **options):
    evaluation = tiny_eval.evaluation(folder, *methods, **options)
    return evaluation, run_evaluation(evaluation, show_progress=False)


def values(folder, metric, model, steps=0):
    with (folder / "scores.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["metric"], row["model"]) == (metric, model)]
    return [float(row["value"]) for row in rows if int(row["steps"]) == steps]


def test_every_method_is_measured_against_the_original(tmp_path):
    _, made = run(tmp_path, Counter().method())
    assert made == 2 * (3 + 2)  # two pictures; two enlargements, the originals, one and two steps
    assert values(tmp_path, "psnr_y", "HQ") == [math.inf] * 2 and values(tmp_path, "gmsd", "HQ") == [0.0] * 2
    assert values(tmp_path, "flat_gradient", "HQ") == values(tmp_path, "hq_flat_gradient", "HQ")
    for name in ("bicubic", "lanczos"):
        assert all(15 < value < 60 for value in values(tmp_path, "psnr_y", name))
    hq = tiny_eval.smooth(96, 96, 1)
    assert values(tmp_path, "gradient", "HQ")[1] == mean_gradient(hq) > values(tmp_path, "gradient", "bicubic")[1]
    lr, _ = tiny_eval.dataset().pictures[1].read()
    for steps in (1, 2):
        result = Counter()(lr, tiny_eval.dataset().pictures[1].size, steps)
        assert values(tmp_path, "psnr_y", "ours", steps)[1] == psnr_y(result, hq)


def test_a_second_run_computes_nothing(tmp_path):
    run(tmp_path, Counter().method())
    before, counter = (tmp_path / "scores.csv").read_bytes(), Counter()
    _, made = run(tmp_path, counter.method())
    assert made == 0 and counter.calls == [] and counter.loads == 0
    assert (tmp_path / "scores.csv").read_bytes() == before


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    options = {"datasets": (tiny_eval.dataset(4),)}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Counter(stop_after=5).method(), **options)
    with (tmp_path / "scores.csv").open("ab") as file:  # and a line that the kill cut short
        file.write(b"tiny,ours,2,p1,psn")
    counter = Counter()
    run(tmp_path, counter.method(), **options)
    assert counter.calls == [2, 2, 2] and counter.loads == 1  # of 4 + 4 results five were there
    whole, other = tmp_path / "whole", Counter()
    run(whole, other.method(), **options)
    assert other.calls == [1] * 4 + [2] * 4
    assert (tmp_path / "scores.csv").read_bytes() == (whole / "scores.csv").read_bytes()


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"dtype": "bf16"}, {"tile_px": 64}, {"color_fix": "lab"}, {"model_id": "b"}, {"name": "x"}]
)
def test_whatever_decides_a_result_makes_it_a_new_one(tmp_path, change):
    run(tmp_path, Counter().method())
    counter = Counter()
    run(tmp_path, counter.method(**change))
    assert counter.calls == [1, 1, 2, 2]


def test_only_what_is_new_is_computed(tmp_path):
    run(tmp_path, Counter().method())
    counter = Counter()
    run(tmp_path, counter.method(), steps=(1, 2, 4), datasets=(tiny_eval.dataset(3),))
    assert counter.calls == [1, 2, 4, 4, 4]
    extra = Metrics((*own_metrics().pictures, Metric("niqe", "other file", lambda picture, hq: float(picture.mean()))))
    counter = Counter()
    run(tmp_path, counter.method(), metrics=extra)
    assert counter.calls == [1, 2]  # p0 is kept on the disk, p1 is made again for the new figure
    assert len(values(tmp_path, "niqe", "ours", 1)) == 2


def test_many_steps_run_on_eight_pictures_of_the_list_only(tmp_path):
    counter = Counter()
    pictures = (tiny_eval.dataset(9), tiny_eval.dataset(9, "pairs", name="pairs"))
    run(tmp_path, counter.method(), datasets=pictures, steps=(1, 16))
    assert counter.calls == [1] * 9 + [16] * 8 + [1] * 9 + [16] * 9


def test_without_originals_there_is_nothing_to_compare_with(tmp_path):
    (lq,) = (tiny_eval.dataset(1, "lq"),)
    picture = lq.pictures[0]
    lr = picture.read()[0]
    alone = type(picture)(picture.name, picture.size, picture.scale, picture.picture_id, lambda: (lr, None))
    evaluation, _ = run(tmp_path, Counter().method(), datasets=(type(lq)("lq", "lq", (alone,)),))
    assert values(tmp_path, "gradient", "lanczos") and not values(tmp_path, "gradient", "HQ")
    assert not values(tmp_path, "psnr_y", "ours", 1)
    assert {"psnr_y", "gmsd"} <= {one.metric for one in evaluation.metrics.absent_from(has_hq=False)}


def test_a_figure_that_does_not_exist_is_recorded_as_absent_not_as_zero(tmp_path):
    def refuse(picture, hq):
        if np.array_equal(picture, hq):
            raise InputError("too good a picture")
        return 7.0

    metrics = Metrics((Metric("niqe", "1", refuse),))
    run(tmp_path, Counter().method(), metrics=metrics)
    text = (tmp_path / "scores.csv").read_text()
    assert "HQ,0,p0,niqe,,too good a picture," in text and ",0.0," not in text
    counter = Counter()
    _, made = run(tmp_path, counter.method(), metrics=metrics)
    assert made == 0  # it is not tried again either


def test_a_figure_of_the_whole_set_gets_both_folders(tmp_path):
    seen = []

    def count(results, originals):
        names = [sorted(path.name for path in folder.iterdir()) for folder in (results, originals)]
        seen.append(names)
        return float(len(names[0]))

    metrics = Metrics((), (SetMetric("fid", "1", count),))
    data = (tiny_eval.dataset(9),)
    run(tmp_path, Counter().method(), metrics=metrics, datasets=data, steps=(1, 30))
    everything = [f"p{index}.png" for index in range(9)]
    assert seen == [[everything, everything]] * 4  # three baselines and one step; 30 steps cover eight pictures
    assert values(tmp_path, "fid", "ours", 1) == [9.0] and values(tmp_path, "fid", "ours", 30) == []
    run(tmp_path, Counter().method(), metrics=metrics, datasets=data, steps=(1, 30))
    assert len(seen) == 4


def test_kept_pictures_are_the_results(tmp_path):
    evaluation, _ = run(tmp_path, Counter().method())
    method = evaluation.methods[-1]
    first, second = evaluation.datasets[0].pictures
    key = result_key(evaluation.datasets[0], method, 2, first)
    assert np.array_equal(evaluation.pictures.read(key), Counter()(first.read()[0], first.size, 2))
    assert not evaluation.pictures.has(result_key(evaluation.datasets[0], method, 2, second))
    evaluation.pictures.path(key).unlink()
    counter = Counter()
    run(tmp_path, counter.method())
    assert counter.calls == [2] and evaluation.pictures.has(key)


def test_scores_read_back_as_the_same_bits(tmp_path):
    key = ResultKey("set", "a,b", 4, 'x "1"', "id", 2**64 - 1, "fp32", 0, "off", "p")
    scores = [
        Score(key, "psnr_y", "1", 0.1 + 0.2),
        Score(key, "gmsd", "1", math.inf),
        Score(key, "niqe", "2", None, "two\nlines"),
    ]
    file = ScoreFile(tmp_path / "new" / "scores.csv")
    file.add(scores[:1])
    file.add(scores[1:])
    again = ScoreFile(file.path)
    assert len(again) == 3 and again.get(key, "psnr_y", "1").value == 0.1 + 0.2
    assert again.get(key, "gmsd", "1").value == math.inf
    assert (again.get(key, "niqe", "2").value, again.get(key, "niqe", "2").note) == (None, "two lines")
    assert again.get(key, "niqe", "1") is None
    assert file.path.read_text().splitlines()[0] == ",".join(HEADER)


def test_a_foreign_or_damaged_score_file_is_refused(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("name,score\na,1\n")
    with pytest.raises(InputError, match="something else"):
        ScoreFile(path)
    path.write_text(",".join(HEADER) + "\nset,a,one\n")
    with pytest.raises(InputError, match="line 2"):
        ScoreFile(path)
    path.write_bytes(b"data")  # killed while the header was written
    assert len(ScoreFile(path)) == 0
