"""The isolation technologies, each behind the same small interface (`base.Backend`).

To add one, write a class like those in `fake.py` or `isolate/` and list it in ISOLATION_BACKENDS.
"""
