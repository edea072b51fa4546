"""Reports, on numbers made by hand."""

import json
import sys

import pytest

from aswl.deploy import report


def make_report(twin: bool = True) -> dict:
    sparse = {"accuracy": 0.95, "correct": 95, "images": 100, "steps": 10, "seconds": 61.26, "images_per_s": 12345.6}
    dense = sparse | {"accuracy": 0.97, "correct": 97}
    layers = [("fc1", [20, 50], 100, 1000), ("fc2", [10, 20], 50, 200)]
    return {
        "versions": {"aswl": "0.1.0", "torch": "2.13.0"},
        "device": "cpu",
        "processes": 1,
        "threads": 2,
        "config": {
            "model": "lenet300",
            "data": "digits",
            "density": 0.125,
            "gamma": None,
            "epochs": 3,
            "batch_size": 4,
            "optimizer": "sgd",
            "seed": 7,
        },
        "networks": ({"dense": dense} if twin else {})
        | {"sparse": sparse | {"kept": 150, "size": 1200, "density": 0.125}},
        "layers": [
            {
                "name": name,
                "shape": shape,
                "kept": kept,
                "size": size,
                "attention": 0.25,
                "threshold": 0.5,
                "flops": 2 * kept,
                "dense_flops": 2 * size,
            }
            for name, shape, kept, size in layers
        ],
    }


def test_networks():
    assert report.networks(make_report()) == [
        ("network", "accuracy", "density", "weights", "time", "images/s"),
        ("dense twin", "97.00%", "1.0000", "1,200 of 1,200", "61.3 s", "12,346"),
        ("sparse", "95.00%", "0.1250", "150 of 1,200", "61.3 s", "12,346"),
        ("difference", "-2.00 points", "", "", "", ""),
    ]
    assert [row[0] for row in report.networks(make_report(twin=False))] == ["network", "sparse"]


def test_layers():
    header, first, _, total = report.layers(make_report())
    assert header[:5] == ("layer", "shape", "kept", "of", "density")
    assert first[:5] == ("fc1", "20x50", "100", "1,000", "0.1000")
    assert total[:5] == ("total", "", "150", "1,200", "0.1250")


def test_markdown():
    lines = report.markdown(make_report()).splitlines()
    assert lines[0] == "# lenet300 on digits, density 0.125"
    assert lines[2] == "3 epochs, batch 4, sgd, seed 7; cpu, processes: 1, threads: 2; aswl 0.1.0, torch 2.13.0."
    assert lines[4] == "| network    |     accuracy | density |        weights |   time | images/s |"
    assert lines[5] == "|------------|-------------:|--------:|---------------:|-------:|---------:|"
    assert lines[6] == "| dense twin |       97.00% |  1.0000 | 1,200 of 1,200 | 61.3 s |   12,346 |"
    assert "| batch_size |        4 |" in lines
    paper = make_report()
    paper["config"] |= {"density": None, "gamma": 1.0}
    assert report.markdown(paper).startswith("# lenet300 on digits, gamma 1.0\n")


def test_write_and_show(tmp_path, capsys, monkeypatch):
    (tmp_path / "report.json").write_text(json.dumps(make_report()))
    assert report.write(tmp_path).read_text() == report.markdown(make_report())
    report.show(tmp_path)
    assert "| sparse     |       95.00% |" in capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    report.show(tmp_path)
    drawn = capsys.readouterr().out
    assert "150 of 1,200" in drawn and "─" in drawn and "|" not in drawn


@pytest.mark.parametrize("content, line", [(None, "holds no report.json"), ("{", "damaged")])
def test_a_folder_without_numbers(tmp_path, content, line):
    if content:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(ValueError, match=line):
        report.read(tmp_path)
