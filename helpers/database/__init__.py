"""Real PostgreSQL: `Database` and its two kinds."""

from helpers.database import embedded, external  # noqa: F401 (each kind of database makes itself known)
