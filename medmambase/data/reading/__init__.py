"""From any image file to pixels: one file a family of formats."""
