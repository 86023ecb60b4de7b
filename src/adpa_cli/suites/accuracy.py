"""`accuracy`: reward accuracy on held-out pairs, and nothing else."""

from __future__ import annotations

from adpa_cli.suites import Suite

SUITE = Suite("accuracy", 1)
