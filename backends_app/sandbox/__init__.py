"""Processes inside sandbox layers of the operating system, independent of the programs they run.

`client` is the server's side. It starts `launcher`, a separate small process, which starts every
workload's process inside the layers of `walls` and enforces its time and memory limits.
"""
