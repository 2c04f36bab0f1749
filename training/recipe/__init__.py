"""Marigold's training recipe, one part of it a module; `python -m training.marigold` is its command."""
