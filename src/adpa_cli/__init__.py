"""Align small language models by distilling preferences from larger, aligned ones."""

__version__ = "0.2.0"
