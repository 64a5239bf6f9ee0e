"""One slide, stage by stage: tissue, tiles, the one pass over its pixels, what is published."""
