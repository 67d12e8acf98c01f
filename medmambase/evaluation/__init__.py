"""From probabilities to figures, pictures and one page: metrics, figures, explain, report."""
