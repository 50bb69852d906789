"""The command line: `python -m fastconv demo`, `info` or `gradcheck`; `fastconv` once installed."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence

from fastconv.config import show_config
from fastconv.threads import threads


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastconv",
        description="Fast convolution, pooling and their gradients for NumPy arrays on the CPU.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("info", help="versions, engines, CPU, threads: for bug reports")
    commands.add_parser(
        "gradcheck",
        help="check every gradient against finite differences",
        description="Checks every gradient against finite differences in float64 and prints a "
        "table. The exit status is 1 if one is wrong.",
    )
    demo = commands.add_parser(
        "demo",
        help="train a small CNN on handwritten digits",
        description="Trains a small CNN on scikit-learn's handwritten digits, times it against "
        "textbook NumPy, checks its gradients and draws what it learned. "
        'Needs pip install "fastconv[demo]".',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--epochs", type=_at_least_one, default=40, help="passes over the digits")
    demo.add_argument("--seed", type=int, default=0, help="of the split, the weights, the order")
    demo.add_argument("--output", default="fastconv-demo.png", help="where the picture goes")
    demo.add_argument("--threads", type=_at_least_one, help="how many; all that are allowed if not given")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status.

    Parameters
    ----------
    arguments : sequence of str, optional
        ``sys.argv[1:]`` by default.
    """
    options = _parser().parse_args(arguments)
    if options.command == "info":
        show_config()
        return 0
    if options.command == "gradcheck":
        from fastconv.verify import report

        return 0 if report() else 1
    from fastconv.demo import run

    with threads(options.threads) if options.threads else contextlib.nullcontext():
        run(options.epochs, options.seed, options.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
