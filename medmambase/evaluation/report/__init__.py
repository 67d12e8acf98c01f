"""What a run says of itself: figures, tables, checklist, model card, and the page that holds
them."""
