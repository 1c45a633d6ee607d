#!/usr/bin/env python
"""Django's command line for the Vulcan site."""

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "vulcan_site.settings")
    try:
        from django.core.management import execute_from_command_line
    except ImportError as error:
        raise ImportError("Django is not installed; run `make test` once.") from error
    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
