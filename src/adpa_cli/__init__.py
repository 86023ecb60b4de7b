"""Align small language models by distilling preferences from larger, aligned ones."""

from __future__ import annotations

__version__ = "0.2.0"
