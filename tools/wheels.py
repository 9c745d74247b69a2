"""Maintainer's command: has every pinned package a wheel for each Python and platform of the CI workflow?

For the first patch release of each Python: a user may have no newer one.

python -m tools.wheels                 # download them all, and say where one is missing
python -m tools.wheels --dry-run       # ask only

Each set is downloaded and unpacked into a throw-away folder, never run. uv, unlike pip,
reads the markers of requirements.txt (`; sys_platform == "darwin"`) for the platform that is asked about, not for this
one. It asks about the first patch release of each Python, such as 3.11.0. Debian 12 has Python 3.11.2, and some
packages need a later patch release.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import yaml

from helpers.paths import COURSE

PLATFORMS = {  # runner: what uv calls its platform
    "ubuntu-latest": "x86_64-manylinux_2_28",
    "ubuntu-24.04-arm": "aarch64-manylinux_2_28",
    "macos-latest": "aarch64-apple-darwin",
    "macos-15-intel": "x86_64-apple-darwin",
}


def pythons() -> list[str]:
    """The Python versions of the workflow's matrix."""
    workflow = yaml.safe_load((COURSE / ".github" / "workflows" / "lessons.yml").read_text())
    return workflow["jobs"]["lessons"]["strategy"]["matrix"]["python"]


@click.command()
@click.option("--dry-run", is_flag=True, help="Resolve only; nothing is downloaded but metadata.")
def main(dry_run: bool) -> None:
    """Try every combination; exit status 1 when a runner of the workflow lacks a wheel."""
    pins = [line for line in (COURSE / "requirements.txt").read_text().splitlines() if not line.startswith("-e")]
    bad = False
    with tempfile.TemporaryDirectory() as folder:
        (requirements := Path(folder, "requirements.txt")).write_text("\n".join(pins))
        for runner, platform in PLATFORMS.items():
            for version in pythons():
                done = subprocess.run(
                    [sys.executable, "-m", "uv", "pip", "install", "--only-binary", ":all:",
                     "--python-platform", platform,
                     "--python-version", f"{version}.0", "--no-compile-bytecode",
                     "--target", Path(folder, "packages"), "-r", requirements, *(["--dry-run"] if dry_run else [])],
                    capture_output=True, text=True, env=dict(os.environ, UV_CACHE_DIR=str(Path(folder, "cache"))),
                )  # fmt: skip
                subprocess.run(["rm", "-rf", Path(folder, "packages")], check=True)
                if done.returncode:
                    why = next((line for line in done.stderr.splitlines() if "wheels" in line), done.stderr)
                    click.echo(f"{runner:17} {version}  MISSING: {' '.join(why.split())}")
                    bad |= runner in ("ubuntu-latest", "macos-latest")
                else:
                    click.echo(f"{runner:17} {version}  all wheels there")
    sys.exit(bad)


if __name__ == "__main__":
    main()
