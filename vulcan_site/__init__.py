"""The Django project that serves `backends_app`."""
