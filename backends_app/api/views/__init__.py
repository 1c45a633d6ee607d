"""The views of the API: one module per resource.

Every view takes its registry as an argument of `as_view`, so that a test or another project can
pass its own.
"""
