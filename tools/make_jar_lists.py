"""Maintainer's script: make the jar lists in helpers/kafka/ from Maven's own answer.

    python -m tools.make_jar_lists            # writes both lists
    python -m tools.make_jar_lists --newest   # of the newest Kafka there is, and makes it the course's

Needs Maven (`mvn`) on the PATH. `tests/test_jar_lists.py` holds the lists against the same answer.
"""

import hashlib
import re
import subprocess
import tempfile
from pathlib import Path

import click
import requests

from helpers.kafka.cache import KAFKA_VERSION
from helpers.kafka.download import mirror
from helpers.paths import COURSE

JOSE4J = "org.bitbucket.b_c:jose4j:0.9.6"  # Kafka's clients need it where a company lets programs in by OAUTHBEARER
SLF4J_SIMPLE = "org.slf4j:slf4j-simple:1.7.36"  # Kafka 4.4 uses slf4j 1.7; without a binding there is no log
HELPERS = COURSE / "helpers" / "kafka"


def lists(kafka: str = KAFKA_VERSION) -> dict[str, list[str]]:
    """The lists of a version of Kafka, and the roots of each."""
    return {
        "kafka_jars.txt": [f"org.apache.kafka:kafka_2.13:{kafka}", SLF4J_SIMPLE],
        "streams_jars.txt": [f"org.apache.kafka:kafka-streams-test-utils:{kafka}", JOSE4J, SLF4J_SIMPLE],
        "tools_jars.txt": [f"org.apache.kafka:kafka-tools:{kafka}", SLF4J_SIMPLE],
    }


def newest() -> str:
    """The newest released version of Kafka."""
    answer = requests.get(f"{mirror()}org/apache/kafka/kafka_2.13/maven-metadata.xml", timeout=30)
    answer.raise_for_status()
    return max(
        re.findall(r"<version>([\d.]+)</version>", answer.text), key=lambda version: [*map(int, version.split("."))]
    )


def copy_jars(roots: list[str], folder: Path) -> Path:
    """Let Maven resolve the roots (group:artifact:version); returns where below `folder` the jars are."""
    dependencies = "".join(
        "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>".format(
            *root.split(":")
        )
        for root in roots
    )
    pom = folder / "pom.xml"
    pom.write_text(
        "<project><modelVersion>4.0.0</modelVersion><groupId>course</groupId><artifactId>jars</artifactId>"
        f"<version>1</version><dependencies>{dependencies}</dependencies></project>"
    )
    subprocess.run(
        ["mvn", "-q", "-B", "-Dstyle.color=never", "-f", pom, "dependency:copy-dependencies", "-DincludeScope=runtime",
         "-Dmdep.useRepositoryLayout=true", "-DoutputDirectory=jars"],
        check=True, cwd=folder,
    )  # fmt: skip
    return folder / "jars"


def resolve(roots: list[str]) -> list[tuple[str, str, int]]:
    """What Maven resolves the roots to: (sha256, path in the repository, size), sorted by path."""
    with tempfile.TemporaryDirectory() as folder:
        root = copy_jars(roots, Path(folder))
        jars = sorted(root.rglob("*.jar"))
        return [
            (hashlib.sha256(j.read_bytes()).hexdigest(), j.relative_to(root).as_posix(), j.stat().st_size) for j in jars
        ]


@click.command()
@click.option("--newest", "take_newest", is_flag=True, help="Take the newest Kafka, and write its version too.")
def main(take_newest: bool) -> None:
    """Write the lists."""
    kafka = newest() if take_newest else KAFKA_VERSION
    for name, roots in lists(kafka).items():
        lines = [f"# {' + '.join(roots)} and what they need, by tools/make_jar_lists.py: sha256, bytes, path"]
        lines += [f"{sha256} {size} {path}" for sha256, path, size in resolve(roots)]
        (HELPERS / name).write_text("\n".join(lines) + "\n")
        print(f"{name}: Kafka {kafka}, {len(lines) - 1} jars")
    module = HELPERS / "cache.py"
    module.write_text(module.read_text().replace(f'KAFKA_VERSION = "{KAFKA_VERSION}"', f'KAFKA_VERSION = "{kafka}"'))


if __name__ == "__main__":
    main()
