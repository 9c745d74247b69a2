"""Compile the class's guard, `classroom/guard/Guard.java`, into `guard.jar`: python -m tools.make_guard

Needs a JDK (17 or newer) on the PATH; who runs the course needs none. The jar holds the hash of its source, which a
test compares.
"""

import hashlib
import subprocess
import tempfile
import zipfile
from pathlib import Path

from helpers import paths
from helpers.kafka import cache
from helpers.kafka.embedded import prepare_cache

SOURCE = paths.COURSE / "classroom" / "guard" / "Guard.java"
JAR = SOURCE.with_name("guard.jar")


def source_hash() -> str:
    """What the jar is made from."""
    return hashlib.sha256(SOURCE.read_bytes()).hexdigest()


def main() -> None:
    """Compile and pack; the same source gives the same bytes with the same compiler."""
    prepare_cache()
    with tempfile.TemporaryDirectory() as folder:
        command = ["javac", "--release", "17", "-g:none", "-cp", cache.class_path(), "-d", folder, str(SOURCE)]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(JAR, "w", zipfile.ZIP_DEFLATED) as jar:
            for path in sorted(Path(folder).rglob("*.class")):
                name = path.relative_to(folder).as_posix()
                jar.writestr(zipfile.ZipInfo(name), path.read_bytes(), zipfile.ZIP_DEFLATED)
            jar.writestr(zipfile.ZipInfo("source.sha256"), source_hash())
    print(f"{JAR}: {JAR.stat().st_size} bytes")


if __name__ == "__main__":
    main()
