"""Decoded images, held in memory, on disk, or read again whenever they are used."""
