"""Benchmarks of fastconv against every installed peer.

shapes/*.txt     layers of known networks, one a line     shapes.py      reads them
suites.py        THE table of suites: which layers are compared together
peers/           THE table of peers, and one small adapter for each
worker.py        one process for each peer: prepares, verifies and times a case
runner.py        asks the workers in turn, round after round
machine.py       the CPU, its FMA peak and its copy bandwidth
results.py       the JSON files under results/
comparisons.py   which peer is held against which fastconv call; ratios and summaries
tables.py        Markdown tables       pictures.py    roofline and ratios
report.py        puts both into docs/  cli.py         python -m bench compare | quick | report
bench_*.py       pytest-benchmark timings of fastconv alone
"""
