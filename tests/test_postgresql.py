"""The database tests also pass on a PostgreSQL that is started for them."""

import subprocess
import sys
from pathlib import Path

from tests.support.programs import PATIENCE_S, ROOT, environment
from tests.support.servers import postgresql


def test_the_database_tests_pass_on_postgresql(tmp_path: Path):
    with postgresql() as url:
        done = subprocess.run(
            [sys.executable, "manage.py", "test", "--tag", "database"],
            cwd=ROOT,
            env=environment(tmp_path, DATABASE_URL=url),
            capture_output=True,
            text=True,
            timeout=5 * PATIENCE_S,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert " skipped" not in done.stdout.splitlines()[-1]
