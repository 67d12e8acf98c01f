"""What a Mamba block has besides its scan, and the block itself."""
