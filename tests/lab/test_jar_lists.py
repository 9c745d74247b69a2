"""The lists of jars are Maven's own answer. Needs Maven, and the network."""

import shutil

import pytest

from helpers.kafka.cache import jar_list
from tools.make_jar_lists import lists, resolve

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not shutil.which("mvn"), reason="Maven (mvn) is not installed"),
]


@pytest.mark.parametrize("name", lists())
def test_list_is_what_maven_resolves(name):
    listed = [(jar.sha256, jar.path, jar.size) for jar in jar_list(name)]
    assert sorted(listed) == sorted(resolve(lists()[name]))
