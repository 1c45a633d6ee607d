"""Helpers that tests share: programs, servers, workloads, hostile requests, and their needs."""
