"""What 'under load' means here: every core kept busy, at normal priority, until the end of a `with` or Ctrl-C.

python -m tools.load            # until Ctrl-C
"""

import contextlib
import os
import subprocess
import sys
import time

# Each burner ends by itself when its parent is gone.
BURN = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(100_000))"


@contextlib.contextmanager
def load(cores: int = os.cpu_count() or 1):
    """Keep so many cores busy."""
    burners = [subprocess.Popen([sys.executable, "-S", "-c", BURN]) for _ in range(cores)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


if __name__ == "__main__":
    with load(), contextlib.suppress(KeyboardInterrupt):
        time.sleep(3600)
