"""The demo learns, repeats itself bit for bit, and the command line does what it says."""

import importlib
import io
import subprocess
import sys

import numpy as np
import pytest

from fastconv import demo, verify
from fastconv.__main__ import main
from fastconv.threads import threads

SHORT = 3  # epochs
EXTRAS = ("sklearn", "tqdm", "matplotlib")


@pytest.fixture(scope="module")
def digits():
    for extra in EXTRAS:
        pytest.importorskip(extra)
    return demo.load_digits(0)


@pytest.fixture(scope="module")
def trained(digits):
    return demo.train(digits, SHORT, seed=0)


def flat(network):
    return b"".join(value.tobytes() for value in network.parameters.values())


def test_the_split_is_stratified_and_seeded(digits):
    assert digits.train_images.shape == (1437, 1, 8, 8)
    assert digits.test_images.shape == (360, 1, 8, 8)
    assert digits.train_images.dtype == np.float32
    counts = np.bincount(digits.test_labels)
    assert counts.min() >= 34
    assert np.array_equal(demo.load_digits(0).test_images, digits.test_images)
    assert not np.array_equal(demo.load_digits(1).test_images, digits.test_images)


def test_training_improves_the_loss(trained, digits):
    network, history = trained
    assert len(history) == SHORT
    assert history[0] > history[1] > history[2]
    assert demo.accuracy(network, digits.test_images, digits.test_labels) > 0.85
    assert {value.dtype for value in network.parameters.values()} == {np.dtype(np.float32)}


def test_training_repeats_bit_for_bit(trained, digits):
    network, history = trained
    for count in (1, 2):
        with threads(count):
            again, same = demo.train(digits, SHORT, seed=0)
        assert same == history
        assert flat(again) == flat(network)
    other, _ = demo.train(digits, 1, seed=1)
    assert flat(other) != flat(demo.train(digits, 1, seed=0)[0])


def test_progress_is_reported(digits):
    seen = []
    few = digits._replace(train_images=digits.train_images[:64], train_labels=digits.train_labels[:64])
    _, history = demo.train(few, 2, seed=0, watch=seen.append)
    assert seen == history


def test_gradients_of_the_trained_network(trained, digits):
    network, _ = trained
    result = demo.check_gradients(network, digits.test_images[:2], digits.test_labels[:2])
    assert result.failures == ()
    assert len(result.max_errors) == 6


def test_the_textbook_agrees(trained, digits):
    network, _ = trained
    images = digits.test_images[:50]
    scores = network.forward(images)
    textbook = demo.textbook_forward(network.parameters, images)
    np.testing.assert_allclose(textbook, scores, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(network.forward(images, "im2col"), scores, rtol=1e-4, atol=1e-4)


def test_shifts_move_by_at_most_a_pixel():
    image = np.zeros((200, 1, 8, 8), np.float32)
    image[:, 0, 4, 4] = 1
    moved = demo.shifted(image, np.random.default_rng(0))
    _, _, rows, columns = moved.nonzero()
    assert len(rows) == 200
    assert set(rows) == set(columns) == {3, 4, 5}


def test_the_picture_is_written(trained, digits, tmp_path):
    path = tmp_path / "picture.png"
    demo.draw(trained[0], digits, path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert path.stat().st_size > 20_000


@pytest.mark.usefixtures("digits")
@pytest.mark.parametrize("extra", EXTRAS)
def test_a_missing_extra_is_one_clear_line(extra, monkeypatch):
    find = importlib.import_module

    def without(name):
        if name.partition(".")[0] == extra:
            raise ImportError(name)
        return find(name)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(SystemExit, match=rf'needs {extra}: pip install "fastconv\[demo\]"$'):
        demo.run()


# The command line


@pytest.mark.usefixtures("digits")
def test_demo_command(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(demo, "best_time", lambda call: 1e-3)
    path = tmp_path / "demo.png"
    options = ["--epochs", "1", "--seed", "3", "--threads", "1", "--output", str(path)]
    assert main(["demo", *options]) == 0
    printed = capsys.readouterr().out
    for words in ("1437 digits", "accuracy", "1 threads", "textbook NumPy", "all right", str(path)):
        assert words in printed
    assert path.exists()


def test_info_command(capsys):
    assert main(["info"]) == 0
    assert capsys.readouterr().out.startswith("fastconv ")


@pytest.mark.usefixtures("isa")
def test_every_gradient():
    table = io.StringIO()
    assert verify.report(table), table.getvalue()


def test_gradcheck_command(capsys):
    assert main(["gradcheck"]) == 0
    printed = capsys.readouterr().out
    assert "FAIL" not in printed
    for operation in (
        "conv2d",
        "max_pool2d",
        "avg_pool2d",
        "linear",
        "relu",
        "softmax",
        "cross_en",
    ):
        assert f"\n{operation}" in printed


def test_gradcheck_command_fails_on_a_wrong_gradient(monkeypatch, capsys):
    monkeypatch.setattr(verify, "relu_backward", lambda grad_output, input: grad_output)
    assert main(["gradcheck"]) == 1
    printed = capsys.readouterr().out
    assert printed.count("FAIL") == 1
    assert "relu, (2, 3, 5): the gradient of inputs[0] is wrong" in printed


@pytest.mark.parametrize("arguments", [[], ["train"], ["demo", "--epochs", "0"], ["info", "more"]])
def test_wrong_commands(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: fastconv" in capsys.readouterr().err


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for option in ("--epochs", "--seed", "--output", "--threads"):
        assert option in printed


def test_python_m_fastconv():
    command = [sys.executable, "-m", "fastconv", "info"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "engine:" in done.stdout
