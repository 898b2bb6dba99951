"""A row of a benchmark as it could have been measured."""

from dataclasses import replace
from typing import Any

from minidl.benchmarks.harness import Environment, Row

HERE = Environment("a processor", "SCALAR", "2.0", "2001-02-03")


def row(**values: Any) -> Row:
    timed = {"ours_us": 10.0, "ours_p20": 9.0, "ours_p80": 12.0}
    timed |= {"rival_us": 15.0, "rival_p20": 14.0, "rival_p80": 17.0}
    timed |= {
        "rate": 12.5,
        "share": 0.75,
        "ratio": 1.5,
        "ratio_p20": 1.4,
        "ratio_p80": 1.6,
        "ours_error": 1e-7,
        "rival_error": 2e-7,
    }
    start = Row("fake", "relu", "4x2->4", "forward", 1, "torch", **HERE._asdict())
    return replace(start, **(timed | values))
