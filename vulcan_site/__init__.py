"""The Django project that serves the backends_app."""
