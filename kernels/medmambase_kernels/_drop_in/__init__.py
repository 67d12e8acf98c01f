"""What other people's Mamba code imports, answered by our operators: names, signatures, results."""
