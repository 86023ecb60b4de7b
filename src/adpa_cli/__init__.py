"""Align small language models by distilling preferences from larger, aligned ones."""

__version__ = "0.1.0"
