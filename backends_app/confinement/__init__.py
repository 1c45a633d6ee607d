"""Processes behind walls of the operating system; nothing here knows Django, or what they run.

`client` is the server's side. It starts `launcher`, a small process of its own, which starts every
workload's process behind the `walls` and watches over its time and memory.
"""
