"""The lessons as tests see them; the same as `tools.lessons`, under the name that programs outside the project use."""

from tools.lessons import *  # noqa: F403
