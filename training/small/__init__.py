"""A Marigold of a few million parameters, trained from nothing on procedural scenes: to show that the recipe learns."""
