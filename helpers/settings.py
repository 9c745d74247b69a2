"""The course's own variables, COURSE_*: the one place that reads them, and the one that says what they mean.

A workplace's variables, such as KAFKA_BOOTSTRAP_SERVERS or DATABASE_URL, are never read. `python -m tools.docs` makes
README's table from `VARIABLES`.
"""

import os
from pathlib import Path

from helpers import paths

#: (names, meaning), in the order of README's table.
VARIABLES = [
    (("COURSE_BOOTSTRAP_SERVERS",), "addresses of the cluster, e.g. `kafka.example:9093`"),
    (
        (
            "COURSE_SECURITY_PROTOCOL", "COURSE_SASL_MECHANISM", "COURSE_SASL_USERNAME", "COURSE_SASL_PASSWORD",
            "COURSE_SSL_CA_FILE",
        ),
        "how to get in",
    ),
    (
        ("COURSE_SSL_CERT_FILE", "COURSE_SSL_KEY_FILE", "COURSE_SSL_KEY_PASSWORD"),
        "your own certificate, where the cluster asks for one (mTLS), in PEM; the key may be in the same file",
    ),
    (
        ("COURSE_SASL_TOKEN_URL", "COURSE_SASL_TOKEN_SCOPE"),
        "for OAUTHBEARER: where tokens come from; user name and password are the client's id and secret",
    ),
    (("COURSE_TOPIC_PREFIX",), "your own corner of a shared cluster, e.g. `ann.`"),
    (
        ("COURSE_BOARD_TOPIC",),
        "in class: the topic from which the teacher's board learns whether an answer is right; without it nothing is "
        "sent",
    ),
    (("COURSE_DATABASE_URL",), "a PostgreSQL, e.g. `postgresql+psycopg://user:password@host/database`"),
    (("COURSE_WORK_DIR",), "your folder, with your copies of the lessons and your progress; `work` without it"),
    (("COURSE_CACHE_DIR",), "where the jars and the AOT cache lie"),
    (
        ("COURSE_MAVEN_MIRROR",),
        "where the jars come from, if not from Maven Central; `HTTPS_PROXY` and `REQUESTS_CA_BUNDLE` work too",
    ),
    (("COURSE_PICTURES",), "`text` shows each picture as text, for screen readers and terminals"),
    (("COURSE_KEEP_LOGS",), "a folder that gets the logs of brokers, databases and workers when they end"),
]  # fmt: skip


def value(name: str, strip: bool = True) -> str:
    """Return what a variable holds; empty where it is not set.

    Args:
        name: one of the names in `VARIABLES`.
        strip: without white space around it; a password may begin or end with some.

    Raises:
        KeyError: the course has no such variable.
    """
    if not any(name in names for names, _ in VARIABLES):
        raise KeyError(name)
    found = os.environ.get(name, "")
    return found.strip() if strip else found


def bootstrap_servers() -> str:
    """Return the addresses of the external cluster; empty for an embedded one."""
    return value("COURSE_BOOTSTRAP_SERVERS")


def work_folder() -> Path:
    """Return the folder of the learner's own lessons."""
    return Path(value("COURSE_WORK_DIR") or paths.WORK)


def note(name: str, text: str) -> None:
    """Add a line to a file in the folder of COURSE_KEEP_LOGS, for whoever runs the lessons; nothing without one."""
    if folder := value("COURSE_KEEP_LOGS"):
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a") as file:
            file.write(f"{text}\n")
