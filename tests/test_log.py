"""The log of a training: its rows, and the picture of its loss."""

import csv
import errno
import os

import pytest
from PIL import Image

from ldm_numpy.training.log import Log

REPORT, BASELINES = ("loss", "mse"), {"loss": 1.0}


@pytest.fixture
def log(tmp_path):
    log = Log(tmp_path / "unet.csv", REPORT, BASELINES, 0)
    log.add(10, [0.5, 0.25, 3.0], 1e-3)
    log.add(20, [0.4, 0.125, 2.0], 5e-4)
    return log


def test_rows(log):
    """A number, what an answer of zero would have, the gradient's norm, the rate, the time."""
    log.flush()
    with open(log.path, newline="") as file:
        header, *rows = csv.reader(file)
    assert header[:4] == ["step", "loss", "mse", "loss_zero"]
    assert header[4:] == ["gradient_norm", "learning_rate", "seconds"]
    assert [row[:-1] for row in rows] == [["10", "0.5", "0.25", "1.0", "3", "0.001"],
                                          ["20", "0.4", "0.125", "1.0", "2", "0.0005"]]  # fmt: skip
    assert all(float(row[-1]) >= 0 for row in rows)


@pytest.mark.parametrize(("start", "kept"), [(20, ["10", "20"]), (19, ["10"]), (10, ["10"])])
def test_rows_beyond_the_checkpoint_are_dropped(log, start, kept):
    log.rows[-1][-1] = "7.5"
    log.flush()
    again = Log(log.path, REPORT, BASELINES, start)
    assert [row[0] for row in again.rows] == kept
    assert again.seconds == (7.5 if start == 20 else float(log.rows[0][-1]))
    assert log.path.read_text().count("\n") == 1 + len(kept)


def test_the_time_of_a_resumed_training_goes_on(log):
    log.rows[-1][-1] = "7000.5"
    log.flush()
    again = Log(log.path, REPORT, BASELINES, 20)
    again.add(30, [0.3, 0.1, 1.0], 1e-4)
    assert 7000.5 <= float(again.rows[-1][-1]) < 7100


def test_the_first_step_has_a_row(log):
    log.rows.insert(0, [1, "0.9", "0.9", "1.0", "9", "0.1", "0.0"])
    log.flush()
    assert [row[0] for row in Log(log.path, REPORT, BASELINES, 20).rows] == ["1", "10", "20"]


def test_no_row_twice(log):
    log.rows *= 2
    log.flush()
    assert [row[0] for row in Log(log.path, REPORT, BASELINES, 100).rows] == ["10", "20"]


def test_a_flipped_bit_costs_its_row_alone(log):
    log.rows += [[20 + i, "0.1", "0.1", "1.0", "1", "0.1", "9.9"] for i in range(1, 3000)]
    log.flush()
    log.path.write_bytes(log.path.read_bytes().replace(b"20,0.4", b'"0,0.4'))
    assert len(Log(log.path, REPORT, BASELINES, 10_000).rows) == 3000


def test_the_picture_is_written_whole_or_not_at_all(log, monkeypatch):
    pytest.importorskip("matplotlib")
    log.plot()
    picture = log.path.with_name("unet_loss.png")
    before = picture.read_bytes()
    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(ValueError, match=r"cannot write .*unet_loss\.png: No space left"):
        log.plot()
    assert picture.read_bytes() == before and len(list(log.path.parent.iterdir())) == 1


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_an_edited_log_stops_no_training(log):
    log.flush()
    seven, huge = ",0.4,0.1,1,2,0.1,", "9" * 400
    lies = ["30,half a row", "words", ""]
    lies += [f"{step}{seven}9.9" for step in ("0", "-30", huge, f"-{huge}", "3e1", "nan")]
    lies += [f"30{seven}{seconds}" for seconds in ("nan", "inf", huge, "")]
    log.path.write_text(log.path.read_text() + "\n".join(lies) + "\n")
    assert [row[0] for row in Log(log.path, REPORT, BASELINES, 100).rows] == ["10", "20"]


def test_a_log_of_a_terabyte_is_not_read(log):
    log.flush()
    os.truncate(log.path, 1 << 40)
    again = Log(log.path, REPORT, BASELINES, 100)
    assert again.rows == [] and again.seconds == 0


def test_the_picture_of_the_loss(log, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib.figure")
    log.plot()
    picture = log.path.with_name("unet_loss.png")
    with Image.open(picture) as image:
        assert image.format == "PNG" and image.size == (770, 440)  # 7 by 4 inches
    shown = []
    monkeypatch.setattr(matplotlib.Figure, "savefig", lambda self, *_, **__: shown.append(self))
    log.plot()
    (axes,) = shown[0].axes
    lines = {line.get_label(): [list(xy) for xy in line.get_data()] for line in axes.lines}
    assert lines["loss"] == [[10, 20], [0.5, 0.4]] and lines["mse"] == [[10, 20], [0.25, 0.125]]
    assert lines["loss of zero"][1] == [1.0, 1.0] and len(lines) == 3
    assert axes.get_yscale() == "log" and axes.get_title() == "unet"
