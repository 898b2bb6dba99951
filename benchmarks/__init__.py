"""minidl against torch on this machine: verify, then time.

`python -m benchmarks --help` from the repository, `minidl bench --help` from an installed package.
One file a stem (`bench_<stem>.py`) describes the cases; `harness` checks and times them, `ceiling` measures
what the machine could do at best, `report` and `plot` turn the CSVs into a table, pictures and the README's section.
`ladder/` is for learning: one matrix product, an idea a file.
"""
