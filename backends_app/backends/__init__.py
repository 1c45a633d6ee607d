"""The isolation technologies, each behind the same small interface (`base.Backend`).

To add one: write a class like those in `fake.py` or `isolate/`, name it in ISOLATION_BACKENDS.
"""
