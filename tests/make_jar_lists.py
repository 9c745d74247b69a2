"""Maintainer's script: make helpers/kafka_jars.txt and helpers/streams_jars.txt from Maven's own answer.

    python tests/make_jar_lists.py            # writes both lists
Needs Maven (`mvn`) on the PATH. `tests/test_jar_lists.py` holds the lists against the same answer.
"""

import hashlib
import subprocess
import tempfile
from pathlib import Path

from helpers.store import KAFKA_VERSION

SLF4J_SIMPLE = "org.slf4j:slf4j-simple:1.7.36"  # Kafka 4.3 uses slf4j 1.7; without a binding there is no log
LISTS = {
    "kafka_jars.txt": [f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}", SLF4J_SIMPLE],
    "streams_jars.txt": [f"org.apache.kafka:kafka-streams-test-utils:{KAFKA_VERSION}", SLF4J_SIMPLE],
}


def resolve(roots: list[str]) -> list[tuple[str, str, int]]:
    """What Maven resolves the roots to: (sha256, path in the repository, size), sorted by path."""
    with tempfile.TemporaryDirectory() as folder:
        dependencies = "".join(
            "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>".format(
                *root.split(":")
            )
            for root in roots
        )
        pom = Path(folder, "pom.xml")
        pom.write_text(
            "<project><modelVersion>4.0.0</modelVersion><groupId>course</groupId><artifactId>jars</artifactId>"
            f"<version>1</version><dependencies>{dependencies}</dependencies></project>"
        )
        subprocess.run(
            ["mvn", "-q", "-B", "-f", pom, "dependency:copy-dependencies", "-DincludeScope=runtime",
             "-Dmdep.useRepositoryLayout=true", "-DoutputDirectory=jars"],
            check=True, cwd=folder,
        )  # fmt: skip
        root = Path(folder, "jars")
        jars = sorted(root.rglob("*.jar"))
        return [
            (hashlib.sha256(j.read_bytes()).hexdigest(), j.relative_to(root).as_posix(), j.stat().st_size) for j in jars
        ]


def main() -> None:
    """Write the lists."""
    for name, roots in LISTS.items():
        lines = [f"# {' + '.join(roots)} and what they need, by tests/make_jar_lists.py: sha256, bytes, path"]
        lines += [f"{sha256} {size} {path}" for sha256, path, size in resolve(roots)]
        Path(__file__).parents[1].joinpath("helpers", name).write_text("\n".join(lines) + "\n")
        print(f"{name}: {len(lines) - 1} jars")


if __name__ == "__main__":
    main()
