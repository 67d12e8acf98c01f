"""Which parts of an image decided: maps, whether they can be believed, and the files that show
them."""
