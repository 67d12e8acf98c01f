"""The table of a comparison: several networks, several seeds of each, on the same images."""
