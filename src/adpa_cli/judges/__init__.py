"""Judges: models behind an OpenAI-compatible endpoint that say which of two answers is better, or how good one is."""
