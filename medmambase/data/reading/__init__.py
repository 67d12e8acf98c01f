"""Read any image file into pixels: one module for each family of formats."""
