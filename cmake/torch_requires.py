"""Ask the build environment for torch only when the target environment has none that fits.

Under pip's isolation the target's site-packages stays visible through ``sysconfig``, so a plain ``pip install .``
compiles against exactly the torch that is already there. Only where there is none does this provider return the
runtime requirement of pyproject.toml as a build requirement.
"""

import re
import sys
import sysconfig
from pathlib import Path

from packaging.requirements import Requirement


def dynamic_metadata(settings, project):
    return {}


def get_requires_for_dynamic_metadata(settings):
    pyproject = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    required = Requirement(re.search(r'"(torch[^"]*)"', pyproject).group(1))
    for key in ("purelib", "platlib"):
        found = Path(sysconfig.get_path(key)) / "torch" / "version.py"
        if found.is_file():
            version = re.search(r"__version__\s*=\s*'([^']+)'", found.read_text(encoding="utf-8")).group(1)
            fits = required.specifier.contains(version, prereleases=True)
            print(
                f"minidl: torch {version} is installed: {'using it' if fits else f'outside {required}'}",
                file=sys.stderr,
            )
            if fits:
                return []
    print(f"minidl: no fitting torch installed, asking for {required}", file=sys.stderr)
    return [str(required)]
