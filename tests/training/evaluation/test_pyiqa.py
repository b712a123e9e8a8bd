"""pyiqa's figures: absent with the reason where the package or a file is missing, and never a download."""

import importlib.util
import socket

import pytest

from teasr_core.errors import InputError
from training.evaluation.metrics.columns import column
from training.evaluation.metrics.pyiqa_metrics import PYIQA_METRICS, missing_files, no_network, pyiqa_metrics


def metric(name):
    return next(one for one in PYIQA_METRICS if one.name == name)


def test_every_figure_is_either_there_or_absent_with_a_reason(tmp_path):
    found = pyiqa_metrics("all", hub=tmp_path)  # an empty hub folder
    assert found.pictures == () and found.sets == ()
    assert [one.metric for one in found.absent] == [one.key for one in PYIQA_METRICS]
    has_package = importlib.util.find_spec("pyiqa") is not None
    assert all(("not on the disk" if has_package else "not installed") in one.reason for one in found.absent)
    for one in found.absent:
        column(one.metric)  # a table can name it


def test_the_files_are_looked_for_by_name(tmp_path):
    assert missing_files(metric("lpips"), tmp_path) == [
        "hub/checkpoints/alexnet-owt-7be5be79.pth",
        "hub/pyiqa/LPIPS_v0.1_alex-df73285e.pth",
    ]
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth").touch()
    assert missing_files(metric("lpips"), tmp_path) == ["hub/pyiqa/LPIPS_v0.1_alex-df73285e.pth"]
    (tmp_path / "pyiqa").mkdir()
    (tmp_path / "pyiqa" / "LPIPS_v0.1_alex-df73285e.pth").touch()
    assert missing_files(metric("lpips"), tmp_path) == []


def test_what_is_not_asked_for_is_absent_too(tmp_path):
    reasons = {one.metric: one.reason for one in pyiqa_metrics("musiq,fid", hub=tmp_path).absent}
    assert len(reasons) == len(PYIQA_METRICS)
    assert reasons["dists"] == "--pyiqa musiq,fid leaves it out" and "leaves it out" not in reasons["musiq"]
    assert all(one.reason == "--pyiqa none leaves it out" for one in pyiqa_metrics("none", hub=tmp_path).absent)
    with pytest.raises(InputError, match="'psnr'"):
        pyiqa_metrics("musiq,psnr")


def test_no_connection_leaves_the_block():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with no_network():
            with pytest.raises(OSError, match="attempt to download"):
                socket.create_connection(("127.0.0.1", port))
            with socket.socket() as plain, pytest.raises(OSError, match="attempt to download"):
                plain.connect(("127.0.0.1", port))
        socket.create_connection(("127.0.0.1", port)).close()  # and afterwards everything is as it was


def test_the_network_is_given_back_after_an_error():
    resolve = socket.getaddrinfo
    with pytest.raises(ValueError, match="inside"), no_network():
        raise ValueError("inside")
    assert socket.getaddrinfo is resolve and "connect" not in vars(socket.socket)
