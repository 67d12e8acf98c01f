"""Report a run: figures, tables, checklist, model card, and the page that holds them."""
